"""A pickle interpreter that calls nothing: opcodes in, inert values out.

Python's unpickler calls whatever a file names. This machine knows the opcodes of protocols 0 to 5, but a
name in a file is only text, looked up in a table of the names that checkpoints of this field hold
(`checkpoint_names`). A name means one of three things: a function of ours that describes the arguments (a
tensor becomes a `TensorStub`: where its bytes lie and how they are laid out), an inert object (a module
becomes a `Record`: a class name and attributes), or a constant (a dtype). Any other name refuses the file.
Nothing is imported, no source is compiled, no attribute is looked up by a name that the file chose.

The work is bounded: opcodes by the file's size; names, texts and keys by fixed lengths; byte strings are
not loaded but remembered as spans of the file. Every refusal is `UnsafeCheckpointError` (the file asks for
more than weights need) or `CorruptCheckpointError` (damaged, or not of this format), and says at which
byte.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

# Bounds. The largest files of this field, such as a large NVAE with its optimiser, need a tenth of them.
BASE_OPERATIONS = 250_000  # opcodes of a small file; a larger one is granted one more for every 64 bytes
MAX_OPERATIONS = 5_000_000
MAX_NUMBER_KEYS = 20_000  # keys of one dict that are not text: Python hashes numbers without a secret
MAX_KEY_CHARACTERS = 4096
MAX_NAME_BYTES = 256
MAX_TEXT_BYTES = 64 << 20
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

    def check(self) -> None:
        """Raise CorruptCheckpointError unless the bytes are those of an array of this shape."""
        if self.dtype is None or self.content is None:
            corrupt("an array without content")
        if self.dtype.code in ("u2", "u4", "u8"):
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
    """A name that files call; `describe(args, machine)` is ours, and gives an inert value."""

    describe: Callable[[tuple, PickleMachine], Any]


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


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _counts(value: Any, what: str) -> tuple[int, ...]:
    if not (isinstance(value, (tuple, list)) and len(value) <= MAX_DIMENSIONS and all(map(is_count, value))):
        corrupt(f"{what} is not a short list of sizes")
    return tuple(value)


def _ordered_dict(args: tuple, machine: PickleMachine) -> dict:
    if len(args) > 1 or not all(isinstance(pairs, (list, tuple)) for pairs in args):
        corrupt("an OrderedDict of something that is not a list of pairs")
    entries: dict = {}
    for pair in args[0] if args else ():
        machine.budget.spend()
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            corrupt("an OrderedDict of something that is not a list of pairs")
        machine.set_item(entries, *pair)
    return entries


def _set(args: tuple, machine: PickleMachine) -> set:
    if len(args) > 1 or not all(isinstance(items, (list, tuple)) for items in args):
        corrupt("a set of something that is not a list")
    return machine.make_set(args[0] if args else ())


def _rebuild_tensor(args: tuple, machine: PickleMachine) -> TensorStub:
    """_rebuild_tensor, and _v2: (storage, offset, size, stride, requires_grad, hooks, metadata)."""
    if not (4 <= len(args) <= 7 and isinstance(args[0], Storage) and is_count(args[1])):
        corrupt("a tensor without a storage and an offset")
    size, stride = _counts(args[2], "a tensor's shape"), _counts(args[3], "a tensor's stride")
    if len(size) != len(stride):
        corrupt(f"a tensor of {len(size)} axes with {len(stride)} strides")
    return TensorStub(args[0], args[1], size, stride)


def _rebuild_parameter(args: tuple, machine: PickleMachine) -> TensorStub:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks); a fourth argument is left out."""
    if not (3 <= len(args) <= 4 and isinstance(args[0], TensorStub)):
        corrupt("a parameter without a tensor")
    return args[0]


def _size(args: tuple, machine: PickleMachine) -> tuple[int, ...]:
    return _counts(args[0] if len(args) == 1 else None, "torch.Size")


