"""Stored images behind one interface, and the registry of where they come from.

    source = load_source("fashion-mnist", split="train", image_size=32)
    source.batch(torch.tensor([3, 1, 4]))                       # (3, 3, 32, 32) uint8
    for images in batches(source, order, batch_size=256): ...   # read ahead in the background

A reference is the name of a set ("fashion-mnist", "digits"), torchvision's name and folder
("torchvision:CIFAR10:data"), a folder of images, a .beton file, or a folder of .beton files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from mi_ml_gen.core.errors import EnvironmentFault, UsageError, nearest
from mi_ml_gen.data.framing import DEFAULT_SIZE_PX, framing
from mi_ml_gen.data.idx import fashion_mnist
from mi_ml_gen.data.source import HeldImages, ImageSource, Request, resized

LOADERS = ("auto", "torch", "ffcv")


def load_source(
    reference: str | os.PathLike[str],
    split: str = "train",
    image_size: int | None = None,
    *,
    framing: str = "whole",
    loader: Literal["auto", "torch", "ffcv"] | str = "auto",
    skip_bad: bool = False,
    n_workers: int | None = None,
) -> ImageSource:
    """The stored images that `reference` names; see the module's header.

    split: "train", "validation", "test" or "predict", where the set is divided. image_size: side of the images, by
    default their own for sets of one size, else 128. framing: how images of other shapes become square, a key of
    `FRAMINGS`; sets of one size have no use for it. loader: "ffcv" for .beton files through FFCV, "torch" without it;
    "auto" means ffcv for .beton. skip_bad: leave out files that cannot be read as images, which are an error otherwise.
    n_workers: decoding threads, by default one a core, at most 8.
    Raises UsageError for what does not exist or does not fit, EnvironmentFault for a package that is missing,
    CorruptCheckpointError for a damaged .beton file.
    """
    if loader not in LOADERS:
        raise UsageError(f"--loader {loader}: must be one of {', '.join(LOADERS)}")
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size {image_size}: must be at least 1")
    if n_workers is not None and n_workers < 1:
        raise UsageError(f"n_workers {n_workers}: must be at least 1")
    text = os.fspath(reference)
    kind, _, argument = text.partition(":")
    n_workers = n_workers or min(8, os.cpu_count() or 1)
    request = Request(text, argument, split, image_size, framing, loader, skip_bad, n_workers)
    if kind in NAMED:
        if loader == "ffcv":
            raise UsageError(f"{text}: is not read through FFCV; choose --loader torch")
        return NAMED[kind](request)
    return _on_disk(request)


def _fashion_mnist(request: Request) -> ImageSource:
    """ "fashion-mnist" or "fashion-mnist:FOLDER". Above 28 px with a black border, as the bundled generator saw it."""
    data = fashion_mnist(_standard_split(request, {"train": "train", "test": "test"}), request.argument or None)
    images, size = data.images[:, None], request.image_size or 28
    if size > 28:
        left = (size - 28) // 2
        images = F.pad(images, (left, size - 28 - left, left, size - 28 - left))
    return HeldImages(f"fashion-mnist {request.split}", resized(images, size), data.labels, data.classes)


def _digits(request: Request) -> ImageSource:
    """scikit-learn's 1797 digits of 8 x 8 pixels: every fifth is the test split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EnvironmentFault("digits: needs scikit-learn; pip install 'mi_ml_gen[mim]'") from error
    split = _standard_split(request, {"train": "train", "test": "test"})
    data = load_digits()
    is_test = torch.arange(len(data.images)) % 5 == 4
    chosen = is_test if split == "test" else ~is_test
    images = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8))[chosen]  # ink is 0 to 16
    labels = torch.from_numpy(data.target.astype(np.int64))[chosen]
    classes = tuple(str(digit) for digit in data.target_names)
    return HeldImages(f"digits {split}", resized(images[:, None], request.image_size), labels, classes)


def _standard_split(request: Request, known: dict[str, str]) -> str:
    if request.split not in known:
        raise UsageError(f"{request.reference}: has no split {request.split!r}, only {', '.join(known)}")
    return known[request.split]


def _torchvision(request: Request) -> ImageSource:
    from mi_ml_gen.data.torchvision_sets import load_torchvision

    return load_torchvision(request)


NAMED: dict[str, Callable[[Request], ImageSource]] = {
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    "torchvision": _torchvision,
}
"""What the part of a reference before its first colon may be, and what then reads it."""


# --- files and folders --------------------------------------------------------------------------------------

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
    "predict": ("predict",),
}
"""Names of files and subfolders that a split may have."""


def _on_disk(request: Request) -> ImageSource:
    path = Path(request.reference).expanduser()
    beton = find_beton(path, request.split)
    if beton is None and not path.is_dir():
        what = "is a file; give a folder of images or a .beton file" if path.is_file() else "no such file or folder"
        raise UsageError(f"{path}: {what}; sets by name are {', '.join(NAMED)}{_near(request.reference)}")
    if beton is not None and (request.loader != "torch" or path == beton or not _has_images(path, request.split)):
        from mi_ml_gen.data.beton.images import load_beton

        return load_beton(beton, request)
    if request.loader == "ffcv":
        raise UsageError(
            f"{path}: there is no .beton file of the {request.split} split; write one with "
            "scripts/create_image_beton_file.py, or choose --loader torch"
        )
    from mi_ml_gen.data.folders import FolderImages

    size = framing(request.framing, request.image_size or DEFAULT_SIZE_PX)
    return FolderImages(split_folder(path, request.split), size, skip_bad=request.skip_bad, n_workers=request.n_workers)


def find_beton(path: Path, split: str) -> Path | None:
    """The .beton file that `path` is, or that it holds for the split."""
    if path.suffix == ".beton":
        return path
    candidates = (path / f"{name}.beton" for name in _split_names(split))
    return next((found for found in candidates if found.is_file()), None)


def split_folder(path: Path, split: str) -> Path:
    """The subfolder of the split where the folder is divided into splits, else the folder itself. Raises UsageError
    where it is divided and the split is missing."""
    divided = [name for names in SPLITS.values() for name in names if (path / name).is_dir()]
    own = [name for name in _split_names(split) if name in divided]
    if not divided:
        return path
    if not own:
        raise UsageError(f"{path}: has no folder of the {split} split, only {', '.join(divided)}")
    return path / own[0]


def _has_images(path: Path, split: str) -> bool:
    """Whether a folder that holds .beton files also holds images of the split, in folders beside them."""
    return any((path / name).is_dir() for name in _split_names(split))


def _split_names(split: str) -> tuple[str, ...]:
    known = {name: names for names in SPLITS.values() for name in names}
    if split not in known:
        raise UsageError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    return known[split]


def _near(reference: str) -> str:
    return nearest(reference, NAMED, "set") if os.sep not in reference else ""
