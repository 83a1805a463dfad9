"""The .beton format: what is written can be read, and nothing that points outside of a file is believed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.data import folders
from mi_ml_gen.data.beton import format as beton
from mi_ml_gen.data.beton.format import Encoded, check_pictures, read_index, write_beton
from mi_ml_gen.data.beton.images import SYSTEM_PACKAGES, BetonImages
from mi_ml_gen.data.framing import Framing
from mi_ml_gen.data.loading import load_source
from tests.image_files import folder, jpeg, picture, save

SHAPES = [(30, 40), (25, 20), (16, 16), (33, 7)]
PICTURES = [picture(i, *shape) for i, shape in enumerate(SHAPES)]
LABELS = [1, 0, 1, 2]
HEADER, FIELD = 24, 1041


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path_factory.mktemp("memory")))


def write(path: Path, classes: tuple[str, ...] | None = ("a", "b", "c"), **options) -> Path:
    rows = zip(PICTURES, LABELS, strict=True)
    images = (Encoded(jpeg(pixels), *pixels.shape[:2], label) for pixels, label in rows)
    return write_beton(path, images, len(PICTURES), classes, **options)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "train.beton")
    index = read_index(path)
    check_pictures(index)
    assert len(index) == 4 and list(zip(index.height, index.width, strict=True)) == SHAPES
    assert index.label is not None and index.label.tolist() == LABELS and not index.is_raw.any()
    data = path.read_bytes()
    for i, pixels in enumerate(PICTURES):
        assert data[index.at[i] : index.at[i] + index.size[i]] == jpeg(pixels)

    source = load_source(path, image_size=10, loader="torch")
    assert isinstance(source, BetonImages) and source.classes == ("a", "b", "c") and source.image_size == 10
    batch = source.batch(torch.tensor([2, 0]))
    for row, i in enumerate((2, 0)):
        expected = Framing(10).cut(PICTURES[i])
        assert np.abs(batch[row].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 4  # JPEG
    assert source.batch(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 10, 10)


def test_without_labels(tmp_path: Path) -> None:
    source = load_source(write(tmp_path / "train.beton", classes=None), loader="torch")
    assert source.labels is None and source.classes == () and not list(tmp_path.glob("*.json"))


def test_labels_without_names_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "train.beton")
    beton.classes_file(path).unlink()
    assert load_source(path, loader="torch").classes == ("0", "1", "2")
    beton.classes_file(path).write_text('["a"]')
    with pytest.raises(CorruptCheckpointError, match="names of 3 classes"):
        load_source(path, loader="torch")


def test_pages_are_never_crossed(tmp_path: Path) -> None:
    page = 2**21
    data = jpeg(PICTURES[0])
    padded = data + bytes(page // 3)  # what follows the end of a JPEG is not looked at
    path = tmp_path / "a.beton"
    write_beton(path, (Encoded(padded, 30, 40) for _ in range(5)), 5, page_size=page)
    index = read_index(path)
    pages = index.at // page
    assert pages.tolist() == [1, 1, 2, 2, 3] and ((index.at + index.size - 1) // page == pages).all()
    assert (BetonImages(index, Framing(8)).batch(torch.arange(5)).float().std(0) == 0).all()


def test_a_set_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def stops():
        yield Encoded(jpeg(PICTURES[0]), 30, 40)
        raise KeyboardInterrupt

    path = tmp_path / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        write_beton(path, stops(), 2)
    one = Encoded(jpeg(PICTURES[0]), 30, 40)
    for images, n, complaint in (([one], 2, "1 images came, 2 were announced"), ([one] * 3, 2, "more images came")):
        with pytest.raises(UsageError, match=complaint):
            write_beton(path, iter(images), n)
    with pytest.raises(UsageError, match="at least one"):
        write_beton(path, iter(()), 0)
    with pytest.raises(UsageError, match="more than a page"):
        write_beton(path, iter([Encoded(bytes(beton.PAGE_SIZE + 1), 1, 1)]), 1)
    assert list(tmp_path.iterdir()) == []


# --- hostile files ------------------------------------------------------------------------------------------


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little", signed=value < 0)


METADATA = HEADER + 2 * FIELD  # where the table of samples begins
HOSTILE = {
    # name: (offset, bytes), offsets below 0 count from the end, where the places of the bytes are listed
    "version": (0, number(3, 2)),
    "no fields": (2, number(0, 2)),
    "many fields": (2, number(65535, 2)),
    "page size 0": (4, number(0, 4)),
    "page size not a power of two": (4, number(2**23 - 1, 4)),
    "page size beyond 32 bits' half": (4, number(2**31 + 1, 4)),
    "no samples": (8, number(0, 8)),
    "more samples than bytes": (8, number(2**40, 8)),
    "samples that wrap around": (8, number(2**64 - 1, 8)),
    "table at 0": (16, number(0, 8)),
    "table beyond the end": (16, number(2**50, 8)),
    "table wraps around": (16, number(2**64 - 24, 8)),
    "table a byte late": (16, number(2**24 + 1, 8)),
    "names of no letters": (HEADER + 1, b"\xff\xfe"),
    "two names alike": (HEADER + FIELD + 1, b"image\0"),
    "mode": (METADATA, b"\x07"),
    "width 0": (METADATA + 1, number(0, 2)),
    "width 65535": (METADATA + 1, number(65535, 2)),
    "raw, of another size": (METADATA, b"\x01"),
    "image at 0": (METADATA + 5, number(0, 8)),
    "image within the header": (METADATA + 5, number(HEADER, 8)),
    "image beyond the end": (METADATA + 5, number(2**60, 8)),
    "image a byte late": (METADATA + 5, number(2**23 + 1, 8)),
    "image of another": (METADATA + 5, METADATA + 24 + 5),
    "label below 0": (METADATA + 16, number(-1, 8)),
    "label of 2**62": (METADATA + 16, number(2**62, 8)),
    "place of no sample": (-4 * 24, number(4, 8)),
    "place of the last number": (-4 * 24, number(2**64 - 1, 8)),
    "place at 0": (-4 * 24 + 8, number(0, 8)),
    "place beyond the end": (-4 * 24 + 8, number(2**63, 8)),
    "length beyond the end": (-4 * 24 + 16, number(2**24, 8)),
    "length wraps around": (-4 * 24 + 16, number(2**64 - 2**22, 8)),
    "length over the next": (-4 * 24 + 16, number(5000, 8)),
    "length 0": (-4 * 24 + 16, number(0, 8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_numbers_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "train.beton")
    content = bytearray(path.read_bytes())
    at, value = HOSTILE[name]
    if isinstance(value, int):
        value = bytes(content[value : value + 8])
    at = at if at >= 0 else len(content) + at
    assert content[at : at + len(value)] != value
    content[at : at + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"train\.beton: ") as caught:
        read_index(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [0, 3, 4, 5, 6, 77, 255])
def test_fields_of_other_kinds_are_refused(tmp_path: Path, kind: int) -> None:
    path = write(tmp_path / "train.beton")
    content = bytearray(path.read_bytes())
    content[HEADER] = kind
    path.write_bytes(content)
    with pytest.raises(UsageError, match="are not an image"):
        read_index(path)


def test_cut_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "train.beton")
    content = path.read_bytes()
    for size in (
        0,
        1,
        23,
        24,
        500,
        METADATA - 1,
        METADATA + 30,
        len(content) // 2,
        len(content) - 96,
        len(content) - 1,
    ):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError):
            read_index(path)
    path.write_bytes(content + bytes(5))
    with pytest.raises(CorruptCheckpointError):
        read_index(path)


def test_flipped_bits_in_numbers_never_lead_outside(tmp_path: Path) -> None:
    """Each bit of header, fields and tables: refused, or every address still lies within the images' part."""
    path = write(tmp_path / "train.beton")
    content = path.read_bytes()
    places = [*range(HEADER + 18), *range(HEADER + FIELD, HEADER + FIELD + 18), *range(METADATA, METADATA + 96)]
    places += range(len(content) - 96, len(content))
    n_refused = 0
    with path.open("r+b", buffering=0) as file:
        for place in places:
            for bit in (1, 16, 128):
                file.seek(place)
                file.write(bytes([content[place] ^ bit]))
                try:
                    index = read_index(path)
                    assert (index.at >= METADATA).all() and (index.at + index.size <= len(content) - 96).all()
                    assert max(index.width.max(), index.height.max()) <= beton.MAX_SIDE_PX
                except (CorruptCheckpointError, UsageError):
                    n_refused += 1
            file.seek(place)
            file.write(content[place : place + 1])
    assert n_refused > 2 * len(places)


