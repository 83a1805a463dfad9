"""The rule for folders: what is a split, what is a class, and what is refused because it could be both."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

import pytest

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.data import folders, layout
from mi_ml_gen.data.layout import SPLITS, is_hidden, read_layout, split_of
from mi_ml_gen.data.loading import check_source, load_source
from mi_ml_gen.data.splits import check_split, has_split, load_splits
from tests.image_files import folder, picture, save


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path_factory.mktemp("memory")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def tree(root: Path, text: str, n: int = 2) -> Path:
    """n images in each folder that `text` names."""
    for k, place in enumerate(text.split()):
        for i in range(n):
            save(root / place / f"{i}.png", picture(10 * k + i, 9, 9))
    return root


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train Train TRAIN training train2017 training_set train-images trainset Train_Data trn", "train"),
        ("val Val valid validation val2014 dev validation-set", "validation"),
        ("test Testing TEST_IMAGES testset tst", "test"),
        ("predict", "predict"),
        ("trainer train_station contest bicycle images set 2017 validated n01440764 valley protest", None),
    ],
)
def test_names_of_splits(names: str, split: str | None) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    ("text", "splits"),
    [
        ("train/cat train/dog val/cat test/dog", {"train": "train", "validation": "val", "test": "test"}),
        ("Train/cat Train/dog TEST/cat", {"train": "Train", "test": "TEST"}),
        ("training_set/cat test_set/cat", {"train": "training_set", "test": "test_set"}),
        ("images/train2017/a images/val2017/a", {"train": "images/train2017", "validation": "images/val2017"}),
        ("train test", {"train": "train", "test": "test"}),
        ("train/train train/car test/car", {"train": "train", "test": "test"}),
        ("train/a/b train/a/c", {"train": "train"}),
    ],
)
def test_folders_that_are_splits(root: Path, text: str, splits: dict[str, str]) -> None:
    found = read_layout(tree(root, text))
    assert {split: path.relative_to(root).as_posix() for split, path in found.folders.items()} == splits
    for split in SPLITS:
        assert has_split(str(root), split) == (split in splits)
    assert load_source(root, next(iter(splits)), 8).n_images == 2 * sum(
        place.startswith(next(iter(splits.values())) + "/") or place == next(iter(splits.values()))
        for place in text.split()
    )


@pytest.mark.parametrize("word", ["train", "test", "val", "Predict", "dev"])
@pytest.mark.parametrize("others", ["bicycle bus car", "a b"])
def test_a_class_may_have_the_name_of_a_split(root: Path, word: str, others: str) -> None:
    source = load_source(tree(root, f"{others} {word}"), "train", 8)
    assert source.classes == tuple(sorted([*others.split(), word])) and source.n_images == 2 * (len(others.split()) + 1)
    assert not has_split(str(root), "test")


def test_below_a_split_there_are_only_classes(root: Path) -> None:
    tree(root, "train/train train/test train/car test/train test/test test/car")
    for split in ("train", "test"):
        assert load_source(root, split, 8).classes == ("car", "test", "train")
    assert load_source(root / "train", "train", 8).classes == ("car", "test", "train")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train/cat train/dog cat dog", ("train", "cat, dog", "rename the class train")),
        ("train/cat train/dog val/cat extra", ("extra", "move extra elsewhere", "As splits", "As 3 classes")),
        ("train car", ("train", "car", "rename the class train")),
        ("train test car", ("test, train", "car")),
        ("val/cat valid/cat", ("val and valid", "validation split")),
        ("train/cat Train/cat", ("Train and train", "rename one")),
        ("Photo/cat Photo/dog Sketch/cat Sketch/dog", ("Photo, Sketch", "cat, dog", "As splits", "As 2 classes")),
        ("anchor positive", ("anchor", "positive", "pairs")),
    ],
)
def test_two_readings_are_an_error_that_names_both(root: Path, text: str, names: tuple[str, ...]) -> None:
    tree(root, text)
    for attempt in (
        lambda: load_source(root, "train", 8),
        lambda: check_source(root),
        lambda: has_split(str(root), "test"),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert all(name in str(caught.value) for name in (*names, str(root))), caught.value


def test_two_splits_that_are_one_place_are_refused(root: Path) -> None:
    tree(root, "train/cat train/dog")
    (root / "test").symlink_to(root / "train", target_is_directory=True)
    with pytest.raises(UsageError, match="one and the same place"):
        load_splits(str(root), 8)


@pytest.mark.parametrize("text", ["images/cat images/dog", "a/b/c/cat a/b/c/dog"])
def test_one_folder_that_holds_everything_is_not_a_class(root: Path, text: str, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        source = load_source(tree(root, text), "train", 8)
    assert source.classes == ("cat", "dog") and "not one class" in caplog.text
    splits = load_splits(str(root), 8, hold_out=0.25)
    assert splits.train.classes == ("cat", "dog")


def test_a_single_class_stays_one(root: Path) -> None:
    assert load_source(tree(root, "cat"), "train", 8).classes == ("cat",)


def test_classes_may_have_folders_of_their_own(root: Path) -> None:
    source = load_source(tree(root, "cat/left cat/right dog/left dog/up"), "train", 8)
    assert source.classes == ("cat", "dog") and source.n_images == 8


def test_a_loop_of_links_around_one_folder_ends(root: Path) -> None:
    tree(root, "cat/young")
    (root / "cat" / "again").symlink_to(root, target_is_directory=True)
    assert load_source(root, "train", 8).n_images == 2


@pytest.mark.parametrize(
    "name", [".git", "@eaDir", "@EADIR", "#recycle", "__MACOSX", "$RECYCLE.BIN", "Thumbs.db", "._1.png"]
)
def test_other_programs_files_are_hidden(root: Path, name: str) -> None:
    tree(root, "cat dog")
    for place in (root, root / "cat"):
        save(place / name / "thumb.png", picture(0, 5, 5))
    assert is_hidden(name)
    source = load_source(root, "train", 8)
    assert source.classes == ("cat", "dog") and source.n_images == 4
    assert read_layout(root).root == root


def test_a_folder_without_rights_is_said(root: Path, monkeypatch) -> None:
    """Whoever runs this may be root, so the refusal is made by hand."""
    tree(root, "cat dog")
    plain = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for attempt in (lambda: load_source(root, "train", 8), lambda: read_layout(root)):
        with pytest.raises(EnvironmentFault, match="dog: cannot be listed: Permission denied"):
            attempt()


# --- a folder beside a name ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_a_folder_with_the_name_of_a_built_in_set(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / name, "mine yours")
    for attempt in (lambda: load_source(name), lambda: load_splits(name), lambda: check_source(name)):
        with pytest.raises(UsageError, match=f"write ./{name} for the folder, or builtin:{name} for the set"):
            attempt()
    assert load_source(f"./{name}", image_size=8).classes == ("mine", "yours")


def test_the_built_in_set_beside_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # no images in it: nobody means this folder
    assert load_source("digits").n_images == 1438
    tree(tmp_path / "digits", "mine yours")
    assert load_source("builtin:digits").n_images == 1438
    assert has_split("builtin:digits", "test") and not has_split("./digits", "test")


# --- what is said -------------------------------------------------------------------------------------------


def test_one_line_says_what_was_found(root: Path, caplog) -> None:
    tree(root, "a b c d", n=12)
    for name in ("x.heic", "y.HEIC", "note.txt"):
        (root / "a" / name).write_text("x")
    with caplog.at_level(logging.INFO):
        load_source(root, "train", 8)
    expected = "48 images, 4 classes, not divided into splits; 3 files passed by: 2 .heic, 1 .txt"
    assert f"{root}: {expected}" in caplog.messages
    assert any(record.levelno == logging.WARNING and ".heic" in record.getMessage() for record in caplog.records)
    assert (
        check_source(root)
        == f"{root}: 48 images, not divided into splits, not opened; 3 files passed by: 2 .heic, 1 .txt"
    )


def test_the_line_names_the_split(root: Path, caplog) -> None:
    folder(root / "Train", n=4)
    folder(root / "Test", n=2)
    with caplog.at_level(logging.INFO):
        load_source(root, "test", 8)
        load_source("digits", "test")
    assert caplog.messages == [
        f"{root / 'Test'}: 2 images, 2 classes, test split",
        "digits test: 359 images, 10 classes, test split",
    ]


def test_checking_opens_no_image(root: Path, monkeypatch) -> None:
    tree(root, "train/cat train/dog")
    (root / "train" / "cat" / "bad.png").write_text("x")
    monkeypatch.setattr(folders, "_problem", None)
    assert check_source(root) == f"{root / 'train'}: 5 images, train split, not opened"
    with pytest.raises(UsageError, match="has no folder of the test split, only train"):
        check_source(root, "test")
    with pytest.raises(UsageError, match="no such file or folder"):
        check_source(root / "absent")


# --- one file, one folder, asked for as a split -------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "split", "complaint"),
    [
        ("set/test", "test", None),
        ("set/train", "test", "its name says train. --split train"),
        ("set", "validation", "only of train, test"),
        ("plain", "test", "not divided into splits. --split train takes all"),
        ("plain", "train", None),
        ("set/TEST_images", "test", None),
    ],
)
def test_a_split_that_was_not_asked_for_is_not_taken(tmp_path: Path, place: str, split: str, complaint) -> None:
    tree(tmp_path, "set/train/a set/train/b set/test/a plain/a plain/b")
    if place.endswith("TEST_images"):
        (tmp_path / "set" / "test").rename(tmp_path / place)
    if complaint is None:
        check_split(str(tmp_path / place), split)
        return
    with pytest.raises(UsageError, match=complaint):
        check_split(str(tmp_path / place), split)


def test_the_rule_is_written_down() -> None:
    assert all(word in (layout.__doc__ or "") for word in ("Splits", "Classes", "ambiguous", "SPLITS"))


@pytest.mark.parametrize(
    "script",
    "train_encoder train_classifier eval_classifier compare_views benchmark_sampling create_image_beton_file".split(),
)
def test_every_script_that_reads_folders_has_the_flag_that_errors_advise(script: str, capsys) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"scripts.{script}").main(["--help"])
    assert "--skip_bad" in capsys.readouterr().out
