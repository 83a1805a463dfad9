"""Passes of a network through its training step, whose weights are handled all at once.

autocast converts each weight by itself, and where a network runs twice in a step, autograd adds up the gradients weight
by weight. On a GPU that is hundreds of launches of a few microseconds. `passes` does each of these for all weights in
one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mi_ml_gen.core import fixed

_CONVERTED = (nn.Linear, nn.modules.conv._ConvNd)
"""The layers whose weights autocast converts."""


def passes(networks: Iterable[nn.Module], n: int) -> list[AbstractContextManager[None]]:
    """Contexts for `n` passes of some networks in one step; each pass runs in its own.

        for_first, for_second = passes([encoder, projector], 2)
        with for_first: z_first = projector(encoder(first))
        with for_second: z_second = projector(encoder(second))

    Within, the weights of layers that autocast works on are in its type (call this inside autocast), and the
    parameters are tensors of this pass alone. Values and gradients are those of plain passes. Where neither would save
    anything, and in what torch.compile reads, the contexts do nothing.
    """
    slots = [slot for network in networks for slot in _slots(network)]
    parameters = [held[name] for held, name, _ in slots]
    if torch.compiler.is_compiling() or len(set(map(id, parameters))) < len(parameters):
        return [nullcontext()] * n
    dtypes = [fixed.working_dtype(one) if is_converted else one.dtype for one, (*_, is_converted) in
              zip(parameters, slots, strict=True)]  # fmt: skip
    trained = [i for i, one in enumerate(parameters) if one.requires_grad and torch.is_grad_enabled()]
    if (n == 1 or not trained) and dtypes == [one.dtype for one in parameters]:
        return [nullcontext()] * n

    others = sorted(set(range(len(parameters))) - set(trained))
    constant = _converted([parameters[i] for i in others], [dtypes[i] for i in others])
    chosen = [dtypes[i] for i in trained]
    made = _AllAtOnce.apply(*(parameters[i] for i in trained), chosen, n) if trained else ()
    found: list[AbstractContextManager[None]] = []
    for k in range(n):
        of_pass = dict(zip(others, constant, strict=True))
        of_pass |= zip(trained, made[k * len(trained) : (k + 1) * len(trained)], strict=True)
        found.append(_placed(slots, [of_pass[i] for i in range(len(slots))]))
    return found


def _slots(network: nn.Module) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Where the parameters of a network are held, under which name, and whether autocast converts them."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module._parameters, name, isinstance(module, _CONVERTED)


@contextmanager
def _placed(slots: Sequence[tuple[dict[str, Any], str, bool]], tensors: Sequence[Tensor]) -> Iterator[None]:
    own = [held[name] for held, name, _ in slots]
    for (held, name, _), tensor in zip(slots, tensors, strict=True):
        held[name] = tensor
    try:
        yield
    finally:
        for (held, name, _), parameter in zip(slots, own, strict=True):
            held[name] = parameter


def _converted(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Each tensor in its dtype, or itself without a graph where it has that; one launch for each pair of types."""
    made = [
        one.detach() if one.dtype == dtype else torch.empty_like(one, dtype=dtype, requires_grad=False)
        for one, dtype in zip(tensors, dtypes, strict=True)
    ]
    changed = [i for i, one in enumerate(tensors) if one.dtype != dtypes[i]]
    with torch.no_grad():
        for at in _alike(changed, lambda i: (tensors[i].dtype, dtypes[i])):
            torch._foreach_copy_([made[i] for i in at], [tensors[i].detach() for i in at])
    return made


def _alike(indices: Iterable[int], key: Callable[[int], Any]) -> list[list[int]]:
    """The indices in groups of equal keys."""
    groups: dict[Any, list[int]] = {}
    for i in indices:
        groups.setdefault(key(i), []).append(i)
    return list(groups.values())


class _AllAtOnce(torch.autograd.Function):
    """Parameters, their dtypes and n -> n times all parameters in these dtypes."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *parameters, dtypes, n = arguments
        ctx.dtypes = [one.dtype for one in parameters]
        ctx.set_materialize_grads(False)
        made = _converted(parameters, dtypes)
        return tuple(one.view_as(one) for _ in range(n) for one in made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        n = len(ctx.dtypes)
        total: dict[int, Tensor] = {}
        for start in range(0, len(gradients), n):
            own = {i: one for i, one in enumerate(gradients[start : start + n]) if one is not None}
            both = [i for i in own if i in total]
            for at in _alike(both, lambda i, own=own: own[i].dtype):  # type: ignore[misc]
                own |= zip(at, torch._foreach_add([total[i] for i in at], [own[i] for i in at]), strict=True)
            total |= own
        made = _converted(list(total.values()), [ctx.dtypes[i] for i in total])
        total = dict(zip(total, made, strict=True))
        return (*(total.get(i) for i in range(n)), None, None)


__all__ = ["passes"]
