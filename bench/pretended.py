"""A pretended CUDA device, on a machine without one: torch's fake tensors have shapes, types and devices, no numbers.

    with pretended_cuda() as counted:
        train_navigator(...)          # the real loop

Everything that runs within it believes in a device cuda:0. What raises an error there:

    a tensor on the wrong device, a value that the host reads (item, tolist, nonzero, a mask as an index), page-locked
    memory for an expanded tensor, a gradient on another device than its tensor, a backward pass inside autocast.

Autograd's engine asks for a driver, and is stood in for: gradients come from a walk over the same graph in Python, with
the same operators in the same order, each of which is counted.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from mi_ml_gen.core import runtime
from mi_ml_gen.core.costs import moved
from mi_ml_gen.core.counting import PINNED_MARK, Counted
from mi_ml_gen.data import source

CUDA = torch.device("cuda", 0)
IS_POSSIBLE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
"""Older fake tensors ask for a driver; 2.6 was seen to do so, and 2.11 is the oldest version that was seen to work."""


# --- Backward without the engine ----------------------------------------------------------------------------------


class _Saved:
    """A tensor, or what hooks made of it, that a node of the graph keeps for its backward, until that has run."""

    used: list[_Saved] = []  # noqa: RUF012 - of the node that is in work

    def __init__(self, tensor: Any) -> None:
        self.tensor: Any = tensor

    def unpack(self) -> Any:
        assert self.tensor is not None, "backward has run through this graph already"
        _Saved.used.append(self)
        return self.tensor


class _Only(TorchDispatchMode):
    """Lets a backward compute what is wanted of it, as the engine does: convolutions take that as a mask."""

    def __init__(self, wanted: Sequence[bool]) -> None:
        super().__init__()
        self.wanted = list(wanted)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name == "aten::convolution_backward":
            *first, mask = args
            args = (*first, [asked and want for asked, want in zip(mask, self.wanted, strict=True)])
        return function(*args, **(kwargs or {}))


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "variable")


def _graph(roots: Sequence[Any]) -> tuple[dict[Any, list[tuple[Any, int]]], Counter]:
    """Every node below the roots with its edges, and how many edges lead to each."""
    edges: dict[Any, list[tuple[Any, int]]] = {}
    n_into: Counter = Counter()
    left = list(roots)
    while left:
        node = left.pop()
        if node in edges:
            continue
        edges[node] = list(node.next_functions)
        for following, _ in edges[node]:
            if following is not None:
                n_into[following] += 1
                left.append(following)
    return edges, n_into


def _leading_to(edges: dict[Any, list[tuple[Any, int]]], ends: set[Any]) -> set[Any]:
    """The nodes from which a way leads to one of `ends`, these included."""
    before = defaultdict(list)
    for node, following in edges.items():
        for other, _ in following:
            if other is not None:
                before[other].append(node)
    found, left = set(), [end for end in ends if end in edges]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += before[node]
    return found


@torch.no_grad()
def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor] | None = None,
    given: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """Gradients of a scalar, or of outputs that have `given` ones, with respect to leaves: into their `grad`, or of
    `inputs` alone, given back."""
    if torch.is_autocast_enabled("cuda"):
        raise RuntimeError(
            "a backward pass inside autocast: the engine would run its float32 products in half precision"
        )
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    starts = [torch.ones_like(output) for output in outputs] if given is None else given
    roots = [output.grad_fn for output in outputs]
    edges, n_into = _graph(roots)
    leaves = None if inputs is None else [torch.autograd.graph.get_gradient_edge(one).node for one in inputs]
    wanted = set(edges) if leaves is None else _leading_to(edges, set(leaves))
    found: dict[Any, Tensor] = {}
    waiting: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for output, root, start in zip(outputs, roots, starts, strict=True):
        at = output.output_nr
        waiting[root][at] = waiting[root][at] + start if at in waiting[root] else start
    first_nodes = [root for root in dict.fromkeys(roots) if n_into[root] == 0]
    ready = [(-root._sequence_nr(), i, root) for i, root in enumerate(first_nodes)]
    heapq.heapify(ready)
    n = len(ready)
    while ready:
        _, _, node = heapq.heappop(ready)
        arrived = waiting.pop(node, {})
        results: Sequence[Tensor | None] = [None] * len(edges[node])
        if node in wanted and arrived:
            if _is_leaf(node):
                _arrive(node, arrived[0], found, inputs is None)
            else:
                results = _run(node, arrived, [other in wanted for other, _ in edges[node]])
        del arrived
        for (following, position), value in zip(edges[node], results, strict=True):
            if following is None:
                continue
            if value is not None and following in wanted:
                into = waiting[following]
                value = _as_expected(following, position, value)
                into[position] = into[position] + value if position in into else value
            n_into[following] -= 1
            if n_into[following] == 0:
                n += 1
                first = 1 if _is_leaf(following) else -following._sequence_nr()
                heapq.heappush(ready, (-(2**63) if first == 1 else first, n, following))
        del results
        value = None
    return [] if leaves is None else [found.get(leaf) for leaf in leaves]


def _run(node: Any, arrived: dict[int, Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """One node's backward; what it had saved is released after it."""
    n_outputs = len(node._input_metadata)
    outer, _Saved.used = _Saved.used, []  # a backward may run another one
    with contextlib.nullcontext() if all(wanted) or len(wanted) != 3 else _Only(wanted):
        given = [arrived.get(i) for i in range(n_outputs)]
        out = node(*given) if not isinstance(node, torch.autograd.function.BackwardCFunction) else node.apply(*given)
    for saved in _Saved.used:
        saved.tensor = None
    _Saved.used = outer
    out = out if isinstance(out, tuple) else (out,)
    return out[: len(node.next_functions)]  # trailing arguments of our own functions that are no tensors


