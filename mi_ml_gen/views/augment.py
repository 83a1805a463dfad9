"""T_x: augmentation of images, sample by sample, on the device.

A policy says which parts T_x has, and by whose conventions:

    none                   centre crop
    simclr                 random resized crop, horizontal flip, colour jitter, grayscale
    no_crop                simclr with the centre crop in place of the random one
    no_color               simclr without colour jitter and grayscale
    torchvision            simclr by torchvision's conventions
    torchvision_no_crop    no_crop by torchvision's conventions
    torchvision_no_color   no_color by torchvision's conventions

simclr, no_crop and no_color are the paper's, as the published code has them through kornia: RandomResizedCrop (scale
0.2 to 1, ratio 3/4 to 4/3, bilinear between corner pixels, not antialiased), RandomHorizontalFlip with probability
1/2, ColorJiggle(0.4, 0.4, 0.4, 0.1) with probability 0.8, RandomGrayscale with probability 0.2. The torchvision ones
draw the same parameters, but their crops are antialiased, and their colours are those of ColorJitter (see colors.py).
Each policy ends in the ImageNet normalisation.

Every sample has parameters of its own; only the order of the four colour operations is shared by all samples of a call
in kornia's convention, as in kornia. For given parameters every operation equals its library's on that sample, to
float32 rounding.

How it stays fast: drawing is one call of the random generator, nothing is read back by the host, crop, resize and flip
are two batched matrix products (exact, and unlike grid_sample deterministic in the backward pass on CUDA), and the
colour operations run on all samples at once with neutral factors where a sample does not take part. All of it is
differentiable in the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.views.colors import (
    KORNIA,
    LUMA,
    N_BLENDS,
    TORCHVISION,
    Colors,
    Orders,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
)
from mi_ml_gen.views.crops import Boxes, center_crop, flip_some, resize_boxes

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LUMA",
    "POLICIES",
    "Augment",
    "Policy",
    "ViewParameters",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "center_crop",
    "draw_parameters",
    "flip_some",
    "grayscale",
    "jitter",
    "policy_from_flags",
    "resized_crop",
    "unit_range",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_SCALE = (0.2, 1.0)  # share of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
GRAYSCALE_PROBABILITY = 0.2
JITTER_BLEND = 0.4  # brightness, contrast and saturation factors lie in 1 +- this
JITTER_HUE = 0.1  # hue shifts lie in 0 +- this, in turns

# A CPU works on groups of samples of this many values (1 MiB of float32), which stay in its cache.
_CPU_GROUP_VALUES = 2**18


class Crop(NamedTuple):
    """How a random box becomes a view: see `crops.resize_boxes`."""

    antialias: bool
    corners: bool


class Policy(NamedTuple):
    """Which parts of T_x a policy has, and how; None where it lacks one."""

    crop: Crop | None
    flip: bool
    color: Colors | None


_PUBLISHED_CROP = Crop(antialias=False, corners=True)
_TORCHVISION_CROP = Crop(antialias=True, corners=False)

POLICIES = {
    "none": Policy(crop=None, flip=False, color=None),
    "simclr": Policy(crop=_PUBLISHED_CROP, flip=True, color=KORNIA),
    "no_crop": Policy(crop=None, flip=True, color=KORNIA),
    "no_color": Policy(crop=_PUBLISHED_CROP, flip=True, color=None),
    "torchvision": Policy(crop=_TORCHVISION_CROP, flip=True, color=TORCHVISION),
    "torchvision_no_crop": Policy(crop=None, flip=True, color=TORCHVISION),
    "torchvision_no_color": Policy(crop=_TORCHVISION_CROP, flip=True, color=None),
}
"""T_x by name; the module's header says what each does."""


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
    The last two are equal in all rows where a policy's colours share one order.
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

    def joined(self, other: ViewParameters) -> ViewParameters:
        """These samples, then those of `other`."""
        names = [field.name for field in fields(self)]
        return ViewParameters(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names})


