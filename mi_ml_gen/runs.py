"""A run folder, which a kill at any moment, a rotten bit or a full disk leaves in order.

    config.yaml      the resolved settings; the folder is reopened only with the same ones
    metrics.jsonl    one JSON object a line, each with its "step"
    checkpoints/     state_<step>.pt and .sha256 beside, the newest few; walkers and encoders in safetensors
    images/          figures
    .lock            held by the process that writes here

Files are written beside their final name, synced, and renamed. Every file of weights has its SHA-256 beside it in
the form of `sha256sum`, checked whenever it is read. Under torchrun rank 0 alone writes; the others hear from it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import pickle
import re
import signal
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from mi_ml_gen import runtime
from mi_ml_gen.errors import CheckpointError, CorruptCheckpointError, EnvironmentFault, UsageError

log = logging.getLogger(__name__)

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.partial")  # what a killed atomic_write leaves
STATE = re.compile(r"state_(\d{12})\.pt")


# --- files ------------------------------------------------------------------------------------------------------


def atomic_write(path: str | Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that its name always holds either all of the old content or all of the new.

    `content` is the bytes, or a function that writes them to an open file. On return the file survives a power cut.
    Raises EnvironmentFault naming `path` when the disk is full, read-only, or refuses; nothing partial remains.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    with _disk_faults(path):
        try:
            with open(partial, "xb") as file:
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_with_hash(path: Path, data: bytes | memoryview) -> None:
    """Write a file and its SHA-256. While an older file is being replaced the hash file lists both, so that at no
    moment of a kill is a good file without its hash."""
    line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()
    replacing = path.exists() and _hash_file(path).exists()
    with _disk_faults(path):
        old = _hash_file(path).read_bytes() if replacing else b""
    atomic_write(_hash_file(path), line + old)
    atomic_write(path, lambda file: file.write(data))
    if replacing:
        atomic_write(_hash_file(path), line)


def _read_with_hash(path: Path, hash_required: bool) -> bytes:
    """The content of `path`, equal to what was written. Raises UsageError when there is no such file,
    CorruptCheckpointError when it is not what its hash says."""
    try:
        data = path.read_bytes()
        hashes = _hash_file(path).read_text().split()[::2] if _hash_file(path).exists() else None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(f"{_hash_file(path)}: damaged") from error
    if hashes is None and hash_required:
        raise CorruptCheckpointError(f"{path}: its {_hash_file(path).name} is missing")
    if hashes is not None and hashlib.sha256(data).hexdigest() not in hashes:
        raise CorruptCheckpointError(f"{path}: damaged, its SHA-256 is not the one in {_hash_file(path).name}")
    return data


class TensorFile(NamedTuple):
    """The content of a safetensors file, on the CPU."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and text metadata as safetensors, and the file's SHA-256 beside it."""
    separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    _write_with_hash(Path(path), safetensors.torch.save(separate, dict(metadata or {})))


def load_tensors(path: str | Path) -> TensorFile:
    """Read a safetensors file; its hash is checked where there is one. Raises CorruptCheckpointError when hash or
    format is wrong, UsageError when there is no such file."""
    data = _read_with_hash(Path(path), hash_required=False)
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    return TensorFile(tensors, header.get("__metadata__", {}))


# --- the run folder ---------------------------------------------------------------------------------------------


