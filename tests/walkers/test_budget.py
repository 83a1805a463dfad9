"""Views by budget: the solved strength against the truth, and budgets in a T_z."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import write_json
from mi_ml_gen.experiments.explorer import learned_walkers
from mi_ml_gen.experiments.settings import ViewGenerationConfig
from mi_ml_gen.experiments.view_grids import generate_views
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.budget import Solved, budgets, resolved, solve, solved
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import RandomWalker
from mi_ml_gen.walkers.registry import build_walker
from mi_ml_gen.walkers.scaled import ScaledWalker
from mi_ml_gen.walkers.spec import walker_from
from tests.scripts.test_scripts import call

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
    with pytest.raises(UsageError, match=r"leaves about 6\.\d\d nats or more, beyond all budgets; choose other"):
        solve(LinearGaussian((3, 9), noise=0.001, resolution=4), Chunks(0, 1), 3.0, NORMAL)
    for nats in (0.0, -1.0, 40.0):
        with pytest.raises(UsageError, match="must be above 0 and at most"):
            solve(generator, Chunks(0, 1), nats, NORMAL)


def test_a_check_that_misses_the_budget_is_said():
    def achieved(nats, low):
        return Estimate(nats, low, math.inf, 2048, "canonical critic", "", Verdict.CONSISTENT, "")

    assert budget.miss(3.0, achieved(3.2, 3.1)) is None and budget.miss(3.0, achieved(2.8, 2.7)) is None
    assert "3.60 nats, more than asked" in budget.miss(3.0, achieved(3.6, 3.5))
    assert "2.40 nats, less than asked" in budget.miss(3.0, achieved(2.4, 2.3))
    assert budget.miss(0.1, achieved(0.13, 0.10)) is None  # within the noise


def test_budgets_of_a_tz():
    assert budgets("0_1=budget:3.0 1_2=0.5") == {"0_1": (3.0, "noise")}
    assert budgets({"0_1": "budget:2", "1_2": [0, 1, 2]}) == {"0_1": (2.0, "noise")}
    assert budgets("0_1=ganspace:5,budget:3 1_2=my runs/a, b.safetensors , budget:1.5") == {
        "0_1": (3.0, "ganspace:5"),
        "1_2": (1.5, "my runs/a, b.safetensors"),
    }
    assert budgets("runs/walker") == {} and budgets(None) == {}
    for strong in ("0_1=0.5,budget:3", "0_1=0,1,2,budget:3", "0_1=sefa:3,1.5,budget:3", "0_1=none,budget:3"):
        with pytest.raises(UsageError, match="has a strength of its own"):
            budgets(strong)
    with pytest.raises(UsageError, match="write a number of nats"):
        budgets("0_1=budget:much")


def test_a_budget_becomes_noise_and_is_not_solved_twice(tmp_path, monkeypatch):
    generator = LinearGaussian((2, 2), noise=0.3, resolution=4)
    asked = []

    def fake(generator, chunks, nats, noise, seed):
        asked.append((str(chunks), nats, seed))
        unknown = Estimate(nats, nats, math.inf, 1, "test", "", Verdict.CONSISTENT, "")
        return Solved(str(chunks), nats, 0.25, unknown)

    monkeypatch.setattr(budget, "solve", fake)
    written = "0_1=budget:3.0 1_2=0.5"
    with pytest.raises(UsageError, match="a budget must be solved for the noise of the anchors"):
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


def test_a_file_of_groups_may_hold_budgets(tmp_path):
    """Its walkers' paths count from the file, with a budget behind them too."""
    path = tmp_path / "groups.yaml"
    path.write_text("0_1: budget:3.0\n1_2: coarse.safetensors,budget:2\n2_3: 0.5\n")
    assert budgets(str(path)) == {"0_1": (3.0, "noise"), "1_2": (2.0, str(tmp_path / "coarse.safetensors"))}


def test_directions_and_learned_walkers_by_budget(tmp_path, monkeypatch):
    """What the solved walker leaves is within a tenth of the budget: by a new critic, and by the truth where known."""
    generator = LinearGaussian((3, 1), noise=0.2, resolution=4)
    learned = NonlinearWalker(Chunks(0, 1), 3)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.normal_(0.0, 0.4, generator=torch.Generator().manual_seed(0))
    save_walker(tmp_path / "learned", learned)
    for member, nats in (("ganspace:3", 3.0), (str(tmp_path / "learned.safetensors"), 4.3)):
        walker = walker_from(resolved(f"0_1={member},budget:{nats}", generator, NORMAL, 0), generator)
        (found,) = solved(walker)
        assert found["perturbation"] == member and found["achieved"]["nats"] == pytest.approx(nats, rel=0.1)
        (scaled,) = walker.members
        assert isinstance(scaled, ScaledWalker) and scaled.factor == found["strength"]
    # Three directions of three numbers with equal strength are noise, whose information has a closed form.
    noise = lambda std: ScaledWalker(RandomWalker("0_1", [0.0, 1.0, math.inf]), std)  # noqa: E731
    found = solve(generator, Chunks(0, 1), 3.0, NORMAL, walker_of=noise)
    true = generator.mutual_information(GaussianPerturbation(std=found.strength), Chunks(0, 1))
    assert true == pytest.approx(3.0, rel=0.1)


