"""Processes of a case: forked, ended by the command line's rules, killed at named points of their writing."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mi_ml_gen.core import cli, files, runs
from mi_ml_gen.core.runs import RunFolder
from tests.faults.trainers import EVERY

SHARED = Path("whole runs")
"""Uninterrupted runs, each made once for all cases; torture.py says where."""

POINTS = (
    "before a file is opened",
    "within a write",
    "before a sync",
    "before a rename",
    "after a rename",
    "before a removal",
    "within a row of metrics",
)
"""Moments of writing at which a process can be killed."""


# --- children


class Ended(NamedTuple):
    code: int
    """Exit code, or minus the signal that ended it."""
    said: str
    """On stderr."""

    def check(self, code: int, says: str = "") -> Ended:
        assert self.code == code, f"ended with {self.code}, not {code}: {self.said[-600:]}"
        assert says in self.said, f"says {self.said[-600:]!r}, not {says!r}"
        if code in (2, 3, 4, 5, 75):  # one line, but for what logs and signals said before it
            last = self.said.strip().splitlines()[-1]
            assert last.startswith("stopped: " if code == 75 else "error: "), self.said[-600:]
            assert "Traceback" not in self.said and "unforeseen" not in self.said, self.said[-600:]
        return self


class Child:
    """A process that does `work()` as a command does: faults end it with one line and an exit code."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(write, 2)  # no file: the disk may be full
                os.close(write)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                sys.argv = ["train"]
                cli.run(lambda argv: work() and None)
            except SystemExit as request:
                os._exit(request.code or 0)  # type: ignore[arg-type]
            finally:
                os._exit(99)
        os.close(write)

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> Ended:
        with os.fdopen(self._read, "rb") as said:
            words = said.read().decode(errors="replace")  # until the last that holds the other end is gone
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), words)


def run(work: Callable[[], object]) -> Ended:
    return Child(work).wait()


def train(name: str, path: Path, **changes: Any) -> Ended:
    """A trainer, to the end, in a child."""
    return run(lambda: EVERY[name].train(path, **changes))


# --- uninterrupted runs


class Whole(NamedTuple):
    path: Path
    n_points: dict[str, int]
    """How often each of POINTS is passed in such a run."""
    wall_s: float


def whole(name: str) -> Whole:
    """The uninterrupted run of a trainer, made once."""
    folder = SHARED / name
    done = folder / "about.json"
    SHARED.mkdir(parents=True, exist_ok=True)
    with open(SHARED / f"{name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            began_s = time.monotonic()
            folder.mkdir()
            run(lambda: _count_points(name, folder)).check(0)
            about = json.loads((folder / "points.json").read_text())
            done.write_text(json.dumps({"n_points": about, "wall_s": time.monotonic() - began_s}))
    about = json.loads(done.read_text())
    return Whole(folder / "run", about["n_points"], about["wall_s"])


def _count_points(name: str, folder: Path) -> None:
    counts = dict.fromkeys(POINTS, 0)
    watch_points(folder / "run", lambda point, n: counts.update({point: n}))
    EVERY[name].train(folder / "run")
    (folder / "points.json").write_text(json.dumps(counts))


# --- points of writing


def watch_points(folder: Path, act: Callable[[str, int], object]) -> None:
    """From here on, `act(point, n)` at this process's n-th passing of each of POINTS below `folder`."""
    counts = dict.fromkeys(POINTS, 0)

    def passed(point: str, *paths: object) -> None:
        if any(str(path).startswith(str(folder)) for path in paths):
            counts[point] += 1
            act(point, counts[point])

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and set(str(arguments[1])) & set("wxa+"):
            passed("before a file is opened", arguments[0])
        elif event == "os.rename":
            passed("before a rename", *arguments[:2])
        elif event == "os.remove":
            passed("before a removal", arguments[0])

    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        passed("before a sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def replaced(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        passed("after a rename", target)

    def opened(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = open(path, mode, *arguments, **named)  # noqa: SIM115 - as the caller will
        point = {"xb": "within a write", "ab": "within a row of metrics"}.get(mode)
        return _Halving(file, lambda: passed(point, path)) if point else file

    sys.addaudithook(hook)
    os.fsync, os.replace = fsync, replaced  # type: ignore[assignment]
    files.open = runs.open = opened  # type: ignore[attr-defined]


class _Halving:
    """A file to whose writes something may happen after their first half."""

    def __init__(self, file: Any, act: Callable[[], object]) -> None:
        self._file, self._act = file, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Halving:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        half = len(data) // 2
        n = self._file.write(data[:half])
        self._file.flush()
        self._act()
        return n + self._file.write(data[half:])


def kill_at(folder: Path, point: str, n: int) -> None:
    """From here on, SIGKILL at this process's n-th passing of a point below `folder`."""
    watch_points(folder, lambda passed, count: (passed, count) == (point, n) and os.kill(os.getpid(), signal.SIGKILL))


# --- a disk of its own


class NotHere(Exception):
    """This machine does not allow what the case needs."""


@contextlib.contextmanager
def small_disk(place: Path, n_bytes: int) -> Iterator[Path]:
    """A file system in memory of so many bytes, which this process and its children alone see."""
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir(parents=True)
    new_namespace, private = 0x00020000, (1 << 14) | (1 << 18)  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    size = f"size={n_bytes}".encode()
    if (
        libc.unshare(new_namespace) != 0
        or libc.mount(b"none", b"/", None, private, None) != 0
        or libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, size) != 0
    ):
        raise NotHere(f"no file system can be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(str(place).encode(), 2)  # MNT_DETACH


# --- what a run has acknowledged


def acknowledge(to: Path) -> None:
    """From here on, the step of each state is noted in the file `to` when it has been saved."""
    plain = RunFolder.save_state

    def save_state(self: RunFolder, step: int, state: Any) -> Path:
        path = plain(self, step, state)
        with open(to, "ab", buffering=0) as file:
            file.write(f"{step}\n".encode())
        return path

    RunFolder.save_state = save_state  # type: ignore[method-assign]


def acknowledged(to: Path) -> int:
    return int(to.read_text().split()[-1]) if to.exists() else 0
