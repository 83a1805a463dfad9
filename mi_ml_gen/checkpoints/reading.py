"""Published checkpoint files -> tensors and plain values, without running anything that is in them.

The pickles inside are read by `pickle_machine`, which calls nothing. Reading has two steps: parsing gives a
tree whose tensors are stubs (where the bytes lie, and how they are laid out); building turns the stubs
asked for into tensors, after their sizes were checked against the bytes that are there. The bytes of all
tensors together are bounded by the file's size.

Containers: the zip archives of torch.save (stored members only), its older stream format, bare pickles
whose storages are nested in bytes, and safetensors. A refusal is `UnsafeCheckpointError` or
`CorruptCheckpointError`, one line that names the file; a wrong path is `UsageError`, a file that cannot be
read `EnvironmentFault`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.checkpoints.archive import MAX_TENSOR_NAME_CHARACTERS, _check_crc32, _parse_bare, _parse_zip
from mi_ml_gen.checkpoints.names import checkpoint_names
from mi_ml_gen.checkpoints.values import (
    ArrayStub,
    Budget,
    DtypeStub,
    Function,
    Name,
    Names,
    Passed,
    Record,
    Span,
    Storage,
    TensorStub,
    corrupt,
    kind,
    mentioned,
    shown,
)
from mi_ml_gen.core import files
from mi_ml_gen.core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    EnvironmentFault,
    UnsafeCheckpointError,
    UsageError,
)

__all__ = [
    "CheckpointFile",
    "CorruptCheckpointError",
    "Record",
    "UnsafeCheckpointError",
    "module_state_dict",
    "naming",
    "read_checkpoint",
    "read_state_dict",
    "without_wrappers",
]

MAX_DEPTH = 200  # nesting of dicts, lists, tuples and records
MAX_MODULE_ENTRIES = 20_000  # tensors and parts of one module, all levels together
MAX_MODULE_DEPTH = 50
MAX_SAFETENSORS_HEADER_BYTES = 4 << 20


# ------------------------------------------------------------------------------------------------------------
# Building what was parsed


class _Builder:
    """Inert tree -> values with tensors. What is shared stays shared; the bytes of all are bounded."""

    def __init__(self, file_bytes: int):
        self._bytes_left = 4 * file_bytes + (1 << 20)
        self._done: dict[int, tuple[Any, Any]] = {}  # id -> (value, built): the value stays, so its id does
        self._open: set[int] = set()

    def build(self, value: Any, depth: int = 0) -> Any:
        if value is None or type(value) in (bool, int, float, str, torch.dtype, set):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if depth > MAX_DEPTH:
            corrupt(f"is nested more than {MAX_DEPTH} levels deep")
        if id(value) in self._open:
            corrupt("holds a value that contains itself")
        self._open.add(id(value))
        built = self._build(value, depth + 1)
        self._open.discard(id(value))
        self._done[id(value)] = value, built
        return built

    def _build(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {self._key(key, depth): self.build(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.build(item, depth) for item in value]
        if isinstance(value, tuple):
            return tuple([self.build(item, depth) for item in value])
        if isinstance(value, Record):
            make = Passed if isinstance(value, Passed) else Record
            return make(value.module, value.name, self.build(value.state, depth))
        if isinstance(value, ArrayStub) and not value.fits_torch:
            return Passed("numpy", "ndarray", {"shape": value.shape})
        if isinstance(value, (TensorStub, ArrayStub)):
            return self._tensor(value)
        if isinstance(value, Span):
            self._charge(value.size)
            return value.bytes()
        if isinstance(value, Name) and isinstance(value.meaning, Function) and value.meaning.makes_objects:
            return mentioned(value)  # a type such as dict or Path, as a value
        if isinstance(value, DtypeStub):
            return str(value.dtype)
        corrupt(f"holds {kind(value)} where a value should be")

    def _key(self, key: Any, depth: int) -> Any:
        """A key of a dict: objects are built like values, and tuples of plain values stay as they are."""
        return self.build(key, depth) if isinstance(key, (Record, TensorStub)) else key

    def _charge(self, n_bytes: int) -> None:
        self._bytes_left -= n_bytes
        if self._bytes_left < 0:
            corrupt("holds tensors that are together several times as large as the file")

    def _tensor(self, stub: TensorStub | ArrayStub) -> Tensor:
        stub.check()
        self._charge(stub.n_bytes)
        if isinstance(stub, ArrayStub):
            return stub.build()
        if stub.n_bytes == 0:
            return torch.empty(stub.size, dtype=stub.storage.dtype)
        return self._elements(stub.storage).as_strided(stub.size, stub.stride, stub.offset)

    def _elements(self, storage: Storage) -> Tensor:
        if storage.elements is None:
            assert storage.span is not None
            _check_crc32(storage.span, storage.crc32, "a tensor")
            raw = torch.empty(storage.span.size, dtype=torch.uint8)
            storage.span.read_into(raw.numpy().data)
            storage.elements = raw != 0 if storage.dtype == torch.bool else raw.view(storage.dtype)
        return storage.elements


# ------------------------------------------------------------------------------------------------------------
# Files

_FOREIGN = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"<!DOCTYPE": "is a web page, not a checkpoint; the download went wrong",
    b"<!doctype": "is a web page, not a checkpoint; the download went wrong",
    b"<html": "is a web page, not a checkpoint; the download went wrong",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"\x89HDF": "is an HDF5 file, not a checkpoint of torch",
    b"\x93NUMPY": "is a NumPy array, not a checkpoint",
}
_TAR = "is a tar archive, as torch before 0.4 wrote them, and is not read; save it again with a newer torch"


class CheckpointFile:
    """An open checkpoint. `root` is the parsed tree, with stubs for tensors; `build` makes values of parts.

    `format` is "zip", "stream", "pickle" or "safetensors" (whose root holds tensors already). `names` are the
    names that its pickles may hold. Use as a context manager. Raises as `read_checkpoint` does.
    """

    def __init__(self, path: str | os.PathLike, names: Names = checkpoint_names):
        self.path = Path(path)
        self.file = _open(self.path)
        try:
            with naming(self.path):
                self.size = os.fstat(self.file.fileno()).st_size
                self.format, self.root = self._parse(names)
            if self.format == "safetensors":  # its hash is checked, where there is one
                self.root = files.load_tensors(self.path).tensors
        except BaseException:
            self.file.close()
            raise
        self._builder = _Builder(self.size)

    def _parse(self, names: Names) -> tuple[str, Any]:
        span, budget = Span(self.file, 0, self.size), Budget(self.size)
        head = span.part(0, min(self.size, 512)).bytes()
        if not head:
            corrupt("is empty")
        for start, complaint in _FOREIGN.items():
            if head.startswith(start):
                corrupt(complaint)
        if head[257:262] == b"ustar":
            corrupt(_TAR)
        if head.startswith(b"PK"):
            return "zip", _parse_zip(span, names, budget)
        if head[4:9] == b"\0\0\0\0{":
            n_header = int.from_bytes(head[:8], "little")
            if n_header > MAX_SAFETENSORS_HEADER_BYTES:
                corrupt(f"announces a safetensors header of {n_header} bytes")
            return "safetensors", None
        try:
            return _parse_bare(span, names, budget)
        except CorruptCheckpointError as error:
            if head.startswith(b"\x80"):
                raise
            raise CorruptCheckpointError(f"is not a checkpoint of a known format: {error}") from error

    def build(self, value: Any) -> Any:
        """Values with tensors on the CPU, for a part of `root`. A storage shared by several is read once."""
        if self.format == "safetensors":
            return value
        with naming(self.path):
            return self._builder.build(value)

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def _open(path: Path) -> BinaryIO:
    name = shown(path, 300)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{name}: no such file") from error
    except ValueError as error:  # a zero byte in the path
        raise UsageError(f"{name}: not a path") from error
    except OSError as error:
        raise EnvironmentFault(f"{name}: cannot be read ({error.strerror})") from error
    what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise UsageError(f"{name}: is {what}; give the path of a checkpoint file")


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's path before the message of a refusal; a failing disk becomes EnvironmentFault."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{shown(path, 300)}: {error}") from error
    except OSError as error:
        raise EnvironmentFault(f"{shown(path, 300)}: cannot be read ({error.strerror})") from error


def read_checkpoint(path: str | os.PathLike, keys: Collection[str] | None = None) -> Any:
    """A checkpoint's value: dicts, lists, tuples, sets, numbers, text, bytes, tensors (CPU), `Record`s.

    keys: build only these entries of a top-level dict, where they exist; an optimiser's state can be most of
    a file. Devices become text ("cuda:0"), arrays tensors. Raises UnsafeCheckpointError or
    CorruptCheckpointError for the file, UsageError for a path that is no file, EnvironmentFault for one that
    cannot be read.
    """
    with CheckpointFile(path) as file:
        if keys is None:
            return file.build(file.root)
        with naming(path):
            if type(file.root) is not dict:
                corrupt(f"holds {kind(file.root)}, not a dict")
        return {key: file.build(value) for key, value in file.root.items() if key in keys}


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """A flat state dict, name -> tensor on the CPU, such as BigBiGAN_x1.pth or a safetensors file.

    The file is parsed once, by this package's reader: torch.load never sees it, so the faults that its restricted
    reader had before torch 2.10 are out of a foreign file's reach. Raises as `read_checkpoint` does, and
    CorruptCheckpointError where something else than tensors is in it.
    """
    with CheckpointFile(path) as file:
        root = file.root
        with naming(path):
            if type(root) is not dict or not root:
                corrupt(f"holds {kind(root)}, not a state dict")
            for name, value in root.items():
                if not (isinstance(name, str) and isinstance(value, (TensorStub, Tensor))):
                    corrupt(f"{shown(name)} is {kind(value)}, not a tensor of a state dict")
        return file.build(root)


# ------------------------------------------------------------------------------------------------------------
# Modules

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel (and its distributed relative), torch.compile, FSDP and activation checkpointing put into names."""