def _as_expected(node: Any, position: int, gradient: Tensor) -> Tensor:
    """A gradient in the shape and type of its tensor, as the engine brings it there; an error on another device."""
    expected = node.variable if _is_leaf(node) else node._input_metadata[position]
    if gradient.device != expected.device:
        raise RuntimeError(f"{node.name()}: a gradient on {gradient.device} for a tensor on {expected.device}")
    if tuple(gradient.shape) != tuple(expected.shape):
        gradient = gradient.sum_to_size(tuple(expected.shape))
    return gradient if gradient.dtype == expected.dtype else gradient.to(expected.dtype)


def _arrive(node: Any, gradient: Tensor, found: dict[Any, Tensor], keep: bool) -> None:
    if not keep:
        found[node] = gradient
    elif node.variable.grad is None:
        node.variable.grad = gradient.detach()
    else:
        node.variable.grad.add_(gradient)


def _backward(self: Tensor, *arguments: Any, **named: Any) -> None:
    assert not arguments and not named, "the pretended backward knows no options"
    gradients(self)


def _backward_of_several(outputs: Any, given: Any, *arguments: Any, **named: Any) -> None:
    assert not arguments and not named, "the pretended autograd.backward knows no options"
    gradients(outputs, None, given)


def _grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **named: Any) -> tuple[Tensor | None, ...]:
    assert not named, "the pretended autograd.grad knows no options"
    given = [grad_outputs] if isinstance(grad_outputs, Tensor) else grad_outputs
    return tuple(gradients(outputs, [inputs] if isinstance(inputs, Tensor) else list(inputs), given))


# --- The device ---------------------------------------------------------------------------------------------------


def _pinned(self: Tensor, device: Any = None) -> Tensor:
    """What torch does: page-locked memory of the same sizes and strides, then a copy."""
    if torch._debug_has_internal_overlap(self) == 1 or 0 in [
        stride for size, stride in zip(self.shape, self.stride(), strict=True) if size > 1
    ]:
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location"
        )
    pinned = torch.empty_strided(self.size(), self.stride(), dtype=self.dtype).copy_(self)
    setattr(pinned, PINNED_MARK, True)
    return pinned


