"""The containers that torch files come in: zip archives, the older stream, bare pickles.

The zip directory is read here and not by `zipfile`, which reads a directory of any size before its caller can bound
it, accepts bytes in front of an archive, and in Python 3.10 and 3.11 members that overlap.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from mi_ml_gen.checkpoints.names import storage_names
from mi_ml_gen.checkpoints.pickle_machine import PickleMachine
from mi_ml_gen.checkpoints.values import (
    Budget,
    Name,
    Names,
    Span,
    Storage,
    StorageType,
    Stream,
    corrupt,
    is_count,
    kind,
    shown,
)
from mi_ml_gen.core.errors import (
    UnsafeCheckpointError,
)

MAX_TENSOR_NAME_CHARACTERS = 1000
MAX_ZIP_MEMBERS = 50_000

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
        corrupt("a storage with a malformed size or key")
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
