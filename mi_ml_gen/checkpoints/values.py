"""What a parsed pickle is made of: records, storages and stubs that stand for what the file names."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core.errors import CorruptCheckpointError

# Bounds. The largest files of this field, such as a large NVAE with its optimiser, need a tenth of them.
BASE_OPERATIONS = 250_000  # opcodes of a small file; a larger one is granted one more for every 64 bytes
MAX_OPERATIONS = 5_000_000
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 16


# ------------------------------------------------------------------------------------------------------------
# Messages


def shown(value: object, limit: int = 80) -> str:
    """Text from a file, or a path, made fit for one line of a terminal."""
    text = str(value)[: 4 * limit]
    text = text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def kind(value: Any) -> str:
    """What a value of a parsed file is, in a few words."""
    if isinstance(value, Name):
        return shown(f"{value.module}.{value.name}")
    if isinstance(value, Record):
        return shown(value.class_name)
    if isinstance(value, str):
        return f"the text '{shown(value, 40)}'"
    words = {
        TensorStub: "a tensor",
        ArrayStub: "an array",
        Span: "bytes",
        type(None): "None",
        int: "a number",
    }
    return words.get(type(value), f"a {type(value).__name__.strip('_').lower()}")


def kind_of_dict(value: dict[Any, Any], n_shown: int = 6) -> str:
    """A dict by the keys that it has, as messages tell them: those that a reader looked for were not among them."""
    keys = [shown(key, 60) if isinstance(key, str) else kind(key) for key in list(value)[:n_shown]]
    more = f" and {len(value) - n_shown} more" if len(value) > n_shown else ""
    return f"a dict with the keys {', '.join(keys)}{more}" if keys else "an empty dict"


def corrupt(what: str) -> NoReturn:
    raise CorruptCheckpointError(what)


# ------------------------------------------------------------------------------------------------------------
# Bytes that are read only when asked for


class Span:
    """A range of bytes of an open file, or of memory. Never reads outside of itself."""

    __slots__ = ("_file", "size", "start")

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self.start, self.size = file, start, size

    @classmethod
    def of_bytes(cls, content: bytes) -> Span:
        return cls(io.BytesIO(content), 0, len(content))

    @property
    def key(self) -> tuple[int, int, int]:
        return id(self._file), self.start, self.size

    def part(self, offset: int, size: int) -> Span:
        if offset < 0 or size < 0 or offset + size > self.size:
            left = max(0, self.size - offset)
            corrupt(f"{size} bytes should follow, {left} are left; the file may be cut off")
        return Span(self._file, self.start + offset, size)

    def bytes(self) -> bytes:
        content = bytearray(self.size)
        self.read_into(memoryview(content))
        return bytes(content)

    def read_into(self, buffer: memoryview) -> None:
        """Fill a buffer of exactly `size` bytes."""
        self._file.seek(self.start)
        done = 0
        while done < self.size:
            count = self._file.readinto(buffer[done:])  # type: ignore[attr-defined]
            if not count:
                raise CorruptCheckpointError("the file became shorter while it was read")
            done += count

    def crc32(self) -> int:
        checksum, block = 0, 1 << 20
        for offset in range(0, self.size, block):
            checksum = zlib.crc32(self.part(offset, min(block, self.size - offset)).bytes(), checksum)
        return checksum


class Stream:
    """Reads a span from front to back through a window, stepping over long byte strings."""

    WINDOW = 1 << 16

    def __init__(self, span: Span):
        self._span, self._base, self._window, self._at = span, 0, b"", 0

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def left(self) -> int:
        return self._span.size - self.position

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._window):
            if size > self.left:
                corrupt(f"{size} bytes should follow, {self.left} are left; the file may be cut off")
            self._base, self._at = self.position, 0
            self._window = self._span.part(self._base, min(max(size, self.WINDOW), self.left)).bytes()
            end = size
        piece = self._window[self._at : end]
        self._at = end
        return piece

    def skip(self, size: int) -> Span:
        part = self._span.part(self.position, size)
        if self._at + size <= len(self._window):
            self._at += size
        else:
            self._base, self._window, self._at = self.position + size, b"", 0
        return part

    def line(self, limit: int = MAX_NAME_BYTES) -> str:
        """ASCII text up to the next newline, which is consumed and left out."""
        text = bytearray()
        while (byte := self.take(1)) != b"\n":
            text += byte
            if len(text) > limit:
                raise CorruptCheckpointError(f"a line of more than {limit} bytes")
        return text.decode("ascii")


class Budget:
    """How many steps a file may still cost; shared by all pickles inside it."""

    def __init__(self, file_bytes: int):
        self._operations = min(BASE_OPERATIONS + file_bytes // 64, MAX_OPERATIONS)

    def spend(self, operations: int = 1) -> None:
        self._operations -= operations
        if self._operations < 0:
            raise CorruptCheckpointError("more steps than a checkpoint of this size needs")


# ------------------------------------------------------------------------------------------------------------
# What a parsed file consists of, beside None, numbers, text, dicts, lists, tuples and sets


@dataclass(eq=False)
class Record:
    """An object whose class is known by name only: its attributes, and nothing that can be called."""

    module: str
    name: str
    state: dict[Any, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"Record({self.class_name})"


@dataclass(eq=False)
class Passed(Record):
    """An object that weights do not need (a path, a date, a schedule): passed over, never made.

    `state` keeps what the file said of it: "args", what its class would have been called with, and "state".
    """


@dataclass(frozen=True)
class StorageType:
    dtype: torch.dtype


@dataclass(eq=False)
class Storage:
    """One flat run of elements. `fault` says why it cannot be read, which concerns only those who need it."""

    dtype: torch.dtype
    n_elements: int
    span: Span | None = None
    crc32: int | None = None
    fault: str | None = None
    elements: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.dtype.itemsize


@dataclass(eq=False)
class TensorStub:
    """A tensor not built yet: `size` and `stride` in elements of its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def check(self) -> None:
        """Raise CorruptCheckpointError unless all elements lie in the storage, and that in the file."""
        storage = self.storage
        if storage.fault is not None or storage.span is None:
            fault = storage.fault or "its storage is missing"
            corrupt(f"a tensor of shape {self.size} cannot be read: {fault}")
        n_elements = math.prod(self.size)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        outside = n_elements > storage.n_elements or (n_elements > 0 and last >= storage.n_elements)
        if outside or math.prod(max(n, 1) for n in self.size) >= 1 << 40:
            corrupt(
                f"a tensor of shape {self.size}, strides {self.stride} and offset {self.offset} lies outside "
                f"its storage of {storage.n_elements} elements"
            )


