"""Reading idx files: round trips, and each way in which a file can be wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.idx import DATA_VARIABLE, FASHION_CLASSES, SEARCH_PLACES, fashion_mnist, read_idx

TYPE_BYTE = {"uint8": 0x08, "int16": 0x0B, "float32": 0x0D}


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, TYPE_BYTE[values.dtype.name], values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_split(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, compressed: bool = False) -> None:
    for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        content = idx_bytes(values)
        path = folder / (name + ".gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)


@pytest.fixture
def small_set(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 1, 2, 3, 4, 5], dtype=np.uint8)
    write_split(tmp_path, "train", images, labels)
    return tmp_path, images, labels


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back(tmp_path: Path, dtype: str, compressed: bool) -> None:
    values = (np.arange(24).reshape(2, 3, 4) * 3 - (0 if dtype == "uint8" else 9)).astype(dtype)
    path = tmp_path / "values-idx"  # no suffix: compression is told by the content
    path.write_bytes(gzip.compress(idx_bytes(values)) if compressed else idx_bytes(values))
    read = read_idx(path)
    assert read.dtype == values.dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG\r\n\x1a\n", "not an idx file"),
        (b"\0\0\x07\x01\0\0\0\1x", "not an idx file"),
        (b"\0\0\x08\x03\0\0\0\1", "ends within the idx header"),
        (idx_bytes(np.zeros((4, 5), np.uint8))[:-1], "found 19"),
        (idx_bytes(np.zeros((4, 5), np.uint8)) + b"x", "found more"),
        (b"\0\0\x0e\x02" + b"\xff" * 8, "more than"),
        (gzip.compress(idx_bytes(np.zeros((4, 5), np.uint8)), mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(idx_bytes(np.zeros((4, 5), np.uint8)), mtime=0)[:-8] + b"\0" * 8, "damaged gzip"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "wrong-idx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_idx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_bomb_is_read_no_further_than_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(10, np.uint8)) + bytes(50_000_000)))
    with pytest.raises(UsageError, match="found more"):
        read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent-idx"):
        read_idx(tmp_path / "absent-idx")


def test_a_split_is_read_whole(small_set: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, images, labels = small_set
    data = fashion_mnist("train", root=folder)
    assert data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64 and len(data) == 7
    np.testing.assert_array_equal(data.images.numpy(), images)
    np.testing.assert_array_equal(data.labels.numpy(), labels)
    assert data.classes[data.labels[0]] == "ankle boot"
    data.images[0] = 0  # a tensor of its own, not a read-only view of the file's bytes


def test_the_environment_names_the_folder(
    small_set: tuple[Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images, _ = small_set
    monkeypatch.setenv(DATA_VARIABLE, str(folder))
    np.testing.assert_array_equal(fashion_mnist("train").images.numpy(), images)


def test_compressed_files_are_found(tmp_path: Path) -> None:
    write_split(tmp_path, "t10k", np.full((2, 28, 28), 3, np.uint8), np.array([1, 2], np.uint8), compressed=True)
    assert fashion_mnist("test", root=tmp_path).labels.tolist() == [1, 2]


def test_absent_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fashion_mnist("train", root=tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path), "dataset-fashion-mnist", DATA_VARIABLE, "train-images-idx3-ubyte"):
        assert part in message
    assert "\n" not in message


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="train, test"):
        fashion_mnist("validation")


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (np.zeros((3, 28, 28), np.uint8), np.zeros(2, np.uint8), r"expected uint8 of shape \(3,\)"),
        (np.zeros((3, 28, 27), np.uint8), np.zeros(3, np.uint8), "28, 28"),
        (np.zeros((3, 28, 28), np.uint8), np.full(3, 10, np.uint8), "label 10"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, complaint: str
) -> None:
    write_split(tmp_path, "train", images, labels)
    with pytest.raises(UsageError, match=complaint):
        fashion_mnist("train", root=tmp_path)


def test_the_published_files_where_installed() -> None:
    """The Debian package's files: ten classes in equal numbers. Elsewhere: that their absence is clear."""
    if not SEARCH_PLACES[0].is_dir():
        with pytest.raises(UsageError):
            fashion_mnist("test", root=SEARCH_PLACES[0])
        return
    data = fashion_mnist("test", root=SEARCH_PLACES[0])
    assert data.images.shape == (10_000, 28, 28)
    assert data.labels.bincount().tolist() == [1000] * len(FASHION_CLASSES)


@pytest.mark.parametrize(
    ("first", "split", "complaint"),
    [
        (
            (5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9),
            "train",
            r"MNIST \(train\), not of FashionMNIST",
        ),
        ((7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6, 9, 0, 1, 5, 9, 7, 3, 4), "test", r"MNIST \(test\), not of F"),
        ((9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0), "train", r"FashionMNIST \(test\), not of"),
    ],
)
def test_a_set_that_is_not_what_its_name_says(tmp_path: Path, first, split: str, complaint: str) -> None:
    """MNIST's files have the same names and sizes; FashionMNIST's garments would be digits."""
    prefix = {"train": "train", "test": "t10k"}[split]
    write_split(tmp_path, prefix, np.zeros((20, 28, 28), np.uint8), np.array(first, np.uint8))
    with pytest.raises(UsageError, match=complaint):
        fashion_mnist(split, tmp_path)


def test_another_number_of_images_is_said(small_set, caplog) -> None:
    fashion_mnist("train", small_set[0])
    assert "7 train images, the published Fashion-MNIST has 60000" in caplog.text
