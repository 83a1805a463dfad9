"""Layers whose weights are fixed, as those of a frozen generator are.

Three things are saved there, none of which changes a result. What follows from the weights alone is computed once
(`FixedWeights`). Their copies in bfloat16, which autocast would make anew in every pass, are held where the caller says
that it works in bf16 (`hold`). And no convolution keeps its input for the backward pass, which only the gradient of
its weight would need (`convolve`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

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
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


class Conv2d(FixedWeights, nn.Conv2d):
    """`torch.nn.Conv2d`, of one dilation, with zeros around the image, whose weights may be fixed."""

    follows: ClassVar[tuple[str, ...]] = ("half_weight", "half_bias")
    half_weight: Tensor | None
    half_bias: Tensor | None

    def derive(self) -> Mapping[str, Tensor]:
        return self._halved(self.weight)

    def _halved(self, weight: Tensor) -> dict[str, Tensor]:
        if not self.in_bf16:
            return {}
        return {"half_weight": weight.bfloat16()} | ({} if self.bias is None else {"half_bias": self.bias.bfloat16()})

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_current():
            return super().forward(x)
        weight, bias = self.operands(x, self.weight)
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
    offset: Tensor,
    slope: float | None = 0.0,
    bound: float | None = None,
    overwrite: bool = False,
) -> Tensor:
    """A leaky ReLU of x * scale + offset, within +-bound: maps (n, c, h, w), scale (n, c, 1, 1).

    offset: of any shape that fits x. slope: 0 is a ReLU, None no activation. overwrite: nobody needs x afterwards, so
    its memory may take the result where no gradient is wanted. The same as the plain operations, with a backward pass
    that makes no copy of x and keeps no map but x and the result.
    """
    if _by_hand(x, scale, offset):
        return _ScaledActivation.apply(x, scale, offset, slope, bound)
    is_wanted = torch.is_grad_enabled() and any(one.requires_grad for one in (x, scale, offset))
    in_place = overwrite and not is_wanted and x.dtype == scale.dtype == offset.dtype
    out = x if in_place and not torch.compiler.is_compiling() else None
    return _activate(torch.addcmul(offset, x, scale, out=out), slope, bound)


def _activate(y: Tensor, slope: float | None, bound: float | None) -> Tensor:
    """In place."""
    if slope is not None:
        y = functional.leaky_relu_(y, slope) if slope else torch.relu_(y)
    return y if bound is None else y.clamp_(-bound, bound)


class _ScaledActivation(torch.autograd.Function):
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


def add_doubled(x: Tensor, small: Tensor) -> Tensor:
    """x (n, c, 2 h, 2 w) plus small (n, c, h, w) doubled by nearest neighbour; x is overwritten."""
    if torch.compiler.is_compiling() or not (is_channels_last(x) and is_channels_last(small)):
        with torch.autocast(x.device.type, enabled=False):  # which would double in float32
            return x.add_(functional.interpolate(small, scale_factor=2.0, mode="nearest"))
    if _by_hand(x, small):
        return _AddDoubled.apply(x, small)
    return _add_doubled(x, small)


def _add_doubled(x: Tensor, small: Tensor) -> Tensor:
    n, c, h, w = small.shape
    x.view(n, c, h, 2, w, 2).add_(small[:, :, :, None, :, None])
    return x


class _AddDoubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, small):
        ctx.mark_dirty(x)
        return _add_doubled(x, small)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        to_small = functional.avg_pool2d(gradient, 2, divisor_override=1) if ctx.needs_input_grad[1] else None
        return gradient, to_small


__all__ = [
    "Conv2d", "FixedWeights", "add_doubled", "convolve", "fix", "hold", "is_channels_last", "scaled_activation",
    "without_gradients", "working_dtype",
]  # fmt: skip
