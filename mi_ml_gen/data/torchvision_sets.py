"""torchvision's data sets where they are on disk: "torchvision:CIFAR10:FOLDER".

Only sets whose reader parses plain formats, or checks the files' published hashes before it unpickles them (CIFAR).
Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor

from mi_ml_gen.core.errors import EnvironmentFault, UsageError, nearest
from mi_ml_gen.core.files import user_path
from mi_ml_gen.data.folders import to_rgb
from mi_ml_gen.data.framing import DEFAULT_SIZE_PX, Framing, framing
from mi_ml_gen.data.idx import check_name
from mi_ml_gen.data.source import HeldImages, ImageSource, Request, resized


class _Set(NamedTuple):
    """How torchvision's class is called for each split, where in the folder its files lie, and where it keeps labels
    (and images, if all of one size)."""

    splits: Mapping[str, Mapping[str, Any]]
    place: str
    labels: str
    images: str | None = None


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
_TRAINVAL = {"train": {"split": "trainval"}, "test": {"split": "test"}}

SETS = {
    "CIFAR10": _Set(_BY_FLAG, "cifar-10-batches-py", "targets", "data"),
    "CIFAR100": _Set(_BY_FLAG, "cifar-100-python", "targets", "data"),
    "MNIST": _Set(_BY_FLAG, "MNIST/raw", "targets", "data"),
    "FashionMNIST": _Set(_BY_FLAG, "FashionMNIST/raw", "targets", "data"),
    "KMNIST": _Set(_BY_FLAG, "KMNIST/raw", "targets", "data"),
    "SVHN": _Set(_TWO, "train_32x32.mat, test_32x32.mat", "labels", "data"),
    "STL10": _Set({**_TWO, "predict": {"split": "unlabeled"}}, "stl10_binary", "labels", "data"),
    "DTD": _Set(_THREE, "dtd/dtd", "_labels"),
    "Flowers102": _Set(_THREE, "flowers-102", "_labels"),
    "FGVCAircraft": _Set(_THREE, "fgvc-aircraft-2013b", "_labels"),
    "Food101": _Set(_TWO, "food-101", "_labels"),
    "OxfordIIITPet": _Set(_TRAINVAL, "oxford-iiit-pet", "_labels"),
    "Caltech101": _Set({"train": {}}, "caltech101/101_ObjectCategories", "y"),
}


def load_torchvision(request: Request) -> ImageSource:
    """The set of a reference "torchvision:NAME:FOLDER". Raises UsageError where it is unknown or not there."""
    name, _, folder = request.argument.partition(":")
    if name not in SETS or not folder:
        about = nearest(name, SETS, "set") or f"; known sets: {', '.join(SETS)}"
        raise UsageError(f"{request.reference}: write torchvision:NAME:FOLDER{'' if name in SETS else about}")
    about_set = SETS[name]
    if request.split not in about_set.splits:
        raise UsageError(f"{request.reference}: has no split {request.split!r}, only {', '.join(about_set.splits)}")
    options = about_set.splits[request.split]
    place = str(user_path(folder))
    try:
        data = getattr(torchvision.datasets, name)(place, download=False, **options)
        labels = torch.as_tensor(np.asarray(getattr(data, about_set.labels)), dtype=torch.int64)
    except Exception as error:  # torchvision's readers raise anything on files that are missing, cut short or others'
        raise _missing(request, folder, about_set, error) from error
    title = f"{name} {request.split}"
    check_name(request.reference, name, request.split, labels)
    labels_or_none = None if (labels < 0).any() else labels  # STL10 marks what has no label with -1
    classes = () if labels_or_none is None else _classes(data, labels)
    if len(labels) != len(data) or (classes and int(labels.max()) >= len(classes)):
        raise UsageError(
            f"{request.reference}: {len(labels)} labels up to {int(labels.max())} for {len(data)} images of "
            f"{len(classes)} classes; its files do not belong together"
        )
    if about_set.images is None:
        size = framing(request.framing, request.image_size or DEFAULT_SIZE_PX)
        return _PictureSet(title, data, labels_or_none, classes, size, request.n_workers)
    images = _channels_first(torch.as_tensor(getattr(data, about_set.images)))
    return HeldImages(title, resized(images, request.image_size), labels_or_none, classes)


def _missing(request: Request, folder: str, about_set: _Set, error: Exception) -> UsageError:
    """What to do about files that torchvision does not find or cannot read; its own advice is for Python code."""
    text = " ".join(str(error).split())
    why = "not found, or damaged" if "download=True" in text or not text else f"cannot be read: {text}"
    return UsageError(
        f"{request.reference}: {why}; the unpacked set must lie in {folder}, as torchvision lays it out "
        f"({about_set.place}); nothing is downloaded here"
    )


def _channels_first(images: Tensor) -> Tensor:
    if images.ndim == 4 and images.shape[-1] == 3:
        return images.permute(0, 3, 1, 2).contiguous()
    return images[:, None] if images.ndim == 3 else images


def _classes(data: Any, labels: Tensor) -> tuple[str, ...]:
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    return tuple(map(str, names)) if names else tuple(str(i) for i in range(int(labels.max()) + 1))


class _PictureSet:
    """A set of pictures of many sizes, read when they are asked for."""

    def __init__(
        self, name: str, data: Any, labels: Tensor | None, classes: tuple[str, ...], size: Framing, n_workers: int
    ) -> None:
        self.name = name
        self.labels = labels
        self.classes = classes
        self.n_images = len(data)
        self.image_size = size.size_px
        self._data = data
        self._framing = size
        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")

    def batch(self, indices: Tensor) -> Tensor:
        squares = self._pool.map(self._square, indices.tolist())
        return self._framing.finish(torch.from_numpy(np.stack(list(squares))).permute(0, 3, 1, 2))

    def _square(self, index: int) -> np.ndarray:
        try:
            return self._framing.cut(self._framing.store(to_rgb(self._data[index][0])))
        except EnvironmentFault:
            raise
        except Exception as error:  # as in load_torchvision, and as Pillow's readers do
            raise UsageError(f"{self.name}: image {index} cannot be read: {' '.join(str(error).split())}") from error