def without_wrappers(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict under the names that the module had before it was wrapped: "module.conv1.weight", "conv1.weight".

    The same mapping where no name has a wrapper's part, or where two names would become one.
    """
    names = {key: ".".join(part for part in str(key).split(".") if part not in _WRAPPERS) for key in state}
    if len(set(names.values())) < len(names) or all(name == key for key, name in names.items()):
        return state
    return {names[key]: value for key, value in state.items()}


def module_state_dict(module: Record, check: Callable[[Any, str], None] = lambda part, where: None) -> dict[str, Any]:
    """State dict of a parsed nn.Module, {"walker.0.weight": stub or tensor}, without non-persistent buffers.

    `check(part, where)` may refuse parts. Raises CorruptCheckpointError where the record has not the layout
    of a module.
    """
    tensors: dict[str, Any] = {}
    waiting, n_entries = [("", module, 0)], 0
    for prefix, part, depth in waiting:  # grows while it is read
        where = prefix.removesuffix(".") or "the module"
        check(part, shown(where))
        own, children, n_here = _module_parts(part, where)
        n_entries += 1 + n_here
        longest = len(prefix) + max(map(len, [*own, *children]), default=0)
        too_deep = depth > MAX_MODULE_DEPTH or longest > MAX_TENSOR_NAME_CHARACTERS
        if too_deep or n_entries > MAX_MODULE_ENTRIES:
            corrupt("a module of too many parts")
        tensors |= {prefix + name: tensor for name, tensor in own.items()}
        waiting += [(f"{prefix}{name}.", child, depth + 1) for name, child in children.items()]
    return tensors


class _ModuleParts(NamedTuple):
    own: dict[str, Any]
    children: dict[str, Any]
    n_entries: int


def _module_parts(part: Any, where: str) -> _ModuleParts:
    """A module's own parameters and persistent buffers, and its children, which are not looked at yet."""
    if not isinstance(part, Record):
        corrupt(f"{shown(where)} is not a module")
    groups: list[Any] = [part.state.get(group) for group in ("_parameters", "_buffers", "_modules")]
    for group in groups:
        is_short = type(group) is dict and len(group) <= MAX_MODULE_ENTRIES
        if not (is_short and all(type(name) is str for name in group)):
            corrupt(f"{shown(where)} is not laid out as a module")
    parameters, buffers, modules = groups
    hidden = part.state.get("_non_persistent_buffers_set")
    hidden = hidden if type(hidden) is set else set()
    persistent = {name: buffer for name, buffer in buffers.items() if name not in hidden}
    own = {name: tensor for name, tensor in (parameters | persistent).items() if tensor is not None}
    for name, tensor in own.items():
        if not isinstance(tensor, (TensorStub, Tensor)):
            corrupt(f"{shown(name)} of {shown(where)} is {kind(tensor)}, not a tensor")
    children = {name: child for name, child in modules.items() if child is not None}
    return _ModuleParts(own, children, sum(map(len, groups)))
