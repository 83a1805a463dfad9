"""Items done side by side: each once, in order, with what is shared made once a process; lost ones and errors."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytest

from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.core.workers import side_by_side


def start(how: str = "", n_starts: list[int] | None = None):
    if n_starts is not None:
        n_starts.append(1)

    def work(item: int) -> tuple[int, int]:
        if how == "dies" and item == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stops" and item == 1:
            raise Preempted("SIGTERM: saved")
        if how == "stops":
            time.sleep(600)
        time.sleep(0.05)
        return item, os.getpid()

    if how == "refuses":
        raise UsageError("no such data")
    return work


def lost(item: int, code: int | None) -> tuple[int, int]:
    return item, code or 0


def test_items_are_done_once_by_as_many_processes_as_asked_for():
    found = list(side_by_side(range(8), 2, start, lost))
    assert sorted(item for item, _ in found) == list(range(8))
    processes = {process for _, process in found}
    assert len(processes) == 2 and os.getpid() not in processes


def test_one_worker_is_this_process():
    n_starts: list[int] = []
    found = list(side_by_side([3, 4], 1, functools.partial(start, "", n_starts), lost))
    assert found == [(3, os.getpid()), (4, os.getpid())] and n_starts == [1]
    assert list(side_by_side([], 1, functools.partial(start, "refuses"), lost)) == []


def test_a_process_that_is_killed_costs_its_item_alone():
    found = dict(side_by_side(range(4), 2, functools.partial(start, "dies"), lost))
    assert found[1] == -signal.SIGKILL and all(found[item] > 0 for item in (0, 2, 3))


@pytest.mark.parametrize(("how", "error"), [("refuses", UsageError), ("stops", Preempted)])
def test_an_error_ends_all(how, error):
    began_s = time.monotonic()
    with pytest.raises(error, match="no such data|saved"):
        list(side_by_side(range(3), 2, functools.partial(start, how), lost))
    assert time.monotonic() - began_s < 60
