"""Whether positives look like anchors: against the truth, and in what a run says of its bound."""

from __future__ import annotations

import json
import math

import pytest

from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.information import gaussian
from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.navigator import folders, marginals
from mi_ml_gen.navigator.marginals import marginal_divergence, n_compared
from mi_ml_gen.navigator.selection import NOT_CHECKED, bound_finding, recorded_marginals, report
from mi_ml_gen.walkers.noise import RandomWalker
from tests.navigator.test_training import train

NORMAL = TruncatedNormal(truncation=math.inf)


@pytest.mark.parametrize("std", [0.0, 1.58, 3.37])
def test_noise_that_is_added_widens_the_positives(std):
    """The rows of docs/information.md with 2 and 0.5 nats, whose divergence is 0.52 and 0.69 nats, and no noise."""
    generator = LinearGaussian((3, 3, 3, 3), noise=0.1, resolution=4).freeze()
    walker = RandomWalker("0_4", [0.0, std, math.inf])
    found = marginal_divergence(generator, walker, NORMAL, 3000)
    truth = gaussian.marginal_divergence(generator.joint(GaussianPerturbation(std=std))).nats
    assert found.nats == pytest.approx(truth, abs=0.05) and found.nats <= truth + 4 * found.standard_error_nats
    assert found == marginal_divergence(generator, walker, NORMAL, 3000)


def test_what_is_said_of_a_bound():
    def finding(*marginals, **how):
        return bound_finding(2.0, 4.84, True, "", marginals=MonteCarloMean(*marginals) if marginals else None, **how)

    assert finding(0.3, 0.01).verdict is Verdict.MARGINALS_DIFFER and "0.30 nats" in finding(0.3, 0.01).reason
    for unseen in (finding(0.05, 0.01), finding(0.3, 0.2)):  # little, or noise
        assert unseen.verdict is Verdict.CONSISTENT and NOT_CHECKED not in unseen.reason
    assert finding().verdict is Verdict.CONSISTENT and NOT_CHECKED in finding().reason
    assert NOT_CHECKED not in finding(from_both_sides=False).reason
    assert bound_finding(4.8, 4.84, False, "", marginals=MonteCarloMean(0.6, 0.01)).verdict is not Verdict.CONSISTENT


def test_runs_compare_what_they_can_afford():
    assert n_compared(192) is None and n_compared(12_288) == 2048 and n_compared(1_024_000) == marginals.MOST


def test_a_run_says_whether_its_positives_look_like_anchors(tmp_path, monkeypatch):
    """In summary.json, in the last lines and in Table 1; and that it was not checked where the run is too short."""
    monkeypatch.setattr(marginals, "FEWEST", 32)
    seen = []

    def divergence(*arguments):
        seen.append(arguments)
        return MonteCarloMean(0.6, 0.01)

    monkeypatch.setattr(marginals, "divergence", divergence)
    long = train(tmp_path / "long", num_samples=192)
    summary = json.loads((long.path / "summary.json").read_text())
    assert len(seen) == 1 and recorded_marginals(summary) == (0.6, 0.01)
    assert NOT_CHECKED not in summary["bound_verdict_because"]
    assert any("not converged" in line or "marginals differ" in line for line in report(summary))
    (row,) = folders.find_walkers(tmp_path)
    assert row.bound is not None and row.bound.reason == summary["bound_verdict_because"]
    assert "up to 0.60 nats" in row.bound.reason
    train(tmp_path / "short", num_samples=96)
    assert NOT_CHECKED in json.loads((tmp_path / "short" / "summary.json").read_text())["bound_verdict_because"]
