"""Layers whose weights are fixed, as those of a frozen generator are.

Three things are saved there, none of which changes a result. What follows from the weights alone is computed once
(`FixedWeights`). Their copies in bfloat16, which autocast would make anew in every pass, are held where the caller says
that it works in bf16 (`hold`). And no convolution keeps its input for the backward pass, which only the gradient of
its weight would need (`convolve`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mi_ml_gen.core import kernels, products

_aten = torch.ops.aten

# --- what follows from fixed weights ------------------------------------------------------------------------


class FixedWeights(nn.Module):
    """A layer that holds, while its weights are fixed, what follows from them alone.

    A layer names these tensors in `follows` and computes them in `derive`. They are no part of the state dict. They are
    computed again when weights are loaded, moved, converted or changed in place, and are not used while a weight
    requires a gradient or the layer is in training mode.
    """

    follows: ClassVar[tuple[str, ...]] = ()
    is_fixed = False
    in_bf16 = False
    """Whether the weights are held in bfloat16 too."""
    _made_from: Sequence[tuple[Tensor, int]] = ()
    """The tensors that `derive` has read, with how often each had been changed in place."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        for name in self.follows:
            self.register_buffer(name, None, persistent=False)
        self.register_load_state_dict_post_hook(_after_loading)

    def derive(self) -> Mapping[str, Tensor]:
        """What follows from the weights as they are; a name that is left out is held as None."""
        raise NotImplementedError

    def fix(self, in_bf16: bool | None = None) -> None:
        """The weights stay as they are from now on. in_bf16: None leaves it as it is."""
        self.is_fixed = True
        self.in_bf16 = self.in_bf16 if in_bf16 is None else in_bf16
        self._derive_again()

    def is_current(self) -> bool:
        """Whether what is held may be used in place of the weights."""
        if not self.is_fixed or self.training:
            return False
        if torch.compiler.is_compiling():  # not changed in place; loading and moving derive again by themselves
            return not any(weight.requires_grad for weight in self.parameters())
        for weight, version in self._made_from:
            if weight.requires_grad:
                return False
            if version != _version(weight):
                self._derive_again()
                break
        return True

    def sources(self) -> list[Tensor]:
        """The tensors that `derive` reads."""
        return [*self.parameters(), *(tensor for name, tensor in self.named_buffers() if name not in self.follows)]

    @torch.no_grad()
    def _derive_again(self) -> None:
        made = self.derive()
        for name in self.follows:
            setattr(self, name, made.get(name))
        self._made_from = [(weight, _version(weight)) for weight in self.sources()]

    def _apply(self, function: Any, recurse: bool = True) -> FixedWeights:
        super()._apply(function, recurse)
        if self.is_fixed:
            self._derive_again()
        return self


def _after_loading(module: nn.Module, _: Any) -> None:
    assert isinstance(module, FixedWeights)
    if module.is_fixed:
        module._derive_again()


def _version(weight: Tensor) -> int:
    """How often a tensor was changed in place; tensors made in inference mode do not count that."""
    return -1 if weight.is_inference() else weight._version


def fix(network: nn.Module) -> None:
    """Tell every layer of a network that its weights stay as they are."""
    for module in network.modules():
        if isinstance(module, FixedWeights):
            module.fix()


def hold(network: nn.Module, precision: str) -> None:
    """Hold the fixed weights of a network in bfloat16 too, for precision "bf16"; for others drop these copies."""
    for module in network.modules():
        if isinstance(module, FixedWeights) and module.is_fixed and module.in_bf16 != (precision == "bf16"):
            module.fix(in_bf16=precision == "bf16")


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Within, a network in training gets no gradient: nothing is kept for its weights of what passes through it, and a
    compiled form of it computes none for them."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _by_hand(*inputs: Tensor) -> bool:
    """Whether a backward pass of our own is wanted: one is needed, and no compiler decides what is kept for it."""
    wanted = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    return wanted and not torch.compiler.is_compiling()


# --- convolutions -------------------------------------------------------------------------------------------


