"""Colour jitter in the two conventions that the field uses, with one set of parameters per sample.

The published encoders and navigator use kornia's ColorJiggle: brightness is added, contrast multiplies the pixels,
saturation scales the S of HSV. torchvision's ColorJitter mixes the image with black, with its mean grey and with its
grayscale. A black pixel at a brightness factor of 1.4 becomes 0.4 in the first and stays 0 in the second. Both turn
the hue in HSV.

Images are (n, 3, H, W) in [0, 1], factors (n,). For given parameters each operation equals that of its library to
float32 rounding. All of it is differentiable in the images, and nothing is read by the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import kernels

BRIGHTNESS, CONTRAST, SATURATION = range(3)
N_BLENDS = 3  # brightness, contrast, saturation, in this order wherever they are columns

# Below this chroma no hue can be seen, and 1 / chroma ** 2 in the backward pass could overflow.
_LEAST_CHROMA = 1e-6


@dataclass(frozen=True)
class Colors:
    """One convention of changing colours.

    blending: brightness, contrast or saturation of images, as a `Blend` asks. luma: weights of red, green and blue in
    the grayscale. shares_order: whether all samples of one call have the same random order of operations, as in kornia,
    or each its own.
    """

    blending: Callable[[Tensor, Blend], Tensor]
    luma: tuple[float, float, float]
    shares_order: bool

    def grayscale(self, images: Tensor) -> Tensor:
        """The brightness of each pixel in all three channels."""
        return _luma(images, self.luma).expand_as(images)

    def blend(self, images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
        """Brightness (kind 0), contrast (1) or saturation (2) of images, as `kind` (n,) and `factor` (n,) ask; factor 1
        leaves an image as it is."""
        is_kind = kind[:, None] == torch.arange(N_BLENDS, device=images.device)
        factor = factor.to(images.dtype)
        return self.blending(images, Blend(is_kind, factor, torch.where(is_kind, factor[:, None], 1)))

    def in_one_pass(
        self, images: Tensor, active: Tensor, is_gray: Tensor, orders: Orders, mean: Tensor | None, std: Tensor | None
    ) -> Tensor | None:
        """`jitter`, grayscale where `is_gray` (n,), and then (images - mean) / std, by a kernel that goes through the
        images once; None where no kernel takes them or a gradient is wanted, which it does not have."""
        is_wanted = torch.is_grad_enabled() and images.requires_grad
        if self.blending is not _kornia_blend or is_wanted or images.dtype != torch.float32:
            return None
        if not kernels.usable(images, channels_last=False):
            return None
        drawn = (orders.blends, orders.blend_order, orders.hue, orders.hue_position)
        return kernels.colours(images, active, is_gray, *drawn, mean, std, self.luma, _LEAST_CHROMA)

    def jitter(self, images: Tensor, active: Tensor, orders: Orders) -> Tensor:
        """Brightness, contrast, saturation and hue in each sample's own order, where `active` (n,) is true.

        The three blends run once before and once after the hue shift, each with factor 1, which leaves an image as it
        is, where the sample's order has that blend on the other side. So the hue shift, the slowest operation, runs
        once and not at each of four places.
        """
        # Columns: the three places before the hue shift, in order of application, then the same after it.
        place = torch.arange(N_BLENDS, device=images.device)
        is_before = orders.hue_position[:, None] > place
        takes_part = active[:, None] & torch.cat([is_before, ~is_before], dim=1)
        factors = orders.blends.gather(1, orders.blend_order).repeat(1, 2)
        factors = torch.where(takes_part, factors, 1).to(images.dtype)
        is_kind = orders.blend_order.repeat(1, 2)[:, :, None] == place  # (n, 6, 3)
        by_kind = torch.where(is_kind, factors[:, :, None], 1)
        for i in range(2 * N_BLENDS):
            if i == N_BLENDS:
                images = torch.where(_per_sample(active), adjust_hue(images, orders.hue), images)
            images = self.blending(images, Blend(is_kind[:, i], factors[:, i], by_kind[:, i]))
        return images


class Blend(NamedTuple):
    """One of brightness, contrast and saturation for each sample; factor 1 leaves an image as it is.

    is_kind: which one, bool (n, 3). factor: (n,). by_kind: the factor of each, (n, 3), 1 for the others.
    """

    is_kind: Tensor
    factor: Tensor
    by_kind: Tensor


@dataclass(frozen=True)
class Orders:
    """What the jitter of n samples was drawn to be; see `augment.ViewParameters` for the fields."""

    blends: Tensor
    hue: Tensor
    blend_order: Tensor
    hue_position: Tensor


# ---------------------------------------------------------------------------------------------------------------
# torchvision: mixed with black, with the mean grey, with the grayscale

LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights (they sum to 0.9999)


def grayscale(images: Tensor) -> Tensor:
    """torchvision's rgb_to_grayscale, in all three channels."""
    return _luma(images, LUMA).expand_as(images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with black: factor 0 is black, 1 the image."""
    return _mix(images, torch.zeros_like(images[:, :1]), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with the image's mean grey: factor 0 is flat, 1 the image."""
    return _mix(images, _luma(images, LUMA).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with its grayscale: factor 0 is grey, 1 the image."""
    return _mix(images, _luma(images, LUMA), factor)


def _torchvision_blend(images: Tensor, blend: Blend) -> Tensor:
    luma = _luma(images, LUMA)
    mean = luma.mean(dim=(1, 2, 3), keepdim=True)
    is_kind = blend.is_kind
    other = luma * _per_sample(is_kind[:, SATURATION]) + mean * _per_sample(is_kind[:, CONTRAST])
    return _mix(images, other, blend.factor)


def _mix(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, _per_sample(factor).to(images.dtype)).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------------
# kornia: added brightness, multiplied contrast, the S of HSV


def _kornia_blend(images: Tensor, blend: Blend) -> Tensor:
    """images * gain + offset. With V = max(R, G, B) and chroma C = V - min, scaling S = C / V by a factor is
    x -> V - (V - x) ratio, where ratio is the factor, but at most V / C, at which S reaches 1. Each sample has two of
    the three factors neutral."""
    brightness, contrast, saturation = (_per_sample(factor) for factor in blend.by_kind.unbind(1))
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    # The small number keeps the quotient and its gradient finite at grey pixels, whatever the ratio is there.
    ratio = torch.minimum(saturation, (value + _LEAST_CHROMA) / (chroma + _LEAST_CHROMA))
    offset = torch.addcmul(brightness - 1, value, 1 - ratio)
    return torch.addcmul(offset, images, ratio * contrast).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------------
# Both


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by shift, in turns (-1/2 to 1/2), at the same HSV value and chroma.

    The way from RGB to HSV and back, without building HSV: with value v, chroma c and hue h in sixths of a
    turn, channel j is v - c clamp(min(k, 4 - k), 0, 1) for k = (offset_j + h) mod 6 and offsets 5, 3, 1.
    """
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    is_red = red == value
    is_green = (green == value) & ~is_red
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)).to(images.dtype)
    has_hue = chroma > _LEAST_CHROMA
    sixths = difference / torch.where(has_hue, chroma, 1) + sector  # of a turn, -1 to 5
    offsets = 5 - 2 * torch.arange(3, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    k = torch.remainder(sixths + (offsets + 6 * _per_sample(shift).to(images.dtype)), 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


TORCHVISION = Colors(_torchvision_blend, LUMA, shares_order=False)
"""ColorJitter and RandomGrayscale of torchvision, with an order of operations for each sample."""
KORNIA = Colors(_kornia_blend, (0.299, 0.587, 0.114), shares_order=True)
"""ColorJiggle and RandomGrayscale of kornia: the published convention."""


def _luma(images: Tensor, weights: tuple[float, float, float]) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return weights[0] * red + weights[1] * green + weights[2] * blue


def _per_sample(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)"""
    return values[:, None, None, None]
