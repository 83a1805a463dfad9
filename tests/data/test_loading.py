"""Sources by their references: standard sets, torchvision's files, folders; and reading ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.data import folders as folders_module
from mi_ml_gen.data.idx import FASHION_CLASSES
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages, ImageSource, batches, held
from tests.image_files import folder, picture, save


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv(folders_module.CACHE_VARIABLE, str(tmp_path_factory.mktemp("memory")))


def write_fashion(place: Path, stem: str = "train", n: int = 12) -> np.ndarray:
    """Idx files of n images, in the layout that torchvision reads too."""
    place.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", np.arange(n) % 10)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (place / name).write_bytes(header + array.astype(np.uint8).tobytes())
    return images


def test_fashion_mnist_has_a_black_border_above_28_px(tmp_path: Path) -> None:
    images = write_fashion(tmp_path)
    plain = load_source(f"fashion-mnist:{tmp_path}")
    assert isinstance(plain, ImageSource)
    assert (plain.n_images, plain.image_size, plain.classes) == (12, 28, FASHION_CLASSES)
    np.testing.assert_array_equal(plain.batch(torch.tensor([3]))[0].numpy(), np.stack([images[3]] * 3))

    wide = load_source(f"fashion-mnist:{tmp_path}", image_size=32).batch(torch.tensor([3, 0]))
    assert wide.shape == (2, 3, 32, 32) and wide.dtype == torch.uint8
    np.testing.assert_array_equal(wide[0, 1, 2:30, 2:30].numpy(), images[3])
    assert wide.long().sum() == 3 * images[[3, 0]].astype(int).sum()

    small = load_source(f"fashion-mnist:{tmp_path}", image_size=14).batch(torch.tensor([3]))
    expected = images[3].reshape(14, 2, 14, 2).mean((1, 3))
    assert np.abs(small[0, 0].numpy() - expected).max() <= 0.5


def test_digits() -> None:
    train, test = load_source("digits"), load_source("digits", "test")
    assert (train.n_images, test.n_images) == (1438, 359) and train.image_size == 8
    assert train.labels is not None and set(train.labels.tolist()) == set(range(10))
    images = train.batch(torch.arange(train.n_images))
    assert images.max() == 255 and images.min() == 0  # ink from 0 to 16
    assert load_source("digits", image_size=32).batch(torch.arange(2)).shape == (2, 3, 32, 32)


def test_digits_without_scikit_learn(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'mi_ml_gen\[mim\]'"):
        load_source("digits")


def test_torchvision_in_memory(tmp_path: Path) -> None:
    images = write_fashion(tmp_path / "FashionMNIST" / "raw", n=10)
    write_fashion(tmp_path / "FashionMNIST" / "raw", "t10k", n=5)
    source = load_source(f"torchvision:FashionMNIST:{tmp_path}")
    assert source.n_images == 10 and source.classes[9] == "Ankle boot" and source.labels is not None
    assert source.labels.tolist() == list(range(10))
    np.testing.assert_array_equal(source.batch(torch.tensor([7]))[0, 2].numpy(), images[7])
    assert load_source(f"torchvision:FashionMNIST:{tmp_path}", "test").n_images == 5


def test_torchvision_pictures(tmp_path: Path) -> None:
    """DTD's layout: images by class, lists of the splits."""
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split, names in {
        "train": ["dots/a.jpg", "waves/b.jpg"],
        "val": ["dots/c.jpg"],
        "test": ["waves/d.jpg"],
    }.items():
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            save(base / "images" / name, picture(i, 50, 70), quality=95)
    source = load_source(f"torchvision:DTD:{tmp_path}", image_size=16)
    assert source.n_images == 2 and source.image_size == 16 and source.labels is not None
    assert [source.classes[i] for i in source.labels] == ["dots", "waves"]
    batch = source.batch(torch.tensor([1, 0]))
    expected = torch.tensor(picture(0, 50, 70)[:, 10:60].reshape(50, 50, 3).mean((0, 1)))
    assert (batch[1].float().mean((1, 2)) - expected).abs().max() < 3
    assert load_source(f"torchvision:DTD:{tmp_path}", "validation").n_images == 1


def test_torchvision_files_that_do_not_fit(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    write_fashion(raw, n=10)
    write_fashion(raw, "t10k", n=5)
    images = raw / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="torchvision:FashionMNIST.*cannot be read"):
        load_source(f"torchvision:FashionMNIST:{tmp_path}")
    images.write_bytes(whole)
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([200]))
    with pytest.raises(UsageError, match="labels up to 200 for 10 images of 10 classes"):
        load_source(f"torchvision:FashionMNIST:{tmp_path}")


