"""FFCV itself: it reads what is written here, what it writes is read here, and its images are those of the other
loader. Collected only where FFCV is installed (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, resizer
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault
from mi_ml_gen.data.beton.format import Encoded, read_index, write_beton
from mi_ml_gen.data.beton.images import BetonImages, FFCVImages
from mi_ml_gen.data.framing import FRAMINGS, framing, shrink
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.resampling import resize_area
from mi_ml_gen.data.source import batches
from tests.image_files import jpeg, picture

N = 23
PICTURES = [picture(i, 150 + 13 * i, 420 - 11 * i) for i in range(N)]


class Pictures:
    """What FFCV's writer takes."""

    def __init__(self, row: Callable[[int], tuple]) -> None:
        self.row = row

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple:
        return self.row(i)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "train.beton"
    images = (Encoded(jpeg(pixels), *pixels.shape[:2], i % 5) for i, pixels in enumerate(PICTURES))
    return write_beton(path, images, N, tuple("abcde"), page_size=2**21)


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """Written by FFCV as the reference does it: JPEG, the longer side at most 256, no labels."""
    path = tmp_path_factory.mktemp("stock") / "train.beton"
    writer = DatasetWriter(str(path), {"0": RGBImageField(write_mode="jpg", max_resolution=256)}, num_workers=1)
    writer.from_indexed_dataset(Pictures(lambda i: (PICTURES[i],)))
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Written by FFCV without compression, with labels."""
    path = tmp_path_factory.mktemp("raw") / "train.beton"
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Pictures(lambda i: (PICTURES[i], i % 3)))
    return path


def test_stock_ffcv_reads_what_is_written_here(ours: Path) -> None:
    """An epoch by FFCV's own reader and loader alone."""
    assert Reader(str(ours)).field_names == ["image", "label"]
    decoder = CenterCropRGBImageDecoder((32, 32), ratio=1)
    loader = Loader(str(ours), 5, num_workers=1, drop_last=False, pipelines={"image": [decoder, ToTensor()]})
    images, labels = (torch.cat(parts) for parts in zip(*((a.clone(), b.clone()) for a, b in loader), strict=True))
    assert images.shape == (N, 32, 32, 3) and labels[:, 0].tolist() == [i % 5 for i in range(N)]
    for i in range(N):
        expected = framing("whole", 32).cut(PICTURES[i])
        assert np.abs(images[i].numpy().astype(int) - expected).mean() < 3


def test_what_ffcv_writes_is_read_here(stock: Path, raw: Path) -> None:
    index = read_index(stock)
    assert len(index) == N and index.label is None and index.field_names == ("0",)
    shapes = [shrink(pixels, 256).shape[:2] for pixels in PICTURES]
    assert list(zip(index.height, index.width, strict=True)) == shapes
    index = read_index(raw)
    assert index.is_raw.all() and index.label is not None and index.label.tolist() == [i % 3 for i in range(N)]
    source = BetonImages(index, FRAMINGS["whole"])
    for i in range(N):
        np.testing.assert_array_equal(source.image(i), PICTURES[i])


@pytest.mark.parametrize("name", ["whole", "bigbigan", "stylegan"])
def test_both_loaders_crop_and_resize_alike(raw: Path, name: str) -> None:
    """Without JPEG between them the loaders differ by rounding alone."""
    through_ffcv = load_source(raw, framing=name)
    plain = load_source(raw, framing=name, loader="torch")
    assert isinstance(through_ffcv, FFCVImages) and isinstance(plain, BetonImages)
    order = torch.randperm(N)
    one, other = (torch.cat(list(batches(source, order, 7))).int() for source in (through_ffcv, plain))
    assert one.shape == (N, 3, 128, 128)
    assert (one - other).abs().max() <= 1 and (one != other).float().mean() < 0.15  # OpenCV counts in 1/2048


@pytest.mark.parametrize("name", ["classification", "stylegan"])
def test_both_loaders_give_the_same_images_to_within_jpeg_decoding(stock: Path, name: str) -> None:
    through_ffcv, plain = (load_source(stock, framing=name, loader=loader) for loader in ("ffcv", "torch"))
    indices = torch.arange(N)
    difference = (through_ffcv.batch(indices).int() - plain.batch(indices).int()).abs()
    assert difference.max() <= 8 and difference.float().mean() < 1.5  # FFCV asks for the fast, less exact DCT


def test_an_epoch_in_any_order_and_several_epochs(ours: Path) -> None:
    source = load_source(ours, image_size=16)
    assert source.classes == tuple("abcde") and source.labels is not None
    everything = source.batch(torch.arange(N))
    for epoch in range(3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        found = list(batches(source, order, 4))
        assert [len(batch) for batch in found] == [4, 4, 4, 4, 4, 3]
        torch.testing.assert_close(torch.cat(found), everything[order], rtol=0, atol=0)
    assert [len(batch) for batch in batches(source, torch.arange(N), 10, drop_last=True)] == [10, 10]
    repeated = torch.tensor([5, 5, 2])
    torch.testing.assert_close(source.batch(repeated), everything[repeated], rtol=0, atol=0)
    assert source.batch(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 16, 16)


def test_a_reader_that_stops_early_leaves_the_loader_usable(ours: Path) -> None:
    source = load_source(ours, image_size=16)
    found = batches(source, torch.arange(N), 2)
    first = next(found)
    found.close()
    torch.testing.assert_close(source.batch(torch.tensor([0, 1])), first, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_ffcvs_thread_ends_the_epoch(ours: Path, monkeypatch) -> None:
    def fails(*arguments):
        raise RuntimeError("out of luck")

    source = load_source(ours, image_size=16)
    monkeypatch.setattr(EpochIterator, "run_pipeline", fails)
    with pytest.raises(EnvironmentFault, match="FFCV's reader stopped"):
        source.batch(torch.arange(3))


def test_indices_outside_are_refused_before_ffcv_follows_them(ours: Path) -> None:
    source = load_source(ours, image_size=16)
    for index in (N, -1):
        with pytest.raises(IndexError):
            source.batch(torch.tensor([index]))


def test_pictures_that_ffcv_would_leave_out_in_silence_are_refused(ours: Path, tmp_path: Path) -> None:
    content = bytearray(ours.read_bytes())
    content[read_index(ours).at[3]] = 0
    path = tmp_path / "damaged.beton"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="image 3 is not a JPEG"):
        load_source(path, image_size=16)


@pytest.mark.parametrize(("height", "width"), [(50, 61), (128, 128), (200, 130), (256, 256), (17, 300)])
def test_area_resizing_equals_opencv(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)
    expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    difference = np.abs(resize_area(pixels, height, width).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.15  # OpenCV counts in 1/2048 when it enlarges


def test_shrinking_equals_ffcvs() -> None:
    for pixels in PICTURES:
        expected = resizer(pixels, 256)
        found = shrink(pixels, 256)
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1
