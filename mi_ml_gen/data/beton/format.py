"""FFCV's .beton files: written, checked and read.

A .beton file holds a header, a description of its fields, a table of samples (size of each image, where its bytes are,
its label), the images as JPEG or raw bytes in pages, and a table of those bytes' lengths. FFCV (Leclerc et al., 2023)
takes every number in it on trust and reads memory where they point; here they are held against the file's size before
it gets to see a file.

Nothing here needs FFCV; `beton_images` reads with it and without.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.files import atomic_write, disk_faults, hash_file, remove_unfinished, write_with_hash

JPEG_QUALITY = 90  # FFCV's default, and the reference's
PAGE_SIZE = 2**23  # FFCV's default; an image's bytes never cross from one page into the next

_VERSION = 2
_HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("table_at", "<u8")]
)
_FIELD = np.dtype([("kind", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
_PLACE = np.dtype([("sample", "<u8"), ("at", "<u8"), ("size", "<u8")])
_IMAGE = [("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("at", "<u8")]
_UNLABELLED = np.dtype(_IMAGE)  # 13 bytes
_LABELLED = np.dtype(
    {  # a C struct: the label at a multiple of 8
        "names": ["mode", "width", "height", "at", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
_LABEL_FIRST = np.dtype(
    {  # as above, of files that were written with the label before the image
        "names": ["label", "mode", "width", "height", "at"],
        "formats": ["<i8", "u1", "<u2", "<u2", "<u8"],
        "offsets": [0, 8, 9, 11, 13],
        "itemsize": 24,
    }
)
_INT, _RGB = 1, 2  # kinds of fields
_JPEG, _RAW = 0, 1  # modes of images

MAX_SIDE_PX = 4096
"""Larger images are refused: FFCV makes room for the largest of a file in every place of every batch."""
MAX_CLASSES = 2**20
_N_LOOKED_INTO = 1000  # images whose JPEG header is held against the table before FFCV gets the file
_MAX_PAGE, _MIN_PAGE = 2**31, 2**21


# --- writing ------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """One image ready to be written: the bytes of a JPEG file, its sides in pixels, its label."""

    data: bytes
    height: int
    width: int
    label: int = 0


def encode_jpeg(pixels: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """The JPEG file of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_beton(
    path: str | os.PathLike[str],
    images: Iterable[Encoded],
    n_images: int,
    classes: tuple[str, ...] | None = None,
    page_size: int = PAGE_SIZE,
) -> Path:
    """Write a .beton file that stock FFCV reads, whole or not at all.

    images: exactly n_images of them, in order. classes: the names of the labels, which go into a file beside
    (train.beton has train.classes.json); None for a file without labels, whose images' labels are not looked at. The
    SHA-256 of labels and tables goes into another one (train.beton.index.sha256).
    What a killed call for the same path left is removed.
    Raises UsageError for no images, for one whose bytes exceed page_size, and for another number of them.
    """
    path = Path(path)
    if n_images < 1:
        raise UsageError(f"{path}: a .beton file must hold at least one image")
    names = ("image",) if classes is None else ("image", "label")
    table = np.zeros(n_images, _UNLABELLED if classes is None else _LABELLED)
    places = np.zeros(n_images, _PLACE)
    metadata_at = _HEADER.itemsize + len(names) * _FIELD.itemsize
    first_page = -(-(metadata_at + table.nbytes) // page_size) * page_size

    def write(file: IO[bytes]) -> None:
        file.seek(first_page)
        end, n = first_page, 0
        for n, image in enumerate(images, start=1):
            if n > n_images:
                break
            size = len(image.data)
            if size > page_size:
                raise UsageError(f"{path}: image {n - 1} takes {size} bytes, more than a page of {page_size}")
            if end % page_size + size > page_size:
                end = -(-end // page_size) * page_size
                file.seek(end)
            file.write(image.data)
            row = table[n - 1]
            row["mode"], row["width"], row["height"], row["at"] = _JPEG, image.width, image.height, end
            if classes is not None:
                row["label"] = image.label
            places[n - 1] = n - 1, end, size
            end += size
        if n != n_images:
            raise UsageError(f"{path}: {'more' if n > n_images else n} images came, {n_images} were announced")
        table_at = -(-end // page_size) * page_size
        file.seek(table_at)
        file.write(places.tobytes())
        file.seek(0)
        header = np.array((_VERSION, len(names), page_size, n_images, table_at), _HEADER)
        fields = np.zeros(len(names), _FIELD)
        for field, name, kind in zip(fields, names, (_RGB, _INT), strict=False):
            field["kind"] = kind
            field["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        file.write(header.tobytes() + fields.tobytes() + table.tobytes())
        index.append(_hash_of(header, fields, table, places))

    index: list[str] = []
    remove_unfinished(path)
    with disk_faults(path):  # a kill between the writes must not leave an older file's names beside new labels
        for beside in (index_file(path), classes_file(path), hash_file(classes_file(path))):
            beside.unlink(missing_ok=True)
    atomic_write(path, write)
    atomic_write(index_file(path), f"{index[0]}  index of {path.name}\n".encode())
    if classes is not None:
        write_with_hash(classes_file(path), (json.dumps(list(classes)) + "\n").encode())
    return path


def index_file(path: Path) -> Path:
    """Where the SHA-256 of a file's header and tables stands: labels, sizes and places of its images. FFCV's format has
    no checksum of its own, and to read all images at each start would take too long."""
    return path.with_name(f"{path.name}.index.sha256")


def _hash_of(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def classes_file(path: Path) -> Path:
    """Where the class names of a .beton file stand, with their SHA-256 beside; FFCV's format has no place for them."""
    return path.with_suffix(".classes.json")


# --- checking -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BetonIndex:
    """What a checked .beton file says of its n images.

    is_raw: bool (n,). width, height: (n,) in pixels. at, size: where each image's bytes begin and how many they are,
    (n,). label: int64 (n,) or None. field_names: of the image, then of the label, whichever the file has first.
    """

    path: Path
    is_raw: np.ndarray
    width: np.ndarray
    height: np.ndarray
    at: np.ndarray
    size: np.ndarray
    label: np.ndarray | None
    field_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.at)


def read_index(path: str | os.PathLike[str]) -> BetonIndex:
    """Read and check everything in a .beton file but the images' bytes.

    Afterwards every number in it that FFCV uses as an address or a length lies within the file.
    Raises UsageError where there is no such file, or it is a sound one of another kind than image, or image and whole
    number; CorruptCheckpointError where it is cut short, damaged or made to mislead.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read_index(file, path, os.fstat(file.fileno()).st_size)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{path}: no such .beton file") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_index(file: IO[bytes], path: Path, file_size: int) -> BetonIndex:
    def require(holds: bool | np.bool_, what: str) -> None:
        if not holds:
            raise CorruptCheckpointError(f"{path}: not a whole .beton file: {what}")

    def read(dtype: np.dtype, at: int, count: int) -> np.ndarray:
        file.seek(at)
        return np.frombuffer(file.read(count * dtype.itemsize), dtype)

    require(file_size >= _HEADER.itemsize, f"{file_size} bytes")
    version, n_fields, page_size, n, table_at = map(int, read(_HEADER, 0, 1)[0])
    require(version == _VERSION, f"version {version}, expected {_VERSION}")
    require(1 <= n_fields <= 64, f"{n_fields} fields")
    require(_MIN_PAGE <= page_size <= _MAX_PAGE and page_size & (page_size - 1) == 0, f"page size {page_size}")
    metadata_at = _HEADER.itemsize + n_fields * _FIELD.itemsize
    require(metadata_at <= file_size, "it ends within the description of its fields")
    header, fields = read(_HEADER, 0, 1), read(_FIELD, _HEADER.itemsize, n_fields)
    kinds, names = _fields(fields, path)
    dtypes = {(_RGB,): _UNLABELLED, (_RGB, _INT): _LABELLED, (_INT, _RGB): _LABEL_FIRST}
    if kinds not in dtypes:
        raise UsageError(
            f"{path}: its fields {', '.join(names)} are not an image (RGBImageField), or an image and a whole number "
            "(IntField)"
        )

    dtype = dtypes[kinds]
    if kinds[0] == _INT:
        names = names[::-1]
    metadata_end = metadata_at + n * dtype.itemsize
    require(n >= 1, "no images")
    require(metadata_end <= table_at <= file_size, f"{n} samples do not fit before the table at {table_at}")
    n_places, rest = divmod(file_size - table_at, _PLACE.itemsize)
    require(n_places >= 1 and rest == 0, f"a table of {file_size - table_at} bytes")
    # Each image was given its bytes once; a sample that FFCV's writer moved to the next page leaves nothing behind.
    require(n_places == n, f"{n_places} stretches of bytes for {n} images")
    table, places = read(dtype, metadata_at, n), read(_PLACE, table_at, n_places)

    # Sums of two 64-bit numbers could wrap around: each is held against the file's size first.
    for value in (places["at"], places["size"]):
        require((value <= table_at).all(), "bytes beyond the end of the images")
    ends = places["at"] + places["size"]
    require((places["at"] >= metadata_end).all() and (ends <= table_at).all(), "bytes outside of the images' part")
    require((places["sample"] < n).all(), "bytes of a sample that there is not")
    order = np.argsort(places["at"], kind="stable")
    starts = places["at"][order]
    require((starts[1:] >= ends[order][:-1]).all() and (np.diff(starts) > 0).all(), "images' bytes overlap")
    found = np.minimum(np.searchsorted(starts, table["at"]), n_places - 1)
    require((starts[found] == table["at"]).all(), "an image's bytes have no length")
    owner = places[order][found]
    require((owner["sample"] == np.arange(n)).all(), "an image's bytes belong to another")
    require((owner["at"] // page_size == (owner["at"] + np.maximum(owner["size"], 1) - 1) // page_size).all(),
            "an image's bytes cross into the next page")  # fmt: skip
    sizes = owner["size"].astype(np.int64)

    width, height = table["width"].astype(np.int64), table["height"].astype(np.int64)
    is_raw = table["mode"] == _RAW
    require((is_raw | (table["mode"] == _JPEG)).all(), "an image that is neither JPEG nor raw")
    require((np.minimum(width, height) >= 1).all(), "an image without pixels")
    require((sizes > 0).all(), "an image without bytes")
    require((sizes[is_raw] == 3 * width[is_raw] * height[is_raw]).all(), "a raw image of another size than it says")
    longest = int(max(width.max(), height.max()))
    if longest > MAX_SIDE_PX:
        raise CorruptCheckpointError(f"{path}: an image of {longest} px, more than the {MAX_SIDE_PX} allowed")
    label = None
    if len(kinds) == 2:
        label = table["label"].astype(np.int64)
        require(label.min() >= 0 and label.max() < MAX_CLASSES, f"labels from {label.min()} to {label.max()}")
    beside = index_file(path)
    if beside.exists() and beside.read_bytes()[:64] != _hash_of(header, fields, table, places).encode():
        raise CorruptCheckpointError(
            f"{path}: damaged, its labels and tables are not what {beside.name} says; "
            "if another program wrote it anew, remove that file"
        )
    return BetonIndex(path, is_raw, width, height, table["at"].astype(np.int64), sizes, label, names)


def _fields(fields: np.ndarray, path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    try:
        names = tuple(field["name"].tobytes().split(b"\0")[0].decode("ascii") for field in fields)
    except UnicodeDecodeError:
        raise CorruptCheckpointError(f"{path}: not a whole .beton file: names of fields that are not text") from None
    if len(set(names)) != len(names):
        raise CorruptCheckpointError(f"{path}: not a whole .beton file: two fields of one name")
    return tuple(int(field["kind"]) for field in fields), names


def check_pictures(index: BetonIndex, n_looked_into: int = _N_LOOKED_INTO) -> None:
    """Hold the JPEG headers of images spread over the file against its table: FFCV does not notice an image that it
    cannot decode. Raises CorruptCheckpointError naming the first that is wrong."""
    chosen = np.unique(np.linspace(0, len(index) - 1, min(len(index), n_looked_into)).round().astype(int))
    data = np.memmap(index.path, np.uint8, "r")
    for i in chosen:
        if not index.is_raw[i]:
            open_jpeg(index, data, int(i))


def open_jpeg(index: BetonIndex, data: np.ndarray, i: int) -> Image.Image:
    """Image i, not decoded yet, of the size that the table says."""
    try:
        image = Image.open(io.BytesIO(data[index.at[i] : index.at[i] + index.size[i]].tobytes()), formats=("JPEG",))
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise CorruptCheckpointError(f"{index.path}: image {i} is not a JPEG: {_one_line(error)}") from error
    said = int(index.width[i]), int(index.height[i])
    if image.size != said:
        raise CorruptCheckpointError(f"{index.path}: image {i} has {image.size} pixels, the table says {said}")
    return image


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