def working_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of x for a convolution or a matrix product; outside autocast its own dtype."""
    kind = x.device.type
    # The meta device, for example, has no autocast. A compiler cannot ask for that, and does not run there.
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    if x.dtype == torch.float64 or not has_autocast or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


class Conv2d(FixedWeights, nn.Conv2d):
    """`torch.nn.Conv2d`, of one dilation, with zeros around the image, whose weights may be fixed."""

    follows: ClassVar[tuple[str, ...]] = ("half_weight", "half_bias", "matrices")
    half_weight: Tensor | None
    half_bias: Tensor | None
    matrices: Tensor | None
    """On a CPU, where fewer products than taps are worth it: the kernels of `form`."""
    form: ClassVar[products.Form] = products.TILES

    def derive(self) -> Mapping[str, Tensor]:
        return self._halved(self.weight) | self._matrices()

    def _matrices(self) -> dict[str, Tensor]:
        is_plain = self.stride == (1, 1) and self.padding == (1, 1) and self.groups == 1
        if self.in_bf16 or not is_plain or not is_channels_last(self.weight):
            return {}
        return {"matrices": products.kernels_of(self.weight, self.form)} if self.form.suits(self.weight) else {}

    def _halved(self, weight: Tensor) -> dict[str, Tensor]:
        if not self.in_bf16:
            return {}
        return {"half_weight": weight.bfloat16()} | ({} if self.bias is None else {"half_bias": self.bias.bfloat16()})

    def forward(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """with_bias: False where the caller adds the bias elsewhere."""
        if not self.is_current():
            return self._as_trained(x, self.bias if with_bias else None)
        weight, bias = self.operands(x, self.weight)
        bias = bias if with_bias else None
        if self.matrices is not None and working_dtype(x) == torch.float32 and self.form.takes(x):
            return products.convolve(x, self.matrices, bias, self.form)
        return self._by_taps(x, weight, bias)

    def _as_trained(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """With weights that may change."""
        return self._conv_forward(x, self.weight, bias)

    def _by_taps(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """With what `operands` gave."""
        return convolve(x, weight, bias, self.stride[0], int(self.padding[0]), groups=self.groups)

    def operands(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """`weight` and bias, or the copies that are held of them where x will be bfloat16."""
        if self.half_weight is not None and working_dtype(x) == torch.bfloat16:
            return self.half_weight, self.half_bias
        return weight, self.bias


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    groups: int = 1,
) -> Tensor:
    """`conv2d`, or `conv_transpose2d`, which does not keep x for the backward pass where the weight is fixed.

    Autocast counts as ever.
    """
    is_trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if is_trained or not _by_hand(x):
        return _convolve(x, weight, bias, stride, padding, transposed, groups)
    dtype = working_dtype(x)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return _FixedConvolution.apply(x.to(dtype), weight, bias, stride, padding, transposed, groups)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool, groups: int
) -> Tensor:
    if transposed:
        return functional.conv_transpose2d(x, weight, bias, stride, padding, groups=groups)
    return functional.conv2d(x, weight, bias, stride, padding, groups=groups)


class _FixedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, transposed, groups):
        ctx.save_for_backward(weight)
        ctx.size, ctx.is_channels_last = x.shape, is_channels_last(x)
        ctx.how = stride, padding, transposed, groups
        return _convolve(x, weight, bias, stride, padding, transposed, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        stride, padding, transposed, groups = ctx.how
        layout = torch.channels_last if ctx.is_channels_last else torch.contiguous_format
        # Of the input only size and layout count here.
        like_x = torch.empty(ctx.size, dtype=gradient.dtype, device=gradient.device, memory_format=layout)
        to_x, _, _ = _aten.convolution_backward(
            gradient, like_x, weight, None, [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], groups,
            [True, False, False],
        )  # fmt: skip
        return to_x, None, None, None, None, None, None


def is_channels_last(x: Tensor) -> bool:
    """Whether maps (n, c, h, w) lie in memory with the channels last, and not in the usual order as well."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# --- pointwise work -----------------------------------------------------------------------------------------


