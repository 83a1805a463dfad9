"""Stored images behind one interface, and the registry of where they come from.

    source = load_source("fashion-mnist", split="train", image_size=32)
    source.batch(torch.tensor([3, 1, 4]))                       # (3, 3, 32, 32) uint8
    for images in batches(source, order, batch_size=256): ...   # read ahead in the background

A reference is the name of a set ("fashion-mnist", "digits"), torchvision's name and folder
("torchvision:CIFAR10:data"), a folder of images, a .beton file, or a folder of .beton files.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ml_gen.data.framing import DEFAULT_SIZE_PX, framing
from mi_ml_gen.data.idx import fashion_mnist
from mi_ml_gen.errors import EnvironmentFault, UsageError, nearest
from mi_ml_gen.resampling import resize, resize_area

LOADERS = ("auto", "torch", "ffcv")
N_AHEAD = 2


@runtime_checkable
class ImageSource(Protocol):
    """A set of stored images, all framed to one square size."""

    name: str
    """What messages and tables call it."""
    n_images: int
    image_size: int
    """Side of the images that `batch` gives, in pixels."""
    labels: Tensor | None
    """int64 (n_images,), on the CPU; None where the set has none."""
    classes: tuple[str, ...]
    """The name of each label; empty where there are no labels."""

    def batch(self, indices: Tensor) -> Tensor:
        """The images of these indices (n,), in their order: (n, 3, image_size, image_size) uint8 on the CPU."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A source that has a faster way to go through many images than one `batch` after another."""

    def stream(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """The images of `order`, in batches of batch_size, the last one maybe smaller."""
        ...


@dataclass(frozen=True)
class Request:
    """What `load_source` was asked for, as a reader of one kind of source gets it.

    argument: what follows the first colon of the reference. image_size: None where the source may choose.
    """

    reference: str
    argument: str
    split: str
    image_size: int | None
    framing: str
    loader: str
    skip_bad: bool
    n_workers: int


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


def batches(source: ImageSource, order: Tensor, batch_size: int, drop_last: bool = False) -> Iterator[Tensor]:
    """The images of `order` (n,), batch after batch, (batch_size, 3, H, W) uint8; the next ones are read meanwhile.

    drop_last: leave out a last batch that is smaller. What a reader raises is raised here.
    """
    assert batch_size >= 1 and order.ndim == 1
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
    if isinstance(source, Streaming):
        return source.stream(order, batch_size)
    return _ahead(lambda: (source.batch(chosen) for chosen in order.split(batch_size)) if len(order) else iter(()))


def _ahead(make: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
    """What `make()` gives, a few items ahead in a thread that ends when the reader of it stops."""
    queue: Queue = Queue(N_AHEAD)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            with contextlib.suppress(Full):
                queue.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in make():
                put((item, None))
                if stopped.is_set():
                    return
            put((None, None))
        except BaseException as error:  # raised again where the batch is waited for
            put((None, error))

    thread = threading.Thread(target=work, daemon=True, name="reading ahead")
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        with contextlib.suppress(Empty):
            queue.get_nowait()
        thread.join()


# --- sets held in memory ------------------------------------------------------------------------------------


class HeldImages:
    """Images of one size, in memory as uint8.

    images: (n, H, W) or (n, c, H, W) with c 1 or 3. labels: int64 (n,) or None.
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor | None = None, classes: tuple[str, ...] = ()) -> None:
        images = images[:, None] if images.ndim == 3 else images
        assert images.dtype == torch.uint8 and images.shape[1] in (1, 3) and images.shape[2] == images.shape[3]
        assert labels is None or (labels.dtype == torch.int64 and labels.shape == images.shape[:1])
        self.name = name
        self.images = images
        self.labels = labels
        self.classes = classes
        self.n_images = len(images)
        self.image_size = images.shape[-1]

    def batch(self, indices: Tensor) -> Tensor:
        chosen = self.images[indices.to(self.images.device)]
        return chosen.expand(-1, 3, -1, -1) if chosen.shape[1] == 1 else chosen


def held(source: ImageSource, batch_size: int = 256) -> HeldImages:
    """All of a source in memory: worth it for sets that are read many times and fit."""
    if isinstance(source, HeldImages):
        return source
    order = torch.arange(source.n_images)
    images = torch.empty(source.n_images, 3, source.image_size, source.image_size, dtype=torch.uint8)
    start = 0
    for images_read in batches(source, order, batch_size):
        images[start : start + len(images_read)] = images_read
        start += len(images_read)
    return HeldImages(source.name, images, source.labels, source.classes)


def resized(images: Tensor, size: int | None) -> Tensor:
    """Square uint8 images (n, c, side, side) -> (n, c, size, size): area when they shrink, bilinear when they grow."""
    side = images.shape[-1]
    if size is None or size == side:
        return images
    if size > side:
        parts = (resize(part.float(), size, "antialias") for part in images.split(1024))
        return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
    small = [resize_area(image.permute(1, 2, 0).numpy(), size, size) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()


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
        from mi_ml_gen.data.beton_images import load_beton

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
