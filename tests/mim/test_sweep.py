"""Sweeps: the published settings, what is trained and what is read back, and the report."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import CorruptCheckpointError, Preempted, UsageError
from mi_ml_gen.mim import datasets, sweep
from mi_ml_gen.mim.training import train_seeds

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few_items(monkeypatch):
    monkeypatch.setattr(datasets, "N_TOY_ITEMS", 256)  # two steps an epoch


def small(tmp_path: Path, **changes) -> sweep.SweepConfig:
    given = {"section": "expressiveness", "seeds": 2, "values": [3, 5], "epochs": 4, "device": "cpu"}
    return sweep.SweepConfig(**given | {"save_folder": str(tmp_path)} | changes)


def all_of(settings: sweep.SweepConfig) -> list[sweep.Result]:
    return list(sweep.run_sweep(settings, progress=False))


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int, tuple[int, ...]]]:
    """What was trained: loss, width and seeds, in order."""
    calls, true = [], train_seeds

    def spy(settings, seeds, **rest):
        calls.append((settings.loss_name, settings.mid_dim, tuple(seeds)))
        return true(settings, seeds, **rest)

    monkeypatch.setattr(sweep, "train_seeds", spy)
    return calls


PUBLISHED = {
    "expressiveness": ("toy4", "mid_dim", [5, 20, 50, 100, 200, 300, 400, 500], 2, None),
    "entropy": ("toy4", "mid_dim", [5, 20, 50, 100, 200, 300, 400, 500], 2, None),
    "bottleneck": ("toy4_20", "z_dim", list(range(2, 21, 2)), None, 50),
    "bottleneck-pca": ("pca-fashion-mnist20", "z_dim", list(range(2, 21, 2)), None, 50),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_loops(name):
    dataset, varied, values, z_dim, mid_dim = PUBLISHED[name]
    settings = sweep.SweepConfig(section=name)
    assert list(settings.wanted_values) == values and list(settings.wanted_seeds) == list(range(1, 11))
    for method in settings.about.methods:
        for value in values:
            run = settings.run_settings(method, value)
            assert (run.dataset, run.batch_size, run.epochs, run.warmup_steps) == (dataset, 128, 200, 3)
            assert (run.min_logvar, run.lr, run.layers, run.act, run.p_z, run.q_x) == (
                6, 1e-3, 2, "tanh", "anchor", "marginal",
            )  # fmt: skip
            assert getattr(run, varied) == value and run.z_dim == (z_dim or value) and run.mid_dim == (mid_dim or value)
            assert run.inv_H_loss == (name == "entropy") and run.mim_loss == run.mim_samp
    assert [settings.run_settings(m, 2).loss_name for m in settings.about.methods] == ["mim-samp", "vae"]


def test_quick_is_a_folder_of_its_own():
    quick, whole = (sweep.SweepConfig(section="bottleneck", quick=flag) for flag in (True, False))
    assert quick.path != whole.path and len(quick.wanted_values) == 3
    assert quick.run_settings(sweep.VAE, 2).epochs == 20 and whole.run_settings(sweep.VAE, 2).epochs == 200


def test_train_once_then_read_back(tmp_path, trained):
    first = all_of(small(tmp_path))
    assert trained == [("mim-samp", 3, (1, 2)), ("vae", 3, (1, 2)), ("mim-samp", 5, (1, 2)), ("vae", 5, (1, 2))]
    assert all(result.is_new and len(result.rows) == 2 for result in first)
    second = all_of(small(tmp_path))
    assert len(trained) == 4 and not any(result.is_new for result in second)
    assert [result.rows for result in first] == [result.rows for result in second]
    assert "read back" in second[0].line and "MI_ksg" in second[0].line
    assert len({row.statistics["MI_ksg"] for result in first for row in result.rows}) == 8


def test_seeds_and_values_may_be_added(tmp_path, trained):
    all_of(small(tmp_path, values=[3]))
    trained.clear()
    all_of(small(tmp_path, seeds=5, values=[3, 4], at_once=2))
    added = [("mim-samp", 3, (3, 4)), ("mim-samp", 3, (5,)), ("vae", 3, (3, 4)), ("vae", 3, (5,))]
    assert trained == added + [(loss, 4, s) for loss in ("mim-samp", "vae") for s in ((1, 2), (3, 4), (5,))]
    rows = sweep.read_rows(small(tmp_path, seeds=5, values=[3]))
    assert [row.seed for row in rows] == [1, 2, 3, 4, 5] * 2
    assert len(sweep.read_rows(small(tmp_path, seeds=1, values=[3]))) == 2


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    whole = [result.rows for result in all_of(small(tmp_path / "whole", values=[3]))]
    true, settings = train_seeds, small(tmp_path / "broken", values=[3])

    def stops(run, seeds, **rest):
        if run.loss_name == "vae":
            raise Preempted("saved")
        return true(run, seeds, **rest)

    monkeypatch.setattr(sweep, "train_seeds", stops)
    with pytest.raises(Preempted):
        all_of(settings)
    monkeypatch.setattr(sweep, "train_seeds", true)
    results = all_of(settings)
    assert [result.is_new for result in results] == [False, True]
    assert [result.rows for result in results] == whole


def test_a_group_without_all_its_results_is_the_same_group_again(tmp_path, trained):
    settings = small(tmp_path, values=[3], seeds=3)
    before = [result.rows for result in all_of(settings)]
    group = settings.path / "vae_3" / "seeds_1-3"
    (group / "seed_2" / "results.csv").unlink()
    trained.clear()
    assert [result.rows for result in all_of(settings)] == before
    assert trained == [("vae", 3, (1, 2, 3))]


def test_the_time_of_a_run_is_added_up(tmp_path):
    settings = small(tmp_path, values=[3], seeds=1)
    all_of(settings)
    timer = settings.path / "vae_3" / "seeds_1" / "seconds.json"
    first = config.yaml.safe_load(timer.read_text())
    (timer.parent / "results.csv").unlink()
    all_of(settings)
    second = config.yaml.safe_load(timer.read_text())
    assert second["wall"] > first["wall"] > 0 and second["processor"] > first["processor"] > 0


def test_other_settings_want_another_folder(tmp_path):
    all_of(small(tmp_path, values=[3], seeds=1))
    with pytest.raises(UsageError, match="epochs 4, not 5"):
        all_of(small(tmp_path, values=[3], seeds=1, epochs=5))


def test_damaged_results_are_named(tmp_path):
    settings = small(tmp_path, values=[3], seeds=1)
    all_of(settings)
    path = settings.path / "vae_3" / "seeds_1" / "results.csv"
    path.write_text("MI_ksg,many\n")
    with pytest.raises(CorruptCheckpointError, match="vae_3/seeds_1/results.csv"):
        sweep.read_rows(settings)


def test_unknown_sections():
    with pytest.raises(UsageError, match="nearest known section: entropy"):
        sweep.SweepConfig(section="entrpy")


def test_the_report(tmp_path):
    settings = small(tmp_path)
    with pytest.raises(UsageError, match="no run is finished"):
        sweep.write_report(settings)
    all_of(settings)
    written = {path.name: path for path in sweep.write_report(settings)}
    tables = {"runs.csv", "table.md", "table.tex", "table.csv", "table.json"}
    assert set(written) == tables | {"figure.png", "models.png"}
    assert sweep.models_picture(settings).shape == (2 * 520, 2 * 260, 3)
    assert sweep.models_picture(small(tmp_path, section="bottleneck")) is None
    assert written["figure.png"].read_bytes().startswith(b"\x89PNG")
    runs = list(csv.DictReader(written["runs.csv"].open()))
    assert [(row["method"], row["mid_dim"], row["seed"]) for row in runs[:3]] == [
        ("mim-samp", "3", "1"), ("mim-samp", "3", "2"), ("vae", "3", "1"),
    ]  # fmt: skip
    table = list(csv.DictReader(written["table.csv"].open()))
    assert [(row["hidden units"], row["method"], row["seeds"]) for row in table] == [
        ("3", "MIM", "2"), ("3", "VAE", "2"), ("5", "MIM", "2"), ("5", "VAE", "2"),
    ]  # fmt: skip
    name = sweep.QUANTITIES["MI_ksg"]
    pair = [float(row["MI_ksg"]) for row in runs[:2]]
    assert float(table[0][name]) == pytest.approx(sum(pair) / 2)
    assert float(table[0][name + " spread"]) == pytest.approx(abs(pair[0] - pair[1]) / 2)


def call(monkeypatch, capsys, *argv: object) -> tuple[int, str, str]:
    spec = importlib.util.spec_from_file_location("script_sweep_mim", ROOT / "scripts" / "sweep_mim.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["sweep_mim.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(script.main)
    output = capsys.readouterr()
    return stopped.value.code or 0, output.out, output.err


def test_the_script(monkeypatch, capsys, tmp_path):
    argv = ["entropy", "--seeds", 1, "--quick", "--values", 3, "--epochs", 4, "--save-folder", tmp_path]
    code, out, err = call(monkeypatch, capsys, *argv, "--device", "cpu")
    assert code == 0, err
    assert "MIM − H 3: MI_ksg" in out and "VAE + H" in out and (tmp_path / "entropy-quick" / "figure.png").exists()
    again = call(monkeypatch, capsys, *argv, "--device", "cpu", "--report-only")
    assert again[0] == 0 and "read back" not in again[1] and "table.csv" in again[1]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "--section must be given"),
        (["bottlenek"], "nearest known section: bottleneck"),
        (["entropy", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["entropy", "--sedes", "3"], "nearest known flag: --seeds"),
        (["entropy", "--report-only"], "no run is finished"),
    ],
)
def test_wrong_command_lines(monkeypatch, capsys, tmp_path, argv, says):
    code, _, err = call(monkeypatch, capsys, *argv, "--save-folder", tmp_path)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
