"""The record of what a run was made with."""

from __future__ import annotations

import json
import sys
import time

import torch

from mi_ml_gen import __version__
from mi_ml_gen.core import provenance
from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.core.runs import RunFolder


def test_each_start_of_a_run_is_noted_with_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/scripts/train_navigator.py", "--chunks", "0 1"])
    with RunFolder.open(tmp_path / "run", {"seed": 1}):
        (running,) = provenance.read(tmp_path / "run")
        assert "elapsed_s" not in running  # as after a kill
        time.sleep(0.15)
    monkeypatch.setattr(sys, "argv", ["mi-ml-gen train_navigator", "--chunks", "0_1"])
    with RunFolder.open(tmp_path / "run", {"seed": 1}):
        pass
    first, second = provenance.read(tmp_path / "run")
    assert first == running | {"elapsed_s": first["elapsed_s"]} and first["elapsed_s"] >= 0.1 and "elapsed_s" in second
    assert first["command"] == "python scripts/train_navigator.py --chunks '0 1'"
    assert second["command"] == "mi-ml-gen train_navigator --chunks 0_1"
    assert first["torch"] == torch.__version__ and first["mi_ml_gen"] == __version__
    assert first["device"] == "cpu" and first["cpu"] and first["threads"] >= 1 and first["at"].endswith("Z")


def test_a_damaged_record_stops_nothing(tmp_path, caplog):
    with RunFolder.open(tmp_path, {"seed": 1}):
        pass
    for content in ("", "[]", '{"starts": [1]}', "\0"):
        (tmp_path / "environment.json").write_text(content)
        assert provenance.read(tmp_path) == []
        assert "environment.json: damaged" in caplog.text
        caplog.clear()
    with RunFolder.open(tmp_path, {"seed": 1}):
        pass
    assert len(provenance.read(tmp_path)) == 1
    assert json.loads((tmp_path / "environment.json").read_text())["starts"][0]["processes"] == 1


def test_a_full_disk_at_the_end_does_not_hide_the_runs_own_outcome(tmp_path, monkeypatch, caplog):
    def full(path, value):
        raise EnvironmentFault(f"cannot write {path}: No space left on device")

    with RunFolder.open(tmp_path, {"seed": 1}):
        monkeypatch.setattr(provenance, "write_json", full)
    assert "No space left" in caplog.text
    assert "elapsed_s" not in provenance.read(tmp_path)[0]
