"""The search for an encoder: candidates differ in what they say, and the table has accuracy beside time."""

from __future__ import annotations

import json

import pytest

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.runs import read_config
from mi_ml_gen.experiments import encoder_search
from mi_ml_gen.experiments.encoder_search import Speed, Trial
from mi_ml_gen.experiments.search_settings import REFERENCE, SearchConfig, cell_name, pairs
from tests.scripts.test_scripts import call


def test_a_candidate_changes_what_it_says():
    settings = SearchConfig(base="width=8 Tz=1_4=0,1,2", samples=[100])
    reference = settings.encoder(REFERENCE, 100, 3)
    changed = settings.encoder("depth=10 halves=true Tz=none", 100, 3)
    assert (reference.width, reference.depth, reference.halves, reference.seed) == (8, 18, False, 3)
    assert reference.Tz == "1_4=0,1,2" and changed.Tz in (None, "none")
    assert (changed.width, changed.depth, changed.halves) == (8, 10, True)
    assert changed.samples_per_epoch == 100 and changed.max_epochs == 1
    with pytest.raises(UsageError, match="seed cannot differ"):
        settings.encoder("seed=1", 100, 0)
    with pytest.raises(UsageError, match="depth is not KEY=VALUE"):
        pairs("width=8 depth")
    assert cell_name("depth=10 Tx=my/crops.py:Mild") == "depth10_Txmy_crops.py_Mild"


def test_the_queue_is_in_order_of_samples():
    cells = SearchConfig(candidates=["width=4", "width=8"], samples=[20, 10], seeds=[1, 0]).cells
    assert list(cells) == [
        f"width{width}_{samples}_seed{seed}" for seed in (1, 0) for samples in (10, 20) for width in (4, 8)
    ]


def test_hours_come_from_the_speeds():
    trials = [Trial("width=4", 7200, seed, {"sgd": 0.5 + seed / 10, "knn": 0.4}, 9.0, "a GPU") for seed in (0, 1)]
    trials.append(Trial(REFERENCE, 7200, 0, {"sgd": 0.7, "knn": 0.6}, 9.0, "a GPU"))
    speeds = [Speed("width=4", 2.0, 1.5, 0.5, 3, 2, "cpu")]
    table = encoder_search.search_table(trials, speeds, SearchConfig())
    small, reference = table.rows
    assert small[:2] == ["width=4", 7200] and small[2].value == pytest.approx(55) and small[4:] == [2, 2.0, 1.0]
    assert reference[2] == pytest.approx(70) and reference[5:] == [None, None]
    assert "a GPU" in table.caption and "2 threads" in table.caption


def test_a_search_through_the_script(monkeypatch, capsys, tmp_path):
    argv = [
        "--base",
        "width=4 dim=4 cumulative_bs=8 Tz=0_4=0,1,2",
        "--candidates",
        REFERENCE,
        "depth=10 halves=true Tz=0_4=1",
    ]
    argv += ["--num_samples", 16, "--data_path", "digits", "--probe_images", 60, "--probe_epochs", 1]
    argv += ["--device", "cpu", "--out", tmp_path / "search", "--time_s", 0.1]
    code, out, err = call(monkeypatch, capsys, "search_encoder", *argv)
    assert code == 0 and "depth=10" in out, (out, err)
    found = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert [one["candidate"] for one in found] == [REFERENCE, "depth=10 halves=true Tz=0_4=1"]
    assert all(0 <= one["top1"]["sgd"] <= 1 and one["samples_per_s"] > 0 for one in found)
    small = read_config(tmp_path / "search" / "encoders" / "depth10_halvestrue_Tz0_41_16_seed0")
    assert small["depth"] == 10 and small["halves"] and small["Tz"] == "0_4=1"
    rows = json.loads((tmp_path / "search" / "search.json").read_text())
    assert all(row["samples/s"] > 0 and row["hours"] > 0 for row in rows)
    (reference, other) = json.loads((tmp_path / "search" / "speeds.json").read_text())
    assert reference["to_reference"] == 1 and other["to_reference"] > 0
    # Nothing is done twice, speeds neither (another process may train by then), and more is added.
    monkeypatch.setattr(encoder_search, "_stepping", None)
    code, out, err = call(monkeypatch, capsys, "search_encoder", *argv, "--seeds", 0, 1)
    assert code == 0 and "seed0: finished" not in out and out.count("seed1: finished") == 2, (out, err)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--candidates", "wdth=3"], "nearest known key: width"),
        (["--candidates", "device=cuda"], "device cannot differ"),
        (["--candidates", "generator=none"], "nothing to train on"),
        (["--data_path", "absent"], "--data_path absent: no such file"),
        (["--data_path", "emoji:absent"], "emoji:absent: no pictures in absent"),
        (["--candidates", "Tx=a/b.py:C", "Tx=a_b.py:C"], "Tx=a/b.py:C and Tx=a_b.py:C have the same name of a file"),
    ],
)
def test_wrong_settings(monkeypatch, capsys, tmp_path, flags, says):
    code, _, err = call(monkeypatch, capsys, "search_encoder", *flags, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2 and says in err.splitlines()[-1], err
    assert not (tmp_path / "out").exists()
