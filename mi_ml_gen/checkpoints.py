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
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen import files
from mi_ml_gen.errors import (
    CheckpointError,
    CorruptCheckpointError,
    EnvironmentFault,
    UnsafeCheckpointError,
    UsageError,
)
from mi_ml_gen.pickle_machine import (
    ArrayStub,
    Budget,
    DtypeStub,
    Name,
    Names,
    PickleMachine,
    Record,
    Span,
    Storage,
    StorageType,
    Stream,
    TensorStub,
    checkpoint_names,
    corrupt,
    is_count,
    kind,
    shown,
    storage_names,
)

__all__ = [
    "CheckpointFile",
    "CorruptCheckpointError",
    "PublishedWalker",
    "Record",
    "UnsafeCheckpointError",
    "module_state_dict",
    "naming",
    "read_checkpoint",
    "read_state_dict",
    "read_walker",
]

MAX_DEPTH = 200  # nesting of dicts, lists, tuples and records
MAX_MODULE_ENTRIES = 20_000  # tensors and parts of one module, all levels together
MAX_MODULE_DEPTH = 50
MAX_TENSOR_NAME_CHARACTERS = 1000
MAX_ZIP_MEMBERS = 50_000
MAX_SAFETENSORS_HEADER_BYTES = 4 << 20

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save's stream format
LEGACY_VERSION = 1001

# ------------------------------------------------------------------------------------------------------------
# Containers of pickles


def _parse_bare(span: Span, names: Names, budget: Budget) -> tuple[str, Any]:
    """(format, value) of a pickle, or of the several pickles of torch.save's stream format."""

    def nested(content: Span) -> Storage:
        place = f"the storage at byte {content.start}"
        value = _parse_stream(content, storage_names, budget, place)
        return value if isinstance(value, Storage) else corrupt(f"{place} holds {kind(value)}")

    stream = Stream(span)
    value = PickleMachine(stream, names, budget, "the pickle", nested=nested).run()
    if type(value) is int and value == LEGACY_MAGIC:
        return "stream", _parse_stream(span, names, budget, "the file")
    if stream.left:
        corrupt(f"{stream.left} bytes follow the end of the pickle")
    return "pickle", value


def _storage_from_id(pid: Any, n_fields: tuple[int, ...]) -> tuple[str, Storage]:
    """("storage", type, key, location, number of elements[, view]) -> (key, a storage without bytes)."""
    ok = isinstance(pid, tuple) and len(pid) in n_fields and isinstance(pid[0], str) and pid[0] == "storage"
    if not (ok and isinstance(pid[1], StorageType) and isinstance(pid[2], str)):
        raise UnsafeCheckpointError("refers to something outside of the file that is not a storage")
    if not is_count(pid[4]) or len(pid[2]) > MAX_TENSOR_NAME_CHARACTERS:
        corrupt("a storage with an odd size or key")
    if len(pid) == 6 and pid[5] is not None:
        corrupt("a view of a storage, as torch before 0.4 wrote them; save it again with a newer torch")
    return pid[2], Storage(pid[1].dtype, pid[4])


def _same_storage(known: Storage, new: Storage) -> Storage:
    if (known.dtype, known.n_elements) != (new.dtype, new.n_elements):
        corrupt("one storage is described in two ways")
    return known


def _parse_stream(span: Span, names: Names, budget: Budget, place: str) -> Any:
    """torch.save's stream format: four pickles, the list of storage keys, then each storage's elements."""
    stream = Stream(span)
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 4 and isinstance(pid[1], Name):
            return pid[1]  # ("module", class, source file, source): the source is not looked at
        key, storage = _storage_from_id(pid, (5, 6))
        return _same_storage(storages.setdefault(key, storage), storage)

    def plain() -> Any:
        return PickleMachine(stream, lambda module, name: None, budget, place).run()

    magic, version, system = plain(), plain(), plain()
    if not (type(magic) is type(version) is int and (magic, version) == (LEGACY_MAGIC, LEGACY_VERSION)):
        corrupt(f"{place} does not start as torch.save writes it")
    if type(system) is not dict or system.get("little_endian") is not True:
        corrupt(f"{place} was not written on a little-endian machine")
    value = PickleMachine(stream, names, budget, place, persistent).run()
    keys = plain()
    is_text = type(keys) is list and all(type(key) is str for key in keys)
    if not is_text or sorted(keys) != sorted(storages):
        corrupt(f"the storages listed in {place} are not those used")
    for key in keys:
        storage = storages[key]
        n_elements = int.from_bytes(stream.take(8), "little", signed=True)
        if n_elements != storage.n_elements:
            corrupt(f"a storage of {n_elements} elements is announced with {storage.n_elements}")
        storage.span = stream.skip(storage.n_bytes)
    if stream.left:
        corrupt(f"{stream.left} bytes follow the end of {place}")
    return value