def scaled_activation(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    slope: float | None = 0.0,
    bound: float | None = None,
    overwrite: bool = False,
) -> Tensor:
    """A leaky ReLU of x * scale + offset, within +-bound: maps (n, c, h, w), scale (n, c, 1, 1) or (1, c, 1, 1).

    offset: of any shape that fits x. slope: 0 is a ReLU, None no activation. overwrite: nobody needs x afterwards, so
    its memory may take the result where no gradient is wanted. The result has the type of x; scale and offset may be
    float32 where x is not. The same as the plain operations, with a backward pass that makes no copy of x and keeps no
    map but x, and where no kernel of ours is to be had the result.
    """
    if _kernel_takes(x, scale, offset):
        if offset is not None and offset.ndim < 4:
            offset = offset.expand(1, *offset.shape)
        if offset is not None and offset.shape[2:] != (1, 1):
            offset = offset.contiguous(memory_format=torch.channels_last)
        if _by_hand(x, scale, *(() if offset is None else (offset,))):
            return _FusedActivation.apply(x, scale, offset, slope, bound)
        return kernels.scaled_activation(x, scale, offset, slope, bound)
    scale = scale.to(x.dtype)
    if offset is None:
        return _activate(x * scale, slope, bound)
    offset = offset.to(x.dtype)
    if _by_hand(x, scale, offset):
        return _ScaledActivation.apply(x, scale, offset, slope, bound)
    is_wanted = torch.is_grad_enabled() and any(one.requires_grad for one in (x, scale, offset))
    out = x if overwrite and not is_wanted and not torch.compiler.is_compiling() else None
    return _activate(torch.addcmul(offset, x, scale, out=out), slope, bound)


def _kernel_takes(x: Tensor, scale: Tensor, offset: Tensor | None) -> bool:
    if not kernels.usable(x) or scale.shape[2:] != (1, 1) or scale.stride(1) != 1:
        return False
    if offset is None or offset.shape[2:] == (1, 1):
        return offset is None or (offset.ndim == 4 and offset.stride(1) == 1)
    return offset.shape[-3:] == x.shape[1:] and not offset.requires_grad


def _activate(y: Tensor, slope: float | None, bound: float | None) -> Tensor:
    """In place."""
    if slope is not None:
        y = functional.leaky_relu_(y, slope) if slope else torch.relu_(y)
    return y if bound is None else y.clamp_(-bound, bound)


class _FusedActivation(torch.autograd.Function):
    """By the kernels, which compute again in the backward pass what was before the activation."""

    @staticmethod
    def forward(ctx, x, scale, offset, slope, bound):
        ctx.save_for_backward(x, scale, offset)
        ctx.how = slope, bound
        return kernels.scaled_activation(x, scale, offset, slope, bound)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, scale, offset = ctx.saved_tensors
        _, to_scale, to_offset, *_ = ctx.needs_input_grad
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        to_x, sums = kernels.scaled_activation_backward(gradient, x, scale, offset, *ctx.how, to_scale, to_offset)
        return (
            to_x,
            _summed_to(sums[0], scale) if to_scale else None,
            _summed_to(sums[-1], offset) if to_offset else None,
            None,
            None,
        )


def _summed_to(sums: Tensor, like: Tensor) -> Tensor:
    """Sums per sample and channel (n, c) as the gradient of a tensor (n, c, 1, 1) or (1, c, 1, 1)."""
    return sums[:, :, None, None].sum_to_size(like.shape).to(like.dtype)


@functools.cache
def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()


class _ScaledActivation(torch.autograd.Function):
    """By torch's operators."""

    @staticmethod
    def forward(ctx, x, scale, offset, slope, bound):
        y = _activate(torch.addcmul(offset, x, scale), slope, bound)
        ctx.save_for_backward(x, scale, y)
        ctx.how = slope, bound, offset.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, scale, y = ctx.saved_tensors
        slope, bound, offset_shape = ctx.how
        if bound is not None:
            bound = _rounded(bound, y.dtype)  # as y has it, where it was cut
            gradient = _aten.hardtanh_backward(gradient, y, -bound, bound)
        if slope is not None:
            is_relu = slope == 0
            gradient = (
                _aten.threshold_backward(gradient, y, 0)
                if is_relu
                else _aten.leaky_relu_backward(gradient, y, slope, True)
            )
        to_scale = (gradient * x).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        to_offset = gradient.sum_to_size(offset_shape) if ctx.needs_input_grad[2] else None
        to_x = None
        if ctx.needs_input_grad[0]:  # in place where the gradient is our own and in no other result
            is_shared = (slope is None and bound is None) or offset_shape == gradient.shape
            to_x = gradient * scale if is_shared else gradient.mul_(scale)
        return to_x, to_scale, to_offset, None, None


