"""Affine layers of several models at once, with the activation after them, and what makes them quick on a CPU.

Three things cost most in a step of small models, measured on one core: tanh, which PyTorch's CPU kernels compute ten
times more slowly than the sigmoid that says the same; and batched products whose result has a last axis of a few
numbers (an x or z), five times more slowly than the same product transposed. `AffineTanh` and `Affine` are the plain
formulas with these two things avoided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class StackedLinear(nn.Module):
    """An affine map, or one for each of S stacked models. weight: (out, in) or (S, out, in).

    Initial values are those of torch.nn.Linear: uniform within 1 / sqrt(in).
    """

    def __init__(self, n_in: int, n_out: int, n_models: int | None = None, rng: torch.Generator | None = None) -> None:
        super().__init__()
        lead = () if n_models is None else (n_models,)
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter((2 * torch.rand(*lead, n_out, n_in, generator=rng) - 1) * bound)
        self.bias = nn.Parameter((2 * torch.rand(*lead, n_out, generator=rng) - 1) * bound)

    def forward(self, x: Tensor, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(n, in) -> (n, out), or (S, n, in) -> (S, n, out), and the activation of it."""
        weight, bias = self.weight, self.bias
        if weight.ndim == 2:
            out = nn.functional.linear(x, weight, bias)
        elif x.device.type == "cpu":
            if act is torch.tanh and x.dtype == torch.float32:
                return AffineTanh.apply(x, weight, bias)
            out = Affine.apply(x, weight, bias)
        else:
            out = torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
        return out if act is None else act(out)


class Affine(torch.autograd.Function):
    """x (S, n, in), weight (S, out, in), bias (S, out) -> (S, n, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _gradients(grad, x, weight, ctx.needs_input_grad[0])


class AffineTanh(torch.autograd.Function):
    """tanh of `Affine`, as 2 sigmoid(2 v) - 1: within 2e-7 of it in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
        out = out.mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, out = ctx.saved_tensors
        return _gradients(torch.ops.aten.tanh_backward(grad, out), x, weight, ctx.needs_input_grad[0])


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, of_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Of x, weight and bias; each product with the longer axis last."""
    n_out, n_in = weight.shape[-2:]
    grad_x = None
    if of_x:
        grad_x = torch.bmm(grad, weight) if n_in > 8 else torch.bmm(weight.mT, grad.mT).mT
    grad_weight = torch.bmm(grad.mT, x) if n_in >= n_out else torch.bmm(x.mT, grad).mT
    return grad_x, grad_weight, grad.sum(-2)
