"""Views by budget: the solved strength against the truth, and budgets in a T_z."""

from __future__ import annotations

import json
import math

import pytest

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import write_json
from mi_ml_gen.experiments.settings import ViewGenerationConfig
from mi_ml_gen.experiments.view_grids import generate_views
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.budget import Solved, budgets, resolved, solve, solved
from mi_ml_gen.walkers.noise import RandomWalker
from mi_ml_gen.walkers.spec import walker_from

NORMAL = TruncatedNormal(0.0, 1.0, math.inf)


@pytest.mark.parametrize(("chunks", "nats"), [("0_3", 3.0), ("1_3", 3.5)])
def test_the_pair_shares_the_budget_within_a_tenth(chunks, nats):
    generator = LinearGaussian((2, 1, 1), noise=0.2, resolution=4)
    chunks = Chunks.of(chunks)
    found = solve(generator, chunks, nats, NORMAL, walker_of=lambda std: RandomWalker(chunks, [0.0, std, math.inf]))
    true = generator.mutual_information(GaussianPerturbation(std=found.strength), chunks)
    assert true == pytest.approx(nats, rel=0.1)
    assert found.achieved.nats == pytest.approx(nats, rel=0.1) and found.achieved.low_nats <= true


def test_what_cannot_be_reached_is_said():
    generator = LinearGaussian((2, 2), noise=0.3, resolution=4)
    with pytest.raises(UsageError, match="noise leaves between"):
        solve(generator, Chunks(0, 1), 0.5, NORMAL)  # chunk 1 alone shares more
    for nats in (0.0, -1.0, 40.0):
        with pytest.raises(UsageError, match="must be above 0 and at most"):
            solve(generator, Chunks(0, 1), nats, NORMAL)


def test_budgets_of_a_tz():
    assert budgets("0_1=budget:3.0 1_2=0.5") == {"0_1": 3.0}
    assert budgets({"0_1": "budget:2", "1_2": [0, 1, 2]}) == {"0_1": 2.0}
    assert budgets("runs/walker") == {} and budgets(None) == {}
    with pytest.raises(UsageError, match="write a number of nats"):
        budgets("0_1=budget:much")


def test_a_budget_becomes_noise_and_is_not_solved_twice(tmp_path, monkeypatch):
    generator = LinearGaussian((2, 2), noise=0.3, resolution=4)
    asked = []

    def fake(generator, chunks, nats, noise, seed):
        asked.append((str(chunks), nats, seed))
        unknown = Estimate(nats, nats, math.inf, 1, "test", "", Verdict.CONSISTENT, "")
        return Solved(chunks, nats, 0.25, unknown)

    monkeypatch.setattr(budget, "solve", fake)
    written = "0_1=budget:3.0 1_2=0.5"
    with pytest.raises(UsageError, match="a budget is solved by"):
        walker_from(written, generator)
    walker = walker_from(resolved(written, generator, NORMAL, 7, tmp_path), generator)
    assert [member.distribution.std for member in walker.members] == [0.25, 0.5] and asked == [("0_1", 3.0, 7)]
    (found,) = solved(walker)
    assert found["strength"] == 0.25 and found["achieved"]["verdict"] == "consistent"

    (tmp_path / "budget.json").write_text(json.dumps([found]))
    again = walker_from(resolved(written, generator, NORMAL, 7, tmp_path), generator)
    assert solved(again) == [found] and len(asked) == 1
    resolved("0_1=budget:2.0", generator, NORMAL, 7, tmp_path)
    assert len(asked) == 2  # another budget is another question
    assert resolved("0_1=0.5", generator, NORMAL, 7, tmp_path) == "0_1=0.5"
    assert solved(walker_from("0_1=0.5", generator)) == []
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        resolved(written, generator, NORMAL, 7, tmp_path)


def test_a_budget_in_pictures_of_views(tmp_path, monkeypatch):
    """What was solved is recorded beside the pictures, and used for them again."""
    monkeypatch.setattr(budget, "N_PAIRS", 256)
    monkeypatch.setattr(budget, "MOST_NATS", 2.0)
    settings = ViewGenerationConfig(generator="linear-gaussian", Tz="0_4=budget:1.0", n_images=1, augmentations=1)
    paths = generate_views(settings, tmp_path)
    record = json.loads((tmp_path / "budget.json").read_text())
    assert tmp_path / "budget.json" in paths
    assert record[0]["chunks"] == "0_4" and record[0]["achieved"]["nats"] == pytest.approx(1.0, abs=0.5)
    record[0]["strength"] = 9.0
    write_json(tmp_path / "budget.json", record)
    generate_views(settings, tmp_path)
    assert json.loads((tmp_path / "budget.json").read_text())[0]["strength"] == 9.0
