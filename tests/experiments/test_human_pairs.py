"""Pairs that people made beside walkers' pairs: every kind has as many, and the table says what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from mi_ml_gen.data import folders
from mi_ml_gen.experiments.human_pairs import human_pairs, walker_pairs
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.noise import RandomWalker
from tests.conftest import make_small_generator
from tests.emoji_files import colour_of, write_emoji
from tests.scripts.test_scripts import call


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "cache"))
    return write_emoji(tmp_path / "emoji", n=60)


def test_pairs_of_every_two_houses(place):
    found = human_pairs(f"emoji-pairs:{place}:skin_tones=none", 8)
    assert list(found) == ["emoji by google and twitter", "emoji by google and fluent", "emoji by twitter and fluent"]
    sizes = {tuple(len(part.first) for part in parts) for parts in found.values()}
    assert len(sizes) == 1 and sum(next(iter(sizes))) == 59  # the last one has not been drawn by all
    train, _ = found["emoji by google and fluent"]
    middle = (train.first[:, :, 4, 4] * 255).round(), (train.second[:, :, 4, 4] * 255).round()
    assert torch.equal(middle[0][:, 0], middle[1][:, 0])
    assert {colour_of("google", 0)[1], colour_of("fluent", 0)[1]} == {int(part[0, 1]) for part in middle}


def test_pairs_of_a_walker_differ_on_its_chunks_and_between_uses():
    generator = make_small_generator()
    walker = RandomWalker(Chunks(0, 1), 1.0)
    train, test = (walker_pairs(generator, walker, 300, 0, use) for use in ("train", "test"))
    assert train.first.shape == train.second.shape == (300, 3, 8, 8)
    assert not torch.equal(train.first, train.second) and not torch.equal(train.first, test.first)
    assert torch.equal(walker_pairs(generator, walker, 300, 0, "test").second, test.second)


def test_the_command_writes_the_table(place, tmp_path, monkeypatch, capsys):
    save_generator(tmp_path / "small.safetensors", make_small_generator(), "bigbigan")
    code, out, err = call(
        monkeypatch, capsys, "compare_pairs", "--data_path", f"emoji-pairs:{place}:skin_tones=none", "--generator",
        "bigbigan", "--g_path", tmp_path / "small.safetensors", "--walkers", "0_1=1", "1_2=0.1", "--critic_width", 4,
        "--max_steps", 2, "--batch_size", 16, "--device", "cpu", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0 and out.count(" nats ") == 5, err
    content = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert list(content["pairs"])[3:] == ["small, 0_1=1", "small, 1_2=0.1"]
    assert content["n_train"] + content["n_test"] == 59
    table = (tmp_path / "out" / "table.md").read_text()
    assert "emoji by google and twitter" in table and f"measured on {content['n_test']} others" in table
    argv = ["--data_path", "emoji:somewhere", "--generator", "tiny-bigbigan"]
    code, out, err = call(monkeypatch, capsys, "compare_pairs", *argv)
    assert code == 2 and err.count("\n") == 1