class Augment(nn.Module):
    """T_x: one view of each image. Move it to the images' device, as any module.

    policy: a key of POLICIES. image_size: side of the images that come in, in pixels. crop_size: side of the
    views, by default 7/8 of image_size, rounded. normalize: whether the ImageNet normalisation ends it;
    without it views stay in [0, 1]. antialias: whether shrinking a random box averages over all pixels that it
    covers, by default as the policy has it; it matters only for boxes wider than crop_size.
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
        antialias: bool | None = None,
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
        crop = self.policy.crop or _TORCHVISION_CROP  # a policy without a random crop has no use for it
        self.crop = crop if antialias is None else crop._replace(antialias=antialias)
        self.antialias = self.crop.antialias
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

    def pair(self, first: Tensor, second: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Views (2 n, 3, crop_size, crop_size) of two batches of n images, the first ones before the second ones.

        They are those of `forward` of each batch, one after the other with the same `rng`; the work is done once.
        """
        images = torch.cat([first, second])
        n, n_second = len(first), len(second)
        if n != n_second or images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            return torch.cat([self(first, rng), self(second, rng)])  # says what is wrong
        return self.view(images, self.draw_pair(n, rng, images.device))

    def draw_pair(self, n: int, rng: torch.Generator | None, device: torch.device | str) -> ViewParameters | None:
        """The parameters of `pair` for 2 n samples; None where the policy draws nothing."""
        if not (self.policy.crop or self.policy.flip or self.policy.color):
            return None
        return self.draw(n, rng, device, n_calls=2)

    def draw(self, n: int, rng: torch.Generator | None, device: torch.device | str, n_calls: int = 1) -> ViewParameters:
        """Parameters for n samples: one call of the generator, then tensor operations only.

        n_calls: for n_calls * n samples, as that many calls one after the other would draw them.
        """
        device = torch.device(device)
        if rng is not None and rng.device.type != device.type:
            raise UsageError(f"random generator on {rng.device}: must be on the images' device, {device}")
        color = self.policy.color
        return draw_parameters(n, self.image_size, rng, device, color is not None and color.shares_order, n_calls)

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
            views = resized_crop(images, parameters, self.crop_size, *self.crop)
        else:
            views = flip_some(center_crop(images, self.crop_size), parameters.flip)
        if parameters is not None and (colors := self.policy.color) is not None:
            views = jitter(views, parameters, colors)
            is_gray = parameters.grayscale.view(-1, 1, 1, 1)
            views = torch.where(is_gray, colors.grayscale(views), views)
        return (views - self.mean.to(views)) / self.std.to(views) if self.normalize else views


def draw_parameters(
    n: int,
    image_size: int,
    rng: torch.Generator | None,
    device: torch.device,
    shares_order: bool = False,
    n_calls: int = 1,
) -> ViewParameters:
    """The random half of T_x for n square images of side image_size pixels; see ViewParameters.

    A box is the first of CROP_TRIES that fits into the image, else the whole image, as in torchvision and kornia.
    shares_order: one order of the colour operations for all samples of this call, that of the first sample's draw.
    n_calls: see `Augment.draw`.
    """
    draws = [torch.rand((n, 2 * CROP_TRIES + 14), generator=rng, device=device) for _ in range(n_calls)]
    uniform = draws[0] if n_calls == 1 else torch.cat(draws)
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

    if shares_order:
        order, hue_position = (
            part.unflatten(0, (n_calls, n))[:, :1].expand(-1, n, -1).flatten(0, 1) for part in (order, hue_position)
        )
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


# The deterministic half: boxes and colours of ViewParameters


def resized_crop(
    images: Tensor, parameters: ViewParameters, size: int, antialias: bool = True, corners: bool = False
) -> Tensor:
    """The box of each sample, brought to (n, c, size, size) bilinearly, and mirrored where its flip is true; see
    `crops.resize_boxes`."""
    p = parameters
    return resize_boxes(images, Boxes(p.top, p.left, p.height, p.width, p.flip), size, antialias, corners)


def jitter(images: Tensor, parameters: ViewParameters, colors: Colors = TORCHVISION) -> Tensor:
    """Colour jitter of images (n, 3, H, W) in [0, 1]; see `colors.Colors.jitter`."""
    p = parameters
    return colors.jitter(images, p.jitter, Orders(p.blends, p.hue, p.blend_order, p.hue_position))


def unit_range(images: Tensor) -> Tensor:
    """uint8 images, 0 to 255, or floating point ones in [0, 1], as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
