"""The benchmark of continuous sampling: what it counts, keeps and compares. No statement about speed."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mi_ml_gen.core import runs
from mi_ml_gen.experiments import sampling_benchmark as bench
from mi_ml_gen.generators.registry import save_generator
from tests.conftest import StopAt, make_small_generator
from tests.scripts.test_scripts import assert_refused, call


@pytest.fixture
def shared(tmp_path):
    """Flags for a generator of 8 px, as many stored images of that size, and little work."""
    save_generator(tmp_path / "small.safetensors", make_small_generator(), "bigbigan")
    (tmp_path / "images").mkdir()
    for i in range(10):
        Image.new("RGB", (8, 8), (20 * i, 0, 255 - 20 * i)).save(tmp_path / "images" / f"{i}.png")
    return [
        "--generator", "bigbigan", "--g_path", tmp_path / "small.safetensors", "--data_path", tmp_path / "images",
        "--image_size", 8, "--framing", "whole", "--samples_per_epoch", 17, "--width", 4, "--warm_up_steps", 1,
        "--device", "cpu", "--no_energy", "--save_folder", tmp_path / "run",
    ]  # fmt: skip


def rows(folder) -> dict[tuple[str, int], dict]:
    return {(row["source"], row["batch_size"]): row for row in runs.read_metrics(folder)}


def test_measures_once_and_collects(monkeypatch, capsys, tmp_path, shared):
    argv = [*shared, "--batch_sizes", 4, 8, "--num_epochs", 2]
    code, out, err = call(monkeypatch, capsys, "benchmark_sampling", *argv, "--source", "generator")
    assert code == 0 and "17 images of 8 px" in out, err
    first = rows(tmp_path / "run")
    assert first.keys() == {("generator", 4), ("generator", 8)}
    for (_, batch_size), row in first.items():
        assert row["steps_per_epoch"] == 17 // batch_size and row["energy_wh"] is None
        images = row["steps_per_epoch"] * batch_size
        assert row["images_per_s"] == pytest.approx(images / row["epoch_s"])
        assert 0 < row["images_ms"] < row["step_ms"]

    code, out, err = call(monkeypatch, capsys, "benchmark_sampling", *argv, "--source", "torch", "generator")
    assert code == 0, err
    both = rows(tmp_path / "run")
    assert both.keys() == {*first, ("torch", 4), ("torch", 8)}
    assert all(both[key] == first[key] for key in first)  # not measured again
    table = json.loads((tmp_path / "run" / "sampling.json").read_text())
    assert [(row["source"], row["batch size"]) for row in table] == [
        ("generator", 4), ("generator", 8), ("torch", 4), ("torch", 8),
    ]  # fmt: skip
    assert "energy (Wh)" not in table[0]
    assert Image.open(tmp_path / "run" / "images" / "sampling.png").width > 300


def test_a_stop_keeps_what_is_measured(monkeypatch, capsys, tmp_path, shared):
    argv = [*shared, "--batch_sizes", 4, 5, "--source", "torch"]
    with monkeypatch.context() as patch:
        StopAt(patch, 6)  # four steps of the first batch size, two of the second
        code, _, err = call(patch, capsys, "benchmark_sampling", *argv)
        assert code == 75 and "holds 1 measurements" in err
    code, _, err = call(monkeypatch, capsys, "benchmark_sampling", *argv)
    assert code == 0 and rows(tmp_path / "run").keys() == {("torch", 4), ("torch", 5)}, err


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--source", "disk"], 2, "--source disk: must be one of generator, torch, ffcv"),
        (["--source", "torch", "torch"], 2, "no source twice"),
        (["--source", "torch", "--data_path", "none"], 2, "give --data_path"),
        (["--batch_sizes", "32"], 2, "--batch_sizes 32: an epoch has only 17 samples"),
        (["--source", "ffcv"], 2, "there is no .beton file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_settings(monkeypatch, capsys, shared, flags, code, says):
    argv = [*shared, "--batch_sizes", 4, *flags]
    assert_refused(monkeypatch, capsys, "benchmark_sampling", argv, code, says)


def test_only_the_same_work_is_compared(monkeypatch, capsys, shared):
    argv = [*shared, "--batch_sizes", 4]
    assert call(monkeypatch, capsys, "benchmark_sampling", *argv, "--source", "generator")[0] == 0
    argv[argv.index("--image_size") + 1] = 16
    code, _, err = call(monkeypatch, capsys, "benchmark_sampling", *argv, "--source", "torch")
    assert code == 2 and "image_size" in err.splitlines()[-1]


def test_two_sizes_in_one_call(monkeypatch, capsys, shared):
    argv = [*shared, "--batch_sizes", 4, "--source", "generator", "torch"]
    argv[argv.index("--image_size") + 1] = 16
    code, _, err = call(monkeypatch, capsys, "benchmark_sampling", *argv)
    assert code == 2 and "torch: gives images of 16 px, but generator of 8 px" in err.splitlines()[-1]


def test_the_clock_counts_its_parts_and_nothing_else(monkeypatch):
    now = iter([1.0, 1.5, 10.0, 10.25])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    clock = bench.Clock(torch.device("cpu"))
    with clock.part():
        pass
    with clock.part():
        pass
    assert clock.total_s() == 0.75 and clock.total_s() == 0


def test_energy_is_left_out_without_codecarbon(monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with bench.energy_meter(True)() as found:
        pass
    assert found == []
