"""Items of a list, done by several processes of this machine side by side.

    for found in side_by_side(names, n_workers=4, start=functools.partial(worker, settings), lost=ended):
        print(found)

`start` is called once in each process and gives the function that does an item, so that what all items share, such as
a data set, is made once a process and not once an item.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, TypeVar

from mi_ml_gen.core import threads

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(
    items: Sequence[T],
    n_workers: int,
    start: Callable[[], Callable[[T], R]],
    lost: Callable[[T, int | None], R],
) -> Iterator[R]:
    """What is found for each item, as it is found; items are begun in their order.

    One worker is this process itself. More are new ones, which share its threads; `start` then is a function of a
    module, or a partial of one. lost: what stands for an item whose process has ended with that exit code; another
    process goes on with the rest. An error that `start` or the work raises is raised here, and ends the others by
    SIGTERM, at which a training saves its state.
    """
    if n_workers == 1:
        if items:
            work = start()
            yield from map(work, items)
        return
    n_threads = max(1, threads.available() // max(1, min(n_workers, len(items))))
    waiting = list(items)
    active: dict[Connection, _Active] = {}
    try:
        while waiting or active:
            while waiting and len(active) < n_workers:
                ours, process = _begun(start, n_threads)
                active[ours] = _Active(process, waiting[0])
                ours.send(waiting.pop(0))
            for connection in wait(list(active)):
                assert isinstance(connection, Connection)
                process, item = active.pop(connection)
                try:
                    found = connection.recv()
                except EOFError:
                    process.join()
                    yield lost(item, process.exitcode)
                    continue
                if isinstance(found, BaseException):
                    process.join()
                    raise found
                if waiting:
                    active[connection] = _Active(process, waiting[0])
                    connection.send(waiting.pop(0))
                else:
                    connection.close()  # the process ends at that
                    process.join()
                yield found
    finally:
        for process, _ in active.values():
            process.terminate()
        for process, _ in active.values():
            process.join()


class _Active(NamedTuple):
    process: SpawnProcess
    item: Any


def _begun(start: Callable[[], Any], n_threads: int) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(start, n_threads, theirs))
    process.start()
    theirs.close()
    return ours, process


def _work(start: Callable[[], Callable[[Any], Any]], n_threads: int, connection: Connection) -> None:
    """One process: item after item, until no more come."""
    if (torch := sys.modules.get("torch")) is not None:  # `start` came with it
        torch.set_num_threads(n_threads)
    try:
        work = start()
        while True:
            try:
                item = connection.recv()
            except EOFError:
                return
            connection.send(work(item))
    except Exception as error:
        connection.send(error)
    finally:
        connection.close()


__all__ = ["side_by_side"]