class _Member(NamedTuple):
    span: Span
    crc32: int


_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP_ENTRY = struct.Struct("<4s6H3L5H2L")
_ZIP_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP_DIRECTORY_DAMAGED = "the zip archive's directory is damaged"


def _zip_directory(span: Span) -> tuple[int, Span]:
    """(number of members, the span of the central directory)"""
    tail = span.part(max(0, span.size - 65557), min(span.size, 65557))
    text = tail.bytes()
    at = text.rfind(b"PK\x05\x06")
    if at < 0 or at + _ZIP_END.size > len(text):
        corrupt("the zip archive has no end; the file may be cut off")
    _, disk, start_disk, n_here, n_members, size, offset, n_comment = _ZIP_END.unpack_from(text, at)
    if at + _ZIP_END.size + n_comment != len(text):
        corrupt("bytes follow the end of the zip archive")
    end = tail.start - span.start + at
    locator_at = at - _ZIP64_LOCATOR.size
    if locator_at >= 0 and text[locator_at : locator_at + 4] == b"PK\x06\x07":
        end = _ZIP64_LOCATOR.unpack_from(text, locator_at)[2]
        fields = _ZIP64_END.unpack(span.part(end, _ZIP64_END.size).bytes())
        if fields[0] != b"PK\x06\x06":
            corrupt(_ZIP_DIRECTORY_DAMAGED)
        disk, start_disk, n_here, n_members, size, offset = fields[4:]
    if disk or start_disk or n_here != n_members:
        corrupt("the zip archive is split over several files")
    if n_members > MAX_ZIP_MEMBERS:
        corrupt(f"the zip archive announces {n_members} members")
    if not n_members * _ZIP_ENTRY.size <= size <= n_members * 1024 or offset + size > end:
        corrupt(_ZIP_DIRECTORY_DAMAGED)
    return n_members, span.part(offset, size)


