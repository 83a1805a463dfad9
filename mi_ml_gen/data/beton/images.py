"""The images of .beton files, through FFCV (`--loader ffcv`), which is fast where there are many cores, or without it
(`--loader torch`); both give the same images to within JPEG decoding. `--loader auto` takes FFCV where it is installed.
"""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault
from mi_ml_gen.core.files import read_json
from mi_ml_gen.data.beton.format import BetonIndex, check_pictures, classes_file, open_jpeg, read_index
from mi_ml_gen.data.classes import class_key
from mi_ml_gen.data.framing import Framing, framing
from mi_ml_gen.data.source import ImageSource, Request

logger = logging.getLogger(__name__)

SYSTEM_PACKAGES = "libopencv-dev libturbojpeg0-dev pkg-config"

_kept: list[Any] = []
"""FFCV's loaders, until the process ends: numba reports an error on stderr when their compiled code is collected."""


def load_beton(path: Path, request: Request) -> ImageSource:
    """The images of a .beton file: through FFCV, or by our own reader where the request asks for the loader torch, or
    for auto where FFCV is missing, which a warning says. The image size is that of the framing where none is asked
    for. Raises as `load_source`."""
    # Before the file is looked at: whoever has no FFCV should hear of that first.
    kind: type[BetonImages | FFCVImages] = BetonImages
    if request.loader != "torch":
        try:
            _import_ffcv(path)
            kind = FFCVImages
        except EnvironmentFault as error:
            if request.loader == "ffcv":
                raise
            _say_once(f"{error.__cause__ or error}")
    return kind(read_index(path), framing(request.framing, request.image_size), request.n_workers)


@cache
def _say_once(why: str) -> None:
    logger.warning(
        "FFCV cannot be used here (%s): .beton files are read by this package's own reader, which gives the same "
        "images but slower. --loader torch chooses it without this line; docs/data.md says how to install FFCV",
        " ".join(why.split()),
    )  # fmt: skip


class _Indexed:
    """What every reader of a .beton file says of its images."""

    def __init__(self, index: BetonIndex, framing: Framing) -> None:
        self.index = index
        self.framing = framing
        self.name = str(index.path)
        self.n_images = len(index)
        self.image_size = framing.size_px
        self.labels, self.classes = _labels(index)


class BetonImages(_Indexed):
    """The images of a .beton file, decoded by Pillow in threads."""

    def __init__(self, index: BetonIndex, framing: Framing, n_workers: int = 4) -> None:
        super().__init__(index, framing)
        self._data = np.memmap(index.path, np.uint8, "r")
        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")

    def batch(self, indices: Tensor) -> Tensor:
        return self.framing.batch(list(self._pool.map(self._square, indices.tolist())))

    def image(self, i: int) -> np.ndarray:
        """One image as it is stored, uint8 (H, W, 3)."""
        index = self.index
        if index.is_raw[i]:
            values = np.frombuffer(bytearray(index.bytes_of(self._data, i)), np.uint8)
            return values.reshape(int(index.height[i]), int(index.width[i]), 3)
        picture = open_jpeg(index, self._data, i)
        try:
            return np.array(picture.convert("RGB"))
        except Exception as error:  # as in open_jpeg
            raise CorruptCheckpointError(f"{index.path}: image {i} is damaged: {error}") from error

    def _square(self, i: int) -> np.ndarray:
        return self.framing.cut(self.image(i))


