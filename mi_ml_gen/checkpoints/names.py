"""What the names in a pickle mean: an allow-list of functions, storages and record classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mi_ml_gen.checkpoints.pickle_machine import PickleMachine
from mi_ml_gen.checkpoints.values import (
    ArrayStub,
    Class,
    Constant,
    DtypeStub,
    Function,
    Meaning,
    Name,
    Passed,
    Record,
    Span,
    Storage,
    StorageType,
    TensorStub,
    _counts,
    corrupt,
    is_count,
    mentioned,
    shown,
)
from mi_ml_gen.core.errors import UnsafeCheckpointError


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
        corrupt("a torch.device that is malformed")
    return ":".join(map(str, args))


def _nested_storage(args: tuple, machine: PickleMachine) -> Storage:
    """torch.storage._load_from_bytes(bytes): the bytes are a whole stream file that holds one storage."""
    if len(args) != 1 or machine.as_span(args[0]) is None:
        corrupt("the bytes of a storage are missing")
    return machine.nested_storage(machine.as_span(args[0]))


_NUMPY_DTYPE = re.compile(r"b1|\?|[iu][1248]|f[248]")
_NUMPY_OTHER = re.compile(r"[US]\d{1,9}|[Mm]8|c8|c16")  # texts, dates and complex numbers, which are passed over
_NDARRAY = "numpy.ndarray"


def _numpy_dtype(args: tuple, machine: PickleMachine) -> DtypeStub:
    if not (1 <= len(args) <= 3 and isinstance(args[0], str)):
        corrupt("a numpy.dtype that is malformed")
    has_order = args[0].startswith(("<", ">", "=", "|"))
    order, code = (args[0][0], args[0][1:]) if has_order else ("<", args[0])
    if not (_NUMPY_DTYPE.fullmatch(code) or _NUMPY_OTHER.fullmatch(code)):
        raise UnsafeCheckpointError(f"holds an array of numpy dtype '{shown(args[0], 20)}', not of numbers")
    return DtypeStub(code, ">" if order == ">" else "<")


def _numpy_scalar(args: tuple, machine: PickleMachine) -> bool | int | float | Passed:
    span = machine.as_span(args[1]) if len(args) == 2 and isinstance(args[0], DtypeStub) else None
    if span is not None and not _NUMPY_DTYPE.fullmatch(args[0].code):
        return Passed("numpy", "generic", {"args": args})
    if span is None or span.size != args[0].dtype.itemsize:
        corrupt("a numpy scalar without its bytes")
    return np.frombuffer(span.bytes(), args[0].dtype)[0].item()


def _numpy_reconstruct(args: tuple, machine: PickleMachine) -> ArrayStub:
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array, which BUILD describes."""
    if not (len(args) == 3 and args[0] is _NDARRAY and args[1] == (0,)):
        corrupt("a numpy array that is malformed")
    return ArrayStub()


def _numpy_frombuffer(args: tuple, machine: PickleMachine) -> ArrayStub:
    """numpy's _frombuffer(bytes, dtype, shape, order), as protocol 5 writes arrays."""
    ok = len(args) == 4 and isinstance(args[0], Span) and isinstance(args[1], DtypeStub)
    if not (ok and isinstance(args[3], str) and args[3] in ("C", "F")):
        corrupt("a numpy array that is malformed")
    return ArrayStub(_counts(args[2], "an array's shape"), args[1], args[3] == "F", args[0])


def _encode(args: tuple, machine: PickleMachine) -> Span:
    """_codecs.encode(text, "latin1"): how protocols below 3 write bytes."""
    ok = len(args) == 2 and all(isinstance(text, str) for text in args)
    if not (ok and args[1] in ("latin1", "latin-1")):
        corrupt("a call of _codecs.encode that is malformed")
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

# ------------------------------------------------------------------------------------------------------------
# What lies beside weights and is not needed: read as plain containers, or passed over


def _mapping(args: tuple, machine: PickleMachine) -> dict:
    """Counter(counts) and dict(pairs): its entries."""
    if len(args) == 1 and type(args[0]) is dict:
        machine.budget.spend(len(args[0]))
        return dict(args[0])
    return _ordered_dict(args, machine)


def _defaultdict(args: tuple, machine: PickleMachine) -> dict:
    """defaultdict(factory): its entries follow; the factory, a type or None, is not kept."""
    factory = args[0] if args else None
    if not (len(args) <= 1 and (factory is None or isinstance(factory, (Name, Record)))):
        corrupt("a defaultdict that is malformed")
    return {}