def test_pictures_that_are_not_what_the_table_says(tmp_path: Path) -> None:
    path = write(tmp_path / "train.beton")
    content = bytearray(path.read_bytes())
    index = read_index(path)
    content[METADATA + 24 + 1] += 1  # a width
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"image 1 has \(20, 25\) pixels, the table says \(21, 25\)"):
        check_pictures(read_index(path))
    content[METADATA + 24 + 1] -= 1
    content[index.at[2]] = 0
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="image 2 is no JPEG"):
        check_pictures(read_index(path))
    source = BetonImages(read_index(path), Framing(8))
    with pytest.raises(CorruptCheckpointError, match="image 2"):
        source.batch(torch.arange(4))


# --- without FFCV -------------------------------------------------------------------------------------------


def test_without_ffcv_the_error_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "train.beton")
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    monkeypatch.setitem(sys.modules, "numba", None)
    for loader in ("auto", "ffcv"):
        with pytest.raises(EnvironmentFault) as caught:
            load_source(tmp_path, loader=loader)
        message = str(caught.value)
        assert "pip install 'mi_ml_gen[ffcv]'" in message and SYSTEM_PACKAGES in message and "--loader torch" in message
        assert "\n" not in message
    assert load_source(tmp_path, loader="torch").n_images == 4


def test_a_folder_with_both_is_read_as_asked(tmp_path: Path) -> None:
    write(tmp_path / "train.beton")
    folder(tmp_path / "train", n=2)
    assert load_source(tmp_path, loader="torch", image_size=8).n_images == 2
    assert load_source(tmp_path / "train.beton", loader="torch", image_size=8).n_images == 4


def test_the_file_of_each_split(tmp_path: Path) -> None:
    write(tmp_path / "validation.beton")
    assert load_source(tmp_path, "validation", loader="torch").n_images == 4
    save(tmp_path / "a.png", picture(0, 9, 9))
    assert load_source(tmp_path, "train", loader="torch", image_size=8).n_images == 1
