"""Folders of images: what each kind of file becomes, what is found before training, and what is remembered."""

from __future__ import annotations

import errno
import logging
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.data import folders
from mi_ml_gen.data.folders import FolderImages, read_rgb, scan_folder
from mi_ml_gen.data.framing import Framing
from tests.image_files import folder, picture, save

SIZE = Framing(size_px=8)


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch) -> Path:
    place = tmp_path_factory.mktemp("memory")
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(place))
    return place


def test_what_each_kind_of_image_becomes(tmp_path: Path) -> None:
    colours = picture(0, 5, 6)
    grey = colours[:, :, 0]
    deep = (grey.astype(np.uint16) * 257) + np.array([0, 100, -100], np.int32).repeat(2).astype(np.uint16) * (grey > 1)
    alpha = np.linspace(0, 255, 30).astype(np.uint8).reshape(5, 6)
    over_white = np.rint(255 + (colours.astype(float) - 255) * (alpha[:, :, None] / 255))

    three = lambda plane: np.repeat(plane[:, :, None], 3, axis=2)  # noqa: E731
    cases = {
        "rgb.png": (colours, {}, colours, 0),
        "grey.png": (grey, {}, three(grey), 0),
        "deep.png": (deep, {}, three(((deep.astype(int) + 128) // 257).astype(np.uint8)), 0),
        "deep.tiff": (deep, {}, three(((deep.astype(int) + 128) // 257).astype(np.uint8)), 0),
        "alpha.png": (np.dstack([colours, alpha]), {}, over_white, 1),
        "black_and_white.png": (Image.fromarray(grey > 127), {}, three((grey > 127).astype(np.uint8) * 255), 0),
        "print.tiff": (Image.fromarray(colours).convert("CMYK"), {}, colours, 1),
        "bitmap.bmp": (colours, {}, colours, 0),
        "UPPER.PNG": (colours, {}, colours, 0),
    }
    for name, (image, options, expected, within) in cases.items():
        found = read_rgb(save(tmp_path / name, image, **options))
        assert found.dtype == np.uint8 and found.shape == (5, 6, 3), name
        assert np.abs(found.astype(int) - expected).max() <= within, name
    assert not scan_folder(tmp_path, progress=False).bad


def test_deep_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert read_rgb(save(tmp_path / "a.png", levels))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_palettes_are_laid_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert read_rgb(save(tmp_path / "a.png", image, transparency=0)).tolist() == [
        [[255, 255, 255], [0, 0, 255]],
        [[0, 0, 255], [255, 255, 255]],
    ]
    assert read_rgb(save(tmp_path / "b.png", image))[0, 0].tolist() == [255, 0, 0]


def test_grey_with_a_transparent_level_is_laid_over_white(tmp_path: Path) -> None:
    grey = np.array([[10, 20]], np.uint8)
    assert read_rgb(save(tmp_path / "a.png", grey, transparency=20))[0, :, 1].tolist() == [10, 255]


def test_cameras_turned_on_their_side_are_turned_back(tmp_path: Path) -> None:
    upright = picture(0, 16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = np.rot90(upright)
    found = read_rgb(save(tmp_path / "a.jpg", lying, exif=exif, quality=95, subsampling=0))
    assert found.shape == upright.shape and np.abs(found.astype(int) - upright).mean() < 3


def test_bad_files_are_found_first_and_all_named(tmp_path: Path) -> None:
    folder(tmp_path)
    whole = save(tmp_path / "ant" / "whole.jpg", picture(1, 90, 90)).read_bytes()
    png = (tmp_path / "ant" / "00.png").read_bytes()
    (tmp_path / "ant" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "ant" / "cut.png").write_bytes(png[: len(png) - 300])
    (tmp_path / "bee" / "page.png").write_text("<html>not found</html>")
    (tmp_path / "bee" / "empty.jpeg").touch()
    save(tmp_path / "bee" / "numbers.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
    (tmp_path / "bee" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "labels.txt").write_text("ant")
    (tmp_path / ".hidden.png").write_text("x")

    scan = scan_folder(tmp_path, progress=False)
    problems = dict(scan.bad)
    assert list(problems) == [f"ant/{n}" for n in ("cut.jpg", "cut.png")] + [
        f"bee/{n}" for n in ("empty.jpeg", "gone.png", "numbers.tiff", "page.png")
    ]
    assert "cut short" in problems["ant/cut.jpg"] and "not an image" in problems["bee/page.png"]
    assert "32-bit" in problems["bee/numbers.tiff"]
    assert len(scan.files) == 7 and sum(scan.passed_by.values()) == 1

    with pytest.raises(UsageError, match=r"6 of 13 images cannot be read: .*cut\.jpg.*--skip_bad") as caught:
        FolderImages(tmp_path, SIZE, progress=False)
    assert all(name in str(caught.value) for name in problems)


def test_bad_files_are_left_out_when_asked(tmp_path: Path, caplog) -> None:
    folder(tmp_path, classes=("ant", "bee"))
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "bad.png").write_text("moo")
    with caplog.at_level(logging.WARNING):
        source = FolderImages(tmp_path, SIZE, skip_bad=True, progress=False)
    assert "cow/bad.png" in caplog.text
    assert source.n_images == 6 and source.classes == ("ant", "bee", "cow")  # labels do not depend on what is damaged
    assert source.labels is not None and source.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_many_bad_files_are_listed_in_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "N_LISTED", 2)
    folder(tmp_path, classes=())
    for i in range(5):
        (tmp_path / f"bad{i}.png").write_text("x")
    with pytest.raises(UsageError, match="and 3 more, all of them in") as caught:
        FolderImages(tmp_path, SIZE, progress=False)
    listed = Path(str(caught.value).split("all of them in ")[1].split(". ")[0])
    assert [line.split(":")[0] for line in listed.read_text().splitlines()] == [f"bad{i}.png" for i in range(5)]


def test_images_too_large_to_unpack_are_refused(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path, classes=())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2400)
    assert [name for name, _ in scan_folder(tmp_path, progress=False).bad] == [
        f"{i:02}.png" for i in range(6) if (40 + 3 * i) * (60 - 2 * i) > 2400
    ]


def test_a_second_look_opens_only_what_changed(tmp_path: Path, monkeypatch, memory) -> None:
    folder(tmp_path)
    (tmp_path / "bee" / "bad.png").write_text("x")
    first = scan_folder(tmp_path, progress=False)
    opened: list[str] = []
    plain = folders._problem
    monkeypatch.setattr(folders, "_problem", lambda path: opened.append(path.name) or plain(path))
    assert scan_folder(tmp_path, progress=False) == first and opened == []

    (tmp_path / "ant" / "00.png").write_text("damaged meanwhile")
    save(tmp_path / "ant" / "new.png", picture(9, 5, 5))
    again = scan_folder(tmp_path, progress=False)
    assert sorted(opened) == ["00.png", "new.png"]
    assert [name for name, _ in again.bad] == ["ant/00.png", "bee/bad.png"] and "ant/new.png" in again.files

    opened.clear()
    record = next((memory / "scans").glob("*.jsonl"))
    record.write_text(record.read_text()[:-30])  # cut short: nothing in it is believed
    assert scan_folder(tmp_path, progress=False) == again and len(opened) == 8


def test_a_scan_that_is_stopped_goes_on(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path, n=30, classes=())
    plain, opened = folders._problem, []

    def stops(path: Path) -> str | None:
        opened.append(path.name)
        if len(opened) == 20:
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(folders, "_problem", stops)
    with pytest.raises(KeyboardInterrupt):
        scan_folder(tmp_path, n_workers=1, progress=False)
    n_before = len(opened)
    assert len(scan_folder(tmp_path, n_workers=1, progress=False).files) == 30
    assert len(opened) - n_before < 30


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "file"))
    folder(tmp_path / "images")
    assert len(scan_folder(tmp_path / "images", progress=False).files) == 6
    assert "not remembered" in caplog.text


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "ant" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(scan_folder(tmp_path, progress=False).files) == 6


def test_images_come_in_the_order_of_the_indices(tmp_path: Path) -> None:
    folder(tmp_path)
    source = FolderImages(tmp_path, SIZE, progress=False)
    assert source.files == ("ant/00.png", "ant/02.png", "ant/04.png", "bee/01.png", "bee/03.png", "bee/05.png")
    assert source.classes == ("ant", "bee") and source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1] and source.labels.dtype == torch.int64
    batch = source.batch(torch.tensor([4, 0, 4]))
    assert batch.dtype == torch.uint8 and batch.shape == (3, 3, 8, 8) and batch.is_contiguous()
    for row, i in enumerate((3, 0, 3)):
        expected = SIZE.cut(picture(i, 40 + 3 * i, 60 - 2 * i))
        np.testing.assert_array_equal(batch[row].permute(1, 2, 0).numpy(), expected)
    assert source.batch(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)


def test_classes_are_the_folders_just_below(tmp_path: Path) -> None:
    for i, place in enumerate(("a/x", "a/y", "b")):
        save(tmp_path / place / f"{i}.png", picture(i, 9, 9))
    source = FolderImages(tmp_path, SIZE, progress=False)
    assert source.classes == ("a", "b") and source.labels is not None and source.labels.tolist() == [0, 0, 1]


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    folder(tmp_path, classes=())
    source = FolderImages(tmp_path, SIZE, progress=False)
    assert source.labels is None and source.classes == () and source.n_images == 6


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    save(tmp_path / "loose.png", picture(0, 9, 9))
    with pytest.raises(UsageError, match=r"1 images \(loose.png"):
        FolderImages(tmp_path, SIZE, progress=False)
    assert FolderImages(tmp_path, SIZE, with_labels=False, progress=False).n_images == 7


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        scan_folder(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="no images in it .* only 1 other files"):
        scan_folder(tmp_path)


def test_a_file_damaged_since_the_scan_is_named(tmp_path: Path) -> None:
    folder(tmp_path)
    source = FolderImages(tmp_path, SIZE, progress=False)
    (tmp_path / "ant" / "02.png").write_text("damaged")
    with pytest.raises(UsageError, match=r"02\.png: not an image"):
        source.batch(torch.arange(6))


def test_odd_names(tmp_path: Path) -> None:
    name = "a b\u00e9 100%.png"
    save(tmp_path / name, picture(0, 9, 9))
    assert scan_folder(tmp_path, progress=False).files == (name,)
    assert scan_folder(tmp_path, progress=False).files == (name,)  # read back from memory
    assert os.listdir(tmp_path) == [name]  # nothing is written into the folder


# --- classes that could vanish ------------------------------------------------------------------------------


def test_a_class_of_files_that_are_not_read_is_refused(tmp_path: Path, caplog) -> None:
    folder(tmp_path)
    for name in ("a.heic", "b.HEIC"):
        save(tmp_path / "cow" / "x.png", picture(0, 5, 5)).rename(tmp_path / "cow" / name)
    with pytest.raises(UsageError, match=r"class folder cow holds no image that can be read here, only \.heic"):
        FolderImages(tmp_path, SIZE, progress=False)
    with caplog.at_level(logging.WARNING):
        source = FolderImages(tmp_path, SIZE, skip_bad=True, progress=False)
    assert source.classes == ("ant", "bee") and "cow" in caplog.text and source.passed_by.endswith("2 .heic")


def test_a_class_of_files_without_an_ending_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    save(tmp_path / "cow" / "x.png", picture(0, 5, 5)).rename(tmp_path / "cow" / "5f3a")
    with pytest.raises(UsageError, match="class folder cow .* only without an ending"):
        FolderImages(tmp_path, SIZE, progress=False)


@pytest.mark.parametrize("content", [(), ("notes.txt",)])
def test_folders_without_images_are_said_to_be_no_classes(tmp_path: Path, caplog, content) -> None:
    folder(tmp_path)
    (tmp_path / "cow").mkdir()
    for name in content:
        (tmp_path / "cow" / name).touch()
    with caplog.at_level(logging.WARNING):
        assert FolderImages(tmp_path, SIZE, progress=False).classes == ("ant", "bee")
    assert "the folder cow holds no images" in caplog.text


def test_a_class_folder_that_is_a_link_to_nothing_is_bad(tmp_path: Path, caplog) -> None:
    folder(tmp_path / "set")
    (tmp_path / "set" / "cow").symlink_to(tmp_path / "gone", target_is_directory=True)
    with pytest.raises(UsageError, match="cow: a link to nothing"):
        FolderImages(tmp_path / "set", SIZE, progress=False)
    with caplog.at_level(logging.WARNING):
        source = FolderImages(tmp_path / "set", SIZE, skip_bad=True, progress=False)
    assert source.classes == ("ant", "bee") and "cow: a link to nothing" in caplog.text


@pytest.mark.parametrize("link", ["cow", "ant/cow"])
def test_two_classes_that_are_one_place_are_refused(tmp_path: Path, link: str) -> None:
    folder(tmp_path)
    (tmp_path / link).symlink_to(tmp_path / "bee", target_is_directory=True)
    with pytest.raises(UsageError, match="bee.* one and the same folder, by a link"):
        FolderImages(tmp_path, SIZE, progress=False)
    assert FolderImages(tmp_path, SIZE, with_labels=False, progress=False).n_images == 6  # each image once


def test_links_from_elsewhere_are_classes(tmp_path: Path) -> None:
    folder(tmp_path / "pool")
    (tmp_path / "set").mkdir()
    for name, target in (("one", "ant"), ("two", "bee")):
        (tmp_path / "set" / name).symlink_to(tmp_path / "pool" / target, target_is_directory=True)
    source = FolderImages(tmp_path / "set", SIZE, progress=False)
    assert source.classes == ("one", "two") and source.n_images == 6


@pytest.mark.parametrize("how", ["symlink", "link"])
def test_an_image_in_two_classes_is_said(tmp_path: Path, caplog, how: str) -> None:
    folder(tmp_path)
    getattr(os, how)(tmp_path / "ant" / "00.png", tmp_path / "bee" / "again.png")
    with caplog.at_level(logging.WARNING):
        assert FolderImages(tmp_path, SIZE, progress=False).n_images == 7
    assert "1 images are in two classes" in caplog.text


def test_classes_that_differ_in_capitals_are_said(tmp_path: Path, caplog) -> None:
    folder(tmp_path, classes=("Ant", "ant", "bee"))
    with caplog.at_level(logging.WARNING):
        assert FolderImages(tmp_path, SIZE, progress=False).classes == ("Ant", "ant", "bee")
    assert "Ant and ant differ in capitals only" in caplog.text


def test_a_divided_folder_is_not_one_set(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "test")
    for with_labels in (True, False):
        with pytest.raises(UsageError, match="divided into the splits test, train"):
            FolderImages(tmp_path, SIZE, with_labels=with_labels, progress=False)


# --- errors of the moment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_machine_that_fails_is_not_a_bad_image(tmp_path: Path, monkeypatch, number: int, skip_bad: bool) -> None:
    folder(tmp_path)
    fail_on(monkeypatch, "02.png", OSError(number, os.strerror(number)))
    with pytest.raises(EnvironmentFault, match=r"02\.png: cannot be read: .*the scan stopped there"):
        FolderImages(tmp_path, SIZE, skip_bad=skip_bad, progress=False)
    monkeypatch.undo()
    assert FolderImages(tmp_path, SIZE, progress=False).n_images == 6


def test_memory_that_ran_out_is_not_a_bad_image(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path)
    fail_on(monkeypatch, "02.png", MemoryError())
    with pytest.raises(EnvironmentFault, match="out of memory"):
        scan_folder(tmp_path, progress=False)
    monkeypatch.undo()
    assert not scan_folder(tmp_path, progress=False).bad


def test_rights_are_looked_at_again(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path)
    (tmp_path / "ant" / "bad.png").write_text("x")
    fail_on(monkeypatch, "02.png", PermissionError(errno.EACCES, "Permission denied"))
    assert scan_folder(tmp_path, progress=False).bad == (
        ("ant/02.png", "Permission denied"),
        ("ant/bad.png", "not an image"),
    )
    monkeypatch.undo()
    assert [name for name, _ in scan_folder(tmp_path, progress=False).bad] == ["ant/bad.png"]


def test_reading_later_tells_the_machine_from_the_file(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path)
    source = FolderImages(tmp_path, SIZE, progress=False)
    fail_on(monkeypatch, "02.png", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(EnvironmentFault, match=r"02\.png: cannot be read: Input/output error"):
        source.batch(torch.arange(6))


def fail_on(monkeypatch, name: str, error: Exception) -> None:
    """Opening the file of this name raises an error."""
    plain = Image.open

    def opened(path, *arguments, **options):
        if Path(path).name == name:
            raise error
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", opened)


# --- files that are not files, and large ones ----------------------------------------------------------------


def test_what_is_not_a_regular_file_is_not_opened(tmp_path: Path) -> None:
    folder(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.png")  # opening it would wait for ever
    (tmp_path / "bee" / "empty.png").touch()
    assert scan_folder(tmp_path, progress=False).bad == (
        ("ant/pipe.png", "not a regular file"),
        ("bee/empty.png", "not an image: the file is empty"),
    )


def test_the_limit_of_pixels_is_ours(tmp_path: Path) -> None:
    """9,400 x 9,400 pixels are below Pillow's limit."""
    Image.new("1", (9400, 9400)).save(tmp_path / "wide.png")
    assert (Image.MAX_IMAGE_PIXELS or 0) > 9400**2
    ((_, problem),) = scan_folder(tmp_path, progress=False).bad
    assert "9400 x 9400 pixels, more than the 67108864" in problem


def test_large_images_take_turns(tmp_path: Path, monkeypatch) -> None:
    folder(tmp_path, n=8, classes=())
    monkeypatch.setattr(folders, "_LARGE", 1)
    at_once, most = [], []
    plain = folders.to_rgb

    def counted(image):
        at_once.append(threading.get_ident())
        most.append(len(at_once))
        try:
            return plain(image)
        finally:
            at_once.pop()

    monkeypatch.setattr(folders, "to_rgb", counted)
    source = FolderImages(tmp_path, SIZE, n_workers=4, progress=False)
    source.batch(torch.arange(8))
    assert len(most) == 16 and max(most) == 1


def test_strips_are_the_whole_image(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / "a.png", picture(0, 41, 23))
    whole = read_rgb(path)
    monkeypatch.setattr(folders, "_STRIP", 23 * 7)
    np.testing.assert_array_equal(read_rgb(path), whole)


def test_framing_a_large_image_takes_little_beside_it(tmp_path: Path) -> None:
    """Running sums of a whole image would take eight times its bytes, twice."""
    image = np.zeros((3001, 3001, 3), np.uint8)
    tracemalloc.start()
    Framing(size_px=128, stored_px=256).store(image)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * image.nbytes
