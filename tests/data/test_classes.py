"""Classes are matched by their names, in every kind of source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data import folders
from mi_ml_gen.data.beton.format import classes_file
from mi_ml_gen.data.beton.writing import write_splits
from mi_ml_gen.data.classes import aligned, class_key, in_order
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.data.splits import Splits, class_names, load_splits, matched
from tests.image_files import picture, save


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path_factory.mktemp("memory")))


def make(name: str, classes: tuple[str, ...], labels: list[int] | None = None) -> HeldImages:
    labels = list(range(len(classes))) if labels is None else labels
    return HeldImages(name, torch.zeros(len(labels), 4, 4, dtype=torch.uint8), torch.tensor(labels), classes)


def names_of(source) -> list[str]:
    return [source.classes[i] for i in source.labels.tolist()]


def test_numbers_are_ordered_as_numbers_and_names_as_text() -> None:
    assert in_order(["10", "9", "1", "0"]) == ("0", "1", "9", "10")
    assert in_order(["class10", "class9"]) == ("class10", "class9")
    assert in_order(["007", "10", "7"]) == ("007", "10")  # one number is one class
    assert in_order(["b", "10", "9"]) == ("10", "9", "b")
    assert in_order(["cafe\u0301", "caf\u00e9"]) == ("caf\u00e9",)
    assert class_key("007") == class_key("7") == "7" and class_key("a7") == "a7" and class_key("\u0667") == "\u0667"


def test_labels_are_carried_over_by_name() -> None:
    source = make("b", ("ass", "cat", "dog"), [0, 2, 1, 2])
    same = aligned(source, ("dog", "cow", "ass", "cat"), "a")
    assert same.labels is not None and same.labels.tolist() == [2, 0, 3, 0] and names_of(same) == names_of(source)
    assert source.labels is not None and source.labels.tolist() == [0, 2, 1, 2]  # the source itself is as it was
    assert same.batch(torch.tensor([0])).equal(source.batch(torch.tensor([0])))
    assert aligned(source, source.classes, "a") is source


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("ass", "cat"), ("cat", "dog")),  # as many, but others
        (("a", "b", "c"), ("a", "b")),
        (("0", "1", "2"), ("ant", "bee", "cow")),
        (("ant", "bee", "cow"), ("0", "1", "2")),
        (("1", "2", "3"), ("0", "1", "2")),
        (("Cat", "Dog"), ("cat", "dog")),
    ],
)
def test_what_cannot_be_matched_shows_both_lists(theirs, ours) -> None:
    with pytest.raises(UsageError) as caught:
        aligned(make("test set", theirs), ours, "the training set")
    message = str(caught.value)
    assert f"test set: ({', '.join(theirs)}); the training set: ({', '.join(ours)})" in message


@pytest.mark.parametrize("names", [("0", "1", "2", "10"), ("000", "001", "002", "010"), ("2", "1", "0", "10")])
def test_numbered_folders_and_numbered_labels_are_the_same_classes(tmp_path: Path, names) -> None:
    """Text would sort 10 before 2. A .beton file without names knows its labels only."""
    for i, name in enumerate(names):
        save(tmp_path / "train" / name / f"{i}.png", picture(i, 9, 9))
    folder = load_source(tmp_path, "train", 8)
    numbered = make("numbered", tuple(map(str, range(11))), [0, 1, 2, 10])
    again = aligned(numbered, folder.classes, "folder")
    assert [int(name) for name in names_of(again)] == [0, 1, 2, 10]
    assert sorted(aligned(folder, numbered.classes, "numbered").labels.tolist()) == [0, 1, 2, 10]

    list(write_splits({"train": tmp_path / "train"}, tmp_path / "out", with_labels=True, progress=False))
    stored = load_source(tmp_path / "out", "train", 8, loader="torch")
    assert stored.classes == folder.classes and names_of(stored) == names_of(folder)


def test_numbers_from_nought_are_their_own_labels(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / str(i) / "a.png", picture(i, 9, 9))
    source = load_source(tmp_path, "train", 8)
    assert [int(source.classes[i]) for i in range(12)] == list(range(12))
    list(write_splits({"train": tmp_path}, tmp_path / "out", with_labels=True, progress=False))
    classes_file(tmp_path / "out" / "train.beton").unlink()
    stored = load_source(tmp_path / "out", "train", 8, loader="torch")
    assert stored.classes == source.classes and names_of(stored) == names_of(source)


def test_a_split_with_fewer_classes_is_matched(tmp_path: Path) -> None:
    for place in ("train/ant", "train/bee", "train/cow", "val/bee", "test/ant", "test/cow"):
        for i in range(2):
            save(tmp_path / place / f"{i}.png", picture(i, 9, 9))
    splits = load_splits(str(tmp_path), 8)
    assert class_names(splits) == ("ant", "bee", "cow")
    assert [source.labels.tolist() for source in splits] == [[0, 0, 1, 1, 2, 2], [1, 1], [0, 0, 2, 2]]


def test_a_split_with_a_class_of_its_own_is_refused() -> None:
    splits = Splits(make("train", ("a", "b")), make("val", ("a", "b")), make("test", ("a", "c")))
    for look in (matched, class_names):
        with pytest.raises(UsageError, match=r"different classes, since \(c\) is not among those of train"):
            look(splits)


def test_names_composed_otherwise_are_the_same(tmp_path: Path) -> None:
    """macOS stores accents apart from their letters."""
    save(tmp_path / "train" / "caf\u00e9" / "0.png", picture(0, 9, 9))
    save(tmp_path / "train" / "tea" / "0.png", picture(1, 9, 9))
    save(tmp_path / "test" / "cafe\u0301" / "0.png", picture(2, 9, 9))
    splits = load_splits(str(tmp_path), 8, hold_out=0.5)
    assert splits.test is not None and names_of(splits.test) == ["caf\u00e9"]
