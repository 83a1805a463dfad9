"""Pairs that people made beside walkers' pairs: every kind has as many, and the table says what was measured."""

from __future__ import annotations

import json
import math
import re
import statistics

import pytest
import torch

from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.data import folders
from mi_ml_gen.experiments.human_pairs import Row, compare_pairs, human_pairs, walker_pairs
from mi_ml_gen.experiments.settings import HumanPairsConfig
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.noise import RandomWalker
from tests.conftest import StopAt, make_small_generator
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
        "--max_steps", 2, "--batch_size", 16, "--device", "cpu", "--out", tmp_path / "out", "--seeds", 4, 7,
    )  # fmt: skip
    assert code == 0 and out.count(" nats ") == 5, err
    content = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert [row["pairs"] for row in content["pairs"]][3:] == ["small, 0_1=1", "small, 1_2=0.1"]
    assert content["n_train"] + content["n_test"] == 59
    for row in content["pairs"]:
        low, high = row["interval_nats"]
        assert [one["seed"] for one in row["seeds"]] == [4, 7]
        assert row["nats"] == pytest.approx(sum(one["nats"] for one in row["seeds"]) / 2)
        assert low < row["nats"] < high and row["verdict"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "emoji by google and twitter" in table and f"measured on {content['n_test']} others" in table
    assert "over 2 seeds" in table


def small_settings(place, out, **changes) -> HumanPairsConfig:
    given = dict(data_path=f"emoji-pairs:{place}", generator="linear-gaussian", walkers=["0_1=1"], critic_width=2,
                 max_steps=2, batch_size=16, device="cpu", seeds=[0, 1], state_interval_s=0.0, out=out)  # fmt: skip
    return HumanPairsConfig(**given | changes)


def test_stopped_and_resumed_equals_uninterrupted(place, tmp_path, monkeypatch):
    whole = compare_pairs(small_settings(place, tmp_path / "whole"), progress=False)
    with monkeypatch.context() as patch:
        StopAt(patch, 3)
        with pytest.raises(Preempted, match="saved at step 3 of 8"):
            compare_pairs(small_settings(place, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / "table.md").exists()
    assert compare_pairs(small_settings(place, tmp_path / "run"), progress=False) == whole
    with pytest.raises(UsageError, match="made with seeds"):
        compare_pairs(small_settings(place, tmp_path / "run", seeds=[0, 2]), progress=False)


def test_seeds_differ_in_what_is_drawn_and_one_has_no_interval(place, tmp_path):
    (row, *_) = compare_pairs(small_settings(place, tmp_path / "one", seeds=[3]), progress=False)
    assert row.interval == (row.each[0]["interval_nats"][0], None) and "at least" in str(row)
    ends = {"nats": 2.0, "interval_nats": [1.9, None], "verdict": "consistent", "details": {"standard_error_nats": 0.1}}
    three = Row("these", (0, 1, 2), (ends, ends | {"nats": 2.6}, ends | {"verdict": "not converged"}))
    low, high = three.interval
    half = math.hypot(4.302653 * statistics.stdev([2.0, 2.6, 2.0]) / math.sqrt(3), 0.196)
    assert (low, high) == pytest.approx((2.2 - half, 2.2 + half))
    assert three.verdict == "consistent (2 of 3), not converged (1 of 3)"


def test_skin_tones_are_left_out_unless_asked_for(place):
    name = "emoji by google and twitter"
    sizes = [sum(len(part.first) for part in human_pairs(f"emoji-pairs:{place}{word}", 8)[name])
             for word in ("", ":skin_tones=none", ":background=black", ":skin_tones=all")]  # fmt: skip
    assert sizes[0] == sizes[1] == sizes[2] < sizes[3]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data_path", "emoji:somewhere"], "--data_path emoji:somewhere: "),
        (["--data_path", "emoji:PLACE"], "--data_path emoji:.*: must be emoji-pairs, or emoji-pairs:FOLDER"),
        (["--data_path", "emoji-pairs:PLACE:houses=google"], "pairs need two houses, and only google is there"),
        (["--data_path", "emoji-pairs:PLACE:colour=3"], "colour"),
        (["--seeds", "1", "1"], "--seeds 1 1: give at least one value, and none twice"),
        (["--walkers", "0_1=1", "0_1=1"], "--walkers 0_1=1 0_1=1: give at least one value, and none twice"),
        (["--walkers", "0_9=1"], "--walkers 0_9=1: "),
        (["--walkers", "no_such_run"], "no_such_run"),
        (["--critic_width", "0"], "--critic_width 0"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(place, tmp_path, monkeypatch, capsys, argv, says):
    argv = [word.replace("PLACE", str(place)) for word in argv]
    given = ["--data_path", f"emoji-pairs:{place}", "--generator", "linear-gaussian", "--device", "cpu"]
    code, _, err = call(monkeypatch, capsys, "compare_pairs", *given, *argv, "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and re.search(says, err), err
    assert not (tmp_path / "out").exists()
