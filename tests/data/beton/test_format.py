"""The .beton format: what is written can be read, and nothing that points outside of a file is believed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import files as core_files
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.files import hash_file
from mi_ml_gen.data import folders
from mi_ml_gen.data.beton import format as beton
from mi_ml_gen.data.beton import images as beton_images
from mi_ml_gen.data.beton.format import Encoded, check_pictures, read_index, write_beton
from mi_ml_gen.data.beton.images import SYSTEM_PACKAGES, BetonImages
from mi_ml_gen.data.framing import Framing
from mi_ml_gen.data.loading import check_source, find_beton, load_source
from mi_ml_gen.data.splits import has_split, load_splits
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
    write_beton(path, images, len(PICTURES), classes, **options)
    beton.index_file(path).unlink()  # as other writers leave a file
    return path


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


def test_no_damage_to_labels_and_tables_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    write_beton(
        path, (Encoded(jpeg(PICTURES[0]), *PICTURES[0].shape[:2], label) for label in LABELS), 4, ("a", "b", "c")
    )
    whole, index = path.read_bytes(), read_index(path)
    metadata = HEADER + 2 * FIELD
    for at in [*range(HEADER + 20), *range(metadata, metadata + 4 * 24), *range(len(whole) - 4 * 24, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises((CorruptCheckpointError, UsageError), match=r"train\.beton"):
            read_index(path)
    path.write_bytes(whole)
    assert read_index(path).label.tolist() == index.label.tolist() == LABELS
    write_beton(path, [Encoded(jpeg(PICTURES[0]), *PICTURES[0].shape[:2])], 1, page_size=beton.PAGE_SIZE)
    assert len(read_index(path)) == 1  # the hash is the new file's


def test_without_labels(tmp_path: Path) -> None:
    source = load_source(write(tmp_path / "train.beton", classes=None), loader="torch")
    assert source.labels is None and source.classes == () and not list(tmp_path.glob("*.json"))


def test_labels_without_names_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "train.beton")
    beton.classes_file(path).unlink()
    hash_file(beton.classes_file(path)).unlink()  # as a user would have it, who writes the names down
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
    with pytest.raises(CorruptCheckpointError, match="image 2 is not a JPEG"):
        check_pictures(read_index(path))
    source = BetonImages(read_index(path), Framing(8))
    with pytest.raises(CorruptCheckpointError, match="image 2"):
        source.batch(torch.arange(4))


# --- without FFCV -------------------------------------------------------------------------------------------


def test_without_ffcv_the_error_says_what_to_install(tmp_path: Path, no_ffcv) -> None:
    write(tmp_path / "train.beton")
    with pytest.raises(EnvironmentFault) as caught:
        load_source(tmp_path, loader="ffcv")
    message = str(caught.value)
    assert "pip install 'mi_ml_gen[ffcv]'" in message and SYSTEM_PACKAGES in message and "--loader torch" in message
    assert "\n" not in message
    assert load_source(tmp_path, loader="torch").n_images == 4


@pytest.fixture
def no_ffcv(monkeypatch) -> None:
    for name in ("ffcv.loader", "ffcv.fields.rgb_image", "numba"):
        monkeypatch.setitem(sys.modules, name, None)
    beton_images._say_once.cache_clear()


def test_auto_falls_back_with_one_line(tmp_path: Path, no_ffcv, caplog) -> None:
    write(tmp_path / "train.beton")
    for _ in range(3):
        source = load_source(tmp_path, loader="auto", image_size=10)
    assert isinstance(source, BetonImages) and source.classes == ("a", "b", "c")
    (line,) = [record.getMessage() for record in caplog.records if "FFCV" in record.getMessage()]
    assert "own reader" in line and "--loader torch" in line
    assert source.batch(torch.arange(4)).equal(
        load_source(tmp_path, loader="torch", image_size=10).batch(torch.arange(4))
    )


@pytest.mark.parametrize("error", [ImportError("no"), OSError("libopencv"), AttributeError("numpy"), SystemError("x")])
def test_a_broken_ffcv_is_as_a_missing_one(tmp_path: Path, monkeypatch, error, caplog) -> None:
    class Broken:
        def find_spec(self, name, *_):
            if name.startswith("numba"):
                raise error

    write(tmp_path / "train.beton")
    beton_images._say_once.cache_clear()
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert load_source(tmp_path, loader="auto").n_images == 4
    assert str(error) in caplog.text


# --- where the files lie ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "ffcv"])
def test_published_sets_keep_their_files_in_ffcv(tmp_path: Path, place: str) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / place / f"{split}.beton")
    (tmp_path / "meta").mkdir()
    save(tmp_path / "meta" / "example.png", picture(0, 9, 9))
    for split in ("train", "validation", "test"):
        assert load_source(tmp_path, split, loader="torch").n_images == 4 and has_split(str(tmp_path), split)
        assert find_beton(tmp_path, split) == tmp_path / place / f"{split}.beton"
    assert load_splits(str(tmp_path), loader="torch").test is not None
    assert "4 images, 3 classes, test split" in check_source(tmp_path, "test", loader="torch")


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train.beton", "train"), ("VAL.beton", "validation"), ("val.BETON", "validation"), ("test_set.beton", "test")],
)
def test_names_of_files_of_splits(tmp_path: Path, name: str, split: str) -> None:
    write(tmp_path / name)
    assert load_source(tmp_path, split, loader="torch").n_images == 4
    with pytest.raises(UsageError, match=f"has no .beton file of the predict split, only {name}"):
        load_source(tmp_path, "predict", loader="torch")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "val.beton")
    write(tmp_path / "validation.beton")
    with pytest.raises(UsageError, match="val.beton and validation.beton both have the name of the validation split"):
        load_source(tmp_path, "validation", loader="torch")


def test_files_of_no_split_are_named(tmp_path: Path) -> None:
    write(tmp_path / "cars.beton")
    with pytest.raises(UsageError, match=r"none with the name of a split \(cars.beton\); give one of them"):
        load_source(tmp_path, loader="torch")


# --- labels -------------------------------------------------------------------------------------------------


def with_label_first(path: Path) -> Path:
    """The same file as a writer makes it that was given the label before the image."""
    content = bytearray(path.read_bytes())
    first, second = (bytes(content[HEADER + i * FIELD : HEADER + (i + 1) * FIELD]) for i in range(2))
    content[HEADER : HEADER + 2 * FIELD] = second + first
    for i in range(len(PICTURES)):
        at = HEADER + 2 * FIELD + 24 * i
        row = content[at : at + 24]
        content[at : at + 24] = row[16:24] + row[:13] + bytes(3)
    path.write_bytes(content)
    return path


def test_the_label_may_stand_before_the_image(tmp_path: Path) -> None:
    plain = load_source(write(tmp_path / "a.beton"), image_size=10, loader="torch")
    turned = load_source(with_label_first(write(tmp_path / "b.beton")), image_size=10, loader="torch")
    assert turned.labels is not None and turned.labels.tolist() == LABELS
    assert turned.batch(torch.arange(4)).equal(plain.batch(torch.arange(4)))
    assert read_index(tmp_path / "b.beton").field_names == read_index(tmp_path / "a.beton").field_names


def test_other_fields_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton")
    content = bytearray(path.read_bytes())
    content[HEADER + FIELD] = 3  # a kind that is not a whole number
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"image, label are not an image \(RGBImageField\)"):
        load_source(path, loader="torch")


@pytest.mark.parametrize("names", ['["a", "a", "c"]', '["1", "01", "c"]', '["a", {}, "c"]', '["a", "b"]', "{}", "3"])
def test_names_that_do_not_fit_are_refused(tmp_path: Path, names: str) -> None:
    path = write(tmp_path / "train.beton")
    beton.classes_file(path).write_text(names)
    hash_file(beton.classes_file(path)).unlink()
    with pytest.raises(CorruptCheckpointError, match="train.classes.json"):
        load_source(path, loader="torch")


def test_a_flipped_letter_of_a_name_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "train.beton")
    whole = beton.classes_file(path).read_bytes()
    for content in (whole.replace(b'"b"', b'"c"'), whole.replace(b'"a"', b'"A"'), whole[:-1], b"[" * 100_000):
        assert content != whole
        beton.classes_file(path).write_bytes(content)
        with pytest.raises(CorruptCheckpointError, match=r"train.classes.json: damaged, not what its .*sha256 says"):
            load_source(path, loader="torch")


def test_no_older_names_stay_beside_new_labels(tmp_path: Path, monkeypatch) -> None:
    """Killed between the two files, a set has no names rather than another set's."""
    path = write(tmp_path / "train.beton")
    plain = core_files.atomic_write

    def killed(place: Path, content) -> None:
        if place.suffix == ".json":
            raise KeyboardInterrupt
        plain(place, content)

    monkeypatch.setattr(core_files, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, classes=("x", "y", "z"))
    assert load_source(path, loader="torch").classes == ("0", "1", "2")
    monkeypatch.undo()
    write(path, classes=None)
    assert not beton.classes_file(path).exists()


# --- what a killed writer leaves ------------------------------------------------------------------------------


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from mi_ml_gen.core.files import atomic_write\n"
        "def write(file):\n"
        "    file.write(b'x'); file.flush(); print('writing', flush=True); time.sleep(600)\n"
        "atomic_write(sys.argv[1], write)\n"
    )
    target = tmp_path / "train.beton"
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        other = tmp_path / ".val.beton.0123456789ab.partial"
        other.touch()
        write(target)
        assert len(list(tmp_path.glob(".train*.partial"))) == 1  # its writer lives
    finally:
        writer.kill()
        writer.wait()
    write(target)
    assert not list(tmp_path.glob(".train*.partial")) and other.exists()
    assert load_source(target, loader="torch").n_images == 4


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
