"""docs/your_generator.md holds: its files are short, and its commands go from a network to Table 1 and an encoder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.generators.checking import PROMISES
from mi_ml_gen.generators.registry import load_generator
from tests.pages import Page, elsewhere

PAGE = Page("your_generator.md")
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with the files of the page, and the weights that a training script left."""
    place = tmp_path_factory.mktemp("yours")
    assert PAGE.write(place) == {"mine.py", "notebook.py", "share.py"}
    torch.manual_seed(0)
    torch.save(load_generator(f"{place / 'mine.py'}:Mine").network.state_dict(), place / "weights.pt")
    return place


def test_no_more_than_twenty_lines_of_code():
    for text in PAGE.blocks("python"):
        code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert len(code) <= MOST_LINES, text


def test_the_commands_of_the_page_work(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    PAGE.run(SMALL, monkeypatch, capsys)
    assert (folder / "quickstart" / "index.html").is_file() and (folder / "walker_runs" / "table1.md").is_file()
    (trained,) = folder.glob("encoder_runs/*/encoder.safetensors")
    assert load_encoder(trained).method == "simclr"


def test_the_python_of_the_page_works(folder, tmp_path):
    """In a process of its own, in a new folder, where the file and its import are one class."""
    PAGE.write(tmp_path)
    (tmp_path / "weights.pt").write_bytes((folder / "weights.pt").read_bytes())
    program = "exec(open('share.py').read())\nimport torch\nz = torch.randn(2, 64)\n"
    program += "assert torch.equal(generator.decode(z), again.decode(z))\n"
    program += "from mi_ml_gen.generators import load_generator\n"
    program += "assert all(isinstance(load_generator('mine.py:Mine', p), Mine) for p in ('weights.pt', 'shared'))\n"
    done = elsewhere(tmp_path, "-c", program + "exec(open('notebook.py').read())\n")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b0_1\b.*\n.*\b1_2\b", done.stdout), done.stdout


def test_the_table_of_promises_is_complete():
    named = re.findall(r"^\| ([^|]+) \|", PAGE.text.partition("## What is examined")[2], re.MULTILINE)
    assert [name for row in named[2:] for name in row.strip().split(", ")] == list(PROMISES)
