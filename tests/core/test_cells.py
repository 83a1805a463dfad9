"""The queue of cells: nothing twice, nothing lost, whoever works on it and however they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mi_ml_gen.core.cells import Cells, print_failures, print_lines
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, NonFiniteError, Preempted, UsageError

NAMES = [f"cell{i}" for i in range(12)]


def note(folder: Path, name: str) -> dict:
    with open(folder / "log", "a") as log:
        log.write(f"{os.getpid()} {name}\n")
    time.sleep(0.02)
    return {"name": name}


def work(folder: Path) -> None:
    for _ in Cells(folder).work(NAMES, lambda name: note(folder, name)):
        pass


def work_for_ever(folder: Path, ready) -> None:
    def action(name: str) -> dict:
        ready.set()
        time.sleep(600)
        return {}

    list(Cells(folder).work(NAMES[:1], action))


def test_four_processes_do_each_cell_once(tmp_path):
    Cells(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(name for _, name in lines) == sorted(NAMES)
    assert Cells(tmp_path).waiting(NAMES) == []
    assert json.loads((tmp_path / "cell3.json").read_text()) == {"name": "cell3"}


def test_a_cell_is_left_to_its_process_and_is_free_when_that_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=work_for_ever, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(60)
        cells = Cells(tmp_path)
        done = [one.name for one in cells.work(NAMES[:2], lambda name: {})]
        assert done == ["cell1"]
        assert cells.in_work(NAMES[:2]) == [f"cell0 (pid {other.pid} on {os.uname().nodename})"]
    finally:
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        other.join(60)
    assert cells.in_work(NAMES[:2]) == []
    assert [one.name for one in cells.work(NAMES[:2], lambda name: {})] == ["cell0"]


def test_failures_are_kept_and_not_repeated_for_ever(tmp_path):
    calls = []

    def action(name: str) -> dict:
        calls.append(name)
        if name == "cell1":
            raise NonFiniteError("the loss is nan")
        if name == "cell2" and calls.count(name) == 1:
            return 1 / 0
        return {"n": len(calls)}

    cells = Cells(tmp_path)
    first = {one.name: one for one in cells.work(NAMES[:4], action)}
    assert calls == NAMES[:4] and first["cell0"].failure is None
    assert "the loss is nan" in first["cell1"].failure.error and first["cell1"].line.startswith("cell1: failed: ")
    assert "ZeroDivisionError" in first["cell2"].failure.error and "test_cells.py" in first["cell2"].failure.error
    second = {one.name: one for one in cells.work(NAMES[:4], action)}
    assert set(second) == {"cell1", "cell2"} and second["cell2"].failure is None
    assert list(cells.work(NAMES[:4], action)) == [] and calls.count("cell1") == 2
    assert {name: one.n_failures for name, one in cells.failures(NAMES).items()} == {"cell1": 2}
    assert not (tmp_path / "cell2.failed.json").exists()
    assert [one.name for one in Cells(tmp_path, most_failures=3).work(NAMES[:4], action)] == ["cell1"]


@pytest.mark.parametrize("error", [Preempted("stop"), EnvironmentFault("disk full"), OSError("disk full")])
def test_what_is_no_fault_of_the_cell_ends_the_work(tmp_path, error):
    def action(name: str) -> dict:
        raise error

    with pytest.raises(type(error)):
        list(Cells(tmp_path).work(NAMES, action))
    assert Cells(tmp_path).failures(NAMES) == {} and Cells(tmp_path).waiting(NAMES) == NAMES
    assert Cells(tmp_path).in_work(NAMES) == []


def test_damaged_files_are_named(tmp_path):
    cells = Cells(tmp_path)
    (tmp_path / "cell0.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match=r"cell0.json: damaged.*remove it"):
        cells.result("cell0")
    (tmp_path / "cell1.failed.json").write_text('{"error": 1}')
    with pytest.raises(UsageError, match=r"cell1.failed.json: is no record of a failure"):
        cells.failure("cell1")


def test_results_may_stand_elsewhere_and_be_preliminary(tmp_path):
    """A result that is not the last one of its cell stays readable, and the cell is worked on again."""

    def cells() -> Cells:
        return Cells(
            tmp_path / "cells", file=lambda name: tmp_path / name / "r.json", is_finished=lambda found: found["n"] > 1
        )

    (tmp_path / "a").mkdir()
    for n in (1, 2):
        assert cells().waiting(["a"]) == ["a"]
        [done] = cells().work(["a"], lambda name, n=n: {"n": n})
        assert done.failure is None and json.loads((tmp_path / "a" / "r.json").read_text()) == {"n": n}
    assert cells().waiting(["a"]) == [] and cells().result("a") == {"n": 2}


def test_lines_are_printed_and_failures_counted(capsys, tmp_path):
    def measure(name: str) -> dict:
        if name == "cell1":
            raise UsageError("no such thing")
        return {}

    cells = Cells(tmp_path)
    assert print_lines(cells.work(["cell0", "cell1"], measure)) == 1
    assert capsys.readouterr().out == "cell0: finished (0 s)\ncell1: failed: no such thing (0 s)\n"
    assert print_failures(cells.failures(["cell0", "cell1"])) == 1
    assert capsys.readouterr().out == "failed 1 times: cell1: no such thing\n"
