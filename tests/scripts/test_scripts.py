"""The scripts as a user calls them: wrong inputs get one clear line, the right exit code, and leave nothing behind."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.runs import read_config
from mi_ml_gen.experiments.table1 import SEVERAL
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.navigator.settings import NavigatorConfig
from tests.conftest import make_small_generator

SCRIPTS = Path(__file__).parents[2] / "scripts"


def call(monkeypatch, capsys, name: str, *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script, run in this process through the frame that it uses itself."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(module.main)
    code = stopped.value.code
    output = capsys.readouterr()
    return 0 if code is None else code, output.out, output.err


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "small.safetensors"
    save_generator(path, make_small_generator(), "bigbigan")
    return path


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def flip(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path


def hostile(path: Path) -> Path:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "executed"),)

    torch.save({"nn_walker": Payload()}, path)
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def foreign(path: Path) -> Path:
    torch.save({"weight": torch.zeros(3)}, path)
    return path


NAVIGATOR = [
    # flags after --generator bigbigan --g_path (good weights); exit code; what the line must say
    (["--chunks", "4_2"], 2, "--chunks 4_2: start must be below stop; small has chunks 0_2"),
    (["--chunks", "0_9"], 2, "stop must be at most 2; small has chunks 0_2"),
    (["--chunks", "first"], 2, "write START_STOP"),
    ([], 2, "--chunks"),
    (["--chunks", "0_1", "--num_samples", "-5"], 2, "--num_samples -5: must be at least 1"),
    (["--chunks", "0_1", "--batch_size", "many"], 2, "--batch_size many: must be a whole number"),
    (["--chunks", "0_1", "--batch_size", "1"], 2, "--batch_size 1: must be at least 2"),
    (["--chunks", "0_1", "--lr_walk", "nan"], 2, "--lr_walk nan"),
    (["--chunks", "0_1", "--truncation", "0"], 2, "--truncation 0: must be above 0"),
    (["--chunks", "0_1", "--precision", "fp8"], 2, "--precision fp8: must be one of fp32, tf32, bf16"),
    (["--chunks", "0_1", "--lr_wakl", "1"], 2, "lr_walk"),
    (["--chunks", "0_1", "--device", "gpu"], 2, "--device gpu: must be auto, cpu, cuda, cuda:N or mps"),
    (["--chunks", "0_1", "--img_size", "128"], 2, "--image_size 128: small decodes to 8 px"),
    (["--chunks", "0_1", "--generator", "biggan"], 2, "--generator biggan: must be one of bigbigan"),
    (["--chunks", "0_1", "--config", "absent.yaml"], 2, "absent.yaml"),
]


@pytest.mark.parametrize(("flags", "code", "says"), NAVIGATOR, ids=lambda value: str(value)[:40])
def test_wrong_settings(monkeypatch, capsys, tmp_path, weights, flags, code, says):
    base = ["--generator", "bigbigan", "--g_path", weights, "--save_folder", tmp_path / "runs", "--device", "cpu"]
    assert_refused(monkeypatch, capsys, "train_navigator", [*base, *flags], code, says)
    assert not (tmp_path / "runs").exists()


def assert_refused(monkeypatch, capsys, name, argv, code, says):
    found, _, err = call(monkeypatch, capsys, name, *argv)
    lines = err.strip().splitlines()
    assert found == code, err
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], err


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda p, w: p / "absent.pth", 2, "absent.pth"),
        (lambda p, w: p, 2, "error: "),
        (lambda p, w: cut(w, 1000), 3, "small.safetensors"),
        (lambda p, w: flip(w), 3, "small.safetensors"),
        (lambda p, w: foreign(p / "other.pth"), 3, "other.pth"),
        (lambda p, w: text(p / "notes.pth", "not weights"), 3, "notes.pth"),
        (lambda p, w: text(p / "empty.safetensors", ""), 3, "empty.safetensors"),
        (lambda p, w: hostile(p / "evil.pth"), 3, "evil.pth"),
    ],
    ids=["missing", "folder", "truncated", "flipped", "foreign", "text", "empty", "hostile"],
)
def test_wrong_weights(monkeypatch, capsys, tmp_path, weights, make, code, says):
    path = make(tmp_path, weights)
    argv = ["--generator", "bigbigan", "--g_path", path, "--chunks", "0_1", "--save_folder", tmp_path / "runs"]
    assert_refused(monkeypatch, capsys, "train_navigator", [*argv, "--device", "cpu"], code, says)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "executed").exists()


def test_unwritable_folder(monkeypatch, capsys, tmp_path, weights):
    text(tmp_path / "taken", "a file")
    argv = ["--generator", "bigbigan", "--g_path", weights, "--chunks", "0_1", "--save_folder", tmp_path / "taken"]
    assert_refused(monkeypatch, capsys, "train_navigator", [*argv, "--device", "cpu"], 2, "taken")


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--n_samples", "0"], 2, "--n_samples 0: must be at least 1"),
        (["--std", "-1"], 2, "std -1"),
        (["--dim_z", "100"], 2, "--dim_z 100: bigbigan has noise of length 120"),
        (["--walkers_base_path", "absent"], 2, "--walkers_base_path absent: no such folder"),
        (["--n_samples", "few"], 2, "--n_samples"),
        (["--all-chunks"], 2, "its weights are not bundled; give --g_path"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_simulations(monkeypatch, capsys, tmp_path, flags, code, says):
    argv = ["--walkers_base_path", tmp_path, "--device", "cpu", *flags]
    assert_refused(monkeypatch, capsys, "monte_carlo_simulation", argv, code, says)
    assert list(tmp_path.iterdir()) == []


def test_hostile_walkers_and_losses(monkeypatch, capsys, tmp_path):
    (tmp_path / "chunk0").mkdir()
    hostile(tmp_path / "chunk0" / "w_COPGen_2048.pth")
    argv = ["--walkers_base_path", tmp_path, "--device", "cpu"]
    assert_refused(monkeypatch, capsys, "monte_carlo_simulation", argv, 3, "w_COPGen_2048.pth")
    np.save(tmp_path / "chunk0" / "F_loss_values.npy", np.array([{}]), allow_pickle=True)
    assert_refused(monkeypatch, capsys, "monte_carlo_simulation", argv, 3, "F_loss_values.npy")
    assert not (tmp_path / "chunk0" / "executed").exists()


def test_visualize_needs_one_source(monkeypatch, capsys):
    assert_refused(monkeypatch, capsys, "visualize_walker", [], 2, "give either --run")
    assert_refused(monkeypatch, capsys, "visualize_walker", ["--walker", "w.pth"], 2, "--generator must be given")


def test_from_weights_to_pictures(monkeypatch, capsys, tmp_path, weights):
    """The main path of each script on the small generator: dry run, Table 1 with training, pictures of a run."""
    shared = ["--generator", "bigbigan", "--g_path", weights]
    code, out, err = call(monkeypatch, capsys, "train_navigator", *shared, "--chunks", "0_1", "--dry-run")
    assert code == 0 and "lr_walk: 8.0e-05" in out, err

    base = tmp_path / "t1"
    small = ["num_samples=32", "save_freq=16", "batch_size=8", "critic_width=4"]
    code, out, err = call(
        monkeypatch, capsys, "monte_carlo_simulation", *shared, "--walkers_base_path", base, "--all-chunks",
        "--train", *small, "--n_samples", 1000, "--device", "cpu", "--page",
        "--Tz", "0_1=sefa:2", "--fresh_critics", "no",
    )  # fmt: skip
    assert code == 0, err
    assert "0_1=sefa:2" in out and "1_2" in out and "bound (nats)" in out
    for suffix in ("md", "csv", "json", "tex", "png", "html"):
        assert (base / f"table1.{suffix}").stat().st_size > 0

    code, out, err = call(monkeypatch, capsys, "visualize_walker", *shared, "--run", base / "chunk0", "--device", "cpu")
    assert code == 0, err
    for name in ("strength.png", "training.png", "curves.png"):
        assert (base / "chunk0" / "images" / name).read_bytes().startswith(b"\x89PNG")


def test_settings_of_the_table_are_not_given_to_its_trainings(monkeypatch, capsys, tmp_path):
    argv = ["--generator", "linear-gaussian", "--walkers_base_path", tmp_path, "--all_chunks", "--train", "chunks=0_9"]
    assert_refused(monkeypatch, capsys, "monte_carlo_simulation", argv, 2, "--train chunks=...: the table sets it")


def test_table_1_of_a_small_generator_has_intervals(monkeypatch, capsys, tmp_path):
    """Four walkers a chunk unless the user asks for the published one; a table that was begun goes on as it was."""
    small = ["--train", "num_samples=16", "save_freq=16", "batch_size=8", "critic_width=4"]

    def table(name: str, *flags: object) -> str:
        argv = ["--generator", "tiny-bigbigan", "--walkers_base_path", tmp_path / name, "--all-chunks"]
        argv += ["--groups", 2, "--n_samples", 1000, "--device", "cpu", "--fresh_critics", "no"]
        code, out, err = call(monkeypatch, capsys, "monte_carlo_simulation", *argv, *small, *flags)
        assert code == 0, err
        return out

    assert "95% interval" in table("several")
    folder = tmp_path / "several" / "group_0"
    assert len(list(folder.glob("walker_*.safetensors"))) == SEVERAL and read_config(folder)["walkers"] == SEVERAL
    table("one", "--as-published")
    assert "walkers" not in read_config(tmp_path / "one" / "group_1")  # the setting's default is one
    table("one")  # no word of the number: as it was begun
    assert not list((tmp_path / "one").glob("group_*/walker_*.safetensors"))
    argv = ["--generator", "tiny-bigbigan", "--walkers_base_path", tmp_path / "new", "--all-chunks", "--as-published"]
    argv += ["--train", "walkers=3"]
    assert_refused(monkeypatch, capsys, "monte_carlo_simulation", argv, 2, "--as-published and 3 walkers")
    assert not (tmp_path / "new").exists()


def test_quickstart_of_one_generator_and_again(monkeypatch, capsys, weights, tmp_path):
    argv = ["--generator", "bigbigan", "--g_path", weights, "--num_samples", 16, "--save_freq", 16, "--batch_size", 8]
    argv += ["--critic_width", 4, "--n_samples", 1000, "--device", "cpu", "--out", tmp_path / "q"]
    first = call(monkeypatch, capsys, "quickstart", *argv)
    assert first[0] == 0, first[2]
    walkers = sorted((tmp_path / "q" / "bigbigan").glob("*/walker.safetensors"))
    assert [path.parent.name for path in walkers] == ["chunk0", "chunk1"]
    text = (tmp_path / "q" / "index.html").read_text()
    assert "chunks 1_2: delta" in text and "Table 1 of small" in text
    written = [path.read_bytes() for path in walkers]
    logged = [(path.parent / "metrics.jsonl").read_bytes() for path in walkers]
    again = call(monkeypatch, capsys, "quickstart", *argv)
    assert again[0] == 0, again[2]
    assert [path.read_bytes() for path in walkers] == written
    assert [(path.parent / "metrics.jsonl").read_bytes() for path in walkers] == logged  # nothing trained again
    table = [line for line in first[1].splitlines() if line.startswith(("0_1", "1_2"))]
    assert len(table) == 2 and all(line in again[1].splitlines() for line in table)
    assert "a walker for each of chunks 0_1, 1_2" in first[1]


def test_quickstart_refuses_groups_without_a_generator(monkeypatch, capsys, tmp_path):
    argv = ["--groups", 2, "--out", tmp_path / "q"]
    assert_refused(monkeypatch, capsys, "quickstart", argv, 2, "--groups 2: give --generator, too")


@pytest.mark.parametrize(
    ("flags", "lr_walk", "num_samples"),
    [
        (["--generator", "tiny-stylegan"], 1.4e-3, 12288),
        (["--generator", "tiny-bigbigan", "--num_samples", 64], 1.4e-3, 64),
        (["--generator", "tiny-bigbigan", "--config", "navigator/paper"], 8e-5, 1_024_000),
        (["--generator", "linear-gaussian"], 1.4e-3, 12288),
        (["--generator", f"{Path(__file__)}:Mine"], 8e-5, 1_024_000),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_settings_of_small_generators_and_of_all_others(monkeypatch, capsys, flags, lr_walk, num_samples):
    code, out, err = call(monkeypatch, capsys, "train_navigator", *flags, "--chunks", "0_1", "--dry-run")
    shown = yaml.safe_load(out)
    assert code == 0 and (shown["lr_walk"], shown["num_samples"]) == (lr_walk, num_samples), err


def test_bundled_paper_settings_are_the_defaults():
    given = {"generator": "bigbigan", "chunks": "1_6"}
    assert config.load(NavigatorConfig, "navigator/paper", given) == config.load(NavigatorConfig, None, given)