def _device(args: tuple, machine: PickleMachine) -> str:
    if not (1 <= len(args) <= 2 and isinstance(args[0], str) and all(map(is_count, args[1:]))):
        corrupt("an odd torch.device")
    return ":".join(map(str, args))


def _nested_storage(args: tuple, machine: PickleMachine) -> Storage:
    """torch.storage._load_from_bytes(bytes): the bytes are a whole stream file that holds one storage."""
    if len(args) != 1 or machine.as_span(args[0]) is None:
        corrupt("the bytes of a storage are missing")
    return machine.nested_storage(machine.as_span(args[0]))


_NUMPY_DTYPE = re.compile(r"b1|\?|[iu][1248]|f[248]")
_NDARRAY = "numpy.ndarray"


def _numpy_dtype(args: tuple, machine: PickleMachine) -> DtypeStub:
    if not (1 <= len(args) <= 3 and isinstance(args[0], str)):
        corrupt("an odd numpy.dtype")
    has_order = args[0].startswith(("<", ">", "=", "|"))
    order, code = (args[0][0], args[0][1:]) if has_order else ("<", args[0])
    if not _NUMPY_DTYPE.fullmatch(code):
        raise UnsafeCheckpointError(f"holds an array of numpy dtype '{shown(args[0], 20)}', not of numbers")
    return DtypeStub(code, ">" if order == ">" else "<")


def _numpy_scalar(args: tuple, machine: PickleMachine) -> bool | int | float:
    span = machine.as_span(args[1]) if len(args) == 2 and isinstance(args[0], DtypeStub) else None
    if span is None or span.size != args[0].dtype.itemsize:
        corrupt("a numpy scalar without its bytes")
    return np.frombuffer(span.bytes(), args[0].dtype)[0].item()


def _numpy_reconstruct(args: tuple, machine: PickleMachine) -> ArrayStub:
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array, which BUILD describes."""
    if not (len(args) == 3 and args[0] is _NDARRAY and args[1] == (0,)):
        corrupt("an odd numpy array")
    return ArrayStub()


def _numpy_frombuffer(args: tuple, machine: PickleMachine) -> ArrayStub:
    """numpy's _frombuffer(bytes, dtype, shape, order), as protocol 5 writes arrays."""
    ok = len(args) == 4 and isinstance(args[0], Span) and isinstance(args[1], DtypeStub)
    if not (ok and isinstance(args[3], str) and args[3] in ("C", "F")):
        corrupt("an odd numpy array")
    return ArrayStub(_counts(args[2], "an array's shape"), args[1], args[3] == "F", args[0])


def _encode(args: tuple, machine: PickleMachine) -> Span:
    """_codecs.encode(text, "latin1"): how protocols below 3 write bytes."""
    ok = len(args) == 2 and all(isinstance(text, str) for text in args)
    if not (ok and args[1] in ("latin1", "latin-1")):
        corrupt("an odd _codecs.encode")
    return machine.text_bytes(args[0])


def _no_bytes(args: tuple, machine: PickleMachine) -> Span:
    """bytes(), how protocols below 3 write b""."""
    if args:
        corrupt("bytes made of something")
    return Span.of_bytes(b"")


_FUNCTIONS: dict[tuple[str, str], Callable[[tuple, PickleMachine], Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("__builtin__", "bytes"): _no_bytes,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.storage", "_load_from_bytes"): _nested_storage,
    ("numpy", "dtype"): _numpy_dtype,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("numpy.core.multiarray", "_reconstruct"): _numpy_reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _numpy_reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _numpy_frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _numpy_frombuffer,
    ("_codecs", "encode"): _encode,
}

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGES.values()}

