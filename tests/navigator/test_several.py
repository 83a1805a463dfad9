"""Several walkers at once, the intervals over them, and what fresh critics find in their pairs."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics

import pytest
import torch

from mi_ml_gen.core import runs
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.experiments import table1
from mi_ml_gen.experiments.explorer import known_facts
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.information.image_critic import CriticSettings, PairCritic
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.navigator import folders
from mi_ml_gen.navigator.remaining import Curve, Point, _falling, combined, measure_remaining
from mi_ml_gen.navigator.selection import bound_finding, convergence, of_walker, select_checkpoint, several_report
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.several import train_several
from mi_ml_gen.navigator.spread import WalkerMean, over_walkers
from mi_ml_gen.walkers.noise import RandomWalker
from mi_ml_gen.walkers.spec import load_walker
from tests.conftest import make_small_generator

SETTINGS = NavigatorConfig(
    generator="small", chunks="0_1", num_samples=96, save_freq=48, batch_size=8, critic_width=4, lr_walk=1e-2,
    lr_MI=1e-3, device="cpu", state_interval_s=0.0, image_freq=100, seed=3, walkers=3,
)  # fmt: skip
BRIEF = CriticSettings(width=4, points=8, batch_size=64, max_steps=30, first_check=15, heldout_pairs=64, eval_pairs=128,
                       max_eval_pairs=256, reuse=1)  # fmt: skip


def train(path, generator=None, **changes):
    return train_several(
        dataclasses.replace(SETTINGS, **changes), generator or make_small_generator(), path, progress=False
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of Table 1: a run of three walkers for each of the two chunks."""
    base = tmp_path_factory.mktemp("several")
    table1.train_missing(base, SETTINGS, make_small_generator(), progress=False)
    return base


def test_a_run_of_several_walkers(base):
    path = base / "chunk0"
    summary = json.loads((path / "summary.json").read_text())
    deltas = [one["delta"] for one in summary["walkers"]]
    assert summary["delta"] == pytest.approx(statistics.fmean(deltas)) and len(set(deltas)) == 3
    row = next(one for one in folders.find_walkers(base) if one.folder == path)
    assert summary["bound_verdict"] == str(row.bound.verdict) and summary["bound_verdict_because"] == row.bound.reason
    low, high = summary["delta_interval"]
    half = 4.3026527 * statistics.stdev(deltas) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=0.3) and (high - low) / 2 >= 0.9999 * half
    assert deltas[summary["median_walker"]] == statistics.median(deltas)
    kept = load_tensors(path / "walker.safetensors").tensors
    same = load_tensors(path / f"walker_{summary['median_walker']}.safetensors").tensors
    assert all(torch.equal(kept[key], same[key]) for key in kept)
    for row in runs.read_metrics(path):
        assert row["loss"] == pytest.approx(statistics.fmean(row["losses"])) and len(row["deltas"]) == 3
        assert row["bound_nats"] == pytest.approx(math.log(8) - row["loss"])
    lines = several_report(summary)
    assert sum(line.startswith("walker ") for line in lines) == 3 and "over 3 walkers" in lines[4]
    assert "not yet converged: 3 of 3 walkers have not: 2 saved walkers are too few" in lines[5]


def test_walkers_and_critics_are_each_their_own(base):
    """The gradients of one walker never reach another: a walker trained beside others ends where it started from its
    own weights, so all differ; and no walker of the same run equals another."""
    walkers = [load_walker(base / "chunk0" / f"walker_{i}.safetensors") for i in range(3)]
    weights = [walker.walker[0].weight for walker in walkers]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_a_critic_lowers_the_loss_that_its_walker_raises(tmp_path):
    """Against held critics the walkers' steps raise the loss; against held walkers the critics' lower it."""
    raised = train(tmp_path / "a", num_samples=640, lr_MI=1e-12, lr_walk=3e-2, chunks="0_2")
    rows = runs.read_metrics(raised.path)
    assert all(last > first for first, last in zip(rows[0]["losses"], rows[-1]["losses"], strict=True))
    assert all(last > 3 * first for first, last in zip(rows[0]["deltas"], rows[-1]["deltas"], strict=True))
    lowered = train(tmp_path / "b", num_samples=640, lr_walk=1e-12, lr_MI=3e-3)
    rows = runs.read_metrics(lowered.path)
    assert statistics.fmean(rows[-1]["losses"]) < statistics.fmean(rows[0]["losses"]) - 0.05


