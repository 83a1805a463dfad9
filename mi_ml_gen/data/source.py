"""A source of stored images: the interface, batches, and images held in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.data.resampling import resize, resize_area

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


@runtime_checkable
class Paired(Protocol):
    """A source that has several pictures of the same thing: positive pairs that people made. `batch` gives one of
    each."""

    def pairs(self, indices: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Two different pictures of each of these indices (n,), uint8 (n, 3, image_size, image_size) both; which ones
        is decided by draws (n, 2), uniform in [0, 1)."""
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


def describe(source: ImageSource, what: str) -> str:
    """One line on a source: "cars: 48 images, 4 classes, train split; 3 files passed by: 2 .heic, 1 .txt"."""
    n_classes = len(source.classes)
    classes = f"{n_classes:,} class{'es' if n_classes != 1 else ''}" if source.labels is not None else "no labels"
    passed_by = getattr(source, "passed_by", "")
    images = f"{source.n_images:,} image{'s' if source.n_images != 1 else ''}"
    return f"{source.name}: {images}, {classes}, {what}" + (f"; {passed_by}" if passed_by else "")


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