def _attention(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """scaled_dot_product_attention by the kernel that a GPU has for it (its choice asks for a driver)."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if arguments or set(named) - {"scale"} or (query.ndim != 4 and not _takes_three_dimensions()):
        return _real_attention(query, key, value, *arguments, **named)
    if query.ndim == 3:
        return _attention(query[:, None], key[:, None], value[:, None], **named)[:, 0]
    with torch.autocast("cuda", enabled=False):
        needs_sums = any(one.requires_grad for one in (query, key, value)) and torch.is_grad_enabled()
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, None, needs_sums, scale=named.get("scale"))[0]


_real_attention = torch.nn.functional.scaled_dot_product_attention


@functools.cache
def _takes_three_dimensions() -> bool:
    """Whether this torch gives three-dimensional inputs the fourth dimension that the fast kernels want."""
    with unset_fake_temporarily(), _Names() as seen:
        _real_attention(*torch.ones(3, 1, 2, 8))
    return "aten::unsqueeze" in seen.names


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


def _stream(*arguments: Any, **named: Any) -> torch.Generator:
    with unset_fake_temporarily():  # its state is a tensor with numbers
        return _real_stream(*arguments, **named)


_real_stream = runtime.stream


@contextlib.contextmanager
def _processes(n: int) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n)
    try:
        with (
            mock.patch.object(runtime, "broadcast_flag", lambda flag: flag),
            mock.patch.object(runtime, "on_main", lambda action: action()),
        ):
            yield
    finally:
        dist.destroy_process_group()


def _as_cudnn_lays_it(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """How the result of a convolution lies in memory; asked without cuDNN, torch has it channels-first always."""
    is_last = any(
        tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous() for tensor in (x, weight)
    )
    return torch.channels_last if is_last else torch.contiguous_format


_real_hooks = torch.autograd.graph.saved_tensors_hooks


def _hooks(pack: Any, unpack: Any) -> Any:
    """Hooks within ours, which torch would put in their place."""
    return _real_hooks(lambda tensor: _Saved(pack(tensor)), lambda saved: unpack(saved.unpack()))


@contextlib.contextmanager
def pretended_cuda(n_processes: int = 1) -> Iterator[Counted]:
    """A CUDA device without numbers, for what runs within; gives the counter, entered, not yet counting.

    n_processes: above 1, this is the first of so many of torchrun's; what they would say to each other is not said.
    """
    with_foreach = [Tensor, torch.nn.Parameter, FakeTensor]  # operators on lists of tensors, as real ones have them
    patches = [
        mock.patch.object(torch.nn.Module, "_apply", moved),
        mock.patch.object(torch.Tensor, "backward", _backward),
        mock.patch.object(torch.autograd, "grad", _grad),
        mock.patch.object(torch.autograd, "backward", _backward_of_several),
        mock.patch.object(torch.Tensor, "pin_memory", _pinned),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention),
        mock.patch.object(sys.modules["torch.optim.optimizer"], "_foreach_supported_types", with_foreach),
        mock.patch.object(sys.modules["torch.utils._foreach_utils"], "_foreach_supported_types", with_foreach),
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _as_cudnn_lays_it),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_, **__: (9, 0)),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        mock.patch.object(runtime, "resolve_device", lambda name: CUDA),
        mock.patch.object(runtime, "stream", _stream),
        mock.patch.object(source, "_ahead", lambda make: make()),  # fake tensors do not bear a second thread
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        if n_processes > 1:
            stack.enter_context(_processes(n_processes))
        stack.enter_context(_real_hooks(_Saved, _Saved.unpack))
        stack.enter_context(mock.patch.object(torch.autograd.graph, "saved_tensors_hooks", _hooks))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))  # stored images are real ones
        yield stack.enter_context(Counted())
