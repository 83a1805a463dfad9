"""How a stored image of any shape becomes a square: the crop and the sizes of each experiment.

Real and generated images must be framed alike, so this is what the reference does with its .beton files: an image is
stored with its longer side at most `stored_px`, a central square of it is brought to `crop_px` (area), and that to
`size_px` (bilinear between corner pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mi_ml_gen.core.errors import UsageError, nearest

if TYPE_CHECKING:
    import numpy as np  # these are imported where pixels are resized: command lines are checked without them
    from torch import Tensor

DEFAULT_SIZE_PX = 128


@dataclass(frozen=True)
class Framing:
    """One way of framing.

    size_px: side of what comes out. crop_px: side that the central square is brought to first; None: size_px.
    ratio: side of the central square over the image's shorter side. stored_px: the longer side is brought down to
    this before anything else; None: it is left as it is.
    """

    size_px: int = DEFAULT_SIZE_PX
    crop_px: int | None = None
    ratio: float = 1.0
    stored_px: int | None = None

    @property
    def cut_px(self) -> int:
        """Side of the square that `cut` makes."""
        return self.size_px if self.crop_px is None else self.crop_px

    def store(self, image: np.ndarray) -> np.ndarray:
        """A uint8 image (H, W, 3) with its longer side brought down to stored_px."""
        return image if self.stored_px is None else shrink(image, self.stored_px)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """A stored uint8 image (H, W, 3) -> its central square, (cut_px, cut_px, 3)."""
        from mi_ml_gen.data.resampling import resize_area

        return resize_area(center_square(image, self.ratio), self.cut_px, self.cut_px)

    def finish(self, squares: Tensor) -> Tensor:
        """Squares (n, 3, cut_px, cut_px), uint8 or [0, 1] -> (n, 3, size_px, size_px) of the same kind."""
        if squares.shape[-1] == self.size_px:
            return squares
        from mi_ml_gen.data.resampling import resize

        if squares.is_floating_point():
            return resize(squares, self.size_px, "corners")
        return resize(squares.float(), self.size_px, "corners").round().byte()

    def batch(self, squares: Sequence[np.ndarray]) -> Tensor:
        """n squares that `cut` made -> (n, 3, size_px, size_px) uint8."""
        import numpy as np
        import torch

        shape = len(squares), self.cut_px, self.cut_px, 3
        pixels = np.stack(squares) if squares else np.empty(shape, np.uint8)
        return self.finish(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()


FRAMINGS = {
    "whole": Framing(),  # the central square, straight to the size that is asked for
    "bigbigan": Framing(crop_px=256, stored_px=256),
    "stylegan": Framing(crop_px=384, ratio=384 / 512, stored_px=512),
    "classification": Framing(stored_px=256),
}
"""By name, with the reference's sizes: those of real images that BigBiGAN's and StyleGAN2's are compared with, and of
the downstream sets."""


def framing(name: str, size_px: int | None = None) -> Framing:
    """The framing of that name, to another size where one is given. Raises UsageError for an unknown name."""
    if name not in FRAMINGS:
        raise UsageError(f"framing {name}: must be one of {', '.join(FRAMINGS)}{nearest(name, FRAMINGS, 'framing')}")
    if size_px is None:
        return FRAMINGS[name]
    if size_px < 1:
        raise UsageError(f"image size {size_px}: must be at least 1")
    return replace(FRAMINGS[name], size_px=size_px)


def center_square(image: np.ndarray, ratio: float = 1.0) -> np.ndarray:
    """The central square of an image (H, W, c); its side is `ratio` of the shorter one, rounded down as FFCV does."""
    height, width = image.shape[:2]
    side = max(1, int(ratio * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def shrink(image: np.ndarray, longest_px: int) -> np.ndarray:
    """A uint8 image (H, W, c) whose longer side is at most longest_px, as FFCV's writer shrinks it."""
    from mi_ml_gen.data.resampling import resize_area

    height, width = image.shape[:2]
    ratio = longest_px / max(height, width)
    if ratio >= 1:
        return image
    return resize_area(image, max(1, int(ratio * height)), max(1, int(ratio * width)))