def _list_of(args: tuple, machine: PickleMachine) -> list:
    """deque(items, longest) and list(items)."""
    if len(args) > 2 or not all(isinstance(items, (list, tuple)) for items in args[:1]):
        corrupt("a list of something that is not a list")
    items = args[0] if args else ()
    machine.budget.spend(len(items))
    return list(items)


def _passed(module: str, name: str) -> Function:
    return Function(lambda args, machine: Passed(module, name, {"args": mentioned(args)}), makes_objects=True)


_COLLECTIONS = {
    ("collections", "Counter"): _mapping,
    ("collections", "defaultdict"): _defaultdict,
    ("collections", "deque"): _list_of,
    ("builtins", "dict"): _mapping,
    ("builtins", "list"): _list_of,
    ("builtins", "frozenset"): _set,
    ("__builtin__", "dict"): _mapping,
    ("__builtin__", "list"): _list_of,
    ("__builtin__", "frozenset"): _set,
}
_DICT_CLASSES = re.compile(
    r"easydict\.EasyDict|addict\.(?:addict\.)?Dict|munch\.(?:Munch|DefaultMunch)|yacs\.config\.CfgNode"
    r"|(?:pytorch_lightning|lightning\.pytorch)\.utilities\.parsing\.AttributeDict"
    r"|(?:lightning_fabric|lightning\.fabric)\.utilities\.data\.AttributeDict"
)
"""Subclasses of dict in which programs keep their settings."""
_VALUES = re.compile(
    r"datetime\.(?:datetime|date|time|timedelta|timezone)"
    r"|pathlib(?:\._local)?\.(?:Pure)?(?:Posix|Windows)?Path"
    r"|functools\.partial|re\._compile|decimal\.Decimal|uuid\.(?:UUID|SafeUUID)|types\.SimpleNamespace"
    r"|(?:builtins|__builtin__)\.(?:slice|range|xrange|complex|bytearray)"
    r"|numpy\.random\._pickle\.__(?:randomstate|generator|bit_generator)_ctor"
    r"|numpy\.random\.bit_generator\.(?:SeedSequence|__pyx_unpickle_SeedSequence)"
    r"|torch\.serialization\._get_layout"
    r"|torch\.optim\.(?:[a-z_]+\.)?[A-Za-z_]+"
    r"|torch\.(?:cuda\.)?amp\.grad_scaler\.(?:GradScaler|OptState|_refresh_per_optimizer_state)"
    r"|omegaconf\.(?:dictconfig|listconfig|base|nodes)\.[A-Za-z]+"
)
"""Classes and constructors whose objects are passed over: what they would have been called with is kept."""
_TYPES = re.compile(
    r"(?:builtins|__builtin__)\.(?:int|float|str|bool|tuple|object|type|long|unicode|NoneType)"
    r"|typing\.[A-Za-z]+|types\.NoneType"
    r"|torch\.nn\.functional\.[a-z_0-9]+"
    r"|numpy\.(?:bool_?|u?int(?:8|16|32|64)|float(?:16|32|64))"
    r"|numpy\.random\._(?:mt19937\.MT19937|pcg64\.PCG64(?:DXSM)?|philox\.Philox|sfc64\.SFC64)"
    r"|(?:pytorch_lightning|lightning\.pytorch)\.callbacks\.[A-Za-z_.]+"
)
"""Types and functions that are only mentioned, and cannot be called: the factory of a defaultdict, a setting."""


def _beside_weights(module: str, name: str) -> Meaning | None:
    """The meaning of a name that checkpoints of training hold and weights do not need."""
    if (module, name) in _COLLECTIONS:
        return Function(_COLLECTIONS[module, name], makes_objects=True)
    whole = f"{module}.{name}"
    if "." in name:  # a class inside a class, or what somebody wants to be taken for one
        return None
    if _DICT_CLASSES.fullmatch(whole):
        return Class(lambda module, name: {})
    if _VALUES.fullmatch(whole):
        return _passed(module, name)
    return Constant(Passed(module, name)) if _TYPES.fullmatch(whole) else None


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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
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
_TORCH_MODULE = re.compile(r"torch\.nn\.modules\.[a-z_]+|torchvision\.models\.resnet")
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
    return storage_names(module, name) or _beside_weights(module, name)