@dataclass(eq=False)
class DtypeStub:
    code: str  # f4, i8, b1 ...
    order: str = "<"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass(eq=False)
class ArrayStub:
    """A NumPy array not built yet."""

    shape: tuple[int, ...] = (0,)
    dtype: DtypeStub | None = None
    fortran_order: bool = False
    content: Span | None = None

    @property
    def n_bytes(self) -> int:
        return 0 if self.dtype is None else math.prod(self.shape) * self.dtype.dtype.itemsize

    @property
    def fits_torch(self) -> bool:
        """Whether it becomes a tensor: not texts, dates, complex numbers, or the unsigned numbers of random states."""
        return self.dtype is None or self.dtype.code in ("b1", "?", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8")

    def check(self) -> None:
        """Raise CorruptCheckpointError unless the bytes are those of an array of this shape."""
        if self.dtype is None or self.content is None:
            corrupt("an array without content")
        if not self.fits_torch:
            corrupt(f"an array of {self.dtype.dtype}, which torch does not compute with")
        if self.n_bytes != self.content.size or math.prod(max(n, 1) for n in self.shape) >= 1 << 40:
            corrupt(f"an array of shape {self.shape} takes {self.n_bytes} bytes, {self.content.size} are there")

    def build(self) -> Tensor:
        assert self.dtype is not None and self.content is not None
        raw = np.empty(self.content.size, np.uint8)
        self.content.read_into(raw.data)
        array = raw.view(self.dtype.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


# ------------------------------------------------------------------------------------------------------------
# Names: the only meanings that a name in a file can have


@dataclass(frozen=True)
class Function:
    """A name that files call; `describe(args, machine)` is ours, and gives an inert value.

    makes_objects: whether it is a class, which files may also make objects of by the instructions for that.
    """

    describe: Callable[[tuple, Any], Any]
    makes_objects: bool = False


@dataclass(frozen=True)
class Class:
    """A name that files make objects of; `make(module, name)` is ours, and gives an empty inert object."""

    make: Callable[[str, str], Any] = Record


@dataclass(frozen=True)
class Constant:
    value: Any


Meaning = Function | Class | Constant
Names = Callable[[str, str], "Meaning | None"]


@dataclass(frozen=True)
class Name:
    """A function or class of the table, on the machine's stack."""

    module: str
    name: str
    meaning: Function | Class


def mentioned(value: Any) -> Any:
    """What is kept of a value that an object was to be made with: a class or function only by its name."""
    if isinstance(value, Name):
        return Passed(value.module, value.name)
    return (
        tuple([mentioned(item) if isinstance(item, Name) else item for item in value])
        if type(value) is tuple
        else value
    )


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _counts(value: Any, what: str) -> tuple[int, ...]:
    if not (isinstance(value, (tuple, list)) and len(value) <= MAX_DIMENSIONS and all(map(is_count, value))):
        corrupt(f"{what} is not a short list of sizes")
    return tuple(value)