def test_several_walkers_need_local_negatives(tmp_path):
    with pytest.raises(UsageError, match="--negatives local"):
        train(tmp_path / "run", negatives="global")
    for name, value in {"micro_batches": 2, "temp": 0.2, "compile": True}.items():
        with pytest.raises(UsageError, match="is possible with one walker only"):
            train(tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()
    assert SETTINGS.folder.name == "0_small_0_1_none_3_walkers"


def test_one_pass_for_all_variants_equals_decoding_each():
    generator = make_small_generator()
    latents = torch.randn(4, 8)
    variants = [latents.clone() for _ in range(3)]
    for i, one in enumerate(variants):
        one[:, 4:] += i
    together = generator.decode_variants(latents, variants, Chunks(1, 2))
    torch.testing.assert_close(together.anchor, generator.decode(latents))
    for image, one in zip(together.variants, variants, strict=True):
        torch.testing.assert_close(image, generator.decode(one))


# ---------------------------------------------------------------------------------------------------------------
# Rules


def test_intervals_over_walkers_cover():
    """Means of four normal values: 95% of Student's intervals hold the truth, and two sets of walkers agree at least as
    often."""
    rng = torch.Generator().manual_seed(0)
    found = [over_walkers(torch.randn(4, generator=rng).tolist()) for _ in range(600)]
    assert 0.925 <= statistics.fmean(one.low <= 0 <= one.high for one in found) <= 0.975
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert statistics.fmean(a.agrees_with(b) for a, b in pairs) >= 0.95
    assert over_walkers([1.0]) is None
    assert over_walkers([1.0, 1.0], [0.5, 0.5]) == WalkerMean(1.0, 1.0 - 0.98, 1.0 + 0.98, 2)


def course(*losses):
    return [
        dict(step=i, samples=i, saved=True, loss=x, smoothed_loss=x, delta=1.0, smoothed_delta=1.0, bound_nats=4 - x)
        for i, x in enumerate(losses)
    ]


def test_a_loss_that_has_not_turned_is_said_to_have_not():
    rows = course(3, 2, 1.9, 1.88, 1.88, 1.881, 1.8801, 1.8804, 1.8803, 1.8804)
    assert "the loss has not turned" in select_checkpoint(rows, 10.0).reason
    converged, why = convergence(rows, stopped_by_rule=False)
    assert not converged and "the loss has not turned" in why
    assert bound_finding(2.0, 4.84, converged, why).verdict is Verdict.NOT_CONVERGED
    near_the_top = bound_finding(4.5, 4.84, converged, why)
    assert near_the_top.verdict is Verdict.SATURATED and "has not turned" in near_the_top.reason
    fine = [bound_finding(2.0, 4.84, True, "", from_both_sides) for from_both_sides in (True, False)]
    assert all(one.verdict is Verdict.CONSISTENT for one in fine)
    assert "0.69 nats of the bound" in fine[0].reason and "0.69" not in fine[1].reason


def test_rows_of_one_walker():
    row = {"step": 1, "samples": 8, "saved": True, "bound_nats": 0.5}
    row |= {"loss": 1.5, "losses": [1.0, 2.0], "smoothed_loss": 1.5, "smoothed_losses": [1.0, 2.0]}
    row |= {"delta": 3.0, "deltas": [2.0, 4.0], "smoothed_delta": 3.0, "smoothed_deltas": [2.0, 4.0]}
    own = of_walker([row], 1)[0]
    assert (own["loss"], own["delta"], own["bound_nats"]) == (2.0, 4.0, 0.0)


# ---------------------------------------------------------------------------------------------------------------
# Curves


def point(kind, delta, nats, error=0.0, verdict=Verdict.CONSISTENT):
    details = {"standard_error_nats": error}
    estimate = Estimate(nats, nats, math.inf, 1, "fresh critic", "", verdict, "", details)
    return Point(kind, "", delta, estimate)


def test_what_is_read_off_a_curve():
    points = [point("random", d, n) for d, n in ((4.0, 0.5), (1.0, 3.5), (2.0, 2.5), (3.0, 1.5))]
    curve = Curve(Chunks(0, 1), 4.0, tuple(points))
    assert curve.delta_at("random", 3.0).value == pytest.approx(1.5)
    assert curve.delta_at("random", 1.0).value == pytest.approx(3.5)
    assert curve.delta_at("random", 4.0).value is None and "shares less" in str(curve.delta_at("random", 4.0))
    assert "shares more" in str(curve.delta_at("random", 0.2))
    assert curve.nats_at("random", 0.5).value == pytest.approx(2.5)
    assert curve.nats_at("random", 1.0).value == pytest.approx(0.5)
    assert "at least 3.50" in str(curve.nats_at("random", 0.1)) and curve.nats_at("learned", 0.5).value is None
    noisy = Curve(Chunks(0, 1), 4.0, tuple(point("random", p.delta, p.estimate.nats, 0.1) for p in points))
    reading = noisy.delta_at("random", 3.0)
    assert 0.1 < reading.high - reading.low < 0.5
    assert _falling([3.0, 1.0, 2.0, 0.0]) == [3.0, 1.5, 1.5, 0.0]


def test_a_reading_carries_the_worse_verdict_of_the_points_beside_it():
    saturated, wide, fine = Verdict.SATURATED, Verdict.NOT_TRUSTED, Verdict.CONSISTENT
    found = [(1.0, 4.0, saturated), (2.0, 3.0, fine), (3.0, 2.0, fine), (4.0, 1.0, wide)]
    points = [point("random", delta, nats, 0.01, verdict) for delta, nats, verdict in found]
    curve = Curve(Chunks(0, 1), 4.0, tuple(points))
    read = {share: curve.nats_at("random", share) for share in (0.3, 0.6, 1.0)}
    assert [one.verdict for one in read.values()] == [saturated, fine, wide]
    assert [str(one)[-1] for one in read.values()] == [">", ")", "*"]
    assert curve.delta_at("random", 3.5).verdict is saturated and curve.delta_at("random", 1.5).verdict is wide
    plain = curve.to_json()["nats_at_share_of_independent"]["random"]
    assert plain["0.5"]["verdict"] == "lower bound, saturated" and plain["1"]["verdict"] == "not to be trusted"


def test_a_reading_that_few_draws_reach_has_no_interval():
    """Half of the draws of a curve must reach the number: else it would seem to be known exactly."""
    curve = Curve(Chunks(0, 1), 4.0, (point("random", 1.0, 3.0, 0.5), point("random", 2.0, 3.0, 0.5)))
    reading = curve.delta_at("random", 3.0)
    assert reading.value == 1.0 and "no interval" in str(reading)
    assert curve.to_json()["delta_at_nats"]["random"]["3"]["interval"] is None


def test_remaining_information_and_the_curve_of_a_chunk():
    """On the linear Gaussian generator: a curve that falls to what the other chunk says, below the truth."""
    generator = LinearGaussian((2, 2), noise=0.3, resolution=8)
    generator.freeze()
    settings = CriticSettings(width=4, points=16, batch_size=128, max_steps=60, first_check=30, heldout_pairs=128,
                              eval_pairs=1024, max_eval_pairs=1024, reuse=1)  # fmt: skip
    normal = TruncatedNormal(0, 1, 6)
    walkers = [RandomWalker("0_1", TruncatedNormal(0, std, 6)) for std in (0.5, 0.6)]
    apart = 1.7725 * math.sqrt(2) / math.sqrt(2)  # mean length of a normal vector of two numbers, variance 2
    found, _ = measure_remaining(
        generator, walkers, apart, distribution=normal, settings=settings, with_curve=True, seed=1
    )
    assert len(found.walkers) == 2 and found.spread is not None
    truth = generator.mutual_information(GaussianPerturbation(std=0.5), Chunks(0, 1))
    assert 0.8 * truth < found.walkers[0].nats < truth + 3 * found.walkers[0].details["standard_error_nats"]
    assert found.together.nats == pytest.approx(statistics.fmean(one.nats for one in found.walkers))
    assert found.together.low_nats < found.together.nats and math.isinf(found.together.high_nats)
    curve = found.curve
    assert [p.label for p in curve.of("random")][-1] in ("drawn anew", "std 2")
    assert {p.label for p in curve.of("learned")} == {"x 0.5", "x 1", "x 2"}
    random = {p.label: p for p in curve.of("random")}
    anew = generator.mutual_information(GaussianPerturbation.stationary(0.0), Chunks(0, 1))
    assert 0.8 * anew < random["drawn anew"].estimate.nats < anew + 0.25
    assert random["std 0.25"].estimate.nats > random["std 1"].estimate.nats + 0.3
    json.dumps(found.to_json(), allow_nan=False)


def test_the_interval_over_walkers_allows_for_another_critic():
    """Walkers that agree, measured with many pairs, still have an interval: critics stop where they rise little."""
    details = {"standard_error_nats": 0.001, "candidates": 2048, "critic_error_nats": 0.1}
    each = [Estimate(7.3, 7.29, math.inf, 2048, "fresh critic", "", Verdict.SATURATED, "", details)] * 4
    together, spread = combined(each)
    assert spread.half_width == pytest.approx(0.1, rel=0.01)
    assert together.low_nats == pytest.approx(7.3 - 1.645 * 0.001)  # each critic's bound holds without it


# ---------------------------------------------------------------------------------------------------------------
# Table 1 of several walkers


def assert_kept(generator, unmeasured, rows, keep, monkeypatch):
    """The same call gives the same numbers and trains nothing; what was not done yet, or follows from other settings,
    is done; a damaged file is named."""
    asked = []

    def fake(generator, walkers, *arguments, **named):
        asked.append(named["seed"])
        return rows[0].remaining, PairCritic(32, 2)

    with monkeypatch.context() as patched:
        patched.setattr(table1, "measure_remaining", fake)
        again = table1.with_remaining(generator, unmeasured, BRIEF, with_curves=True, keep=keep)
        assert [one.remaining.to_json() for one in again] == [one.remaining.to_json() for one in rows] and not asked
        files = sorted(keep.glob("*.safetensors"))
        assert len(files) == len(rows)
        files[1].unlink()
        table1.with_remaining(generator, unmeasured, BRIEF, with_curves=True, keep=keep)
        assert asked == [0]  # the second only
        table1.with_remaining(generator, unmeasured[:1], BRIEF, with_curves=True, seed=5, keep=keep)
        assert asked == [0, 5]
        files[0].write_bytes(files[0].read_bytes()[:-1])
        with pytest.raises(CorruptCheckpointError, match=files[0].name):
            table1.with_remaining(generator, unmeasured, BRIEF, with_curves=True, keep=keep)


def test_table1_of_several_walkers(base, tmp_path, monkeypatch):
    generator = make_small_generator()
    walkers = folders.find_walkers(base)
    assert all(len(one.walkers) == 3 and one.walker in one.walkers for one in walkers)
    assert [one.samples for one in folders.find_walkers(base, [48, 96])] == [48, 96]
    assert table1.fresh_settings(walkers) is None  # 96 anchors were trained on: a critic would cost more
    rows = table1.estimate_rows(generator, walkers, 500)
    unmeasured = rows
    rows = table1.with_remaining(generator, unmeasured, BRIEF, with_curves=True, keep=tmp_path / "kept")
    assert_kept(generator, unmeasured, rows, tmp_path / "kept", monkeypatch)
    assert rows[0].spread.low < rows[0].delta.mean < rows[0].spread.high
    (axes,) = table1.delta_figure(rows).axes
    assert "95% interval over trainings" in axes.get_xlabel()
    (axes,) = table1.delta_figure([rows[0], dataclasses.replace(rows[1], each=())]).axes
    assert "over anchors" in axes.get_xlabel()  # one row without an interval: no bar has one
    table1.write_table(rows, tmp_path)
    text = (tmp_path / "table1.md").read_text()
    for column in ("95% interval", "remaining (nats)", "at least (nats)", "verdict", "training"):
        assert column in text
    assert "too short to tell" in text and "covers another training" in text
    details = json.loads((tmp_path / "table1_details.json").read_text())
    assert details[0]["verdict_because"] and details[0]["remaining"]["curve"]["points"]
    assert len(details[1]["delta_of_each_walker"]) == 3
    assert "delta at 2 nats" in (tmp_path / "table1_curves.md").read_text()
    assert any("has not converged (too short to tell)" in line for line in table1.warnings(rows))
    one = table1.MeasuredGenerator(generator, rows, TruncatedNormal(), 0, "cpu")
    page = table1.write_page(tmp_path / "index.html", [one], "A title", "python a.py", n_images=3).read_text()
    assert "Nats against delta" in page and "Caution: " in page


def test_directions_and_noise_stand_in_the_same_table(base, tmp_path):
    generator, noise = make_small_generator(), TruncatedNormal()
    for wrong, message in ((["none"], "perturbs 0 ranges"), (["0_1=1 1_2=1"], "perturbs 2"), (["0_1=1"] * 2, "twice")):
        with pytest.raises(UsageError, match=message):
            table1.of_tz(wrong, generator, noise, 0, "cpu")
    further = table1.of_tz(["0_1=sefa:2", "0_1=0.5"], generator, noise, 0, "cpu")
    rows = table1.estimate_rows(generator, [*folders.find_walkers(base)[:1], *further], 500)
    rows = [rows[0], *table1.with_remaining(generator, rows[1:], BRIEF, with_curves=True, keep=tmp_path / "kept")]
    assert all(row.remaining.together.nats < 3 and row.remaining.curve is None for row in rows[1:])
    assert {path.stem for path in (tmp_path / "kept").glob("*.safetensors")} == {"Tz-0_1-sefa-2", "Tz-0_1-0.5"}
    table1.write_table(rows, tmp_path)
    written = json.loads((tmp_path / "table1.json").read_text())
    assert [row["T_z"] for row in written] == ["learned", "0_1=sefa:2", "0_1=0.5"]
    assert [row["samples"] is None for row in written] == [False, True, True]
    assert all(row["chunks"] == "0_1" and row["delta"] > 0 for row in written) and written[2]["remaining (nats)"]
    assert "nothing was trained" in (tmp_path / "table1.md").read_text()
    said = known_facts(Chunks(0, 1), None, tmp_path / "table1.json")
    assert any(line.startswith("0_1=sefa:2 leaves") for line in said) and said[0].startswith("Its learned walker")
    one = table1.MeasuredGenerator(generator, rows, noise, 0, "cpu")
    page = table1.write_page(tmp_path / "index.html", [one], "A title", "python a.py", n_images=2).read_text()
    assert "0_1=sefa:2: delta" in page


def test_fresh_critics_cost_less_than_the_training(base):
    walkers = folders.find_walkers(base)
    long = [dataclasses.replace(one, rows=({"samples": 12_288},)) for one in walkers]
    settings = table1.fresh_settings(long)
    new_pairs = settings.max_steps * 3 * settings.batch_size / settings.reuse
    assert new_pairs <= 2 * 3 * 12_288
