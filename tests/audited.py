"""Runs readers over hostile files in a process that records every event by which a file could act.

`read_audited` starts one child for many files. The child reads each file with each reader, under an audit
hook and with little more memory than it has at the start, and reports one `Outcome` per reading.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MEMORY_BYTES = 256 << 20  # address space that reading may take
CPU_SECONDS = 300  # of all files together: a stop for a reader that hangs

FORBIDDEN = (
    "compile exec import code.__new__ function.__new__ builtins.input builtins.breakpoint pickle.find_class "
    "marshal. os. subprocess. shutil. socket. ctypes. urllib. ftplib. http. smtplib. webbrowser. tempfile. "
    "sqlite3. syslog. pty. setopencodehook gc. sys._current_frames sys.settrace sys.setprofile"
).split()
ALLOWED = ("os.listdir", "os.scandir")
ENVIRONMENT = re.compile(r".*(\.(dist|egg)-info/entry_points\.txt|/python\d+\.zip)")
"""What Python reads of installed packages, where a message lists the kinds that they bring."""


class Outcome(NamedTuple):
    """What one reader did with one file."""

    file: str
    reader: str
    error: str
    """Name of the exception's class; "" where the file was read."""
    message: str
    events: list[str]
    """Forbidden audit events while it was read."""
    cpu_seconds: float


def assert_refused_in_one_line(outcomes: Sequence[Outcome]) -> None:
    """Each file is refused by one of the two errors for files, in a line that names it."""
    kinds = ("UnsafeCheckpointError", "CorruptCheckpointError")
    assert [outcome for outcome in outcomes if outcome.error not in kinds] == []
    for outcome in outcomes:
        assert outcome.file[:40] in outcome.message, outcome
        assert outcome.message.isprintable() and len(outcome.message) < 700, outcome


def assert_payloads_are_called_unsafe(outcomes: Sequence[Outcome]) -> None:
    """Files whose names begin with "unsafe" are refused as such."""
    odd_but_harmless = ("name made of numbers", "build with slots")
    unsafe = [outcome for outcome in outcomes if outcome.file.startswith("unsafe")]
    wrong = [outcome for outcome in unsafe if outcome.error != "UnsafeCheckpointError"]
    assert [outcome for outcome in wrong if not outcome.file.endswith(odd_but_harmless)] == []


def read_audited(files: Sequence[Path], readers: Sequence[str], warm_up: Sequence[Path]) -> list[Outcome]:
    """Read each file with each reader ("module:function") in a child process.

    warm_up: sound files, read first, so that what the libraries import on first use is imported.
    """
    request = json.dumps([list(map(str, files)), list(readers), list(map(str, warm_up))])
    search = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    child = subprocess.run(
        [sys.executable, __file__],
        input=request,
        capture_output=True,
        text=True,
        timeout=2 * CPU_SECONDS,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, search)),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return [Outcome(**json.loads(line)) for line in child.stdout.splitlines()]


class _Recorder:
    def __init__(self) -> None:
        self.events: list[str] | None = None
        self.file = ""

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.events is None:
            return
        if event == "open":
            path, mode = str(arguments[0]), str(arguments[1])
            is_known = path in (self.file, self.file + ".sha256") or ENVIRONMENT.fullmatch(path)
            if not is_known or mode not in ("r", "rb", "None"):
                self.events.append(f"open {path} {mode}")
        elif event.startswith(tuple(FORBIDDEN)) and event not in ALLOWED:
            self.events.append(f"{event} {str(arguments)[:200]}")


def read_here(files: Sequence[str], names: Sequence[str], warm_up: Sequence[str]) -> Iterator[Outcome]:
    """The same in this process, which keeps the hook and the limits for good."""
    readers = {}
    for name in names:
        module, function = name.split(":")
        readers[name] = getattr(importlib.import_module(module), function)
    for file in warm_up:
        for reader in readers.values():
            try:
                reader(file)
            except Exception as error:  # a walker is no state dict: refusing it imports what refusing needs
                str(error)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    recorder = _Recorder()
    sys.addaudithook(recorder)
    for file in files:
        for name, reader in readers.items():
            error, message = "", ""
            recorder.file, recorder.events = file, []
            start = time.process_time()
            try:
                reader(file)
            except BaseException as caught:
                error, message = type(caught).__name__, str(caught)
            events, recorder.events = recorder.events, None
            taken = time.process_time() - start
            yield Outcome(file, name, error, message, events, taken)


def _child() -> None:
    for outcome in read_here(*json.loads(sys.stdin.read())):
        print(json.dumps(outcome._asdict()), flush=True)


if __name__ == "__main__":
    _child()
