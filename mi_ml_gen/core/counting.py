"""Counts of what a piece of work asks of a device: launches, bytes, FLOPs, memory, waits. Nothing is timed.

`Counted` sees every operator that torch runs while it is entered. It works on any device, and on tensors without
numbers (`bench.pretended`), so that what a step costs on a GPU can be counted without one. What the figures mean:

    launches   operators that run a kernel. A view, an allocation and a detach run none; every other operator counts as
               one, however many kernels a library makes of it. Of our own operators each kernel counts.
    traffic    bytes of the tensors that these operators take and give: what goes through memory if no cache helps and
               nothing is fused.
    FLOPs      of convolutions, matrix products and attention, 2 for each multiply and add.
    peak       bytes that are live at once on the device, weights included.
    draws      operators that draw random numbers on the device, where they are others than the host's.
    waits      copies between host and device for which the host waits, and indices that travel so. A value that the
               host reads raises an error on tensors without numbers.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view", "alias", "lift_fresh", "set_", "resize_", "sym_")
"""Beginnings of the names of operators that run no kernel, besides views."""

SUMMED = ("scaled_activation_backward",)
"""Operators of our own whose second result is summed by a launch after that of the kernel."""


@dataclass
class Counts:
    """What was counted, see the module's header."""

    launches: int = 0
    traffic_bytes: int = 0
    flops: int = 0
    peak_bytes: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    """By operator and direction."""
    float64: Counter[str] = field(default_factory=Counter)
    """Operators that gave float64 on the device, by name."""
    device_draws: Counter[str] = field(default_factory=Counter)
    """Operators that drew random numbers on the device, by name."""
    by_operator: Counter[str] = field(default_factory=Counter)
    """Launches by operator."""
    traffic_by_operator: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, float]:
        """The figures of a table: launches, GB, GFLOP, GiB at the peak, waits."""
        return {
            "launches": self.launches,
            "traffic_gb": round(self.traffic_bytes / 1e9, 2),
            "gflop": round(self.flops / 1e9, 1),
            "peak_gib": round(self.peak_bytes / 2**30, 3),
            "waits": sum(self.waits.values()),
        }


def memory_of(tensor: Tensor) -> int:
    """Bytes of memory that a tensor's values fill; those of an expanded axis lie in one place and count once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return math.prod(sizes) * tensor.element_size()


class Counted(TorchDispatchMode):
    """Counts on one kind of device while `counting`; memory is followed from the moment of entering.

    With `Counted() as counted: ...; with counted.step() as counts: ...`, `counts` is of the inner block alone, but its
    peak knows what was allocated before it.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.counts: Counts | None = None
        self.live_bytes = 0
        self._known: dict[int, weakref.ref] = {}

    @contextlib.contextmanager
    def step(self) -> Iterator[Counts]:
        self.start()
        try:
            assert self.counts is not None
            yield self.counts
        finally:
            self.stop()

    def start(self) -> None:
        self.counts = Counts(peak_bytes=self.live_bytes)

    def stop(self) -> Counts:
        assert self.counts is not None
        counts, self.counts = self.counts, None
        return counts

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._schema.name == "aten::_local_scalar_dense" and args[0].device.type == "cpu":
            return self._host_value(function, args[0])
        out = function(*args, **kwargs)
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in (*taken, *given):
            self._follow(tensor)
        if self.counts is not None:
            self._count(self.counts, function, args, kwargs, taken, given, out)
        return out

    def _host_value(self, function: Any, tensor: Tensor) -> Any:
        """A value of the host, for which no device is waited: 1 where there is none, in a step counter for example."""
        try:
            return function(tensor)
        except DataDependentOutputException:
            return 1.0 if tensor.dtype.is_floating_point else True if tensor.dtype == torch.bool else 1

    def _follow(self, tensor: Tensor) -> None:
        """Add the tensor's memory to what is live, until it is freed."""
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known and self._known[key]() is storage:
            return
        n_bytes = storage.nbytes()

        def freed(reference: weakref.ref) -> None:
            self.live_bytes -= n_bytes
            if self._known.get(key) is reference:
                del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.live_bytes += n_bytes
        if self.counts is not None:
            self.counts.peak_bytes = max(self.counts.peak_bytes, self.live_bytes)

    def _count(
        self, counts: Counts, function: Any, args: Any, kwargs: Any, taken: list[Tensor], given: list[Tensor], out: Any
    ) -> None:
        space, _, name = function._schema.name.partition("::")
        here = [tensor for tensor in (*taken, *given) if tensor.device.type == self.device_type]
        if space not in ("aten", "mi_ml_gen") or not here or function.is_view or name.startswith(NO_KERNEL):
            return
        n_bytes = sum(map(memory_of, here))
        n_launches = 1 + (name in SUMMED and given[1].numel() > 0)
        counts.launches += n_launches
        counts.traffic_bytes += n_bytes
        counts.by_operator[name] += n_launches
        counts.traffic_by_operator[name] += n_bytes
        packet = function._overloadpacket
        if packet in flop_registry:
            counts.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        if any(tensor.dtype == torch.float64 and tensor.device.type == self.device_type for tensor in given):
            counts.float64[name] += 1
        if torch.Tag.nondeterministic_seeded in function.tags and "attention" not in name:  # whose dropout is 0
            counts.device_draws[name] += 1
        if (wait := self._wait(name, args, kwargs, taken, given)) is not None:
            counts.waits[wait] += 1

    def _wait(self, name: str, args: Any, kwargs: Any, taken: list[Tensor], given: list[Tensor]) -> str | None:
        """What the host waits for in this operator, in words, or None."""
        others = [tensor for tensor in (*taken, *given) if tensor.device.type != self.device_type]
        if name in ("_to_copy", "copy_"):
            if not others:
                return None
            position = args[2] if name == "copy_" and len(args) > 2 else False
            if kwargs.get("non_blocking", position) and is_pinned(others[0]):
                return None
            source = args[1] if name == "copy_" else args[0]
            return f"{name}: from the {'device' if source.device.type == self.device_type else 'host'}"
        if name in ("index", "index_put_", "_index_put_impl_", "index_put") and any(other.ndim for other in others):
            return f"{name}: indices on the host"
        return None


PINNED_MARK = "_is_pretended_pinned"


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor of the host lies in page-locked memory, or says that it does (`bench.pretended`)."""
    if getattr(tensor, PINNED_MARK, False):
        return True
    try:
        return tensor.is_pinned()
    except (RuntimeError, NotImplementedError):  # tensors without numbers
        return False
