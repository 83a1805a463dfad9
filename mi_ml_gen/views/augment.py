"""T_x: augmentation of images, sample by sample, on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.core.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue (they sum to 0.9999)

CROP_SCALE = (0.2, 1.0)  # share of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
GRAYSCALE_PROBABILITY = 0.2
JITTER_BLEND = 0.4  # brightness, contrast and saturation factors lie in 1 +- this
JITTER_HUE = 0.1  # hue shifts lie in 0 +- this, in turns

N_BLENDS = 3  # brightness, contrast, saturation, in this order wherever they are columns

# Below this chroma no hue can be seen, and 1 / chroma ** 2 in the backward pass could overflow.
_LEAST_CHROMA = 1e-6
# A CPU works on groups of samples of this many values (1 MiB of float32), which stay in its cache.
_CPU_GROUP_VALUES = 2**18


class Policy(NamedTuple):
    """Which parts of T_x a policy has."""

    crop: bool
    flip: bool
    color: bool


POLICIES = {
    "none": Policy(crop=False, flip=False, color=False),
    "simclr": Policy(crop=True, flip=True, color=True),
    "no_crop": Policy(crop=False, flip=True, color=True),
    "no_color": Policy(crop=True, flip=True, color=False),
}


def policy_from_flags(simclr_aug: bool = False, remove_crop: bool = False, remove_color: bool = False) -> str:
    """The policy that the flags --simclr_aug, --removeCrop and --removeColor name.

    Each flag names a policy by itself. Of several the first in this order counts, as in the reference: so
    `--simclr_aug --removeCrop` still crops at random.
    """
    named = {"simclr": simclr_aug, "no_crop": remove_crop, "no_color": remove_color}
    return next((policy for policy, given in named.items() if given), "none")


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for n samples; every tensor has n rows and lies on the images' device.

    top, left, height, width: the crop box in pixels, whole numbers in floating point, (n,).
    flip, jitter, grayscale: whether the sample takes part, bool (n,).
    blends: factors of brightness, contrast and saturation, (n, 3), 0.6 to 1.4.
    hue: shift in turns, (n,), -0.1 to 0.1.
    blend_order: a permutation of (0, 1, 2), int64 (n, 3): which blend comes first, second and third.
    hue_position: how many blends come before the hue shift, int64 (n,), 0 to 3.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    blends: Tensor
    hue: Tensor
    blend_order: Tensor
    hue_position: Tensor
    grayscale: Tensor

    def rows(self, start: int, stop: int) -> ViewParameters:
        """The parameters of samples start to stop, the last excluded."""
        return ViewParameters(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


class Augment(nn.Module):
    """T_x: one view of each image. Move it to the images' device, as any module.

    policy: a key of POLICIES. image_size: side of the images that come in, in pixels. crop_size: side of the
    views, by default 7/8 of image_size, rounded. normalize: whether the ImageNet normalisation ends it;
    without it views stay in [0, 1]. antialias: whether shrinking averages over all pixels that it covers
    (torchvision's default for crops); it matters only for boxes wider than crop_size.
    Raises UsageError for an unknown policy and sizes that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        policy: str = "none",
        image_size: int = 128,
        crop_size: int | None = None,
        normalize: bool = True,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        if policy not in POLICIES:
            raise UsageError(f"augmentation policy {policy!r}: must be one of {', '.join(POLICIES)}")
        if image_size < 1:
            raise UsageError(f"image_size {image_size}: must be at least 1")
        self.policy_name = policy
        self.policy = POLICIES[policy]
        self.image_size = image_size
        self.crop_size = max(1, round(7 / 8 * image_size)) if crop_size is None else crop_size
        self.normalize = normalize
        self.antialias = antialias
        if self.crop_size < 1 or (self.crop_size > image_size and not self.policy.crop):
            raise UsageError(f"crop_size {self.crop_size}: must lie between 1 and the image size {image_size}")
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def extra_repr(self) -> str:
        return f"policy={self.policy_name!r}, image_size={self.image_size}, crop_size={self.crop_size}"

    def forward(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Images (n, 3, image_size, image_size) in [0, 1] -> views (n, 3, crop_size, crop_size), normalised.

        rng: a generator on the images' device; without it that device's default one. Half precision comes in
        as it is and is worked on, and returned, in float32, inside autocast too.
        Raises UsageError for other shapes and for a generator on another device.
        """
        size = (3, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != size:
            raise UsageError(f"images of shape {tuple(images.shape)}: expected (n, {', '.join(map(str, size))})")
        if not (self.policy.crop or self.policy.flip or self.policy.color):
            return self.view(images, None)
        return self.view(images, self.draw(len(images), rng, images.device))

    def draw(self, n: int, rng: torch.Generator | None, device: torch.device | str) -> ViewParameters:
        """Parameters for n samples: one call of the generator, then tensor operations only."""
        device = torch.device(device)
        if rng is not None and rng.device.type != device.type:
            raise UsageError(f"random generator on {rng.device}: must be on the images' device, {device}")
        return draw_parameters(n, self.image_size, rng, device)

    def view(self, images: Tensor, parameters: ViewParameters | None) -> Tensor:
        """Views for given parameters (None only where the policy draws nothing), without randomness.

        This is what may be compiled or captured in a graph, with `draw` outside.
        """
        with torch.autocast(images.device.type, enabled=False):
            if images.dtype in (torch.float16, torch.bfloat16):
                images = images.float()
            if images.device.type != "cpu" or parameters is None:
                return self._view_group(images, parameters)
            n_rows = max(1, _CPU_GROUP_VALUES // images.shape[1:].numel())
            starts = range(0, len(images), n_rows)
            views = [self._view_group(images[i : i + n_rows], parameters.rows(i, i + n_rows)) for i in starts]
            return torch.cat(views) if views else self._view_group(images, parameters)

    def _view_group(self, images: Tensor, parameters: ViewParameters | None) -> Tensor:
        if parameters is None or not self.policy.flip:
            views = center_crop(images, self.crop_size)
        elif self.policy.crop:
            views = resized_crop(images, parameters, self.crop_size, self.antialias)
        else:
            views = flip_some(center_crop(images, self.crop_size), parameters.flip)
        if parameters is not None and self.policy.color:
            views = jitter(views, parameters)
            views = torch.where(_per_sample(parameters.grayscale), grayscale(views), views)
        return (views - self.mean.to(views)) / self.std.to(views) if self.normalize else views


def draw_parameters(n: int, image_size: int, rng: torch.Generator | None, device: torch.device) -> ViewParameters:
    """The random half of T_x for n square images of side image_size pixels; see ViewParameters.

    A box is the first of CROP_TRIES that fits into the image, else the whole image, as in torchvision.
    """
    uniform = torch.rand((n, 2 * CROP_TRIES + 14), generator=rng, device=device)
    area, ratio, rest = uniform.split((CROP_TRIES, CROP_TRIES, 14), dim=1)
    place, coins, factors, order, hue_position = rest.split((2, 3, 4, 3, 2), dim=1)

    # Boxes: rounded sides of a random area and a log-uniform ratio.
    area = image_size**2 * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * area)
    log_ratio = [math.log(bound) for bound in CROP_RATIO]
    ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio)
    width, height = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (width >= 1) & (width <= image_size) & (height >= 1) & (height <= image_size)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    width = torch.where(found, width.gather(1, first)[:, 0], image_size)
    height = torch.where(found, height.gather(1, first)[:, 0], image_size)
    top = torch.minimum(torch.floor(place[:, 0] * (image_size - height + 1)), image_size - height)
    left = torch.minimum(torch.floor(place[:, 1] * (image_size - width + 1)), image_size - width)

    return ViewParameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=coins[:, 0] < FLIP_PROBABILITY,
        jitter=coins[:, 1] < JITTER_PROBABILITY,
        grayscale=coins[:, 2] < GRAYSCALE_PROBABILITY,
        blends=1 + JITTER_BLEND * (2 * factors[:, :N_BLENDS] - 1),
        hue=JITTER_HUE * (2 * factors[:, N_BLENDS] - 1),
        blend_order=order.argsort(dim=1),  # with the next line: each of the 24 orders equally likely
        hue_position=(hue_position[:, 0] * (N_BLENDS + 1)).long().clamp(max=N_BLENDS),
    )


# Geometry


def center_crop(images: Tensor, size: int) -> Tensor:
    """The middle (n, c, size, size) of images (n, c, H, W), as torchvision's center_crop places it."""
    height, width = images.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def flip_some(images: Tensor, flip: Tensor) -> Tensor:
    """images (n, c, H, W), mirrored left to right where flip (n,) is true."""
    return torch.where(_per_sample(flip), images.flip(-1), images)


def resized_crop(images: Tensor, parameters: ViewParameters, size: int, antialias: bool = True) -> Tensor:
    """The box of each sample, brought to (n, c, size, size) bilinearly, and mirrored where its flip is true.

    Both steps are linear and separable: rows @ image @ columns, with one pair of matrices a sample.
    """
    n, channels, image_height, image_width = images.shape
    no_flip = torch.zeros_like(parameters.flip)
    top, height = parameters.top.to(images.dtype), parameters.height.to(images.dtype)
    left, width = parameters.left.to(images.dtype), parameters.width.to(images.dtype)
    rows = _interpolation(top, height, no_flip, image_height, size, antialias)
    columns = _interpolation(left, width, parameters.flip, image_width, size, antialias)
    narrow = images.reshape(n, channels * image_height, image_width) @ columns.mT  # (n, c H, size)
    return rows[:, None] @ narrow.view(n, channels, image_height, size)


def _interpolation(start: Tensor, length: Tensor, flip: Tensor, n_in: int, n_out: int, antialias: bool) -> Tensor:
    """Matrices (n, n_out, n_in) that take pixels start to start + length of a line to n_out pixels.

    Output pixel i lies at (i + 1/2) length / n_out. Its weights are a triangle of half width 1, or of the
    step between output pixels where that is larger and antialias is on, over the pixels of the box, and sum
    to one. At the border of the box this is the same as repeating the outermost pixel.
    """
    out = torch.arange(n_out, device=start.device, dtype=start.dtype)
    out = torch.where(flip[:, None], n_out - 1 - out, out)  # (n, n_out)
    step = (length / n_out)[:, None]
    center = (out + 0.5) * step
    half_width = step.clamp(min=1) if antialias else torch.ones_like(step)
    pixel = (
        torch.arange(n_in, device=start.device, dtype=start.dtype) - start[:, None]
    )  # (n, n_in), counted from the box
    inside = (pixel >= 0) & (pixel < length[:, None])
    distance = (pixel[:, None, :] + 0.5 - center[:, :, None]).abs()
    weights = (1 - distance / half_width[:, :, None]).clamp(min=0) * inside[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


# Colour. Images are (n, 3, H, W) in [0, 1], factors (n,).


def grayscale(images: Tensor) -> Tensor:
    """The brightness of each pixel in all three channels."""
    return _luma(images).expand_as(images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with black: factor 0 is black, 1 the image."""
    return _blend(images, torch.zeros_like(images[:, :1]), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with the image's mean grey: factor 0 is flat, 1 the image."""
    return _blend(images, _luma(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with its grayscale: factor 0 is grey, 1 the image."""
    return _blend(images, _luma(images), factor)


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


def jitter(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order, where its `jitter` is true.

    The three blends run once before and once after the hue shift, each with factor 1, which leaves an image
    as it is, where the sample's order has that blend on the other side. So the hue shift, the dear one, runs
    once and not at each of four places.
    """
    active = parameters.jitter
    factors = parameters.blends.gather(1, parameters.blend_order)  # in order of application
    for side in ("before", "after"):
        for place in range(N_BLENDS):
            takes_part = parameters.hue_position > place
            if side == "after":
                takes_part = ~takes_part
            factor = torch.where(active & takes_part, factors[:, place], 1)
            images = _any_blend(images, parameters.blend_order[:, place], factor)
        if side == "before":
            images = torch.where(_per_sample(active), adjust_hue(images, parameters.hue), images)
    return images


def _any_blend(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Brightness (kind 0), contrast (1) or saturation (2), as each sample asks."""
    luma = _luma(images)
    mean = luma.mean(dim=(1, 2, 3), keepdim=True)
    other = luma * _per_sample(kind == 2) + mean * _per_sample(kind == 1)
    return _blend(images, other, factor)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, _per_sample(factor).to(images.dtype)).clamp(0, 1)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _per_sample(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)"""
    return values.view(-1, 1, 1, 1)


def unit_range(images: Tensor) -> Tensor:
    """uint8 images, 0 to 255, or floating point ones in [0, 1], as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