def test_a_budget_of_the_whole(tmp_path):
    """One factor for all groups; the pair shares the nats in all."""
    generator = LinearGaussian((2, 1, 1), noise=0.2, resolution=4)
    scaled = resolved("0_1=0,1,inf 1_3=0,0.5,inf", generator, NORMAL, 0, None, 3.0)
    assert isinstance(scaled, ScaledWalker) and [str(chunks) for chunks in scaled.chunks] == ["0_1", "1_3"]
    (found,) = solved(walker_from(scaled, generator))
    assert (found["chunks"], found["perturbation"]) == ("0_1 1_3", "the whole T_z")
    assert found["achieved"]["nats"] == pytest.approx(3.0, rel=0.1)
    (tmp_path / "budget.json").write_text(json.dumps([found | {"strength": 7.0}]))
    assert resolved("0_1=1 1_3=2", generator, NORMAL, 0, tmp_path, 3.0).factor == 7.0
    with pytest.raises(UsageError, match="have budgets of their own"):
        resolved("0_1=budget:2", generator, NORMAL, 0, None, 3.0)
    for nothing in (None, "none", "0_1=none"):
        with pytest.raises(UsageError, match="needs a T_z that perturbs something"):
            resolved(nothing, generator, NORMAL, 0, None, 3.0)
    with pytest.raises(UsageError, match="moves nothing"):
        resolved("0_1=0", generator, NORMAL, 0, None, 3.0)


def test_a_scaled_walker():
    generator = LinearGaussian((2, 1, 1), noise=0.2, resolution=4)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    inner = RandomWalker("1_3", [0.0, 1.0, 2.0])
    one, far = (walker(generator, z, torch.Generator().manual_seed(2)) for walker in (inner, ScaledWalker(inner, 2.5)))
    torch.testing.assert_close(far.positive - far.anchor, 2.5 * (one.positive - one.anchor))
    assert torch.equal(far.anchor, one.anchor)
    again = build_walker(ScaledWalker(inner, 2.5).config())
    assert again.config() == ScaledWalker(inner, 2.5).config() and again.chunks == inner.chunks
    for factor in (-1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="factor"):
            ScaledWalker(inner, factor)


def test_budgets_wherever_a_walker_is_named(tmp_path, monkeypatch, capsys):
    """In the explorer and in the pictures of a walker, whose command says what was solved."""
    monkeypatch.setattr(budget, "CHECK", budget.Size(256, 256, 48))
    monkeypatch.setattr(budget, "MOST_NATS", 2.0)
    walker = learned_walkers("0_2=budget:1.0", LinearGaussian((2, 2), noise=0.3), NORMAL, 0, torch.device("cpu"))
    (found,) = solved(walker)
    assert found["chunks"] == "0_2" and found["achieved"]["nats"] == pytest.approx(1.0, rel=0.2)
    argv = ["--generator", "linear-gaussian", "--Tz", "0_4=budget:1.0", "--n_images", 2, "--out", tmp_path]
    code, _, err = call(monkeypatch, capsys, "visualize_walker", *argv, "--device", "cpu")
    assert code == 0 and "budget of 1 nats on chunks 0_4: noise of strength" in err
    assert (tmp_path / "strength.png").stat().st_size > 0


def test_a_budget_in_pictures_of_views(tmp_path, monkeypatch):
    """What was solved is recorded beside the pictures, and used for them again."""
    monkeypatch.setattr(budget, "CHECK", budget.Size(256, 256, 48))
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

    whole = ViewGenerationConfig(generator="linear-gaussian", Tz="0_4=1", budget=1.0, n_images=1, augmentations=1)
    paths = generate_views(whole, tmp_path / "whole")
    assert paths[-1].name == "grid.png" and [path.name for path in paths].count("budget.json") == 1
    (record,) = json.loads((tmp_path / "whole/budget.json").read_text())
    assert record["perturbation"] == "the whole T_z" and record["achieved"]["nats"] == pytest.approx(1.0, abs=0.5)
