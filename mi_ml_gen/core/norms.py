"""Batch normalisation over the batches of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from mi_ml_gen.core import runtime
from mi_ml_gen.core.resnet import BatchNorm2d

_aten = torch.ops.aten


class SynchronisedBatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm1d` or `2d` whose statistics in training are those of all processes' batches together.

    Every process must bring a batch of the same size. Then no counts travel and the host waits for nothing: each
    layer sends one small tensor forward and one backward. Values, gradients (averaged by `runtime.average_gradients`)
    and running statistics are those of one process with the whole batch; in a single process it is torch's own.
    The state dict has the same names.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim in (2, 4), input.shape

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not runtime.is_distributed():
            return super().forward(input)
        self._check_input_dim(input)
        y, mean, var = _Normalisation.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, var, runtime.world_size() * (input.numel() // input.shape[1]))
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the running statistics towards those of a batch of n values a channel."""
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        rate = self.momentum
        assert rate is not None, "a cumulative mean is not kept here"
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_((var * (n / (n - 1))).to(self.running_var.dtype), rate)


class _Normalisation(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with mean and var over all processes; gives mean and var too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        mean, var = _statistics(x)
        means, variances = _of_all(torch.stack([mean, var])).unbind(1)  # (processes, channels) each
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        y = functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        # As if the statistics were constants: the gradients of x, weight (sum of g x_hat) and bias (sum of g) ...
        to_x, to_weight, to_bias = _aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # ... and what the statistics pass on: x_hat and 1, each in proportion to its sum over all processes.
        sums = torch.stack([to_weight, to_bias])
        dist.all_reduce(sums)
        n = runtime.world_size() * (x.numel() // x.shape[1])
        rate = torch.rsqrt(var + ctx.eps) / -n
        scale, offset = (sums * (rate if weight is None else rate * weight)).unbind(0)
        to_x = to_x.add_(functional.batch_norm(x, mean, var, scale, offset, training=False, eps=ctx.eps))
        return to_x, None if weight is None else to_weight, None if weight is None else to_bias, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (channels,), of bfloat16 in float32 without a copy of x in it: its own rounding
    is far larger than what the difference of squares loses."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if x.dtype.itemsize >= 4:
        var, mean = torch.var_mean(x, axes, correction=0)
        return mean, var
    mean = x.mean(axes, dtype=torch.float32)
    norm = torch.linalg.vector_norm(x, dim=axes, dtype=torch.float32)
    return mean, (norm.square() / (x.numel() // x.shape[1]) - mean.square()).clamp(min=0)


def _of_all(values: Tensor) -> Tensor:
    """(...) of each process -> (processes, ...)."""
    parts = [torch.empty_like(values) for _ in range(runtime.world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def synchronise(network: nn.Module) -> nn.Module:
    """Put `SynchronisedBatchNorm` in place of every torch.nn.BatchNorm1d and 2d, with the same tensors; gives the
    network. Where there is one process it is left as it is."""
    if not runtime.is_distributed():
        return network
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d):
                setattr(module, name, _synchronised(child))
    return network


def _synchronised(norm: _BatchNorm) -> SynchronisedBatchNorm:
    with torch.device("meta"):
        new = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters.update(norm._parameters)
    new._buffers.update(norm._buffers)
    return new.train(norm.training)


__all__ = ["SynchronisedBatchNorm", "synchronise"]
