"""What a data set is to the image models: three parts of images with their labels, and a kind of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mi_ml_gen.core import runtime

Kind = Literal["binary", "gray", "continuous"]


@dataclass(frozen=True)
class Images:
    """Images of one split and their labels.

    x: (n, C, H, W), float32 pixels in [0, 1]; or uint8 of 256 steps, whose pixels are x * scale + offset. labels: int64
    (n,), None where the set has none. are_probabilities: whether binary images are drawn from these pixels.
    """

    x: Tensor
    labels: Tensor | None = None
    scale: float = 1.0
    offset: float = 0.0
    are_probabilities: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Of all or some images: (n, C, H, W) float32 in [0, 1]."""
        chosen = self.x[rows]
        return chosen if chosen.dtype == torch.float32 else chosen.float().mul_(self.scale).add_(self.offset)

    def rows(self, chosen: Tensor | slice) -> Images:
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, x=self.x[chosen], labels=labels)

    def to(self, device: torch.device | str) -> Images:
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, x=self.x.to(device), labels=labels)


@dataclass(frozen=True)
class ImageSets:
    """A data set for the image models.

    kind: of the pixels that models see: "binary"; "gray" or "continuous" (colour), in 256 steps. pseudo_mean,
    pseudo_std: of VampPrior's pseudo-inputs where they start from noise. classes: the name of each label.
    """

    name: str
    kind: Kind
    train: Images
    validation: Images
    test: Images
    pseudo_mean: float
    pseudo_std: float
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    @property
    def n_classes(self) -> int:
        """0 where there are no labels."""
        return len(self.classes)

    @property
    def text(self) -> str:
        """The set in one line."""
        channels, height, width = self.shape
        sizes = ", ".join(f"{len(part):,}" for part in (self.train, self.validation, self.test))
        drawn = " drawn anew for each batch" if self.train.are_probabilities else ""
        labels = f"{self.n_classes} classes" if self.n_classes else "no labels"
        return (
            f"{self.name}: {sizes} images for training, validation, test; {channels} x {height} x {width}, "
            f"{self.kind}{drawn}; {labels}"
        )

    def draw(self, images: Images, rows: Tensor, rng: torch.Generator) -> Tensor:
        """What a model sees of some images: (n, C, H, W) float32 in [0, 1], on the device of `images`; binary ones are
        drawn where `images` holds their probabilities."""
        pixels = images.pixels(rows)
        if not images.are_probabilities:
            return pixels
        return (runtime.uniform(pixels.shape, rng, pixels.device) < pixels).float()

    def to(self, device: torch.device | str) -> ImageSets:
        train, validation, test = (part.to(device) for part in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    def smaller(self, n_train: int | None = None, n_test: int | None = None) -> ImageSets:
        """The first n_train training images, and n_test of validation and test images: for a quick look."""
        train, validation, test = self.train, self.validation, self.test
        return replace(
            self, train=train.rows(slice(n_train)), validation=validation.rows(slice(n_test)),
            test=test.rows(slice(n_test)),
        )  # fmt: skip


Maker = Callable[["Path | None", int], ImageSets]
"""A function of (root, seed) that reads a data set."""

__all__ = ["ImageSets", "Images", "Kind", "Maker"]
