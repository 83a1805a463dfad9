"""The stochastic sampler, run deterministically from given noise.

Noise number i enters before the network looks for the i-th time: number 0 is the starting noise, number i + 1 is the
fresh noise of step i. For the backward pass a step keeps its input and nothing else; what the network computed is
computed again (Chen et al., 2016). So memory grows with the length of the noise, and not with the network's maps times
the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mi_ml_gen.generators.diffusion.processes import Step

Network = Callable[[Tensor, Tensor], Tensor]


def noises_of(steps: Sequence[Step]) -> int:
    """How many noises a sampler takes: the starting noise, and one for each step that adds any (the last one as a rule
    adds none)."""
    return 1 + sum(step.fresh > 0 for step in steps)


def run(network: nn.Module, steps: Sequence[Step], x: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """From x (n, c, h, w) through `steps`; noise: the fresh noise of each step that adds any, (n, c, h, w) each.

    Gradients flow to x and to the noise, and not to the network's weights unless they ask for them; then every step
    keeps all that its backward pass needs.
    """
    waiting = iter(noise)
    is_trained = any(weight.requires_grad for weight in network.parameters())
    for step in steps:
        if torch.is_grad_enabled() and x.requires_grad and not is_trained:
            x = _Recomputed.apply(x, network, step)
        else:
            x = mean_after(network, step, x)
        if step.fresh > 0:
            x = x + step.fresh * next(waiting)
    return x


def mean_after(network: nn.Module, step: Step, x: Tensor) -> Tensor:
    """What a step makes of x (n, c, h, w) before its fresh noise."""
    time = torch.full((1,), step.time, dtype=torch.float32, device=x.device)
    prediction = network(x, time)
    clean = step.clean_x * x + step.clean_out * prediction
    if step.bound is not None:
        clean = clean.clamp(-step.bound, step.bound)
    found = step.next_clean * clean
    if step.next_x:
        found = found + step.next_x * x
    if step.next_out:
        found = found + step.next_out * prediction
    return found


class _Recomputed(torch.autograd.Function):
    """`mean_after`, whose backward pass runs the network again, under the autocast of the forward pass."""

    @staticmethod
    def forward(ctx, x, network, step):
        ctx.save_for_backward(x)
        ctx.network, ctx.step, ctx.autocast = network, step, _autocast_now(x.device)
        return mean_after(network, step, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), ctx.autocast():
            x = x.detach().requires_grad_()
            found = mean_after(ctx.network, ctx.step, x)
        return torch.autograd.grad(found, x, gradient)[0], None, None


def _autocast_now(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast that is in force now, to be entered again later."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    is_on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=is_on)
