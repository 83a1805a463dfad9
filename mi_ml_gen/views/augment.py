"""T_x: augmentation of images, sample by sample, on the device.

A policy says which parts T_x has, and by whose conventions:

    none                   centre crop
    simclr                 random resized crop, horizontal flip, colour jitter, grayscale
    no_crop                simclr with the centre crop in place of the random one
    no_color               simclr without colour jitter and grayscale
    torchvision            simclr by torchvision's conventions
    torchvision_no_crop    no_crop by torchvision's conventions
    torchvision_no_color   no_color by torchvision's conventions

`policies.py` holds them, and `registry.py` adds those of users. Each policy ends in the ImageNet normalisation.

Every sample has parameters of its own; only the order of the four colour operations is shared by all samples of a call
in kornia's convention, as in kornia. For given parameters every operation equals its library's on that sample, to
float32 rounding.

How it stays fast: drawing is one call of the host's generator and one copy, nothing is read back, crop, resize and flip
are two batched matrix products (exact, and unlike grid_sample deterministic in the backward pass on CUDA), and the
colour operations run on all samples at once with neutral factors where a sample does not take part. All of it is
differentiable in the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.views.colors import (
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
from mi_ml_gen.views.policies import TORCHVISION_CROP
from mi_ml_gen.views.registry import POLICIES, policy_from_flags

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LUMA",
    "POLICIES",
    "Augment",
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

CROP_SCALE = (0.2, 1.0)  # share of the image's area, where a policy does not say another
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
GRAYSCALE_PROBABILITY = 0.2
JITTER_BLEND = 0.4  # brightness, contrast and saturation factors lie in 1 +- this
JITTER_HUE = 0.1  # hue shifts lie in 0 +- this, in turns

# A CPU works on groups of samples of this many values (1 MiB of float32), which stay in its cache.
_CPU_GROUP_VALUES = 2**18


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
    own: numbers in [0, 1) for the policy's own part, (n, n_draws); None for a policy without one.
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
    own: Tensor | None = None

    def rows(self, start: int, stop: int) -> ViewParameters:
        """The parameters of samples start to stop, the last excluded."""
        drawn = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "own"}
        own = None if self.own is None else self.own[start:stop]
        return ViewParameters(**{name: rows[start:stop] for name, rows in drawn.items()}, own=own)

    def tensors(self) -> dict[str, Tensor]:
        """The same as a plain dict, without what is None."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def of_tensors(cls, named: Mapping[str, Tensor]) -> ViewParameters | None:
        """The reverse of `tensors`; None of an empty dict."""
        return cls(**named) if named else None

    def joined(self, other: ViewParameters) -> ViewParameters:
        """These samples, then those of `other`."""
        mine, others = self.tensors(), other.tensors()
        return ViewParameters(**{name: torch.cat([mine[name], others[name]]) for name in mine})


