"""Cells: pieces of work with a result each, done by as many processes, on as many machines, as share a folder.

    cells = Cells(folder)
    for done in cells.work(names, measure):       # the same on every machine, started and stopped at any time
        print(done.line)

    FOLDER/NAME.json            what `measure(NAME)` gave: a cell that has this is finished
    FOLDER/NAME.failed.json     why a cell failed, and how often
    FOLDER/locks/NAME.lock      locked by the process that works on the cell

A lock is the system's own (`core/locks.py`), so it ends with its process however that ends: a cell whose process was
killed is free at once, and nobody has to judge by the clock whether a lock is stale. On a disk without locks the work
goes on after a warning, and then only one process may work there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mi_ml_gen.core import locks
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, Preempted, UsageError
from mi_ml_gen.core.files import disk_faults, hash_file, read_json, write_json
from mi_ml_gen.core.registry import fault

MOST_FAILURES = 2
"""Failures after which a cell is not tried again."""
POLL_S = 0.5
"""Time between two attempts to take a lock that is waited for."""


@dataclass(frozen=True)
class Failure:
    """How a cell failed."""

    error: str
    n_failures: int
    where: str
    """The process and its machine."""


class Done(NamedTuple):
    """A cell that this process has worked on."""

    name: str
    failure: Failure | None
    """None where it is finished."""
    seconds: float

    @classmethod
    def lost(cls, name: str, exit_code: int | None) -> Done:
        """Of a cell whose process has ended."""
        return cls(name, Failure(f"its process has ended with code {exit_code}", 1, _holder()), 0.0)

    @property
    def line(self) -> str:
        what = "finished" if self.failure is None else f"failed: {self.failure.error}"
        return f"{self.name}: {what} ({self.seconds:.0f} s)"


class Cells:
    """The cells in a folder, which is made.

    most_failures: after which a cell is left alone. file: where the result of a cell stands (default
    FOLDER/NAME.json). is_finished: whether a result is the last one of its cell, which otherwise is worked on again.
    """

    def __init__(
        self,
        folder: Path,
        most_failures: int = MOST_FAILURES,
        file: Callable[[str], Path] | None = None,
        is_finished: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self.folder = folder
        self.most_failures = most_failures
        self._file = file or (lambda name: folder / f"{name}.json")
        self._is_finished = is_finished or (lambda found: True)
        self._held: set[str] = set()
        with disk_faults(folder):
            (folder / "locks").mkdir(parents=True, exist_ok=True)

    def result(self, name: str) -> dict[str, Any] | None:
        """What a finished cell came to; None where it is not finished. Raises UsageError for a damaged file."""
        found = _read(self._file(name))
        return None if found is None or not self._is_finished(found) else found

    def failure(self, name: str) -> Failure | None:
        """How a cell failed that is not finished; None where it did not."""
        found = None if self.result(name) is not None else _read(self.folder / f"{name}.failed.json")
        try:
            return None if found is None else Failure(**found)
        except TypeError:
            raise UsageError(f"{self.folder / name}.failed.json: is no record of a failure; remove it") from None

    def waiting(self, names: Sequence[str]) -> list[str]:
        """Those that are not finished and have not failed too often."""
        found = [name for name in names if self.result(name) is None]
        failures = ((name, self.failure(name)) for name in found)
        return [name for name, failure in failures if failure is None or failure.n_failures < self.most_failures]

    def failures(self, names: Sequence[str]) -> dict[str, Failure]:
        """Those that failed and are not finished."""
        found = ((name, self.failure(name)) for name in names)
        return {name: failure for name, failure in found if failure is not None}

    def work(
        self, names: Sequence[str], action: Callable[[str], Mapping[str, Any]], begin: Callable[[str], object] = str
    ) -> Iterator[Done]:
        """Do what is waiting, in the order of `names`, and leave out what another process has in work; give each cell
        as it ends. It ends when all that is left is in work elsewhere (`in_work`).

        action: from a name to the result, plain values. begin: called with the name of each cell that is begun. A cell
        that fails leaves the others alone, and is tried again by the next call, `most_failures` times in all. Raises
        Preempted and EnvironmentFault at once: these are no fault of the cell.
        """
        tried: set[str] = set()
        while True:
            progressed = False
            for name in self.waiting(names):
                if name in tried:
                    continue
                with self.taken(name) as is_ours:
                    if not is_ours or name not in self.waiting([name]):  # another process may just have ended it
                        continue
                    progressed = True
                    tried.add(name)
                    begin(name)
                    done = self._attempt(name, action)
                yield done
            if not progressed:
                return

    def in_work(self, names: Sequence[str]) -> list[str]:
        """The waiting cells that other processes have in work now, with the names of these processes."""
        found = []
        for name in self.waiting(names):
            with self.taken(name) as is_ours:
                if not is_ours:
                    holder = self._lock_file(name).read_text(encoding="utf-8", errors="replace").strip()
                    found.append(f"{name} ({holder or 'another process'})")
        return found

    @contextlib.contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Within: whether this process holds the cell. Not to be nested for one name."""
        if name in self._held:
            yield False
            return
        path = self._lock_file(name)
        with disk_faults(path):
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below; faults within are not the lock's
        with file:
            if not locks.take(file, wait=False, of_process=True):
                yield False
                return
            self._held.add(name)
            try:
                file.truncate(0)
                file.write(_holder())
                file.flush()
                yield True
            finally:
                self._held.discard(name)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Within: this process alone, after waiting for others. For what all cells share."""
        while True:
            with self.taken(name) as is_ours:
                if is_ours:
                    yield
                    return
            time.sleep(POLL_S)

    def _lock_file(self, name: str) -> Path:
        return self.folder / "locks" / f"{name}.lock"

    def _attempt(self, name: str, action: Callable[[str], Mapping[str, Any]]) -> Done:
        began_s = time.monotonic()
        try:
            content = dict(action(name))
        except (Preempted, EnvironmentFault, OSError, MemoryError):
            raise
        except Exception as error:
            said = str(error) if isinstance(error, UsageError) else fault(error)
            before = self.failure(name)
            failure = Failure(said, 1 + (before.n_failures if before is not None else 0), _holder())
            _write(self.folder / f"{name}.failed.json", asdict(failure))
            return Done(name, failure, time.monotonic() - began_s)
        _write(self._file(name), content)
        failed = self.folder / f"{name}.failed.json"
        for path in (failed, hash_file(failed)):
            path.unlink(missing_ok=True)
        return Done(name, None, time.monotonic() - began_s)


def print_lines(work: Iterable[Done]) -> int:
    """Print a line for each cell as it ends, for a script; gives the number of those that failed."""
    n_failed = 0
    for done in work:
        print(done.line, flush=True)
        n_failed += done.failure is not None
    return n_failed


def print_failures(failures: Mapping[str, Failure]) -> int:
    """Print a line for each cell that failed, for a script; gives their number."""
    for name, failure in failures.items():
        print(f"failed {failure.n_failures} times: {name}: {failure.error}")
    return len(failures)


def _holder() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, content)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return read_json(path)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{error}; remove it to work on the cell again") from None
