"""Training, validation and test images of a labelled set, held out where the set has no validation images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import user_path
from mi_ml_gen.data.classes import aligned
from mi_ml_gen.data.layout import read_layout, split_named, split_of
from mi_ml_gen.data.loading import BUILT_IN, is_named, load_source
from mi_ml_gen.data.source import ImageSource, Paired

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


class PairedSubset(Subset):
    """Some pairs of a source that has pairs."""

    def pairs(self, indices: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """As `Paired.pairs`."""
        assert isinstance(self.source, Paired)
        return self.source.pairs(self.indices[indices], draws)


def some(source: ImageSource, indices: Tensor, name: str) -> Subset:
    """Some images of a source, and their pairs where it has pairs."""
    return (PairedSubset if isinstance(source, Paired) else Subset)(source, indices, name)


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
    skip_bad: bool = False,
) -> Splits:
    """The splits of what `data.loading.load_source` reads, with labels that count the training images' classes.

    Where there are no validation images, a share `hold_out` of the training images, chosen by the seed, is taken out
    for them. Where there are no test images, test is None. Raises UsageError as `load_source`, for a share that leaves
    one of both without images, and for a split with a class that the training images lack.
    """

    def load(split: str) -> ImageSource:
        return load_source(reference, split, image_size, framing=framing, loader=loader, skip_bad=skip_bad)

    train, test = load("train"), load("test") if has_split(reference, "test") else None
    if has_split(reference, "validation"):
        return matched(Splits(train, load("validation"), test))
    n_held_out = round(hold_out * train.n_images)
    if not 0 < n_held_out < train.n_images:
        raise UsageError(
            f"{reference}: has no validation images, and --hold_out {hold_out:g} takes {n_held_out} of the "
            f"{train.n_images} training images for them; some must be on both sides"
        )
    order = torch.randperm(train.n_images, generator=runtime.stream(seed, "hold out", 0, 0))
    held, rest = order[:n_held_out].sort().values, order[n_held_out:].sort().values
    return matched(
        Splits(
            Subset(train, rest, f"{train.name} (without {n_held_out:,} for validation)"),
            Subset(train, held, f"{train.name} ({n_held_out:,} for validation)"),
            test,
        )
    )


def matched(splits: Splits) -> Splits:
    """The same splits, whose labels count the training images' classes, matched by name (see `classes`).

    Raises UsageError, with both lists, where a split has a class that the training images lack.
    """
    classes, whose = splits.train.classes, splits.train.name
    if splits.train.labels is None or not classes:
        return splits
    test = None if splits.test is None else aligned(splits.test, classes, whose)
    train, validation = (aligned(source, classes, whose) for source in (splits.train, splits.validation))
    return Splits(train, validation, test)


def has_split(reference: str, split: str) -> bool:
    """Whether a set has images of a split that are not those of another one."""
    if is_named(reference):
        kind, _, argument = reference.removeprefix(BUILT_IN).partition(":")
        if kind != "torchvision":  # the others have train and test, none validation
            return split in ("train", "test")
        from mi_ml_gen.data.torchvision_sets import SETS

        name = argument.partition(":")[0]
        return name in SETS and split in SETS[name].splits
    path = user_path(reference)
    return path.is_dir() and split_named(split) in read_layout(path).splits


def check_split(reference: str, split: str) -> None:
    """Raises UsageError where `reference` does not hold images of just this split.

    A file or a folder that is not divided counts as the split that its own name says, whatever its name is in full:
    "test.beton" and ".../test" hold test images.
    """
    if is_named(reference) or has_split(reference, split):
        return  # a built-in set refuses splits that it lacks
    path = user_path(reference)
    if not path.exists():
        return  # which load_source says
    layout = read_layout(path) if path.is_dir() else None
    if layout is not None and layout.splits:
        raise UsageError(f"{path}: has no images of the {split} split, only of {', '.join(layout.splits)}")
    own = split_of(path.name if path.is_dir() else path.stem)
    if split not in (own, "train"):
        is_not = f"its name says {own}" if own else "it is not divided into splits"
        raise UsageError(
            f"{path}: has no images of the {split} split: {is_not}. --split {own or 'train'} takes all of its images; "
            f"otherwise give a folder or file whose name says {split}"
        )


def class_names(splits: Splits) -> tuple[str, ...]:
    """The classes of a set, from its data: its names for them, or "0", "1" ... up to the largest label.

    Raises UsageError where a split has a class that the training images lack.
    """
    if splits.train.classes:
        return matched(splits).train.classes
    sources = [source for source in splits if source is not None]
    largest = max((int(source.labels.max()) for source in sources if source.labels is not None), default=0)
    return tuple(str(i) for i in range(largest + 1))


__all__ = ["PUBLISHED_CLASSES", "Splits", "Subset", "check_split", "class_names", "has_split", "load_splits", "matched"]
