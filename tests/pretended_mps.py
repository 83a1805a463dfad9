"""A pretended Apple GPU: tensors that say they are on mps, whose values lie on the CPU. As the real one, it has no
float64: whatever would give it raises TypeError.

    with pretended_mps() as device:
        torch.ones(3, device=device).double()       # raises
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

MPS, CPU = torch.device("mps", 0), torch.device("cpu")


_aten = torch.ops.aten
_TAKE_BOTH = {
    _aten._to_copy.default, _aten.copy_.default, _aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default,
    _aten._foreach_copy_.default, _aten.eq.Tensor,
}  # fmt: skip
"""Operators that take tensors of two devices: copies, indices of the host, and what torch's one_hot compares, which
takes the pretended device for the CPU."""


class OnMps(torch.Tensor):
    """Says mps to Python, though not to torch itself, which would ask for the device; `inner` holds the values."""

    device = MPS  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnMps:
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=CPU, requires_grad=inner.requires_grad
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.inner.clone()

    def tolist(self) -> Any:  # type: ignore[override]
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {}, is_here=True)


def _run(function: Any, args: Any, kwargs: dict[str, Any], is_here: bool) -> Any:
    wanted = kwargs.get("device")
    if wanted is not None:
        is_here = torch.device(wanted).type == "mps"
        kwargs = kwargs | {"device": CPU}
    if is_here and function not in _TAKE_BOTH:
        strays = [one for one in tree_flatten((args, kwargs))[0] if type(one) is torch.Tensor and one.dim() > 0]
        if strays and any(isinstance(one, OnMps) for one in tree_flatten((args, kwargs))[0]):
            raise RuntimeError(f"Expected all tensors to be on the same device: {function} has mps and cpu ones")
    args, kwargs = tree_map_only(OnMps, lambda one: one.inner, (args, kwargs))
    out = function(*args, **kwargs)
    return tree_map_only(torch.Tensor, OnMps, out) if is_here else out


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if OnMps in types or (wanted is not None and torch.device(wanted).type == "mps"):
            return _run(function, args, kwargs, is_here=True)
        return function(*args, **kwargs)


@contextlib.contextmanager
def pretended_mps() -> Iterator[torch.device]:
    with _Factories():
        yield MPS