def _zip64_values(extra: bytes, values: tuple[int, ...]) -> list[int]:
    """Sizes and offset that do not fit into 32 bits stand, in order, in the extra field with id 1."""
    at, numbers = 0, []
    while at + 4 <= len(extra):
        field, size = struct.unpack_from("<2H", extra, at)
        if field == 1:
            body = extra[at + 4 : at + 4 + size]
            numbers = [number for (number,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
        at += 4 + size
    return [numbers.pop(0) if value == 0xFFFFFFFF and numbers else value for value in values]


def _zip_members(span: Span) -> dict[str, _Member]:
    """Members of an archive by name. Compressed, encrypted, overlapping or repeated ones are refused."""
    n_members, directory = _zip_directory(span)
    text, at = directory.bytes(), 0
    members: dict[str, _Member] = {}
    for _ in range(n_members):
        if text[at : at + 4] != b"PK\x01\x02" or at + _ZIP_ENTRY.size > len(text):
            corrupt(_ZIP_DIRECTORY_DAMAGED)
        entry = _ZIP_ENTRY.unpack_from(text, at)
        flags, method, crc32, n_name, n_extra, n_comment = entry[3], entry[4], *entry[7:8], *entry[10:13]
        at += _ZIP_ENTRY.size
        name = shown(text[at : at + n_name].decode("utf-8", "replace"), 1000)
        extra = text[at + n_name : at + n_name + n_extra]
        size, packed, offset = _zip64_values(extra, (entry[9], entry[8], entry[16]))
        at += n_name + n_extra + n_comment
        if method != 0 or packed != size or flags & 0x41:
            corrupt(f"{shown(name)} is compressed or encrypted, which torch.save never does")
        if name in members:
            corrupt(f"the zip archive holds {shown(name)} twice")
        local = _ZIP_LOCAL.unpack(span.part(offset, _ZIP_LOCAL.size).bytes())
        if local[0] != b"PK\x03\x04":
            corrupt(f"{shown(name)} does not start where the zip archive says")
        members[name] = _Member(span.part(offset + _ZIP_LOCAL.size + local[9] + local[10], size), crc32)
    _check_overlap(members, directory)
    return members


def _check_overlap(members: Mapping[str, _Member], directory: Span) -> None:
    """Quoting one run of bytes from many members is how small archives become large."""
    end = 0
    for name, member in sorted(members.items(), key=lambda item: (item[1].span.start, item[1].span.size)):
        if member.span.start < end:
            corrupt(f"{shown(name)} overlaps another member of the zip archive")
        end = member.span.start + member.span.size
    if end > directory.start:
        corrupt(_ZIP_DIRECTORY_DAMAGED)


def _check_crc32(span: Span, crc32: int | None, what: str) -> None:
    """A checksum of 0 means that none was recorded: torch.save can be told to leave it out."""
    if crc32 and span.crc32() != crc32:
        corrupt(f"{what} does not match its checksum; the file is damaged")


def _parse_zip(span: Span, names: Names, budget: Budget) -> Any:
    """torch.save's zip format: <root>/data.pkl, and <root>/data/<key> for each storage."""
    members = _zip_members(span)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        corrupt("is a zip archive, but not one of torch.save: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(root + "code/") or name == root + "constants.pkl" for name in members):
        raise UnsafeCheckpointError("is a TorchScript archive, which holds code; save its state dict instead")
    order = members.get(root + "byteorder")
    if order is not None and (order.span.size > 8 or order.span.bytes() != b"little"):
        corrupt("was not written on a little-endian machine")
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        key, storage = _storage_from_id(pid, (5,))
        if key not in storages:
            storages[key] = storage
            member = members.get(f"{root}data/{key}")
            if member is None:
                storage.fault = f"{root}data/{shown(key)} is missing"
            elif member.span.size != storage.n_bytes:
                held, announced = member.span.size, storage.n_bytes
                storage.fault = f"{root}data/{shown(key)} holds {held} bytes, {announced} are announced"
            else:
                storage.span, storage.crc32 = member.span, member.crc32
        return _same_storage(storages[key], storage)

    pickle = members[pickles[0]]
    _check_crc32(pickle.span, pickle.crc32, shown(pickles[0]))
    stream = Stream(pickle.span)
    value = PickleMachine(stream, names, budget, shown(pickles[0]), persistent).run()
    if stream.left:
        corrupt(f"{stream.left} bytes follow the end of the pickle in {shown(pickles[0])}")
    return value


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
            return {key: self.build(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.build(item, depth) for item in value]
        if isinstance(value, tuple):
            return tuple([self.build(item, depth) for item in value])
        if isinstance(value, Record):
            return Record(value.module, value.name, self.build(value.state, depth))
        if isinstance(value, (TensorStub, ArrayStub)):
            return self._tensor(value)
        if isinstance(value, Span):
            self._charge(value.size)
            return value.bytes()
        if isinstance(value, DtypeStub):
            return str(value.dtype)
        corrupt(f"holds {kind(value)} where a value should be")

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

    What torch.save wrote goes to torch.load(weights_only=True), but only after the file was found to hold
    tensors in a dict and nothing else, with sizes and checksums that hold. So the faults that torch's
    own restricted reader had before 2.10 are out of a foreign file's reach, whatever torch is installed.
    Raises as `read_checkpoint` does.
    """
    with CheckpointFile(path) as file:
        root = file.root
        with naming(path):
            if type(root) is not dict or not root:
                corrupt(f"holds {kind(root)}, not a state dict")
            for name, value in root.items():
                if not (isinstance(name, str) and isinstance(value, (TensorStub, Tensor))):
                    corrupt(f"{shown(name)} is {kind(value)}, not a tensor of a state dict")
            if file.format in ("zip", "stream"):
                return _load_weights_only(file.file, root)
        return file.build(root)


def _load_weights_only(file: BinaryIO, stubs: Mapping[str, TensorStub]) -> dict[str, Tensor]:
    for name, stub in stubs.items():
        stub.check()
        assert stub.storage.span is not None
        _check_crc32(stub.storage.span, stub.storage.crc32, shown(name))
    file.seek(0)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch has no class of its own for what it refuses
        raise CorruptCheckpointError(f"is refused by torch.load: {shown(error)}") from error
    for name, stub in stubs.items():
        if name not in state or tuple(state[name].shape) != stub.size:
            corrupt(f"{shown(name)} changed while it was read")
    return {name: tensor.detach() for name, tensor in state.items()}


# ------------------------------------------------------------------------------------------------------------
# Modules


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


@dataclass(frozen=True)
class PublishedWalker:
    """A walker as others published it.

    state: walker.0.weight, walker.0.bias, walker.2.weight, walker.2.bias; floating point, (F, F) and (F,)
    attributes: the plain values beside the weights, such as start, stop, z_dim; COP-Gen's: `training` only
    class_name: NonlinearWalker (the reference's) or NonlinearWalk (COP-Gen's)
    """

    state: dict[str, Tensor]
    attributes: dict[str, Any]
    class_name: str


_WALKER_CLASSES = ("NonlinearWalker", "NonlinearWalk")
_WRAPPERS = ("DataParallel", "DistributedDataParallel")


def read_walker(path: str | os.PathLike) -> PublishedWalker:
    """A published walker, {"nn_walker": module}: the reference's, and COP-Gen's wrapped in DataParallel.

    The module's class need not exist here. Raises as `read_checkpoint` does.
    """
    with CheckpointFile(path) as file:
        with naming(path):
            module = file.root.get("nn_walker") if type(file.root) is dict else None
            if isinstance(module, Record) and module.name in _WRAPPERS:
                modules = module.state.get("_modules")
                module = modules.get("module") if type(modules) is dict else None
            if not isinstance(module, Record):
                corrupt("is not a published walker: it has no module under nn_walker")
            if module.name not in _WALKER_CLASSES:
                corrupt(f"nn_walker is {kind(module)}, not a walker")
            stubs = module_state_dict(module)
            _check_walker(stubs)
            attributes = _plain_attributes(module)
        return PublishedWalker(file.build(stubs), attributes, module.name)


def _plain_attributes(module: Record) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in module.state.items()
        if isinstance(name, str) and not name.startswith("_")
        if type(value) in (type(None), bool, int, float, str)
    }
    if "start" in plain or "stop" in plain:
        start, stop = plain.get("start", -1), plain.get("stop", -1)
        if not (is_count(start) and is_count(stop) and int(start or 0) < int(stop or 0)):
            corrupt(f"the walker moves the chunks from {shown(start)} to {shown(stop)}")
    return plain


def _check_walker(stubs: Mapping[str, TensorStub]) -> None:
    """Exactly two square linear layers of one width."""
    shapes = {name: stub.size for name, stub in stubs.items()}
    width = (*shapes.get("walker.0.bias", ()), 0)[:1]
    layers = ("walker.0", "walker.2")
    expected = {f"{layer}.weight": width * 2 for layer in layers} | {f"{layer}.bias": width for layer in layers}
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in expected:
            corrupt(f"the walker has an unexpected {shown(name)}")
        if name not in shapes:
            corrupt(f"the walker has no {name}")
        if shapes[name] != expected[name]:
            corrupt(f"{name} of the walker has shape {shapes[name]}, expected {expected[name]}")
        if not stubs[name].storage.dtype.is_floating_point:
            corrupt(f"{name} of the walker holds {stubs[name].storage.dtype}, expected floating point")