def test_a_torchvision_picture_that_is_missing(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    (base / "images").mkdir()
    (base / "labels" / "train1.txt").write_text("dots/a.jpg\nwaves/b.jpg")
    source = load_source(f"torchvision:DTD:{tmp_path}", image_size=16)
    with pytest.raises(UsageError, match="DTD train: image 1 cannot be read"):
        source.batch(torch.tensor([1]))


@pytest.mark.parametrize(
    ("reference", "split", "complaint"),
    [
        ("torchvision:CIFAR11:/data", "train", "nearest known set: CIFAR10"),
        ("torchvision:CIFAR10", "train", "write torchvision:NAME:FOLDER"),
        ("torchvision:CIFAR10:/nowhere", "train", "not found.* must lie in /nowhere.*cifar-10-batches-py"),
        ("torchvision:MNIST:/nowhere", "train", "not found.*MNIST/raw"),
        ("torchvision:Caltech101:/nowhere", "train", "not found.*nothing is downloaded"),
        ("torchvision:SVHN:/nowhere", "validation", "has no split 'validation', only train, test"),
        ("digits", "validation", "only train, test"),
        ("fashion-mnst", "train", "nearest known set: fashion-mnist"),
        ("/nowhere/at/all", "train", "no such file or folder"),
        ("/nowhere/a.beton", "train", "no such .beton file"),
    ],
)
def test_what_is_not_there_is_said(reference: str, split: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        load_source(reference, split, loader="torch")
    assert "download=True" not in str(caught.value)  # which no flag of ours could follow


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(UsageError, match="--loader dali: must be one of auto, torch, ffcv"):
        load_source(tmp_path, loader="dali")
    with pytest.raises(UsageError, match="image_size 0"):
        load_source(tmp_path, image_size=0)
    with pytest.raises(UsageError, match="n_workers 0"):
        load_source(tmp_path, n_workers=0)
    with pytest.raises(UsageError, match="split 'trian'"):
        load_source(tmp_path, "trian")
    with pytest.raises(UsageError, match=r"no \.beton file of the train split; write one with scripts/create_image"):
        load_source(tmp_path, loader="ffcv")
    with pytest.raises(UsageError, match="not read through FFCV"):
        load_source("digits", loader="ffcv")
    note = tmp_path / "note.txt"
    note.touch()
    with pytest.raises(UsageError, match="is a file; give a folder"):
        load_source(note)


def test_folders_divided_into_splits(tmp_path: Path) -> None:
    folder(tmp_path / "train", n=4)
    folder(tmp_path / "val", n=2)
    assert load_source(tmp_path, image_size=8).n_images == 4
    assert load_source(tmp_path, "validation", image_size=8).n_images == 2
    with pytest.raises(UsageError, match="no folder of the test split, only train, val"):
        load_source(tmp_path, "test")
    assert load_source(tmp_path / "train", "test", image_size=8).n_images == 4  # not divided: whatever the split


def test_a_folder_source_has_the_default_size(tmp_path: Path) -> None:
    source = load_source(folder(tmp_path))
    assert isinstance(source, ImageSource) and source.image_size == 128
    assert source.batch(torch.tensor([0])).shape == (1, 3, 128, 128)


# --- reading ahead ------------------------------------------------------------------------------------------


class Counted:
    """Images that tell their own number; remembers how far it was read."""

    name, n_images, image_size, labels, classes = "counted", 100, 2, None, ()

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.n_read = 0

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        self.n_read += len(indices)
        if self.fails_at is not None and self.n_read > self.fails_at:
            raise UsageError("image 9: damaged")
        return indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_batches_come_in_order() -> None:
    order = torch.randperm(100)[:50]
    found = list(batches(Counted(), order, 8))
    assert [len(batch) for batch in found] == [8] * 6 + [2]
    torch.testing.assert_close(torch.cat(found)[:, 0, 0, 0].long(), order)
    assert [len(batch) for batch in batches(Counted(), order, 8, drop_last=True)] == [8] * 6
    assert list(batches(Counted(), order[:0], 8)) == []


def test_an_error_while_reading_ahead_is_raised_in_its_place() -> None:
    found = batches(Counted(fails_at=16), torch.arange(50), 8)
    assert len(next(found)) == 8 and len(next(found)) == 8
    with pytest.raises(UsageError, match="image 9"):
        next(found)


def test_who_stops_reading_stops_the_thread() -> None:
    before = threading.active_count()
    source = Counted()
    found = batches(source, torch.arange(100).repeat(50), 10)
    next(found)
    found.close()
    assert threading.active_count() == before and source.n_read < 200


def test_held_images_are_the_same_images() -> None:
    source = Counted()
    copy = held(source, batch_size=7)
    assert isinstance(copy, HeldImages) and copy.n_images == 100 and held(copy) is copy
    torch.testing.assert_close(copy.batch(torch.arange(100)), source.batch(torch.arange(100)))
