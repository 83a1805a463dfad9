"""Stored images behind one interface, and the registry of where they come from.

    source = load_source("fashion-mnist", split="train", image_size=32)
    source.batch(torch.tensor([3, 1, 4]))                       # (3, 3, 32, 32) uint8
    for images in batches(source, order, batch_size=256): ...   # read ahead in the background

A reference is the name of a built-in set ("fashion-mnist", "digits", "emoji"), torchvision's name and folder
("torchvision:CIFAR10:data"), a folder of images, a .beton file, or a folder of .beton files. `layout` says how a folder
becomes splits, classes and images. Where a folder of images has the name of a built-in set, "./digits" is the folder
and "builtin:digits" the set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from mi_ml_gen.core import runtime, threads
from mi_ml_gen.core.errors import EnvironmentFault, UsageError, nearest
from mi_ml_gen.core.files import user_path
from mi_ml_gen.data.framing import DEFAULT_SIZE_PX, framing
from mi_ml_gen.data.idx import fashion_mnist
from mi_ml_gen.data.layout import SPLITS, Layout, holds_images, read_layout, split_named, split_of
from mi_ml_gen.data.source import HeldImages, ImageSource, Request, describe, resized

logger = logging.getLogger(__name__)

BUILT_IN = "builtin:"
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
    """The stored images that `reference` names; see the module's header. One line says what was found.

    split: "train", "validation", "test" or "predict", where the set is divided. image_size: side of the images, by
    default their own for sets of one size, else 128. framing: how images of other shapes become square, a key of
    `FRAMINGS`; sets of one size have no use for it. loader: "ffcv" for .beton files through FFCV, "torch" without it;
    "auto" means FFCV for .beton files where it is installed. skip_bad: leave out files that cannot be read as images,
    which are an error otherwise. n_workers: decoding threads, by default one a core, at most 8.
    Raises UsageError for what does not exist, does not fit or can be read in two ways, EnvironmentFault for a package
    that is missing, CorruptCheckpointError for a damaged .beton file.
    """
    request = _request(reference, split, image_size, framing, loader, skip_bad, n_workers)
    source, what = _load(request)
    if runtime.is_main():
        logger.info("%s", describe(source, what))
    return source


def check_source(
    reference: str | os.PathLike[str],
    split: str = "train",
    *,
    framing: str = "whole",
    loader: Literal["auto", "torch", "ffcv"] | str = "auto",
    skip_bad: bool = False,
) -> str:
    """Whether `load_source` would find its images, without decoding any: one line on what there is.

    Names, splits, classes and the tables of .beton files are checked; images in folders are only counted. Raises as
    `load_source`.
    """
    request = _request(reference, split, None, framing, loader, skip_bad, None)
    if is_named(request.reference) or Path(request.reference).suffix.lower() == ".beton":
        return describe(*_load(request))
    found, what = _choose(request)
    if found.suffix.lower() == ".beton":
        return describe(_beton(found, request), what)
    from mi_ml_gen.data.folders import find_root, list_folder, passed_by

    listing = list_folder(find_root(found, is_split=what != _UNDIVIDED))
    other = passed_by(listing.passed_by)
    return f"{found}: {len(listing.stamps):,} images, {what}, not opened" + (f"; {other}" if other else "")


def is_named(reference: str) -> bool:
    """Whether a reference is the name of a built-in or torchvision set, not a path. Raises UsageError where it is both
    the name of a set and a folder with images."""
    kind, colon, _ = reference.removeprefix(BUILT_IN).partition(":")
    if kind not in NAMED:
        return False
    path = Path(reference)
    if colon or reference.startswith(BUILT_IN) or not path.is_dir() or not holds_images(path):
        return True
    raise UsageError(
        f"{reference}: is the name of a built-in set and also a folder of images here; write ./{reference} for the "
        f"folder, or {BUILT_IN}{reference} for the set"
    )


def _request(
    reference: str | os.PathLike[str],
    split: str,
    image_size: int | None,
    framing: str,
    loader: str,
    skip_bad: bool,
    n_workers: int | None,
) -> Request:
    if loader not in LOADERS:
        raise UsageError(f"--loader {loader}: must be one of {', '.join(LOADERS)}")
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size {image_size}: must be at least 1")
    if n_workers is not None and n_workers < 1:
        raise UsageError(f"n_workers {n_workers}: must be at least 1")
    text = os.fspath(reference)
    argument = text.removeprefix(BUILT_IN).partition(":")[2]
    n_workers = n_workers or min(8, threads.available())
    return Request(text, argument, split, image_size, framing, loader, skip_bad, n_workers)


def _load(request: Request) -> tuple[ImageSource, str]:
    """The source, and which part of the set it is, in words."""
    text = request.reference
    if not is_named(text):
        return _on_disk(request)
    if request.loader == "ffcv":
        raise UsageError(f"{text}: is not read through FFCV; choose --loader torch")
    kind = text.removeprefix(BUILT_IN).partition(":")[0]
    return NAMED[kind](request), f"{request.split} split"


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


def _emoji(request: Request) -> ImageSource:
    from mi_ml_gen.data.emoji import load_emoji

    return load_emoji(request)


def _emoji_pairs(request: Request) -> ImageSource:
    from mi_ml_gen.data.emoji import load_emoji_pairs

    return load_emoji_pairs(request)


NAMED: dict[str, Callable[[Request], ImageSource]] = {
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    "torchvision": _torchvision,
    "emoji": _emoji,
    "emoji-pairs": _emoji_pairs,
}
"""What the part of a reference before its first colon may be, and what then reads it."""


# --- files and folders --------------------------------------------------------------------------------------

_UNDIVIDED = "not divided into splits"


def _on_disk(request: Request) -> tuple[ImageSource, str]:
    found, what = _choose(request)
    if found.suffix.lower() == ".beton" and not found.is_dir():
        return _beton(found, request), what
    from mi_ml_gen.data.folders import FolderImages

    size = framing(request.framing, request.image_size or DEFAULT_SIZE_PX)
    options = {"skip_bad": request.skip_bad, "n_workers": request.n_workers}
    return FolderImages(found, size, is_split=what != _UNDIVIDED, **options), what  # type: ignore[arg-type]


def _choose(request: Request) -> tuple[Path, str]:
    """The .beton file or the folder that holds the split, and which part of the set it is, in words."""
    path, split = user_path(request.reference), request.split
    if path.suffix.lower() == ".beton" and not path.is_dir():
        own = split_of(path.stem)
        return path, f"{own} split" if own else _UNDIVIDED
    if not path.is_dir():
        what = "is a file; give a folder of images or a .beton file" if path.is_file() else "no such file or folder"
        raise UsageError(f"{path}: {what}; sets by name are {', '.join(NAMED)}{_near(request.reference)}")
    split = split_named(split)
    layout = read_layout(path)
    folder, beton = layout.folders.get(split), layout.betons.get(split)
    if beton is not None and (request.loader != "torch" or folder is None):
        return beton, f"{split} split"
    if request.loader == "ffcv":
        raise UsageError(
            f"{path}: there is no .beton file of the {split} split; write one with "
            "scripts/create_image_beton_file.py, or choose --loader torch"
        )
    if folder is not None:
        return folder, f"{split} split"
    _check_undivided(path, split, layout)
    return path, _UNDIVIDED


def _check_undivided(path: Path, split: str, layout: Layout) -> None:
    """Raises UsageError where a folder has other splits than the one asked for, or .beton files of none."""
    if layout.folders:
        named = ", ".join(folder.name for folder in layout.folders.values())
        raise UsageError(f"{path}: has no folder of the {split} split, only {named}")
    has_images = holds_images(path, with_betons=False)
    if layout.betons and (split != "train" or not has_images):
        named = ", ".join(file.name for file in layout.betons.values())
        raise UsageError(f"{path}: has no .beton file of the {split} split, only {named}")
    others = sorted(file.name for file in path.glob("*.beton")) if not has_images else []
    if others:
        raise UsageError(
            f"{path}: holds .beton files, but none with the name of a split ({', '.join(others)}); give one of them, "
            f"such as {path / others[0]}, or rename them to train.beton, validation.beton, test.beton"
        )


def _beton(path: Path, request: Request) -> ImageSource:
    from mi_ml_gen.data.beton.images import load_beton

    return load_beton(path, request)


def find_beton(path: Path, split: str) -> Path | None:
    """The .beton file that `path` is, or that it holds for the split."""
    if path.suffix.lower() == ".beton":
        return path
    return read_layout(path).betons.get(split_named(split)) if path.is_dir() else None


def split_folder(path: Path, split: str) -> Path:
    """The subfolder of the split where the folder is divided into splits, else the folder itself. Raises UsageError
    where it is divided and the split is missing."""
    layout = read_layout(path)
    if (found := layout.folders.get(split_named(split))) is not None:
        return found
    _check_undivided(path, split, layout)
    return path


def _near(reference: str) -> str:
    return nearest(reference, NAMED, "set") if os.sep not in reference else ""


__all__ = [
    "LOADERS", "NAMED", "SPLITS", "check_source", "find_beton", "is_named", "load_source", "split_folder",
]  # fmt: skip
