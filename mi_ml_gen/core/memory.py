"""A bound on what building a model may take: a description in a file may promise any width, or any number of layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from mi_ml_gen.core.errors import CorruptCheckpointError


class _Bounded(TorchFunctionMode):
    """Refuses to make a tensor of more than `limit` numbers."""

    MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in self.MAKERS:
            sizes = args[0] if args and isinstance(args[0], (tuple, list)) else (kwargs or {}).get("size", args)
            n = 1
            for size in sizes:
                n *= size if isinstance(size, int) else 1
            if n > self.limit:
                raise CorruptCheckpointError(f"its description asks for a tensor of {n:,} numbers")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_more_than(path: Path) -> Iterator[None]:
    """Models made within have neither tensors out of all proportion to a file, nor more of them than it has room
    for. Raises CorruptCheckpointError."""
    size = path.stat().st_size
    n_made, n_most = 0, 2000 + size // 16  # a tensor takes more than 32 bytes of a file, modules hold one or two

    def count(*registration: Any) -> None:
        nonlocal n_made
        n_made += 1
        if n_made > n_most:
            raise CorruptCheckpointError("its description names more layers than the file holds")

    hooks = [
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_module_registration_hook(count),
    ]
    try:
        with _Bounded(4 * size + (1 << 20)):
            yield
    finally:
        for hook in hooks:
            hook.remove()
