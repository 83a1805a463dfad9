"""Walkers as their authors published them: pickled modules, read without running anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mi_ml_gen.checkpoints.reading import CheckpointFile, module_state_dict, naming
from mi_ml_gen.checkpoints.values import (
    Record,
    TensorStub,
    corrupt,
    is_count,
    kind,
    kind_of_dict,
    shown,
)


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
                met = kind_of_dict(file.root) if type(file.root) is dict else kind(file.root)
                corrupt(f"is not a published walker: it has no module under nn_walker, it is {met}")
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
