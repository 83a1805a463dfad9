"""Training, validation and test images of a labelled set, held out where the set has no validation images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import NAMED, SPLITS, find_beton, load_source
from mi_ml_gen.data.source import ImageSource

PUBLISHED_CLASSES = {
    "birdsnap": 525,
    "caltech101": 101,
    "cifar100": 100,
    "DTD": 47,
    "fgvc-aircraft-2013b": 70,
    "flowers102": 102,
    "food101": 101,
    "imagenet": 1000,
    "imagenet100": 100,
    "pets": 37,
    "StanfordCars": 196,
}
"""Classes of the paper's downstream sets, as its classifiers have them."""


class Subset:
    """Some images of another source, in the order of `indices`."""

    def __init__(self, source: ImageSource, indices: Tensor, name: str) -> None:
        self.source = source
        self.indices = indices
        self.name = name
        self.n_images = len(indices)
        self.image_size = source.image_size
        self.labels = None if source.labels is None else source.labels[indices]
        self.classes = source.classes

    def batch(self, indices: Tensor) -> Tensor:
        return self.source.batch(self.indices[indices])


class Splits(NamedTuple):
    """The images of a set, by what they are for."""

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None


def load_splits(
    reference: str,
    image_size: int | None = None,
    seed: int = 0,
    hold_out: float = 0.1,
    framing: str = "classification",
    loader: str = "auto",
) -> Splits:
    """The splits of what `data.sources.load_source` reads.

    Where there are no validation images, a share `hold_out` of the training images, chosen by the seed, is taken out
    for them. Where there are no test images, test is None. Raises UsageError as `load_source`, and for a share that
    leaves one of both without images.
    """

    def load(split: str) -> ImageSource:
        return load_source(reference, split, image_size, framing=framing, loader=loader)

    train, test = load("train"), load("test") if has_split(reference, "test") else None
    if has_split(reference, "validation"):
        return Splits(train, load("validation"), test)
    n_held_out = round(hold_out * train.n_images)
    if not 0 < n_held_out < train.n_images:
        raise UsageError(
            f"{reference}: has no validation images, and --hold_out {hold_out:g} takes {n_held_out} of the "
            f"{train.n_images} training images for them; some must be on both sides"
        )
    order = torch.randperm(train.n_images, generator=runtime.stream(seed, "hold out", 0, 0))
    held, rest = order[:n_held_out].sort().values, order[n_held_out:].sort().values
    return Splits(
        Subset(train, rest, f"{train.name} (without {n_held_out:,} for validation)"),
        Subset(train, held, f"{train.name} ({n_held_out:,} for validation)"),
        test,
    )


def has_split(reference: str, split: str) -> bool:
    """Whether a set has images of a split that are not those of another one."""
    kind, _, argument = reference.partition(":")
    if kind == "torchvision":
        from mi_ml_gen.data.torchvision_sets import SETS

        name = argument.partition(":")[0]
        return name in SETS and split in SETS[name].splits
    if kind in NAMED:  # the others have train and test, none validation
        return split in ("train", "test")
    path = Path(reference).expanduser()
    if path.suffix == ".beton":
        return False
    return find_beton(path, split) is not None or any((path / name).is_dir() for name in SPLITS[split])


def class_names(splits: Splits) -> tuple[str, ...]:
    """The classes of a set, from its data: its names for them, or "0", "1" ... up to the largest label.

    Raises UsageError where the splits disagree.
    """
    sources = [source for source in splits if source is not None]
    named = {source.classes for source in sources if source.classes}
    if len(named) > 1:
        counts = ", ".join(f"{source.name}: {len(source.classes)}" for source in sources)
        raise UsageError(f"the splits name different classes ({counts}); they must be those of one set")
    if named:
        return next(iter(named))
    largest = max((int(source.labels.max()) for source in sources if source.labels is not None), default=0)
    return tuple(str(i) for i in range(largest + 1))


__all__ = ["PUBLISHED_CLASSES", "Splits", "Subset", "class_names", "has_split", "load_splits"]
