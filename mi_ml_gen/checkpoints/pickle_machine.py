"""A pickle interpreter that calls nothing: opcodes in, inert values out.

Python's unpickler calls whatever a file names. This machine knows the opcodes of protocols 0 to 5, but a
name in a file is only text, looked up in a table of the names that checkpoints of this field hold
(`checkpoint_names`). A name means one of three things: a function of ours that describes the arguments (a
tensor becomes a `TensorStub`: where its bytes lie and how they are laid out), an inert object (a module
becomes a `Record`: a class name and attributes), or a constant (a dtype). Objects that often lie beside weights and
are not needed (dates, paths, schedules) are passed over, as records of what the file said. Any other name refuses the
file.
Nothing is imported, no source is compiled, no attribute is looked up by a name that the file chose.

The work is bounded: opcodes by the file's size; names, texts and keys by fixed lengths; byte strings are
not loaded but remembered as spans of the file. Every refusal is `UnsafeCheckpointError` (the file asks for
more than weights need) or `CorruptCheckpointError` (damaged, or not of this format), and says at which
byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch

from mi_ml_gen.checkpoints.values import (
    MAX_NAME_BYTES,
    ArrayStub,
    Budget,
    Class,
    Constant,
    DtypeStub,
    Function,
    Name,
    Names,
    Passed,
    Record,
    Span,
    Storage,
    Stream,
    TensorStub,
    _counts,
    corrupt,
    kind,
    mentioned,
    shown,
)
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

MAX_NUMBER_KEYS = 20_000  # keys of one dict that are not text: Python hashes numbers without a secret
MAX_KEY_CHARACTERS = 4096
MAX_KEY_ITEMS = 8  # of a tuple that is a key
MAX_TEXT_BYTES = 64 << 20


def _is_plain_key(key: Any) -> bool:
    return key is None or type(key) in (bool, float) or (type(key) is int and abs(key) < 1 << 63)


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
        elif type(key) is tuple and len(key) <= MAX_KEY_ITEMS:
            for item in key:
                if not (type(item) is str or _is_plain_key(item)):
                    corrupt(f"a tuple with {kind(item)} as a key, or as a member of a set")
                self._check_key(item)
        elif not (_is_plain_key(key) or isinstance(key, (Record, TensorStub))):  # the last two are hashed by identity
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
            corrupt("a text of protocol 0 that is malformed")
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
        if isinstance(cls, Name) and isinstance(cls.meaning, Function) and cls.meaning.makes_objects:
            if not isinstance(args, tuple):
                corrupt(f"an object of {kind(cls)} is made with {kind(args)}")
            self._stack.append(cls.meaning.describe(args, self))
            return
        if not (isinstance(cls, Name) and isinstance(cls.meaning, Class)):
            raise UnsafeCheckpointError(f"makes an object of {kind(cls)}")
        if not isinstance(args, tuple) or args:
            raise UnsafeCheckpointError(f"makes an object of {kind(cls)} with arguments")
        self._stack.append(cls.meaning.make(cls.module, cls.name))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Passed):
            if "state" in target.state:
                corrupt(f"a second state of {kind(target)}")
            target.state["state"] = mentioned(state)
        elif isinstance(target, Record):
            if type(state) is not dict or target.state:
                corrupt(f"a malformed state of {kind(target)}")
            target.state = state
        elif isinstance(target, ArrayStub):
            self._build_array(target, state)
        elif isinstance(target, DtypeStub):
            # (version, byte order, subarray, names, fields, itemsize, alignment, flags)
            if not (isinstance(state, tuple) and len(state) >= 8 and state[2:5] == (None, None, None)):
                corrupt("a numpy.dtype that is malformed")
            target.order = ">" if isinstance(state[1], str) and state[1] == ">" else "<"
        elif type(target) is dict:
            # attributes of an OrderedDict, such as the _metadata of a state dict: known, and not needed
            if type(state) is not dict:
                corrupt("a malformed state of a dict")
        else:
            raise UnsafeCheckpointError(f"sets the state of {kind(target)}")

    def _build_array(self, target: ArrayStub, state: Any) -> None:
        """(version, shape, dtype, fortran order, bytes)"""
        if not (isinstance(state, tuple) and len(state) == 5 and target.dtype is None):
            corrupt("a malformed state of a numpy array")
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
