"""Images and labels in the idx format, and Fashion-MNIST (Xiao et al. 2017), which is published in it.

An idx file is two zero bytes, a type byte, the number of dimensions as one byte, every dimension as a
big-endian 32-bit integer, then the values in row-major order. Nothing in such a file is trusted: its header
must agree with the size of the file, and a compressed file is read no further than its own header says, so
that a file made to unpack into gigabytes is refused early.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.core.files import NoHome, user_path

logger = logging.getLogger(__name__)

DATA_VARIABLE = "MI_ML_GEN_DATA"
SEARCH_PLACES = (
    Path("/usr/share/datasets/fashion-mnist"),  # the Debian package
    Path("data/fashion-mnist"),
    Path("data/FashionMNIST/raw"),  # torchvision's layout
    Path("~/.cache/mi_ml_gen/fashion-mnist"),
)
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_FIRST_LABELS = {
    ("FashionMNIST", "train"): (9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9, 1, 0, 6, 4),
    ("FashionMNIST", "test"): (9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0),
    ("MNIST", "train"): (5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9),
    ("MNIST", "test"): (7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6, 9, 0, 1, 5, 9, 7, 3, 4),
}
"""The labels that two sets with files of the same names and sizes begin with."""
_N_IMAGES = {"train": 60_000, "test": 10_000}

_PREFIX = {"train": "train", "test": "t10k"}
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 8
_MAX_BYTES = 2**32


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split, as read.

    images: uint8 (n, H, W), 0 to 255. labels: int64 (n,). classes: the name of each label.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in the idx file `path`, plain or gzip-compressed (told by its first bytes, not by its name).

    Returns the array in the machine's byte order, with the shape that the header gives.
    Raises UsageError where the file is missing, is no idx file, or holds more or fewer bytes than its header
    says; EnvironmentFault where it cannot be opened.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _read_array(raw, path)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _read_array(unpacked, path)  # type: ignore[arg-type]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{path}: no such idx file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error


def fashion_mnist(split: str = "train", root: str | os.PathLike[str] | None = None) -> LabelledImages:
    """The 60,000 training or 10,000 test images of Fashion-MNIST.

    split: "train" or "test". root: the folder with the four idx files, compressed or not; without it the
    folder that the environment variable MI_ML_GEN_DATA names (or its fashion-mnist subfolder), then
    SEARCH_PLACES.
    Raises UsageError for an unknown split, where no folder holds the files, and where they are damaged.
    """
    if split not in _PREFIX:
        raise UsageError(f"split {split!r}: must be one of {', '.join(_PREFIX)}")
    folder = _find_folder(split, root)
    image_path, label_path = _split_files(folder, split)
    assert image_path is not None and label_path is not None
    images, labels = read_idx(image_path), read_idx(label_path)

    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise UsageError(f"{image_path}: {images.dtype} of shape {images.shape}, expected uint8 of shape (n, 28, 28)")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise UsageError(
            f"{label_path}: {labels.dtype} of shape {labels.shape}, expected uint8 of shape ({len(images)},)"
        )
    if labels.size and labels.max() >= len(FASHION_CLASSES):
        raise UsageError(f"{label_path}: label {labels.max()}, expected 0 to {len(FASHION_CLASSES) - 1}")
    found = torch.from_numpy(labels.astype(np.int64))
    check_name(str(folder), "FashionMNIST", split, found)
    if len(images) != _N_IMAGES[split]:
        logger.warning(
            "%s: %d %s images, the published Fashion-MNIST has %d; its class names are used all the same",
            folder, len(images), split, _N_IMAGES[split],
        )  # fmt: skip
    return LabelledImages(torch.from_numpy(images), found, FASHION_CLASSES)


def check_name(where: str, name: str, split: str, labels: Tensor) -> None:
    """Raises UsageError where labels (n,) are those of another set than `name` says, or of another split. MNIST and
    Fashion-MNIST have files of the same names and sizes, so that nothing else would tell."""
    first = tuple(labels[:20].tolist())
    actual = next((key for key, known in _FIRST_LABELS.items() if known == first), None)
    if actual is not None and name in {known for known, _ in _FIRST_LABELS} and actual != (name, split):
        raise UsageError(f"{where}: holds the labels of {actual[0]} ({actual[1]}), not of {name} ({split})")


def _read_array(stream: BinaryIO, path: Path) -> np.ndarray:
    dtype, shape = _read_header(stream, path)
    expected = math.prod(shape) * dtype.itemsize
    if expected > _MAX_BYTES:
        raise UsageError(f"{path}: the header asks for {expected} bytes, more than the {_MAX_BYTES} allowed")
    values = _read_at_most(stream, expected + 1)  # one more byte than promised shows a file that is too long
    if len(values) != expected:
        found = "more" if len(values) > expected else str(len(values))
        raise UsageError(f"{path}: the header promises {expected} bytes of values for shape {shape}, found {found}")
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_header(stream: BinaryIO, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= _MAX_DIMENSIONS:
        raise UsageError(f"{path}: not an idx file (it begins with {magic.hex() or 'nothing'})")
    n_dimensions = magic[3]
    sizes = stream.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise UsageError(f"{path}: ends within the idx header")
    shape = tuple(int.from_bytes(sizes[4 * i : 4 * i + 4], "big") for i in range(n_dimensions))
    return np.dtype(_TYPES[magic[2]]), shape


def _read_at_most(stream: BinaryIO, n_bytes: int) -> bytearray:
    """Up to n_bytes, piece by piece: memory follows what the file holds, not what its header claims."""
    values = bytearray()
    while len(values) < n_bytes:
        piece = stream.read(min(n_bytes - len(values), 2**24))
        if not piece:
            break
        values += piece
    return values


def _find_folder(split: str, root: str | os.PathLike[str] | None) -> Path:
    if root is not None:
        places = [user_path(root)]
    else:
        named = os.environ.get(DATA_VARIABLE)
        places = [user_path(named), user_path(named) / "fashion-mnist"] if named else []
        for place in SEARCH_PLACES:
            with contextlib.suppress(NoHome):
                places.append(user_path(place))
    for place in places:
        if None not in _split_files(place, split):
            return place
    names = " and ".join(f"{stem}[.gz]" for stem in _stems(split))
    raise UsageError(
        f"Fashion-MNIST: {names} not found in {', '.join(map(str, places))}; on Debian or Ubuntu install "
        "the package dataset-fashion-mnist, elsewhere fetch the four files from "
        "https://github.com/zalandoresearch/fashion-mnist (data/fashion) "
        f"and name their folder in {DATA_VARIABLE}"
    )


def _split_files(folder: Path, split: str) -> list[Path | None]:
    candidates = ([folder / stem, folder / f"{stem}.gz"] for stem in _stems(split))
    return [next((path for path in pair if path.is_file()), None) for pair in candidates]


def _stems(split: str) -> tuple[str, str]:
    return f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"
