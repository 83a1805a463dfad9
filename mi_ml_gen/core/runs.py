"""A run folder, which a kill at any moment, a rotten bit or a full disk leaves in order.

    config.yaml      the resolved settings, under a SHA-256 of them; the folder is reopened only with the same ones
    metrics.jsonl    one JSON object a line, each with its "step" and, last, a checksum of itself
    metrics.rows     how many lines it had when the newest state was saved, so that lost ones are missed
    checkpoints/     state_<step>.pt and .sha256 beside, the newest few; each state holds the settings too
    images/          figures
    environment.json command, machine, software and time of each start: see provenance.py
    .lock            held by the process that writes here

Under torchrun only rank 0 touches the folder, and the others hear from it. Locks: see locks.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import yaml
from torch import Tensor

from mi_ml_gen.core import locks, provenance, runtime
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import (
    HELD,
    TensorFile,
    atomic_write,
    check_held,
    disk_faults,
    hash_file,
    load_tensors,
    read_json,
    read_with_hash,
    save_tensors,
    sweep_unfinished,
    write_json,
    write_with_hash,
)
from mi_ml_gen.core.texts import TextError, parse_yaml

__all__ = [
    "RunFolder",
    "TensorFile",
    "atomic_write",
    "load_tensors",
    "read_config",
    "read_json",
    "read_metrics",
    "save_tensors",
]

logger = logging.getLogger(__name__)

STATE = re.compile(r"state_(\d{12})\.pt")
ROWS = "metrics.rows"
SUM = "# SHA-256 of the lines below: "
MOST_METRICS_BYTES = 128 << 20
"""Of metrics that others wrote; ours have a megabyte or two. Python takes some five times as much memory for them."""
UNREADABLE_SUM = re.compile(rb', "[^"]{5}": "[^"]{8}"\}$')
"""What a flipped bit leaves of a row's checksum; no row has another text of eight characters at its end."""
SUMMED_ROW = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}')


# --- the run folder -----------------------------------------------------------------------------------------


