"""Files that are whole or absent, and tensors whose hash is checked whenever they are read.

A file is written beside its final name, synced, and renamed. Weights have their SHA-256 beside them, in the
form of `sha256sum`: both torch's and safetensors' readers let most flipped bits through.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.locks import fcntl
from mi_ml_gen.core.texts import TextError, parse_json

if TYPE_CHECKING:
    from torch import Tensor  # imported where tensors are read and written: what only needs files starts at once

_PATIENCE_S = 600.0
"""How long a partial file that cannot be locked must have been left alone before it counts as abandoned."""
MAX_JSON_BYTES = 64 << 20
"""Of results in JSON; ours take a few megabytes at most, and Python some twenty times as much memory for them."""
MAX_HEADER_BYTES = 4 << 20  # of a safetensors file; its parser takes twenty times as much memory, or aborts
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.partial")  # what a killed atomic_write leaves

HELD: dict[Path, tuple[Path, int, int]] = {}
"""Folders that this process works in: a file in each, by which it is known, with that file's device and inode."""


def atomic_write(path: str | Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that its name always holds either all of the old content or all of the new.

    `content` is the bytes, or a function that writes them to an open file. On return the file survives a
    power cut. Missing folders are made. Raises EnvironmentFault naming `path` when the disk is full,
    read-only, or refuses, or when `path` lies in a run folder that was removed while it is open; UsageError when
    a folder on the way is a file; nothing partial remains.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    check_held(path)
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                _lock(file)
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def check_held(path: Path) -> None:
    """Raise EnvironmentFault where `path` lies in a held folder that was removed: written anew, it would hold
    half of a run."""
    path = Path(os.path.abspath(path))
    for folder, (marker, device, inode) in HELD.items():
        if folder == path or folder in path.parents:
            try:
                found = marker.stat()
            except OSError:
                found = None
            if found is None or (found.st_dev, found.st_ino) != (device, inode):
                raise EnvironmentFault(
                    f"{folder} or its {marker.name} was removed during the run; nothing more is written"
                )


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path with a leading ~ as the home folder that it means. Raises NoHome where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no HOME and no passwd entry, as for a bare user number in a container, or ~somebody
        raise NoHome(f"{path}: no home folder is known for it here; set HOME, or write the path without ~") from None


def in_package(package: str, place: str, extra: str, how: str) -> Path:
    """A file of an installed package, which is not imported. extra: of ours that installs it; how: it can be had.

    Raises EnvironmentFault where the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise EnvironmentFault(f"package {package} is not installed; pip install 'mi_ml_gen[{extra}]', or {how}")
    path = Path(folders[0]) / place
    if not path.is_file():
        raise EnvironmentFault(f"{path} is missing: this version of {package} has no such file; {how}")
    return path


class NoHome(EnvironmentFault):
    """A path begins with ~, and nothing says which folder that is."""


def remove_unfinished(path: str | Path) -> None:
    """Remove what killed calls of `atomic_write` left beside `path`; what another process is writing now stays."""
    path = Path(path)
    with contextlib.suppress(OSError):  # a folder that is not there, or cannot be listed, has nothing to remove
        for found in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            if UNFINISHED.fullmatch(found.name) and not _is_being_written(found):
                found.unlink(missing_ok=True)


def sweep_unfinished(folder: Path) -> None:
    """Remove what killed calls of `atomic_write` left anywhere below `folder`; what is being written now stays."""
    for found in folder.rglob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):  # its process has just given it its name
            if UNFINISHED.fullmatch(found.name) and not _is_being_written(found):
                found.unlink()


def _is_being_written(path: Path) -> bool:
    """Whether a living process holds the lock that `atomic_write` takes on its partial file."""
    if fcntl is None:
        return time.time() - path.stat().st_mtime < _PATIENCE_S
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            # A file system without locks: a file that still grows is somebody's.
            busy = error.errno in (errno.EAGAIN, errno.EACCES)
            return busy or time.time() - path.stat().st_mtime < _PATIENCE_S
    return False


def _lock(file: IO[bytes]) -> None:
    """Mark a partial file as being written, until it is closed or its process dies."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """What the system says about writing `path`, as errors of ours."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        leads_nowhere = os.path.islink(error.filename) and not os.path.exists(error.filename)
        what = "a link that leads nowhere" if leads_nowhere else "a file, not a folder"
        raise UsageError(f"cannot write {path}: {error.filename} is {what}") from error
    except IsADirectoryError as error:
        raise UsageError(f"cannot write {path}: it is a folder") from error
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


def hash_file(path: Path) -> Path:
    """The file beside `path` that holds its SHA-256."""
    return path.with_name(path.name + ".sha256")


def recorded_hashes(path: Path) -> list[str] | None:
    """The SHA-256s that the file beside `path` lists, the newest first; None where there is no such file. Lines that
    are no hashes are passed over, so a file of nothing else is the hash of nothing, and `path` counts as damaged."""
    try:
        lines = hash_file(path).read_bytes().splitlines()
    except FileNotFoundError:
        return None
    return [line[:64].decode() for line in lines if re.match(rb"[0-9a-f]{64}(\s|$)", line)]


def write_with_hash(path: Path, data: bytes | memoryview) -> None:
    """Write a file and its SHA-256. While an older file is being replaced the hash file lists both, so that a
    kill at no moment leaves a good file without its hash."""
    line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()
    old = b""
    with disk_faults(path), contextlib.suppress(FileNotFoundError):
        old = hash_file(path).read_bytes()
    atomic_write(hash_file(path), line + old)
    try:
        atomic_write(path, lambda file: file.write(data))
    except BaseException:
        if not path.exists():
            hash_file(path).unlink(missing_ok=True)
        raise
    if old:
        atomic_write(hash_file(path), line)


def read_with_hash(path: Path, hash_required: bool, most_bytes: int | None = None) -> bytes:
    """The content of `path`, equal to what was written. Raises UsageError when there is no such file,
    CorruptCheckpointError when it is not what its hash says, or larger than `most_bytes`."""
    try:
        if most_bytes is not None and (size := path.stat().st_size) > most_bytes:
            raise CorruptCheckpointError(f"{path}: has {size:,} bytes, more than the {most_bytes:,} that are read")
        data, hashes = _with_hashes(path)
        if hashes is not None and hashlib.sha256(data).hexdigest() not in hashes:
            data, hashes = _with_hashes(path)  # another process may have replaced the file between the two reads
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    if hashes is None and hash_required:
        raise CorruptCheckpointError(f"{path}: its {hash_file(path).name} is missing")
    if hashes is not None and hashlib.sha256(data).hexdigest() not in hashes:
        raise CorruptCheckpointError(f"{path}: damaged, not what its {hash_file(path).name} says")
    return data


def _with_hashes(path: Path) -> tuple[bytes, list[str] | None]:
    """A file's bytes, and the hashes beside it, if there are any."""
    data = path.read_bytes()
    return data, recorded_hashes(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write results as JSON, and their SHA-256 beside them; `read_json` reads them back."""
    write_with_hash(Path(path), (json.dumps(value, indent=2) + "\n").encode())
    return Path(path)


def read_json(path: str | Path, kind: type = dict) -> Any:
    """The results in a JSON file; its hash is checked where there is one. Raises UsageError where there is no file,
    CorruptCheckpointError where it is damaged, or holds no `kind` (dict or list)."""
    data = read_with_hash(Path(path), hash_required=False, most_bytes=MAX_JSON_BYTES)
    try:
        found = parse_json(data)
    except TextError as error:
        raise CorruptCheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(found, kind):
        raise CorruptCheckpointError(f"{path}: damaged, holds no {'list of ' * (kind is list)}results")
    return found


class TensorFile(NamedTuple):
    """The content of a safetensors file, on the CPU."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and text metadata as safetensors, and the file's SHA-256 beside it. Equal content gives equal
    bytes."""
    import safetensors.torch

    separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_with_hash(Path(path), _with_metadata(safetensors.torch.save(separate), dict(metadata or {})))


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with text metadata in the order of its keys; safetensors itself writes them in any order.

    The header is JSON, padded with blanks to a multiple of 8 bytes, after its length in 8 bytes; places of tensors
    count from its end.
    """
    n_header = int.from_bytes(data[:8], "little")
    entries = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    header = json.dumps(entries | json.loads(data[8 : 8 + n_header]), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + n_header :]


def load_tensors(path: str | Path) -> TensorFile:
    """Read a safetensors file; its hash is checked where there is one. Raises CorruptCheckpointError when
    hash or format is wrong, UsageError when there is no such file."""
    import safetensors.torch

    data = read_with_hash(Path(path), hash_required=False)
    if (n_header := int.from_bytes(data[:8], "little")) > MAX_HEADER_BYTES:
        raise CorruptCheckpointError(f"{path}: not a safetensors file: announces a header of {n_header:,} bytes")
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    return TensorFile(tensors, header.get("__metadata__", {}))
