"""Fresh critics against pairs of images whose information is known."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.information.estimate import Verdict
from mi_ml_gen.information.image_critic import (
    CriticSettings,
    PairCritic,
    cross_side_bound,
    measure_pairs,
    measure_together,
)
from mi_ml_gen.information.infonce import cross_side_cross_entropy

SMALL = CriticSettings(width=8, reuse=1, batch_size=256, max_steps=120, heldout_pairs=512, eval_pairs=2048)
GENERATOR = LinearGaussian((3, 3, 3, 3), resolution=8)


def source(kind, nats):
    perturbation = getattr(GENERATOR, f"{kind}_perturbation")(nats)
    return lambda n, rng: tuple(GENERATOR.draw_pair(n, perturbation, rng=rng))


@pytest.fixture(scope="module")
def together():
    """Three sources and one critic. At half a nat, added noise gives marginals that differ by 0.687 nats."""
    draws = {1.0: source("stationary", 1.0), 3.0: source("stationary", 3.0), 0.5: source("additive", 0.5)}
    return measure_together(draws, resolution=8, settings=SMALL)


def test_the_truth_is_nearly_reached_and_never_passed(together):
    for nats, estimate in together.estimates.items():
        assert estimate.low_nats <= nats, str(estimate)
        assert estimate.nats <= nats + 2.6 * estimate.details["standard_error_nats"], str(estimate)
        assert estimate.nats >= 0.9 * nats - 2 * estimate.details["standard_error_nats"], str(estimate)
        assert estimate.verdict in (Verdict.CONSISTENT, Verdict.NOT_CONVERGED), estimate.reason
        assert estimate.is_lower_bound and estimate.n >= 2048


def test_more_information_takes_more_candidates():
    """They are doubled, and the ceiling grows with them, until the bound is 2 nats below it or no more are allowed."""
    settings = CriticSettings(**vars(SMALL) | {"eval_pairs": 512, "max_eval_pairs": 2048})
    estimate = measure_pairs(source("stationary", 5.5), resolution=8, settings=settings, seed=1).estimate
    assert estimate.details["candidates"] == estimate.n > 512
    assert estimate.details["ceiling_nats"] == pytest.approx(math.log(estimate.n))
    assert 0.8 * 5.5 < estimate.nats <= 5.5 + 2.6 * estimate.details["standard_error_nats"]


def test_a_warm_critic_needs_fewer_steps(together):
    settings = CriticSettings(**vars(SMALL) | {"first_check": 20})
    estimate = measure_pairs(source("stationary", 2.0), resolution=8, settings=settings, warm=together.critic).estimate
    course = estimate.details["course"]
    assert course[0]["nats"] > 1.2 and 1.75 < estimate.nats < 2.15
    with pytest.raises(UsageError, match="width 8 and 64 points; needed are 8, 16 and 64"):
        measure_pairs(source("stationary", 2.0), resolution=8, settings=CriticSettings(width=16), warm=together.critic)


def test_verdicts_of_measurements_that_were_cut_short():
    tiny = dict(width=4, batch_size=64, heldout_pairs=128, eval_pairs=128, max_eval_pairs=128)
    brief = measure_pairs(source("stationary", 3.0), resolution=8, settings=CriticSettings(**tiny, max_steps=12))
    assert (
        brief.estimate.verdict is Verdict.NOT_CONVERGED and "before convergence could be seen" in brief.estimate.reason
    )
    much = measure_pairs(
        lambda n, rng: (torch.rand(n, 3, 8, 8, generator=rng),) * 2, resolution=8,
        settings=CriticSettings(**tiny, max_steps=200),
    )  # fmt: skip
    assert much.estimate.verdict is Verdict.SATURATED and "of the ceiling, 4.85" in much.estimate.reason


def test_the_same_call_gives_the_same_number():
    settings = CriticSettings(width=4, batch_size=32, max_steps=5, heldout_pairs=32, eval_pairs=64, critics=2)
    torch.manual_seed(3)
    first = measure_pairs(source("stationary", 2.0), resolution=8, settings=settings, seed=5).estimate
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))  # nothing of the global stream was used
    again = measure_pairs(source("stationary", 2.0), resolution=8, settings=settings, seed=5).estimate
    other = measure_pairs(source("stationary", 2.0), resolution=8, settings=settings, seed=6).estimate
    assert first == again and first.nats != other.nats
    assert first.low_nats <= min(first.details["other_critics_nats"])


def test_the_bound_and_its_error():
    """A slow twin of the table, and the spread of many tables beside the error that one of them states."""
    g = torch.Generator().manual_seed(0)

    def points(n):
        a = 0.7 * torch.randn(n, 6, generator=g)
        return a, 0.8 * a + 0.4 * torch.randn(n, 6, generator=g)

    a, b = points(50)
    expected = math.log(50) - cross_side_cross_entropy(a.double() @ b.double().T)
    bound = cross_side_bound(a.double(), b.double(), rows=7)
    assert bound.nats == pytest.approx(expected.item(), abs=1e-9)
    bounds = [cross_side_bound(*points(200)) for _ in range(200)]
    found = torch.tensor([each.nats for each in bounds]).std().item()
    stated = sum(each.standard_error_nats for each in bounds) / len(bounds)
    assert stated == pytest.approx(found, rel=0.2)


def test_images_of_another_shape_are_refused():
    with pytest.raises(UsageError, match=r"gave images of shape \(512, 3, 8, 8\), not \(512, 3, 16, 16\)"):
        measure_pairs(source("stationary", 1.0), resolution=16, settings=SMALL)
    with pytest.raises(UsageError, match="batch_size 1 of a fresh critic"):
        CriticSettings(batch_size=1)
    assert PairCritic(20, 4, 8)(torch.rand(2, 3, 20, 20), torch.rand(3, 3, 20, 20))[1].shape == (3, 10)
