"""docs/your_generator.md holds: its files are short, and its commands go from a network to Table 1 and an encoder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.generators.checking import PROMISES
from mi_ml_gen.generators.registry import load_generator
from tests.scripts.test_scripts import call

PAGE = (Path(__file__).parents[1] / "docs" / "your_generator.md").read_text(encoding="utf-8")
MOST_LINES = 20
SMALL = {
    "check_generator": "",
    "visualize_generator": "--n_images 2",
    "quickstart": "--num_samples 32 --batch_size 8 --save_freq 16 --critic_width 4 --n_samples 256",
    "train_navigator": "--num_samples 32 --batch_size 8 --save_freq 16 --critic_width 4",
    "monte_carlo_simulation": "--n_samples 64",
    "train_encoder": "--samples_per_epoch 16 --cumulative_bs 8 --max_epochs 1 --depth 18 --width 4 --dim 8",
}
"""Flags that make each command of the page small."""


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with the files of the page, and the weights that a training script left."""
    place = tmp_path_factory.mktemp("yours")
    for text in blocks("python"):
        (place / re.match(r"# (\w+\.py)\n", text)[1]).write_text(text)
    assert {path.name for path in place.iterdir()} == {"mine.py", "notebook.py", "share.py"}
    torch.manual_seed(0)
    torch.save(load_generator(f"{place / 'mine.py'}:Mine").network.state_dict(), place / "weights.pt")
    return place


def test_no_more_than_twenty_lines_of_code():
    for text in blocks("python"):
        code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert len(code) <= MOST_LINES, text


def test_the_commands_of_the_page_work(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    lines = [shlex.split(line) for text in blocks("") for line in text.splitlines() if line]
    assert [Path(words[1]).stem for words in lines] == list(SMALL)
    for _, script, *flags in lines:
        name = Path(script).stem
        code, out, err = call(monkeypatch, capsys, name, *flags, *shlex.split(SMALL[name]), "--device", "cpu")
        assert code == 0, (name, out, err)
    assert (folder / "quickstart" / "index.html").is_file() and (folder / "walker_runs" / "table1.md").is_file()
    (trained,) = folder.glob("encoder_runs/*/encoder.safetensors")
    assert load_encoder(trained).method == "simclr"


def test_the_python_of_the_page_works(folder, tmp_path):
    """In a process of its own, in a new folder."""
    for file in ("mine.py", "weights.pt", "share.py", "notebook.py"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"}
    program = "exec(open('share.py').read())\nimport torch\nz = torch.randn(2, 64)\n"
    program += "assert torch.equal(generator.decode(z), again.decode(z))\nexec(open('notebook.py').read())\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b0_1\b.*\n.*\b1_2\b", done.stdout), done.stdout


def test_the_table_of_promises_is_complete():
    named = re.findall(r"^\| ([^|]+) \|", PAGE.partition("## What is examined")[2], re.MULTILINE)
    assert [name for row in named[2:] for name in row.strip().split(", ")] == list(PROMISES)
