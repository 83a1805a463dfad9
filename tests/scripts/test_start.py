"""How fast scripts start, counted in imported modules and not in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("[!_]*.py"))
HEAVY = ("torch", "torchvision", "scipy", "matplotlib", "numpy", "huggingface_hub")

TINY = ("--generator", "tiny-bigbigan")

RUNNER = """
import json, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    code = stopped.code
heavy = [name for name in json.loads('HEAVY') if name in sys.modules]
print("\\n" + json.dumps([code or 0, heavy]), flush=True)
""".replace("HEAVY", json.dumps(HEAVY))


def start(script: str, *argv: object) -> tuple[int, list[str], str, str]:
    """Exit code, heavy modules that were imported, stdout and stderr of a script in a process of its own."""
    words = json.dumps([str(ROOT / "scripts" / f"{script}.py"), *map(str, argv)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, words], capture_output=True, text=True, timeout=300, env=environment
    )
    *output, last = done.stdout.splitlines()
    code, heavy = json.loads(last)
    return code, heavy, "\n".join(output), done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_imports_nothing_heavy(path):
    code, heavy, output, errors = start(path.stem, "--help")
    assert (code, heavy, errors) == (0, [], "") and output.startswith("usage:")


def test_heavy_modules_are_seen():
    code, heavy, _, errors = start("visualize_generator", *TINY, "--groups", 99)  # which only the network knows
    assert code == 2 and "torch" in heavy and "--groups 99" in errors


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_can_be_called_by_name(path):
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env python3\n")


WRONG = [
    ("train_navigator", [*TINY, "--chunks", "4"], "--chunks 4: write START_STOP"),
    ("train_navigator", [*TINY, "--chunks", "4_2"], "--chunks 4_2: start must be below stop"),
    ("train_navigator", [*TINY, "--chunks", "0_9"], "--chunks 0_9: stop must be at most 4"),
    ("train_navigator", ["--generator", "tiny-diffusion", "--chunks", "5_6"], "--chunks 5_6: stop must be at most 5"),
    ("train_navigator", ["--generator", "tinybigan", "--chunks", "0_1"], "--generator tinybigan: must be one of"),
    ("train_navigator", ["--generator", "bigbigan", "--chunks", "0_1"], "give --g_path"),
    ("train_navigator", ["--generator", "bigbigan", "--g_path", "no/x.pth", "--chunks", "0_1"], "no/x.pth: no such"),
    ("train_navigator", [*TINY, "--chunks", "0_1", "--lr_walk", "1e39"], "--lr_walk 1e39: must be at most 3.4e+38"),
    ("train_navigator", [*TINY, "--chunks", "0_1", "--run_name", "../../x"], "--run_name ../../x: must not lead out"),
    ("train_navigator", [*TINY, "--chunks", "0_1", "--g_use", "psi"], "must have the form key=value"),
    ("train_encoder", ["--encoder", "simclr", "--data_path", "no/images"], "--data_path no/images: no such file"),
    ("train_encoder", ["--encoder", "simclr", "--generator", "x"], "--generator x: must be one of"),
    ("train_encoder", ["--conf", "no-such"], "--conf no-such: no bundled configuration"),
    ("train_classifier", ["--data_path", "digits"], "--encoder_path must be given"),
    ("train_classifier", ["--encoder_path", "no/run", "--data_path", "digits"], "--encoder_path no/run: no such"),
    ("train_classifier", ["--encoder_path", ".", "--data_path", "digits", "--dataset", "../.."], "--dataset ../..:"),
    ("train_mim", ["--dataset", "../.."], "--dataset ../..: must not lead out"),
    ("train_mim", ["--tag", "/../.."], "--tag /../..: must not lead out"),
    ("train_generator", ["--lr", "1e39"], "--lr 1e39: must be at most"),
    ("train_generator", ["--data_path", "no/idx"], "--data_path no/idx: no such folder"),
    ("train_generator", ["--family", "x"], "--family x: must be one of"),
    ("train_generator", ["--family", "diffusion", "--width", "8"], "unknown flag --width; nearest"),
    ("train_generator", ["--family", "diffusion", "--data_path", "no/set"], "--data_path no/set: no such file"),
    ("map_generator", [*TINY, "--label_data", "no/set"], "--label_data no/set: no such file"),
    ("eval_classifier", ["--lin_cls_path", "no/run", "--data_path", "digits"], "--lin_cls_path no/run: no such"),
    ("generate_dataset", ["--generator", "x", "--n_images", "1", "--out", "o"], "--generator x: must be one of"),
    ("view_generation", ["--config", "view_generation/bigbigan", "--out", "o"], "give --g_path"),
    ("visualize_generator", ["--generator", "x"], "--generator x: must be one of"),
    ("visualize_walker", [], "give either --run"),
    ("map_generator", [*TINY, "--ranges", "some"], "--ranges some: must be one of auto, all, tree, single"),
    ("map_generator", [*TINY, "--classifier", "no/run"], "--classifier no/run: no such"),
    ("explore", ["tiny-bigbigan", "--positions", "4"], "--positions 4: must be odd"),
    ("explore", [], "--generator must be given"),
    ("report", ["no/run"], "RUN no/run: not a run folder"),
    ("monte_carlo_simulation", ["--walkers_base_path", "no/walkers"], "--walkers_base_path no/walkers: no such folder"),
    ("compare_views", ["--data_path", "no/images"], "--data_path no/images: no such file"),
    ("benchmark_sampling", ["--generator", "x"], "--generator x: must be one of"),
    ("measure_information", ["--steps", "0"], "--steps 0: must be at least 1"),
    ("sweep_mim", ["everything"], "section 'everything' is unknown"),
    ("train_mim_image", ["--model_name", "convhvae"], "unknown model; nearest known model: convhvae_2level"),
    ("train_mim_image", ["--model_name", "vae-mims"], "--model_name vae-mims: unknown loss; vae may end in"),
    ("sweep_mim_image", ["--set", "epochs=0"], "--set epochs=0: must be at least 1"),
    ("eval_mim_image", ["no/run"], "no/run: no such run folder"),
    ("compare_mim_image", ["--methods", "cmin"], "--methods cmin: must be one of vae, amim"),
    ("quickstart", ["--groups", "2"], "--groups 2: give --generator, too"),
    ("convert_checkpoint", ["no/file.pth", "x.safetensors"], "IN no/file.pth: no such file"),
    ("share_model", ["no/run", "--repo", "a/b"], "no/run: no such folder"),
    ("create_image_beton_file", ["--out", "o"], "give at least one of --train_folder"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "argv", "says"), WRONG, ids=[f"{w[0]} {' '.join(w[1])[:50]}" for w in WRONG])
def test_wrong_input_is_refused_before_torch_is_imported(script, argv, says):
    code, heavy, _, errors = start(script, *argv)
    assert code == 2 and says in errors and errors.count("\n") == 1, errors
    assert heavy == []


DRY = [
    ("train_navigator", [*TINY, "--chunks", "0_1"]),
    ("train_encoder", ["--conf", "small/chunks_random"]),
    ("train_classifier", ["--encoder_path", ".", "--data_path", "digits"]),
    ("train_mim", []),
    ("train_generator", []),
    ("train_generator", ["--family", "diffusion"]),
    ("compare_views", []),
    ("search_encoder", []),
    ("benchmark_sampling", [*TINY]),
    ("measure_information", []),
    ("map_generator", [*TINY]),
    ("sweep_mim", ["entropy"]),
    ("train_mim_image", []),
    ("sweep_mim_image", []),
    ("compare_mim_image", []),
]


@pytest.mark.parametrize(("script", "argv"), DRY, ids=[" ".join([script, *argv[:2]]) for script, argv in DRY])
def test_a_dry_run_prints_the_settings_without_torch(script, argv):
    code, heavy, output, errors = start(script, *argv, "--dry-run")
    assert (code, heavy, errors) == (0, [], "") and "device: auto" in output