class Augment(nn.Module):
    """T_x: one view of each image. Move it to the images' device, as any module.

    policy: a name of POLICIES, or FILE.py:CLASS. image_size: side of the images that come in, in pixels. crop_size:
    side of the views, by default 7/8 of image_size, rounded. normalize: whether the ImageNet normalisation ends it;
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
        if image_size < 1:
            raise UsageError(f"image_size {image_size}: must be at least 1")
        self.policy_name = policy
        self.policy = POLICIES[policy]
        self.image_size = image_size
        self.crop_size = max(1, round(7 / 8 * image_size)) if crop_size is None else crop_size
        self.normalize = normalize
        crop = self.policy.crop or TORCHVISION_CROP  # a policy without a random crop has no use for it
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

        rng: a generator of the host or on the images' device; without it that device's default one. Half precision
        comes in as it is and is worked on, and returned, in float32, inside autocast too.
        Raises UsageError for other shapes and for a generator on another device.
        """
        size = (3, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != size:
            raise UsageError(f"images of shape {tuple(images.shape)}: expected (n, {', '.join(map(str, size))})")
        if not (self.policy.crop or self.policy.flip or self.policy.color or self.policy.n_draws):
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
        if not (self.policy.crop or self.policy.flip or self.policy.color or self.policy.n_draws):
            return None
        if not self.policy.n_draws:
            return self.draw(n, rng, device, n_batches=2)
        first = self.draw(n, rng, device)
        return first.joined(self.draw(n, rng, device))

    def draw(
        self, n: int, rng: torch.Generator | None, device: torch.device | str, n_batches: int = 1
    ) -> ViewParameters:
        """Parameters for n samples: one call of the generator (two for a policy with a part of its own), and as many
        copies where it is the host's. n_batches: those of several batches of n, for a policy without a part of its
        own, and one copy for all."""
        device = torch.device(device)
        if rng is not None and rng.device.type not in ("cpu", device.type):
            raise UsageError(f"random generator on {rng.device}: must be on the CPU or on the images' device, {device}")
        color = self.policy.color
        shares_order = color is not None and color.shares_order
        drawn = draw_parameters(n, self.image_size, rng, device, shares_order, n_batches, self.policy.scale)
        if not self.policy.flip:
            drawn = replace(drawn, flip=torch.zeros_like(drawn.flip))
        if not self.policy.n_draws:
            return drawn
        return replace(drawn, own=runtime.uniform((n, self.policy.n_draws), rng, device))

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
        if parameters is None:
            views = center_crop(images, self.crop_size)
        elif self.policy.crop:
            views = resized_crop(images, parameters, self.crop_size, *self.crop)
        else:
            views = flip_some(center_crop(images, self.crop_size), parameters.flip)
        if parameters is not None and (colors := self.policy.color) is not None:
            p, is_last = parameters, parameters.own is None
            of_norm = (self.mean, self.std) if is_last and self.normalize else (None, None)
            whole = colors.in_one_pass(views, p.jitter, p.grayscale, _orders(p), *of_norm)
            if whole is not None and is_last:
                return whole
            if whole is None:
                views = jitter(views, parameters, colors)
                whole = torch.where(p.grayscale.view(-1, 1, 1, 1), colors.grayscale(views), views)
            views = whole
        if parameters is not None and parameters.own is not None:
            views = self.policy.finish(views, parameters.own)
        return (views - self.mean.to(views)) / self.std.to(views) if self.normalize else views


def draw_parameters(
    n: int,
    image_size: int,
    rng: torch.Generator | None,
    device: torch.device,
    shares_order: bool = False,
    n_batches: int = 1,
    scale: tuple[float, float] = CROP_SCALE,
) -> ViewParameters:
    """The random half of T_x for n square images of side image_size pixels, or for n_batches batches of so many, drawn
    one after the other; see ViewParameters.

    A box is the first of CROP_TRIES that fits into the image, else the whole image, as in torchvision and kornia.
    shares_order: one order of the colour operations for all samples of a batch, that of the first sample's draw. scale:
    of the box, as the policy has it.
    They are computed where they are drawn, so that no rounding of a device changes them, and travel as one matrix.
    """

    def all_rows(place: torch.device) -> Tensor:
        of_batches = [_drawn_rows(n, image_size, rng, place, shares_order, scale) for _ in range(n_batches)]
        return torch.cat(of_batches, dim=1) if n_batches > 1 else of_batches[0]

    rows = runtime.drawn(all_rows, rng, device)
    top, left, height, width, hue = rows[:5]
    coins = rows[5:8] > 0
    places = rows[8:12].long()
    return ViewParameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=coins[0],
        jitter=coins[1],
        grayscale=coins[2],
        blends=rows[12:].T,
        hue=hue,
        blend_order=places[:3].T,
        hue_position=places[3],
    )


def _drawn_rows(
    n: int,
    image_size: int,
    rng: torch.Generator | None,
    place: torch.device,
    shares_order: bool,
    scale: tuple[float, float],
) -> Tensor:
    """The parameters as rows of one matrix, float32 (12 + N_BLENDS, n): top, left, height, width, hue; 1 for flip,
    jitter and grayscale; blend_order; hue_position; blends."""
    uniform = torch.rand((n, 2 * CROP_TRIES + 14), generator=rng, device=place)
    area, ratio, rest = uniform.split((CROP_TRIES, CROP_TRIES, 14), dim=1)
    corner, coins, factors, order, hue_position = rest.split((2, 3, 4, 3, 2), dim=1)

    # Boxes: rounded sides of a random area and a log-uniform ratio.
    area = image_size**2 * (scale[0] + (scale[1] - scale[0]) * area)
    log_ratio = [math.log(bound) for bound in CROP_RATIO]
    ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio)
    width, height = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (width >= 1) & (width <= image_size) & (height >= 1) & (height <= image_size)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    width = torch.where(found, width.gather(1, first)[:, 0], image_size)
    height = torch.where(found, height.gather(1, first)[:, 0], image_size)
    top = torch.minimum(torch.floor(corner[:, 0] * (image_size - height + 1)), image_size - height)
    left = torch.minimum(torch.floor(corner[:, 1] * (image_size - width + 1)), image_size - width)

    if shares_order:
        order, hue_position = order[:1].expand(n, -1), hue_position[:1].expand(n, -1)
    probabilities = (FLIP_PROBABILITY, JITTER_PROBABILITY, GRAYSCALE_PROBABILITY)
    parts = (
        torch.stack([top, left, height, width, JITTER_HUE * (2 * factors[:, N_BLENDS] - 1)], dim=1),
        torch.stack([coins[:, i] < probability for i, probability in enumerate(probabilities)], dim=1),
        order.argsort(dim=1),  # with the next line: each of the 24 orders equally likely
        (hue_position[:, :1] * (N_BLENDS + 1)).floor().clamp(max=N_BLENDS),
        1 + JITTER_BLEND * (2 * factors[:, :N_BLENDS] - 1),
    )
    return torch.cat([part.float() for part in parts], dim=1).T.contiguous()


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
    return colors.jitter(images, parameters.jitter, _orders(parameters))


def _orders(parameters: ViewParameters) -> Orders:
    p = parameters
    return Orders(p.blends, p.hue, p.blend_order, p.hue_position)


def unit_range(images: Tensor) -> Tensor:
    """uint8 images, 0 to 255, or floating point ones in [0, 1], as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
