"""The comparison of views: equal work for every row, the paper's pairs, and a table that grows and is never redone."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.core.runs import read_config
from mi_ml_gen.data.splits import Splits, Subset
from mi_ml_gen.experiments import table1, view_comparison
from mi_ml_gen.experiments.view_comparison import METHODS, Cell, ComparisonConfig, Pixels
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import Chunks, LatentLayout
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.report import tables as report
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
    settings = ComparisonConfig(samples=samples, **changes)
    generator = make_small_generator()
    generator.layout = LatentLayout((2, 2, 2, 2))
    walkers = {"1_2": "a", "2_3": "b", "3_4": "c"}
    stored = make_source(n_stored)
    return view_comparison.encoder_settings(settings, METHODS[row], 5, generator, stored, Chunks(1, 4), walkers)


def test_every_row_is_the_same_work():
    """Rows differ in images, T_z and T_x, and in nothing else."""
    rows = [row for row in METHODS if row not in view_comparison.FLOORS]
    described = {row: dataclasses.asdict(settings_of(row)) for row in rows}
    for row in rows:
        differ = {key for key, value in described[row].items() if value != described["synth"][key]}
        assert differ <= {"Tz", "Tx", "generator", "samples_per_epoch"}, row
    assert described["synth"]["samples_per_epoch"] * described["synth"]["max_epochs"] == 100
    assert described["real"]["samples_per_epoch"] is None and described["real"]["max_epochs"] == 2


@pytest.mark.parametrize(("samples", "n_epochs", "n_images"), [(30, 1, 30), (60, 1, 60), (61, 2, 30), (180, 3, 60)])
def test_real_images_suffice_for_all_samples(samples, n_epochs, n_images):
    settings, stored = ComparisonConfig(samples=samples), make_source(60)
    assert view_comparison.epochs(settings, stored) == n_epochs
    chosen = view_comparison.real_images(settings, stored, seed=0)
    assert chosen.n_images == n_images
    if isinstance(chosen, Subset):
        assert len(set(chosen.indices.tolist())) == n_images
        assert not view_comparison.real_images(settings, stored, seed=1).indices.equal(chosen.indices)


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


def test_the_table_is_mean_and_spread_over_seeds():
    def cell(row, seed, top1):
        return Cell(row, seed, {"sgd": top1, "ridge": top1 - 0.1, "knn": top1 / 2}, 200, None)

    cells = [cell("synth", 0, 0.5), cell("real", 1, 0.8), cell("synth", 1, 0.7), cell("pixels", 0, 0.4)]
    table = view_comparison.comparison_table(cells, ComparisonConfig())
    rows = {line[0]: line for line in table.rows}
    assert list(rows) == ["pixels", "real images", "generated, unperturbed"]
    assert rows["generated, unperturbed"][3] == report.Estimate(pytest.approx(60), pytest.approx(100 * math.sqrt(0.02)))
    assert rows["real images"][3] == pytest.approx(80) and rows["real images"][6] == 1
    assert view_comparison.figure([cells[3]]).axes and view_comparison.figure(cells).axes


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
def shared(kit, tmp_path):
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
    assert all(cell["seconds"] > 0 for cell in first if cell["row"] in ("real", "learned"))
    assert Image.open(folder / "comparison.png").width > 500

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


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--rows", "real", "fake"], 2, "--rows real fake: must be one of pixels"),
        (["--seeds", "1", "1"], 2, "--seeds 1 1: give at least one value, and none twice"),
        (["--fine_chunks", "1_9"], 2, "--fine_chunks 1_9"),
        (["--samples", "0"], 2, "--samples 0: must be at least 2"),
        (["--walkers", "absent"], 2, "--walkers absent: no such folder or file; groups are written"),
        (["--walkers", "0_1=0.5"], 2, "must perturb all of chunks 1_2, and no others; these perturb 0_1"),
        (["--num_sample", "9"], 2, "nearest known flag: --num_samples"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_settings(monkeypatch, capsys, shared, flags, code, says):
    found, _, err = call(monkeypatch, capsys, "compare_views", *shared, *flags)
    assert found == code and says in err.splitlines()[-1], err


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
