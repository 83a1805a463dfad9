"""What T_x consists of: one class for each policy.

simclr, no_crop and no_color are the paper's, as the published code has them through kornia: RandomResizedCrop (scale
0.2 to 1, ratio 3/4 to 4/3, bilinear between corner pixels, not antialiased), RandomHorizontalFlip with probability
1/2, ColorJiggle(0.4, 0.4, 0.4, 0.1) with probability 0.8, RandomGrayscale with probability 0.2. The torchvision ones
draw the same parameters, but their crops are antialiased, and their colours are those of ColorJitter (see colors.py).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor

from mi_ml_gen.views.colors import KORNIA, TORCHVISION, Colors


class Crop(NamedTuple):
    """How a random box becomes a view: see `crops.resize_boxes`."""

    antialias: bool
    corners: bool


PUBLISHED_CROP = Crop(antialias=False, corners=True)
TORCHVISION_CROP = Crop(antialias=True, corners=False)


class Policy:
    """Which parts T_x has, and by whose conventions. Derive from it, or from a policy below, to make another.

    `Augment` crops, mirrors and changes colours as the attributes say, then calls `finish`, then normalises.
    """

    crop: ClassVar[Crop | None] = None
    """How the random box becomes a view; None takes the centre."""
    scale: ClassVar[tuple[float, float]] = (0.2, 1.0)
    """Least and largest share of the image's area that a random crop takes."""
    flip: ClassVar[bool] = False
    """Whether half of the views are mirrored."""
    color: ClassVar[Colors | None] = None
    """Whose colour jitter and grayscale; None leaves the colours as they are."""
    n_draws: ClassVar[int] = 0
    """How many random numbers `finish` takes for each image."""

    def finish(self, views: Tensor, draws: Tensor) -> Tensor:
        """The policy's own last part: views (n, 3, H, W) in [0, 1] -> the same, by draws (n, n_draws) in [0, 1).

        It must be a function of its arguments, sample by sample, and read nothing back to the host. It is called only
        where n_draws is at least 1.
        """
        return views


class CentreCrop(Policy):
    """Nothing random: the centre crop."""


class SimCLRNoColor(Policy):
    """Random crop and mirroring, as published."""

    crop = PUBLISHED_CROP
    flip = True


class SimCLRNoCrop(Policy):
    """Mirroring, colour jitter and grayscale, as published."""

    flip = True
    color = KORNIA


class SimCLR(Policy):
    """Random crop, mirroring, colour jitter and grayscale, as published."""

    crop = PUBLISHED_CROP
    flip = True
    color = KORNIA


class TorchvisionNoColor(Policy):
    """Random crop and mirroring, by torchvision's conventions."""

    crop = TORCHVISION_CROP
    flip = True


class TorchvisionNoCrop(Policy):
    """Mirroring, colour jitter and grayscale, by torchvision's conventions."""

    flip = True
    color = TORCHVISION


class TorchvisionSimCLR(Policy):
    """The same four by torchvision's conventions."""

    crop = TORCHVISION_CROP
    flip = True
    color = TORCHVISION


BUILT_IN: dict[str, type[Policy]] = {
    "none": CentreCrop,
    "simclr": SimCLR,
    "no_crop": SimCLRNoCrop,
    "no_color": SimCLRNoColor,
    "torchvision": TorchvisionSimCLR,
    "torchvision_no_crop": TorchvisionNoCrop,
    "torchvision_no_color": TorchvisionNoColor,
}