class FFCVImages(_Indexed):
    """The images of a .beton file through FFCV's own loader, whose decoder is compiled at the first batch.

    Raises EnvironmentFault where FFCV is not installed.
    """

    def __init__(self, index: BetonIndex, framing: Framing, n_workers: int = 4) -> None:
        self._ffcv = _import_ffcv(index.path)
        check_pictures(index)
        super().__init__(index, framing)
        self.n_workers = min(n_workers, self._ffcv.max_threads)
        self._loader: Any = None

    def batch(self, indices: Tensor) -> Tensor:
        parts = list(self.stream(indices, max(1, len(indices))))
        return parts[0] if parts else torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def stream(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """As `Streaming.stream`; FFCV decodes the next batches meanwhile."""
        if not len(order):
            return
        indices = order.to("cpu", torch.int64).numpy()
        if indices.min() < 0 or indices.max() >= self.n_images:
            raise IndexError(f"{self.name}: index outside 0 to {self.n_images - 1}")
        loader = self._loader_for(batch_size)
        # FFCV takes an order only when a loader is made, and making one compiles its decoder anew.
        loader.traversal_order.indices = loader.first_traversal_order = indices.astype(np.uint64)
        epoch = iter(loader)
        try:
            for (squares,) in self._watched(epoch):  # (n, side, side, 3), in memory that FFCV uses again
                yield self.framing.finish(squares.permute(0, 3, 1, 2)).clone(memory_format=torch.contiguous_format)
        finally:
            epoch.close()

    def _watched(self, epoch: Any) -> Iterator[Any]:
        """FFCV's batches. Where its thread dies of an error, FFCV itself would wait for it for ever."""
        while True:
            while epoch.output_queue.empty() and epoch.is_alive():
                time.sleep(0.001)
            if epoch.output_queue.empty():
                raise EnvironmentFault(
                    f"{self.name}: FFCV's reader stopped with the error above; --loader torch needs no FFCV"
                )
            try:
                yield next(epoch)
            except StopIteration:
                return

    def _loader_for(self, batch_size: int) -> Any:
        if self._loader is None:
            side, (image, *others) = self.framing.cut_px, self.index.field_names
            decoder = self._ffcv.CenterCropRGBImageDecoder((side, side), ratio=self.framing.ratio)
            self._loader = self._ffcv.Loader(
                str(self.index.path),
                batch_size,
                num_workers=self.n_workers,
                order=self._ffcv.OrderOption.SEQUENTIAL,
                os_cache=True,
                drop_last=False,
                pipelines={image: [decoder, self._ffcv.ToTensor()], **dict.fromkeys(others)},
            )
            _kept.append(self._loader)
        self._loader.batch_size = batch_size  # read when an epoch begins
        return self._loader


class _FFCV(NamedTuple):
    """What is used of FFCV."""

    Loader: Any
    OrderOption: Any
    CenterCropRGBImageDecoder: Any
    ToTensor: Any
    max_threads: int


def _import_ffcv(path: Path) -> _FFCV:
    try:
        import numba
        from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor
    except Exception as error:  # compiled packages that do not fit one another fail in many ways
        raise EnvironmentFault(
            f"{path}: reading .beton files through FFCV needs the extra and what it compiles against: apt-get install "
            f"{SYSTEM_PACKAGES}, then pip install 'mi_ml_gen[ffcv]' ({' '.join(str(error).split())}); without them "
            "--loader torch reads the same images, slower"
        ) from error
    return _FFCV(Loader, OrderOption, CenterCropRGBImageDecoder, ToTensor, numba.config.NUMBA_NUM_THREADS)


def _labels(index: BetonIndex) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels, and class names from the file beside, or else numbers."""
    if index.label is None:
        return None, ()
    labels, n_classes = torch.from_numpy(index.label), int(index.label.max()) + 1
    beside = classes_file(index.path)
    if not beside.exists():
        return labels, tuple(map(str, range(n_classes)))
    names = read_json(beside, list)
    if len(names) < n_classes or not all(isinstance(name, str | int) for name in names):
        raise CorruptCheckpointError(f"{beside}: must list the names of {n_classes} classes")
    classes = tuple(unicodedata.normalize("NFC", str(name)) for name in names)
    if len({class_key(name) for name in classes}) < len(classes):
        raise CorruptCheckpointError(f"{beside}: names the same class twice")
    return labels, classes
