"""Pieces of hostile checkpoints: opcodes by hand, payloads that would act, and containers to carry them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}(U\x10protocol_versionM\xe9\x03U\rlittle_endian\x88u."


# ----------------------------------------------------------------------------------------------------------
# Opcodes. Each function gives the opcodes that leave one value on the stack.


def name(module: str, attribute: str) -> bytes:
    """GLOBAL"""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL, which lets the attribute hold dots."""
    return text(module) + text(attribute) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def content(value: bytes) -> bytes:
    """BINBYTES"""
    return b"B" + struct.pack("<I", len(value)) + value


def whole(value: int) -> bytes:
    """LONG1"""
    body = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(body)]) + body


def values(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + values(*arguments) + b"R"


def entries(**items: bytes) -> bytes:
    """A dict."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tensor(storage: bytes, size: Iterable[int], stride: Iterable[int], offset: int = 0) -> bytes:
    shape = [values(*map(whole, numbers)) for numbers in (size, stride)]
    empty = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, whole(offset), *shape, b"\x89", empty)


def stored(key: str = "0", n_elements: int = 4, type_name: str = "FloatStorage") -> bytes:
    """A storage by its persistent id, as in zip and stream files."""
    fields = text("storage"), name("torch", type_name), text(key), text("cpu"), whole(n_elements)
    return values(*fields) + b"Q"


def nested(blob: bytes) -> bytes:
    """A storage in bytes, as in bare pickles."""
    return call(name("torch.storage", "_load_from_bytes"), content(blob))


def module(class_name: bytes, parameters: bytes = b"}", children: bytes = b"}", **attributes: bytes) -> bytes:
    """An nn.Module: NEWOBJ and BUILD."""
    state = entries(_parameters=parameters, _buffers=b"}", _modules=children, **attributes)
    return class_name + b")\x81" + state + b"b"


# ----------------------------------------------------------------------------------------------------------
# Containers of one value


def bare(value: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + value + b"."


def stream(value: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """torch.save's stream format; storages of 4-byte elements."""
    storages = storages or {}
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    data = b"".join(struct.pack("<q", len(data) // 4) + data for data in storages.values())
    return MAGIC + VERSION + SYSTEM + bare(value, 2) + bare(keys, 2) + data


def zipped(
    value: bytes,
    storages: dict[str, bytes] | None = None,
    method: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
) -> bytes:
    """torch.save's zip format."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", bare(value))
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for key, data in {"archive/version": b"3\n", **(more or {})}.items():
            archive.writestr(key, data)
    return file.getvalue()


def walker_file(value: bytes) -> bytes:
    """A published walker's file whose module is `value`."""
    return zipped(entries(nn_walker=value), {"0": bytes(16)})


def nested_file(value: bytes) -> bytes:
    """A tensor whose storage is given as bytes that hold `value`."""
    return bare(entries(weight=tensor(nested(stream(value)), (2, 2), (2, 1))))


CARRIERS = {
    "zip": zipped,
    "stream": stream,
    "bare": bare,
    "walker": walker_file,
    "nested": nested_file,
    "dict": lambda value: bare(entries(state_dict=entries(weight=value))),
}


# ----------------------------------------------------------------------------------------------------------
# Payloads: values that an ordinary unpickler, or a careless one, would act upon


def payloads(canary: Path) -> dict[str, bytes]:
    """Payload by name. Most would create `canary` if they were run."""
    command = text(f"touch {canary}")
    code = text(f"open({str(canary)!r}, 'w')")
    linear = name("torch.nn.modules.linear", "Linear")
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return {
        "reduce os.system": call(name("os", "system"), command),
        "reduce posix.system": call(name("posix", "system"), command),
        "reduce eval": call(name("builtins", "eval"), code),
        "reduce exec, python 2's name": call(name("__builtin__", "exec"), code),
        "reduce with a list of arguments": name("builtins", "eval") + b"](" + code + b"eR",
        "reduce of a module class": call(linear, whole(3), whole(3)),
        "reduce of a tensor": call(tensor(stored(), (2,), (1,)), command),
        "reduce of a text": call(text("os.system"), command),
        "reduce of what reduce gave": call(call(name("collections", "OrderedDict")), command),
        "open for writing": call(name("io", "open"), text(str(canary)), text("w")),
        "inst": b"(" + command + b"ios\nsystem\n",
        "inst of a module class": b"(" + command + b"itorch.nn.modules.linear\nLinear\n",
        "obj": b"(" + name("os", "system") + command + b"o",
        "obj of a module class": b"(" + linear + command + b"o",
        "newobj": name("subprocess", "Popen") + values(command) + b"\x81",
        "newobj of a module class": linear + values(whole(3), whole(3)) + b"\x81",
        "newobj of a function": rebuild + b")\x81",
        "newobj of a tensor class": name("torch", "Tensor") + b")\x81",
        "newobj_ex": name("subprocess", "Popen") + b")" + entries(args=command, shell=b"\x88") + b"\x92",
        "newobj_ex of a module class": linear + b")" + entries(out_features=whole(3)) + b"\x92",
        "build with __setstate__": linear + b")\x81" + entries(__setstate__=name("os", "system")) + b"b",
        "build a function": rebuild + entries(__code__=command) + b"b",
        "build a class": linear + entries(forward=command) + b"b",
        "build with slots": linear + b")\x81" + values(b"N", entries(forward=command)) + b"b",
        "build a list": b"]" + entries(a=command) + b"b",
        "build a tensor": tensor(stored(), (2,), (1,)) + entries(__class__=command) + b"b",
        "dotted name": call(stack_name("torch", "serialization.os.system"), command),
        "dotted name of a known prefix": call(stack_name("torch._utils", "sys.modules"), command),
        "dotted name of a module class": stack_name("torch.nn.modules.linear", "torch.os.system") + b")\x81",
        "dotted method of a known class": call(stack_name("collections", "OrderedDict.fromkeys"), command),
        "module name beside the known ones": stack_name("torch.nn.modules.x.os", "system") + b")\x81",
        "name made of numbers": whole(1) + whole(2) + b"\x93",
        "very long name": call(stack_name("a" * 100_000, "b" * 100_000), command),
        "name with a line break": call(stack_name("os\nsystem", "x\x1b[2J"), command),
        "getattr": call(call(name("builtins", "getattr"), name("torch", "serialization"), text("os")), command),
        "attrgetter": call(call(name("operator", "attrgetter"), text("system")), name("torch", "os")),
        "partial": call(name("functools", "partial"), name("os", "system"), command),
        "import": call(name("importlib", "import_module"), text("antigravity")),
        "runpy": call(name("runpy", "run_path"), text(str(canary))),
        "pickle.loads": call(name("pickle", "loads"), content(bare(call(name("os", "system"), command)))),
        "torch.load": call(name("torch", "load"), text(str(canary)), b"\x89"),
        "torch.hub": call(name("torch.hub", "load"), text("a/b"), text("c")),
        "numpy's own runner": call(name("numpy.testing._private.utils", "runstring"), code, b"}"),
        "numpy.load": call(name("numpy", "load"), text(str(canary)), b"N", b"\x88"),
        "copyreg constructor": call(name("copyreg", "_reconstructor"), linear, name("builtins", "object"), b"N"),
        "extension 1": b"\x82\x01",
        "extension 2": b"\x83\x01\x00",
        "extension 4": b"\x84\x01\x00\x00\x00",
        "persistent text": b"Pos.system\n",
        "persistent number": whole(7) + b"Q",
        "persistent name": name("torch", "FloatStorage") + b"Q",
        "persistent tuple of names": values(text("storage"), linear, text("0"), text("cpu"), whole(4)) + b"Q",
        "persistent module": values(text("module"), name("os", "system"), text("a.py"), code) + b"Q",
        "persistent nothing": values() + b"Q",
        "buffer from outside": b"\x97",
        "memo replaced": name("collections", "OrderedDict")
        + b"q\x000"
        + name("os", "system")
        + b"q\x000h\x00"
        + values(command)
        + b"R",
        "memo of a mark's inside": b"(" + name("os", "system") + b"q\x051h\x05" + values(command) + b"R",
        "array of objects": call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"),
        "array of records": call(name("numpy", "dtype"), text("V8"), b"\x89", b"\x88"),
        "scalar of objects": call(
            name("numpy.core.multiarray", "scalar"), call(name("numpy", "dtype"), text("O")), command
        ),
        "defaultdict factory": call(name("collections", "defaultdict"), name("os", "system")),
        "weakref, types": call(name("types", "FunctionType"), command, b"}"),
        "tensor subclass": call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("os", "system"),
            linear,
            values(command),
            b"}",
        ),
    }