_RECORD_CLASSES = {
    ("argparse", "Namespace"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("src.noise_maker.walkers", "NonlinearWalker"),
    ("src.noise_maker.walkers", "NonlinearWalk"),
    ("__main__", "NonlinearWalker"),
    ("__main__", "NonlinearWalk"),
}
_TORCH_MODULE = re.compile(r"torch\.nn\.modules\.[a-z_]+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def storage_names(module: str, name: str) -> Meaning | None:
    """The names inside the bytes of a storage: the types of storages."""
    if module in ("torch", "torch.cuda") and name in _STORAGES:
        return Constant(StorageType(_STORAGES[name]))
    return None


def checkpoint_names(module: str, name: str) -> Meaning | None:
    """The names of torch checkpoints and of the published walkers."""
    if (module, name) in _FUNCTIONS:
        return Function(_FUNCTIONS[module, name])
    if (module, name) in _RECORD_CLASSES or (_TORCH_MODULE.fullmatch(module) and _IDENTIFIER.fullmatch(name)):
        return Class()
    if module == "torch" and name in _DTYPES:
        return Constant(_DTYPES[name])
    if (module, name) == ("numpy", "ndarray"):
        return Constant(_NDARRAY)
    return storage_names(module, name)


# ------------------------------------------------------------------------------------------------------------
# The machine


class PickleMachine:
    """Runs the opcodes of one pickle and nothing else; one instance reads one pickle.

    names: the meaning of (module, name); persistent: that of persistent ids (None: the pickle may hold none);
    nested: reads a storage out of bytes (None: there are none); place: what messages call the pickle.
    """

    def __init__(
        self,
        stream: Stream,
        names: Names,
        budget: Budget,
        place: str,
        persistent: Callable[[Any], Any] | None = None,
        nested: Callable[[Span], Storage] | None = None,
    ):
        self.stream, self.names, self.budget, self.place = stream, names, budget, place
        self._persistent, self._nested = persistent, nested
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[tuple[int, int, int], Storage] = {}
        self._encoded: dict[int, tuple[str, Span]] = {}
        self._stopped = False

    def run(self) -> Any:
        """The pickle's value. Raises UnsafeCheckpointError, CorruptCheckpointError, saying at which byte."""
        stream, spend = self.stream, self.budget.spend
        while not self._stopped:
            at = stream.position
            try:
                spend()
                code = stream.take(1)
                operation = _OPCODES.get(code)
                if operation is None:
                    corrupt(f"{ascii(code)[1:]} is not a pickle instruction")
                operation(self)
            except CheckpointError as error:
                raise type(error)(f"{error} (byte {at} of {self.place})") from error
            except (LookupError, TypeError, ValueError, OverflowError, struct.error) as error:
                broken = f"a broken pickle instruction (byte {at} of {self.place})"
                raise CorruptCheckpointError(broken) from error
        if len(self._stack) != 1 or self._marked:
            corrupt(f"{self.place} ends with values left over")
        return self._stack[0]

    # What opcodes and the descriptions of names share

    def set_item(self, target: Any, key: Any, value: Any) -> None:
        if type(target) is not dict:
            corrupt(f"an entry is put into {kind(target)}")
        self._check_key(key)
        target[key] = value
        if type(key) is not str and len(target) > MAX_NUMBER_KEYS:
            corrupt(f"a dict of more than {MAX_NUMBER_KEYS} entries with keys that are not text")

    def _check_key(self, key: Any) -> None:
        if type(key) is str:
            if len(key) > MAX_KEY_CHARACTERS:
                corrupt(f"a key of {len(key)} characters")
        elif not (key is None or type(key) is bool or (type(key) is int and abs(key) < 1 << 63)):
            corrupt(f"{kind(key)} as a key, or as a member of a set")

    def make_set(self, items: list | tuple) -> set:
        if len(items) > MAX_NUMBER_KEYS:
            corrupt(f"a set of {len(items)} members")
        self.budget.spend(len(items))
        for item in items:
            self._check_key(item)
        return set(items)

    def text_bytes(self, text: str) -> Span:
        known = self._encoded.get(id(text))
        if known is None:  # the text is kept beside its bytes, so that its id stays its own
            known = self._encoded[id(text)] = (text, Span.of_bytes(text.encode("latin-1")))
        return known[1]

    def as_span(self, value: Any) -> Any:
        """Bytes as a span, also those that Python 2 wrote as text; None for anything else."""
        if isinstance(value, str):
            return self.text_bytes(value)
        return value if isinstance(value, Span) else None

    def nested_storage(self, content: Span) -> Storage:
        known = self._storages.get(content.key)
        if known is None:
            if self._nested is None:
                raise UnsafeCheckpointError("holds the bytes of a storage where none can be")
            try:
                known = self._nested(content)
            except CorruptCheckpointError as error:  # told when, and only if, this storage is needed
                known = Storage(torch.uint8, 0, fault=str(error))
            self._storages[content.key] = known
        return known

    def _resolve(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            corrupt(f"a name made of {kind(module)} and {kind(name)}")
        meaning = self.names(module, name) if len(module) + len(name) <= 2 * MAX_NAME_BYTES else None
        if meaning is None:
            asked = shown(f"{module}.{name}")
            raise UnsafeCheckpointError(f"asks for {asked}, which reading weights does not need")
        return meaning.value if isinstance(meaning, Constant) else Name(module, name, meaning)

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    # Plain values

    def _proto(self, version: int) -> None:
        if version > 5:
            corrupt(f"pickle protocol {version}")

    def _frame(self, size: int) -> None:
        if size > self.stream.left:
            corrupt(f"a frame of {size} bytes, where {self.stream.left} are left; the file may be cut off")

    def _stop(self) -> None:
        self._stopped = True

    def _int_text(self) -> None:
        line = self.stream.line(64)
        self._stack.append(line == "01" if line in ("00", "01") else int(line.removesuffix("L")))

    def _int(self, size: int) -> None:
        if size > 32:
            corrupt(f"a whole number of {size} bytes")
        self._stack.append(int.from_bytes(self.stream.take(size), "little", signed=True))

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _float_text(self) -> None:
        self._stack.append(float(self.stream.line(64)))

    def _float(self) -> None:
        self._stack.append(struct.unpack(">d", self.stream.take(8))[0])

    def _quoted(self) -> None:
        """Text of Python 2 in protocol 0: quoted; escapes are not read."""
        line = self.stream.line(MAX_KEY_CHARACTERS)
        if len(line) < 2 or line[0] != line[-1] or line[0] not in "'\"" or "\\" in line:
            corrupt("an odd text of protocol 0")
        self._stack.append(line[1:-1])

    def _text_line(self) -> None:
        self._stack.append(self.stream.line(MAX_KEY_CHARACTERS))

    def _text(self, size: int, encoding: str = "utf-8") -> None:
        if size > MAX_TEXT_BYTES:
            corrupt(f"a text of {size} bytes")
        self._stack.append(self.stream.take(size).decode(encoding))

    def _text_of_python_2(self, size: int) -> None:
        self._text(size, "latin-1")

    def _bytes(self, size: int) -> None:
        self._stack.append(self.stream.skip(size))

    # The stack and the memo

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _put_text(self) -> None:
        self._put(int(self.stream.line(20)))

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        if index not in self._memo:
            corrupt(f"memo {index} is read before it is written")
        self._stack.append(self._memo[index])

    def _get_text(self) -> None:
        self._get(int(self.stream.line(20)))

    # Collections

    def _tuple_of(self, size: int) -> None:
        if len(self._stack) < size:
            corrupt("a tuple of more values than there are")
        self._stack[len(self._stack) - size :] = [tuple(self._stack[len(self._stack) - size :])]

    def _tuple(self) -> None:
        self._push(tuple(self._pop_mark()))

    def _list(self) -> None:
        self._push(self._pop_mark())

    def _empty_list(self) -> None:
        self._stack.append([])

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            corrupt(f"items are appended to {kind(target)}")
        target.extend(items)

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_pairs(items)

    def _set_one(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self.set_item(self._stack[-1], key, value)

    def _set_marked(self) -> None:
        self._set_pairs(self._pop_mark())

    def _set_pairs(self, items: list[Any]) -> None:
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.set_item(target, key, value)

    def _empty_set(self) -> None:
        self._stack.append(set())

    def _add_members(self) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if type(target) is not set or len(target) + len(items) > MAX_NUMBER_KEYS:
            corrupt(f"members are added to {kind(target)}")
        target |= self.make_set(items)

    def _frozen_set(self) -> None:
        self._push(self.make_set(self._pop_mark()))

    # Names and objects: where an unpickler would import and call

    def _global(self) -> None:
        module, name = self.stream.line(), self.stream.line()
        self._stack.append(self._resolve(module, name))

    def _global_of_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._resolve(module, name))

    def _reduce(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        if not (isinstance(function, Name) and isinstance(function.meaning, Function)):
            raise UnsafeCheckpointError(f"calls {kind(function)}")
        if not isinstance(args, tuple):
            corrupt(f"{kind(function)} is called with {kind(args)}")
        self._stack.append(function.meaning.describe(args, self))

    def _new_object(self) -> None:
        args, cls = self._stack.pop(), self._stack.pop()
        self._make(cls, args)

    def _new_object_with_keywords(self) -> None:
        keywords, args, cls = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if type(keywords) is not dict or keywords:
            raise UnsafeCheckpointError(f"makes an object of {kind(cls)} with keyword arguments")
        self._make(cls, args)

    def _object(self) -> None:
        cls, *args = self._pop_mark()
        self._make(cls, tuple(args))

    def _instance(self) -> None:
        cls = self._resolve(self.stream.line(), self.stream.line())
        self._make(cls, tuple(self._pop_mark()))

    def _make(self, cls: Any, args: Any) -> None:
        if not (isinstance(cls, Name) and isinstance(cls.meaning, Class)):
            raise UnsafeCheckpointError(f"makes an object of {kind(cls)}")
        if not isinstance(args, tuple) or args:
            raise UnsafeCheckpointError(f"makes an object of {kind(cls)} with arguments")
        self._stack.append(cls.meaning.make(cls.module, cls.name))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Record):
            if type(state) is not dict or target.state:
                corrupt(f"an odd state of {kind(target)}")
            target.state = state
        elif isinstance(target, ArrayStub):
            self._build_array(target, state)
        elif isinstance(target, DtypeStub):
            # (version, byte order, subarray, names, fields, itemsize, alignment, flags)
            if not (isinstance(state, tuple) and len(state) >= 8 and state[2:5] == (None, None, None)):
                corrupt("an odd numpy.dtype")
            target.order = ">" if isinstance(state[1], str) and state[1] == ">" else "<"
        elif type(target) is dict:
            # attributes of an OrderedDict, such as the _metadata of a state dict: known, and not needed
            if type(state) is not dict:
                corrupt("an odd state of a dict")
        else:
            raise UnsafeCheckpointError(f"sets the state of {kind(target)}")

    def _build_array(self, target: ArrayStub, state: Any) -> None:
        """(version, shape, dtype, fortran order, bytes)"""
        if not (isinstance(state, tuple) and len(state) == 5 and target.dtype is None):
            corrupt("an odd state of a numpy array")
        _, shape, dtype, fortran_order, content = state
        span = self.as_span(content)
        if not isinstance(dtype, DtypeStub) or span is None:
            corrupt("a numpy array that is not of numbers")
        target.shape = _counts(shape, "an array's shape")
        target.dtype, target.fortran_order, target.content = dtype, fortran_order in (True, 1), span

    def _outside(self) -> None:
        pid = self._stack.pop()
        if self._persistent is None:
            raise UnsafeCheckpointError("refers to an object outside of the file")
        self._stack.append(self._persistent(pid))

    def _outside_text(self) -> None:
        raise UnsafeCheckpointError(f"refers to '{shown(self.stream.line())}', outside of the file")

    def _extension(self, code: int) -> None:
        raise UnsafeCheckpointError(f"asks for entry {code} of the extension registry")

    def _buffer(self) -> None:
        raise UnsafeCheckpointError("asks for a buffer outside of the file")


Operation = Callable[[PickleMachine], None]


def _sized(n_bytes: int, operation: Callable[[PickleMachine, int], None]) -> Operation:
    """An opcode followed by an unsigned number of `n_bytes` bytes."""
    return lambda machine: operation(machine, int.from_bytes(machine.stream.take(n_bytes), "little"))


def _with(value: Any, operation: Callable[[PickleMachine, Any], None]) -> Operation:
    return lambda machine: operation(machine, value)


_M = PickleMachine
_OPCODES: dict[bytes, Operation] = {
    # the stream
    b"\x80": _sized(1, _M._proto),
    b"\x95": _sized(8, _M._frame),
    b".": _M._stop,
    # plain values
    b"N": _with(None, _M._push),
    b"\x88": _with(True, _M._push),
    b"\x89": _with(False, _M._push),
    b")": _with((), _M._push),
    b"I": _M._int_text,
    b"L": _M._int_text,
    b"J": _with(4, _M._int),
    b"K": _sized(1, _M._push),
    b"M": _sized(2, _M._push),
    b"\x8a": _sized(1, _M._int),
    b"\x8b": _sized(4, _M._int),
    b"F": _M._float_text,
    b"G": _M._float,
    b"S": _M._quoted,
    b"V": _M._text_line,
    b"U": _sized(1, _M._text_of_python_2),
    b"T": _sized(4, _M._text_of_python_2),
    b"\x8c": _sized(1, _M._text),
    b"X": _sized(4, _M._text),
    b"\x8d": _sized(8, _M._text),
    b"C": _sized(1, _M._bytes),
    b"B": _sized(4, _M._bytes),
    b"\x8e": _sized(8, _M._bytes),
    b"\x96": _sized(8, _M._bytes),
    # the stack and the memo
    b"(": _M._mark,
    b"0": _M._pop,
    b"1": lambda machine: machine._pop_mark().clear(),
    b"2": _M._duplicate,
    b"p": _M._put_text,
    b"q": _sized(1, _M._put),
    b"r": _sized(4, _M._put),
    b"\x94": _M._memoize,
    b"g": _M._get_text,
    b"h": _sized(1, _M._get),
    b"j": _sized(4, _M._get),
    # collections
    b"\x85": _with(1, _M._tuple_of),
    b"\x86": _with(2, _M._tuple_of),
    b"\x87": _with(3, _M._tuple_of),
    b"t": _M._tuple,
    b"]": _M._empty_list,
    b"l": _M._list,
    b"a": _M._append,
    b"e": _M._appends,
    b"}": _M._empty_dict,
    b"d": _M._dict,
    b"s": _M._set_one,
    b"u": _M._set_marked,
    b"\x8f": _M._empty_set,
    b"\x90": _M._add_members,
    b"\x91": _M._frozen_set,
    # names and objects
    b"c": _M._global,
    b"\x93": _M._global_of_stack,
    b"R": _M._reduce,
    b"\x81": _M._new_object,
    b"\x92": _M._new_object_with_keywords,
    b"o": _M._object,
    b"i": _M._instance,
    b"b": _M._build,
    b"Q": _M._outside,
    b"P": _M._outside_text,
    b"\x82": _sized(1, _M._extension),
    b"\x83": _sized(2, _M._extension),
    b"\x84": _sized(4, _M._extension),
    b"\x97": _M._buffer,
    b"\x98": _M._buffer,
}
