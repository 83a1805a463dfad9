"""What a training will cost: FLOPs and memory counted from its networks, hours from a named assumption.

The networks run once on tensors without numbers (torch's fake tensors), so a step of any size is counted in seconds on
any machine, by the same counter that watches a real step (`core/counting.py`). What is assumed and not counted is one
thing: how much of the hardware a step reaches.

    FLOOR_TFLOPS    the speed at which a step's FLOPs would be its whole time: what large matrix products in bf16 reach
                    on an NVIDIA H100. `docs/speed.md` has the shares of this floor that steps were measured to reach.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mi_ml_gen.core.counting import Counted
from mi_ml_gen.core.errors import MiMlGenError
from mi_ml_gen.core.registry import fault

FLOOR_TFLOPS = 400.0
SHARES = (0.3, 0.45, 0.6)
"""Shares of the floor that a sheet shows; measured steps at batch 64 reach 0.37 to 0.57."""
N_GPUS = (1, 8, 64)
SLOWER = "this run is in {}: it takes longer than these hours, which are those of --precision bf16"
MEMORY = (
    "hours are those of GPUs that wait for nothing; memory is counted with a CPU's operators, which keep more for the "
    "backward pass than the kernels for GPUs do"
)


def moved(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which swaps the content of parameters; those without numbers do not bear that."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                new = function(value.detach())
                is_parameter = isinstance(value, nn.Parameter)
                held[name] = nn.Parameter(new, value.requires_grad) if is_parameter else new  # type: ignore[assignment]
    return module


@contextlib.contextmanager
def without_numbers() -> Iterator[Counted]:
    """Tensors that are made within have shapes and no numbers; gives the counter, entered, not yet counting."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    apply = nn.Module._apply
    nn.Module._apply = moved  # type: ignore[assignment]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Counted("cpu") as counted:
            yield counted
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]


def emptied(network: nn.Module) -> nn.Module:
    """A network whose tensors are replaced by those without numbers; within `without_numbers`."""
    return moved(network, lambda value: torch.empty(value.shape, dtype=value.dtype))


def bytes_of(network: nn.Module) -> int:
    """Of its state dict: what a weight file of it takes."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


@dataclass(frozen=True)
class StepCost:
    """What a step asks of one device."""

    n_samples: int
    """Samples (pairs) of the step on this device."""
    flops: Mapping[str, int]
    """Of matrix products, convolutions and attention, 2 for each multiply and add, by the part of the step."""
    peak_bytes: int
    """Live at once, weights included."""
    fixed_bytes: int = 0
    """The part of it that does not depend on the number of samples: weights, gradients, the optimiser's state."""

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())


@dataclass(frozen=True)
class RunCost:
    """What a whole training asks for."""

    n_samples: int
    """Samples of the run."""
    batch: int
    """Samples of a step on one device alone."""
    step: StepCost
    """A step of the whole batch on one device."""
    files: Mapping[str, int]
    """Bytes of the files that the run writes, by what they are."""
    keeps_batch: bool = True
    """Whether the batch is divided among devices; otherwise each has the whole one, and a step more samples."""
    precision: str = "fp32"
    notes: Sequence[str] = ()

    @property
    def flops_per_sample(self) -> float:
        return self.step.total_flops / self.step.n_samples

    def samples_per_s(self, share: float) -> float:
        """Of one device that reaches this share of the floor."""
        return share * FLOOR_TFLOPS * 1e12 / self.flops_per_sample

    def hours(self, n_gpus: int, share: float) -> float:
        """Of the run on so many devices that lose nothing on one another."""
        return self.n_samples / self.samples_per_s(share) / n_gpus / 3600

    def peak_bytes(self, n_gpus: int) -> float:
        """Of each device: what does not depend on the batch, and the rest in proportion to it."""
        n = self.batch / n_gpus if self.keeps_batch else self.batch
        fixed = self.step.fixed_bytes
        return fixed + (self.step.peak_bytes - fixed) * n / self.step.n_samples

    def lines(self) -> list[str]:
        """The sheet: a line for each thing."""
        step = self.step
        parts = ", ".join(f"{name} {flops / 1e12:.3g}" for name, flops in step.flops.items())
        shares = [f"{share:.0%}" for share in SHARES]
        found = [
            f"cost of this run, {self.precision}: counted on networks without numbers; hours are predicted",
            f"step of {step.n_samples:,} samples: {step.total_flops / 1e12:.3g} TFLOP ({parts})",
            f"run: {self.n_samples:,} samples, {self.n_samples / self.batch:,.0f} steps of this size, "
            f"{self.n_samples * self.flops_per_sample / 1e18:.3g} EFLOP",
            f"at {', '.join(shares)} of {FLOOR_TFLOPS:.0f} TFLOP/s (an H100 in bf16; measured steps: 37% to 57%):",
            f"  samples/s per GPU: {', '.join(f'{self.samples_per_s(share):,.0f}' for share in SHARES)}",
        ]
        for n_gpus in N_GPUS:
            hours = ", ".join(f"{self.hours(n_gpus, share):,.2f}" for share in SHARES)
            memory = self.peak_bytes(n_gpus) / 2**30
            each = f"batch {self.batch // n_gpus:,}" if self.keeps_batch else f"batch {self.batch:,}"
            if self.keeps_batch and self.batch % n_gpus:
                found.append(f"  {n_gpus} GPUs: a batch of {self.batch:,} does not divide into {n_gpus}")
                continue
            gpus = f"{n_gpus} GPU{'s' if n_gpus > 1 else ''}"
            found.append(f"  {gpus}: {hours} hours; at most {memory:.1f} GiB each ({each})")
        files = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in self.files.items())
        slower = [] if self.precision == "bf16" else [SLOWER.format(self.precision)]
        return [*found, f"files: {files}", *slower, MEMORY, *self.notes]


def lines_or_reason(count: Callable[[], RunCost]) -> list[str]:
    """The sheet, or one line that says why there is none: a dry run does not end because its cost is not known."""
    try:
        return count().lines()
    except Exception as error:  # a network of the user's may need numbers
        said = str(error) if isinstance(error, MiMlGenError) else fault(error)
        return [f"cost not counted: {said}"]