class RunFolder:
    """One run's files; made by `RunFolder.open`. `open` and `load_latest` are for all ranks together, the writing
    methods do nothing on ranks other than 0."""

    def __init__(self, path: Path, lock: _Lock | None, keep: int) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.images = path / "images"
        self._lock = lock
        self._keep = keep
        self._state_is_loadable = False

    @classmethod
    def open(
        cls, path: str | Path, config: Mapping[str, Any], free: Collection[str] = (), keep: int = 2
    ) -> RunFolder:
        """Create a run folder, or reopen the one of an interrupted run.

        Reopened, it must have been made with the same `config`, but for keys in `free`, which may change from one
        start to the next (how often to save, the device). `keep` is how many states stay in checkpoints/.
        Raises UsageError when another process holds the folder, a setting differs, or `path` is no folder;
        EnvironmentFault when it cannot be written.
        """
        path = Path(path)
        lock = runtime.on_main(lambda: _prepare(path, config, free)) if runtime.is_main() else None
        if not runtime.is_main():
            runtime.on_main(lambda: None)
        return cls(path, lock, keep)

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # metrics

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, step: int, **values: Any) -> None:
        """Append one row to metrics.jsonl. Tensors and NumPy scalars are read (which waits for the device); what is
        not finite becomes null."""
        if not runtime.is_main():
            return
        row = {"step": int(step)} | {name: _json_value(value) for name, value in values.items()}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with _disk_faults(self._metrics_path), open(self._metrics_path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(start)  # whole lines or nothing
                raise

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without a last line that a kill cut short."""
        try:
            lines = self._metrics_path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines[:-1]]

    # states

    def save_state(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, all that resuming needs: tensors, numbers, text, lists and dicts.

        It is on the disk when this returns; then older states beyond the newest `keep` go. On a full disk:
        EnvironmentFault, and the older states are as they were.
        """
        path = self.checkpoints / f"state_{step:012d}.pt"
        if not runtime.is_main():
            return path
        # Serialised in memory: torch.save onto a full disk leaves junk and an error that names nothing.
        buffer = io.BytesIO()
        torch.save({"step": int(step), "state": dict(state)}, buffer)
        if not self._state_is_loadable:
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)  # better refused here than at the resume
            self._state_is_loadable = True
        self._sync_metrics()
        _write_with_hash(path, buffer.getbuffer())
        for _, old in self._states()[: -self._keep]:
            old.unlink()
            _hash_file(old).unlink(missing_ok=True)
        return path

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest good state as (step, state) on the CPU, or None in a new folder; for all ranks together.

        Damaged states are reported and set aside as *.corrupt. Rows of metrics.jsonl after the step are removed, so
        that the steps done again do not stand there twice.
        Raises CorruptCheckpointError when there are states and none of them is good.
        """
        data = runtime.on_main(self._rewind)
        if data is None:
            return None
        saved = _unpack(data, self.checkpoints)
        return saved["step"], saved["state"]

    def _rewind(self) -> bytes | None:
        """Go back to the newest good state: its bytes, metrics cut to its step, worse ones out of the way."""
        step, data, damaged = -1, None, []
        for step, path in reversed(self._states()):
            try:
                data = _read_with_hash(path, hash_required=True)
                _unpack(data, path)
                break
            except CheckpointError as error:
                log.warning("%s; trying the state before it", error)
                damaged.append(path)
                data = None
        if damaged and data is None:
            raise CorruptCheckpointError(
                f"{self.checkpoints}: none of {len(damaged)} saved states is whole; "
                "to start again, remove this folder or choose another --run_name"
            )
        for path in damaged:
            path.replace(path.with_name(path.name + ".corrupt"))
        self._cut_metrics(step if data is not None else -1)
        return data

    def _states(self) -> list[tuple[int, Path]]:
        """(step, path) of all saved states, oldest first."""
        matches = ((STATE.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _cut_metrics(self, last_step: int) -> None:
        rows = self.metrics()
        kept = [row for row in rows if row["step"] <= last_step]
        if len(kept) < len(rows):
            atomic_write(self._metrics_path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def _sync_metrics(self) -> None:
        """Rows up to a state must be on the disk before the state is."""
        with _disk_faults(self._metrics_path), open(self._metrics_path, "ab") as file:
            os.fsync(file.fileno())

    # other files

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file by its name inside the run folder."""
        return self._write(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=2) + "\n")

    def save_figure(self, name: str, figure: Any) -> Path:
        """Write a matplotlib figure into images/, in the format that its name ends with."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format=Path(name).suffix.lstrip(".") or "png")
        return self._write(self.images / name, buffer.getvalue())

    def _write(self, path: Path, data: bytes) -> Path:
        if runtime.is_main():
            with _disk_faults(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        return path


def _unpack(data: bytes, path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CorruptCheckpointError(f"{path}: not a saved state: {error}") from error
    if not isinstance(saved, dict) or saved.keys() != {"step", "state"}:
        raise CorruptCheckpointError(f"{path}: not a saved state of a run")
    return saved


def _json_value(value: Any) -> Any:
    if isinstance(value, Tensor) or hasattr(value, "tolist"):  # NumPy's arrays and scalars
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- opening: lock, settings, left-overs ------------------------------------------------------------------------


def _prepare(path: Path, config: Mapping[str, Any], free: Collection[str]) -> _Lock:
    try:
        for folder in (path, path / "checkpoints", path / "images"):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{error.filename}: is a file; a run needs a folder") from error
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}") from error
    lock = _Lock(path / ".lock")
    try:
        _sweep(path)
        _agree(path / "config.yaml", config, free)
    except BaseException:
        lock.release()
        raise
    return lock


def _sweep(path: Path) -> None:
    """Remove what a killed process left: unfinished files, hashes without their file, the torn end of metrics."""
    with _disk_faults(path):
        for found in path.rglob(".*.partial"):
            if UNFINISHED.fullmatch(found.name):
                found.unlink()
        for found in (path / "checkpoints").glob("*.sha256"):
            if not found.with_suffix("").exists():
                found.unlink()
        metrics = path / "metrics.jsonl"
        if metrics.exists():
            content = metrics.read_bytes()
            os.truncate(metrics, content.rfind(b"\n") + 1)


def _agree(path: Path, config: Mapping[str, Any], free: Collection[str]) -> None:
    """Write config.yaml, or hold the settings against those that are there."""
    text = yaml.safe_dump(json.loads(json.dumps(dict(config), default=str)), sort_keys=False)
    wanted = yaml.safe_load(text)
    if path.exists():
        found = _read_config(path)
        for key in wanted | found:
            old, new = found.get(key, "(not set)"), wanted.get(key, "(not set)")
            if key not in free and old != new:
                raise UsageError(
                    f"{path.parent} was made with {key} {old}, not {new}; "
                    "give the same settings to go on, or choose another --run_name or folder"
                )
    if not path.exists() or found != wanted:
        atomic_write(path, text.encode())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptCheckpointError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{path}: damaged: no settings in it")
    return found


class _Lock:
    """A lock file that the kernel gives back when its process dies, however it dies, so there are no stale ones.

    A POSIX record lock and not flock: forked data workers would inherit the latter and outlive a killed run with it.
    Record locks do not hold within one process, so that is what `_held` is for.
    """

    _held: set[tuple[int, Path]] = set()

    def __init__(self, path: Path) -> None:
        self._key = (os.getpid(), path.resolve())
        with _disk_faults(path):
            if self._key in self._held:
                raise UsageError(f"{path.parent} is already open in this process (pid {os.getpid()})")
            self._file = open(path, "a+", encoding="utf-8")
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise UsageError(f"{path.parent} is in use by {self._holder()}; choose another --run_name") from None
            self._file.truncate(0)
            self._file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        self._held.add(self._key)

    def _holder(self) -> str:
        self._file.seek(0)
        holder = self._file.read().strip()
        self._file.close()
        return holder or "another process"

    def release(self) -> None:
        self._held.discard(self._key)
        self._file.close()


# --- being asked to stop ----------------------------------------------------------------------------------------


class Preemption:
    """Turns the first SIGTERM, SIGINT or SIGUSR1 into `.requested`, to be acted on between two steps:

        with Preemption() as preemption:
            for step in ...:
                if runtime.broadcast_flag(preemption.requested):
                    folder.save_state(step, ...)
                    raise Preempted(...)

    A second signal acts at once, as it would without this. Outside the main thread nothing can be requested.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    SAME_REQUEST_S = 1.0  # Ctrl-C under torchrun arrives twice: from the terminal and from torchrun

    def __init__(self) -> None:
        self.requested = False
        self._requested_at_s = 0.0
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Preemption:
        with contextlib.suppress(ValueError):  # not the main thread
            for signum in self.SIGNALS:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:  # a forked worker: it ends when its parent does
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)
        elif not self.requested:
            self.requested = True
            self._requested_at_s = time.monotonic()
            name = signal.Signals(signum).name
            os.write(2, f"{name}: stopping after this step; again to stop at once\n".encode())
        elif time.monotonic() - self._requested_at_s > self.SAME_REQUEST_S:
            self.__exit__()
            signal.raise_signal(signum)