class RunFolder:
    """One run's files; made by `RunFolder.open`. All ranks call `open` and `load_latest` together; what
    writes does nothing on ranks other than 0."""

    def __init__(
        self, path: Path, config: Mapping[str, Any], free: Collection[str], keep: int, defaults: Mapping[str, Any]
    ) -> None:
        assert keep >= 1
        self.path = path
        self.settings: dict[str, Any] = yaml.safe_load(_yaml(config))
        self._free = free
        self._defaults: dict[str, Any] = yaml.safe_load(_yaml(defaults))
        self.checkpoints = path / "checkpoints"
        self.images = path / "images"
        self._keep = keep
        self._lock: _Lock | None = None
        self._record: provenance.Record | None = None
        self._state_is_loadable = False
        self._n_rows: int | None = None  # of metrics.jsonl, once they have been counted
        self._made: list[Path] = []  # folders that were not there before

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        free: Collection[str] = (),
        keep: int = 2,
        defaults: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Create a run folder, or reopen the one of an interrupted run.

        Reopened, it must have been made with the same `config`, but for keys in `free`, which may change from
        one start to the next (how often to save, the device). `keep` is how many states stay in checkpoints/.
        defaults: the default of each setting (`config.resuming` gives it, and `free`). A run that an earlier version
        began, before a setting existed, counts as made with the setting's default.
        Raises UsageError when another process holds the folder, a setting differs, or `path` is no folder;
        EnvironmentFault when it cannot be written.
        """
        folder = cls(Path(path), config, free, keep, defaults or {})
        runtime.on_main(folder._take)
        return folder

    def _take(self) -> None:
        locks.check_system()
        with disk_faults(self.path):
            self._made = [path for path in (*reversed(self.path.parents), self.path) if not os.path.exists(path)]
        for path in (self.path, self.checkpoints, self.images):
            with disk_faults(path):
                path.mkdir(parents=True, exist_ok=True)
        self._lock = _Lock(self.path / ".lock")
        try:
            _sweep(self)
            self._agree()
            self._record = provenance.Record(self.path)
        except BaseException:
            self.close()
            raise

    def close(self, error: BaseException | None = None) -> None:
        """Let other processes have the folder. With a UsageError as `error` a new folder in which nothing has been
        done yet goes, so that a command that is refused leaves nothing."""
        discard = isinstance(error, UsageError) and self._lock is not None and self._is_unused()
        if self._record is not None:
            if not discard:
                self._record.end()
            self._record = None
        if discard:
            self._discard()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _is_unused(self) -> bool:
        """Whether the folder is new, and only opening it has written into it."""
        found = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")}
        record = provenance.NAME
        opened = {".lock", "config.yaml", "checkpoints", "images", record, f"{record}.sha256"}
        return self.path in self._made and found <= opened

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            for name in ("config.yaml", provenance.NAME, f"{provenance.NAME}.sha256", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            for path in (self.checkpoints, self.images, *reversed(self._made)):
                path.rmdir()  # never one that holds anything

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close(exception[1])

    # settings

    def _agree(self) -> None:
        """Hold the settings against those that the folder was made with, and write config.yaml where it is new.

        Where config.yaml was removed from a run, its newest state tells the settings.
        """
        path = self.path / "config.yaml"
        found = read_config(self.path) if path.exists() else None
        if found is not None:
            self._compare(found)
        elif (self.path / provenance.NAME).exists() or self._states():
            self._compare(self._settings_of_state())
        if found != self.settings:
            text = _yaml(self.settings)
            atomic_write(path, f"{SUM}{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())

    def _settings_of_state(self) -> dict[str, Any]:
        for _, path in reversed(self._states()):
            with contextlib.suppress(CheckpointError):
                saved = _unpack(read_with_hash(path, hash_required=True), path)
                if saved["settings"] is not None:
                    return saved["settings"]
        raise UsageError(
            f"{self.path} is a run's folder without its config.yaml, so nobody can tell whether the settings are the "
            "same; put that file back, or choose another --run_name or folder"
        )

    def _compare(self, found: Mapping[str, Any]) -> None:
        for key in self.settings | dict(found):
            is_new = key not in found and key in self._defaults  # an earlier version had no such setting
            old = self._defaults[key] if is_new else found.get(key, "(not set)")
            new = self.settings.get(key, "(not set)")
            if key not in self._free and old != new:
                why = f", the default, because it was begun before {key} was a setting" if is_new else ""
                raise UsageError(
                    f"{self.path} was made with {key} {old}, not {new}{why}; "
                    "give the same settings to go on, or choose another --run_name or folder"
                )

    # metrics

    def log(self, step: int, **values: Any) -> dict[str, Any]:
        """Append one row to metrics.jsonl, and give it back as it was written, on every rank. Tensors and NumPy
        scalars are read (which waits for the device); what is not finite becomes null."""
        row = {"step": int(step)} | {name: _json_value(value) for name, value in values.items()}
        if runtime.is_main():
            self._append(_line(row))
        return row

    def _append(self, line: bytes) -> None:
        path = self.path / "metrics.jsonl"
        check_held(path)
        with disk_faults(path), open(path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(start)  # whole lines or nothing
                raise
        if self._n_rows is not None:
            self._n_rows += 1

    def metrics(self, whole: bool = False) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; see `read_metrics`. A run's own may be of any length."""
        return read_metrics(self.path, whole, most_bytes=None)

    # states

    @property
    def last_state(self) -> Path | None:
        """The newest saved state."""
        states = self._states()
        return states[-1][1] if states else None

    def save_state(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, all that resuming needs: tensors, numbers, text, lists and
        dicts. The settings are written with it.

        It is on the disk when this returns; then older states beyond the newest `keep` go. On a full disk:
        EnvironmentFault, and the older states are as they were.
        """
        path = self.checkpoints / f"state_{step:012d}.pt"
        if not runtime.is_main():
            return path
        # Serialised in memory: torch.save onto a full disk leaves junk and an error that names nothing.
        buffer = io.BytesIO()
        torch.save({"step": int(step), "state": dict(state), "settings": self.settings}, buffer)
        if not self._state_is_loadable:
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)  # better refused now than at the resume
            self._state_is_loadable = True
        self._sync_metrics(step)
        write_with_hash(path, buffer.getbuffer())
        for _, old in self._states()[: -self._keep]:
            old.unlink()
            hash_file(old).unlink(missing_ok=True)
        return path

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest good state as (step, state) on the CPU, or None in a new folder; for all ranks together.

        Damaged states are reported and set aside as *.corrupt. Rows of metrics.jsonl after the step are
        removed, so that the steps done again do not stand there twice. Raises CorruptCheckpointError when
        there are states and none of them is good, UsageError when it was saved under other settings.
        """
        data = runtime.on_main(self._rewind)
        if data is None:
            return None
        saved = _unpack(data, self.checkpoints)
        return saved["step"], saved["state"]

    def _rewind(self) -> bytes | None:
        """Go back to the newest good state: its bytes, metrics cut to its step, worse ones out of the way."""
        damaged: list[Path] = []
        for step, path in reversed(self._states()):
            try:
                data = read_with_hash(path, hash_required=True)
                settings = _unpack(data, path)["settings"]
            except CheckpointError as error:
                logger.warning("%s; going back to the state before it", error)
                damaged.append(path)
                continue
            if settings is not None:
                self._compare(settings)
            with disk_faults(self.checkpoints):
                for worse in damaged:
                    worse.replace(worse.with_name(worse.name + ".corrupt"))
                    hash_file(worse).unlink(missing_ok=True)
            self._cut_metrics(step)
            return data
        if damaged:
            raise CorruptCheckpointError(
                f"{self.checkpoints}: no saved state is whole; "
                "to start again, remove the run's folder, or choose another --run_name or folder"
            )
        self._cut_metrics(-1)
        return None

    def _states(self) -> list[tuple[int, Path]]:
        """(step, path) of all saved states, oldest first."""
        check_held(self.checkpoints)
        found = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        matches = ((STATE.fullmatch(path.name), path) for path in found)
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _cut_metrics(self, last_step: int) -> None:
        rows = self.metrics()
        noted = _noted_rows(self.path, must_be_whole=False)
        if noted.step <= last_step and len(rows) < noted.rows:
            raise CorruptCheckpointError(noted.lost(self.path / "metrics.jsonl", len(rows)))
        kept = [row for row in rows if row["step"] <= last_step]
        if len(kept) < len(rows):
            self._note_rows(last_step, len(kept))  # before they go: a kill in between must not look like a loss
            atomic_write(self.path / "metrics.jsonl", b"".join(map(_line, kept)))

    def _sync_metrics(self, step: int) -> None:
        """Rows up to a state must be on the disk before the state is, and their number is noted."""
        path = self.path / "metrics.jsonl"
        check_held(path)
        with disk_faults(path), open(path, "a+b") as file:
            os.fsync(file.fileno())
            if self._n_rows is None:
                file.seek(0)
                self._n_rows = sum(line.endswith(b"\n") for line in file)
        self._note_rows(step, self._n_rows)

    def _note_rows(self, step: int, n_rows: int) -> None:
        self._n_rows = n_rows
        atomic_write(self.path / ROWS, _line({"step": step, "rows": n_rows}))

    # other files

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file by its name inside the run folder."""
        return self._write(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Write results by their name inside the run folder, and their SHA-256 beside them; see `files.read_json`."""
        if runtime.is_main():
            write_json(self.path / name, value)
        return self.path / name

    def save_figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure into images/, in the format that its name ends with."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format=Path(name).suffix.lstrip(".") or "png")
        return self._write(self.images / name, buffer.getvalue())

    def _write(self, path: Path, data: bytes) -> Path:
        if runtime.is_main():
            atomic_write(path, data)
        return path


def read_metrics(
    path: str | Path, whole: bool = False, most_bytes: int | None = MOST_METRICS_BYTES
) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl, of a run that may still be going on: without a last line cut
    short. A line that is damaged is reported and passed over, and so is it where rows are gone that were there when
    the newest state was saved; with `whole`, which results need, both raise CorruptCheckpointError, as more than
    `most_bytes` does."""
    path = Path(path) / "metrics.jsonl"
    noted = _noted_rows(path.parent, whole)  # first: a run that goes on only adds to the rows that it has noted
    if not path.exists() and not noted.rows:
        return []
    if most_bytes is not None and path.exists() and (size := path.stat().st_size) > most_bytes:
        raise CorruptCheckpointError(f"{path}: has {size:,} bytes, more than the {most_bytes:,} that are read")
    rows, damaged, is_summed = [], [], False
    with path.open("rb") if path.exists() else io.BytesIO() as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") and not SUMMED_ROW.fullmatch(line[:-1]):
                break  # cut short; a whole row with another byte in place of its end is damaged
            try:
                row, has_sum = _row(line[:-1])
                if is_summed and not has_sum:  # only the first rows may come from a version that wrote no checksums
                    raise ValueError("its checksum is missing")
                rows.append(row)
                is_summed = has_sum
            except (ValueError, RecursionError):
                logger.warning("%s: line %d is damaged and left out", path, number)
                damaged.append(number)
    if whole and damaged:
        lines = f"line{'s' if len(damaged) > 1 else ''} {', '.join(map(str, damaged[:5]))}{' ...' * (len(damaged) > 5)}"
        raise CorruptCheckpointError(
            f"{path}: damaged in {lines}, so what is computed from it would be wrong; remove what is damaged to go on "
            "without it"
        )
    if len(rows) + len(damaged) < noted.rows:
        if whole:
            raise CorruptCheckpointError(noted.lost(path, len(rows)))
        logger.warning("%s", noted.lost(path, len(rows)))
    return rows


class _Noted(NamedTuple):
    """What metrics.rows says: after this step the metrics had so many rows."""

    step: int
    rows: int

    def lost(self, path: Path, n_rows: int) -> str:
        return (
            f"{path}: has {n_rows:,} rows, and had {self.rows:,} when the state of step {self.step:,} was saved; what "
            f"is computed from it would be wrong; remove {ROWS} beside it to go on without them"
        )


def _noted_rows(path: Path, must_be_whole: bool) -> _Noted:
    """What a run folder's metrics.rows says; 0 rows where there is none, as in runs of versions that wrote none."""
    try:
        row, has_sum = _row((path / ROWS).read_bytes().removesuffix(b"\n"))
        if not has_sum:
            raise ValueError("its checksum is missing")
        return _Noted(row["step"], row["rows"])
    except (FileNotFoundError, NotADirectoryError):
        return _Noted(-1, 0)
    except (ValueError, KeyError, RecursionError) as error:
        damaged = f"{path / ROWS}: damaged; remove it to go on without what it says"
        if must_be_whole:
            raise CorruptCheckpointError(damaged) from error
        logger.warning("%s", damaged)
        return _Noted(-1, 0)


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings in a run folder's config.yaml. Raises UsageError where there is none,
    CorruptCheckpointError where it is damaged."""
    path = Path(path) / "config.yaml"
    try:
        data = path.read_bytes()
        head = data.partition(b"\n")[0]
        if head.startswith(SUM.encode()) or re.search(rb"[0-9a-f]{64}$", head):  # a flipped bit may end the comment
            data = data[len(head) + 1 :]
            if hashlib.sha256(data).hexdigest() != head.decode("latin-1").removeprefix(SUM):
                raise TextError("it is not what its first line says; if you changed it, remove that line")
        found = parse_yaml(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path.parent}: not a run folder, there is no config.yaml in it") from error
    except TextError as error:
        raise CorruptCheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{path}: damaged, no settings in it")
    return found


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(dict(settings), default=str)), sort_keys=False)


def _line(row: Mapping[str, Any]) -> bytes:
    """A row of metrics with its checksum as its last entry."""
    text = json.dumps(row, allow_nan=False).encode()
    return text[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(text)


def _row(line: bytes) -> tuple[dict[str, Any], bool]:
    """A row of metrics, and whether it had a checksum, which older versions did not write."""
    match = SUMMED_ROW.fullmatch(line)
    if match:
        line = match[1] + b"}"
        if zlib.crc32(line) != int(match[2], 16):
            raise ValueError("not what its checksum says")
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("not a row of metrics")
    if match is None and UNREADABLE_SUM.search(line):
        raise ValueError("its checksum is damaged")
    return {sys.intern(name): value for name, value in row.items()}, match is not None  # which halves the memory


def _unpack(data: bytes, path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can trip torch's reader anywhere
        raise CorruptCheckpointError(f"{path}: not a saved state: {error}") from error
    if not isinstance(saved, dict) or saved.keys() - {"settings"} != {"step", "state"}:
        raise CorruptCheckpointError(f"{path}: not a saved state of a run")
    return {"settings": None} | saved  # states of earlier versions hold no settings


def _json_value(value: Any) -> Any:
    if isinstance(value, Tensor) or hasattr(value, "tolist"):  # NumPy's arrays and scalars
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- opening: lock, left-overs --------------------------------------------------------------------


def _sweep(folder: RunFolder) -> None:
    """Remove what a killed process left: unfinished files, hashes without their file, the torn end of
    metrics."""
    with disk_faults(folder.path):
        sweep_unfinished(folder.path)  # below it too: trainers have folders of their own there, and others' runs
        for place in (folder.path, folder.checkpoints, folder.images):
            for found in place.glob("*.sha256"):
                if not found.with_suffix("").exists():
                    found.unlink()
        metrics = folder.path / "metrics.jsonl"
        if metrics.exists():
            os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)


class _Lock:
    """A lock file that the kernel gives back when its process dies, however it dies, so there are no stale
    ones.

    A POSIX record lock and not flock: forked data workers would inherit the latter and outlive a killed run
    with it. Record locks do not hold within one process, so that is what `_held` is for.
    """

    _held: ClassVar[set[tuple[int, Path]]] = set()

    def __init__(self, path: Path) -> None:
        self._key = (os.getpid(), path.resolve())
        with disk_faults(path):
            if self._key in self._held:
                raise UsageError(f"{path.parent} is already open in this process (pid {os.getpid()})")
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until release
            if not locks.take(self._file, wait=False, of_process=True):
                holder = self._holder()
                raise UsageError(f"{path.parent} is in use by {holder}; choose another --run_name or folder")
            self._file.truncate(0)
            self._file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        self._held.add(self._key)
        taken = os.fstat(self._file.fileno())
        self._folder = Path(os.path.abspath(path.parent))
        HELD[self._folder] = self._folder / path.name, taken.st_dev, taken.st_ino

    def _holder(self) -> str:
        """Who has the lock; it may have taken it a moment ago and not have written its name yet."""
        with self._file:
            for _ in range(20):
                self._file.seek(0)
                if holder := self._file.read().strip():
                    return holder
                time.sleep(0.05)
        return "another process"

    def release(self) -> None:
        self._held.discard(self._key)
        HELD.pop(self._folder, None)
        with self._file:
            self._file.truncate(0)