def add_doubled(x: Tensor, small: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (n, c, 2 h, 2 w) plus small (n, c, h, w) doubled by nearest neighbour, plus bias (c,); x is overwritten.

    The bias is one that stays as it is: it gets no gradient.
    """
    by_kernel = kernels.usable(x) and is_channels_last(small) and small.dtype == x.dtype
    if bias is not None and not by_kernel:
        small, bias = small + bias[:, None, None], None
    if not by_kernel and (torch.compiler.is_compiling() or not (is_channels_last(x) and is_channels_last(small))):
        with torch.autocast(x.device.type, enabled=False):  # which would double in float32
            return x.add_(functional.interpolate(small, scale_factor=2.0, mode="nearest"))
    if _by_hand(x, small):
        return _AddDoubled.apply(x, small, bias)
    return _add_doubled(x, small, bias)


def _add_doubled(x: Tensor, small: Tensor, bias: Tensor | None) -> Tensor:
    if kernels.usable(x):
        kernels.add_doubled(x, small, bias)
        return x
    n, c, h, w = small.shape
    x.view(n, c, h, 2, w, 2).add_(small[:, :, :, None, :, None])
    return x


class _AddDoubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, small, bias):
        ctx.mark_dirty(x)
        return _add_doubled(x, small, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        to_small = _summed_in_twos(gradient) if ctx.needs_input_grad[1] else None
        return gradient, to_small, None


def _summed_in_twos(maps: Tensor) -> Tensor:
    """The sums of 2x2 pixels."""
    if kernels.usable(maps):
        ones = torch.ones(2, 2, device=maps.device)
        return kernels.filtered(maps, ones, 1, 2, 0, maps.shape[2] // 2, maps.shape[3] // 2)
    return functional.avg_pool2d(maps, 2, divisor_override=1)


# --- products over channels ---------------------------------------------------------------------------------


def channel_products(kernel: Tensor, x: Tensor) -> Tensor:
    """A 1x1 convolution with a kernel for each sample: (n, o, c) and maps (n, c, h, w) -> (n, o, h, w).

    The gradient of maps that have their channels last has them last too.
    """
    if is_channels_last(x) and _by_hand(kernel, x):
        dtype = working_dtype(x)
        return _ChannelProducts.apply(kernel.to(dtype), x.to(dtype))
    return torch.bmm(kernel, x.flatten(2)).unflatten(2, x.shape[2:])


class _ChannelProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, x):
        ctx.save_for_backward(kernel, x)
        return torch.bmm(kernel, x.flatten(2)).unflatten(2, x.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        kernel, x = ctx.saved_tensors
        gradient = gradient.flatten(2)
        to_kernel = torch.bmm(gradient, x.flatten(2).mT) if ctx.needs_input_grad[0] else None
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = torch.bmm(gradient.mT, kernel).mT.unflatten(2, x.shape[2:])
        return to_kernel, to_x


# --- small filters, the same on each map ---------------------------------------------------------------------


def filtered(x: Tensor, taps: Tensor, up: int, padding: int, out_height: int, out_width: int) -> Tensor | None:
    """Each map of x (n, c, h, w), with up - 1 zeros between its samples, correlated with fixed taps (k, k).

    y[o] = sum over i of taps[i] * x_up[o + i - padding], zeros outside of x. None where no kernel of ours takes x:
    then a convolution of one group for each channel does the same, which cuDNN is slow at.
    """
    dense = x if is_channels_last(x) else x.contiguous()
    if not kernels.usable(dense, channels_last=False):
        return None
    if _by_hand(x):
        return _Filtered.apply(dense, taps, up, padding, out_height, out_width)
    return kernels.filtered(dense, taps, up, 1, padding, out_height, out_width)


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, taps, up, padding, out_height, out_width):
        ctx.save_for_backward(taps)
        ctx.how = up, padding, x.shape[2:]
        return kernels.filtered(x, taps, up, 1, padding, out_height, out_width)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (taps,) = ctx.saved_tensors
        up, padding, (height, width) = ctx.how
        gradient = gradient if is_channels_last(gradient) else gradient.contiguous()
        padding = len(taps) - 1 - padding
        to_x = kernels.filtered(gradient, taps, 1, up, padding, height, width, turned=True)
        return to_x, None, None, None, None, None


__all__ = [
    "Conv2d", "FixedWeights", "add_doubled", "channel_products", "convolve", "filtered", "fix", "hold",
    "is_channels_last", "scaled_activation", "without_gradients", "working_dtype",
]  # fmt: skip
