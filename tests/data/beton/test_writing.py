"""create_image_beton_file.py: the reference's flags, all splits looked through before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.data import folders
from mi_ml_gen.data.beton.format import read_index
from mi_ml_gen.data.loading import load_source
from tests.image_files import folder, picture, save
from tests.scripts.test_scripts import call


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path_factory.mktemp("memory")))


def test_every_split_with_labels(tmp_path: Path, monkeypatch, capsys) -> None:
    flags: list[object] = ["--output_folder", tmp_path / "out", "--max_resolution", 50, "--with_labels", "--workers", 2]
    for i, split in enumerate(("train", "val", "test", "predict")):
        flags += [f"--{split}_folder", folder(tmp_path / split, n=6 + 2 * i)]
    code, out, _ = call(monkeypatch, capsys, "create_image_beton_file", *flags)
    assert code == 0 and "train.beton: 6 images of 2 classes" in out
    names = sorted(path.name for path in (tmp_path / "out").glob("*.beton"))
    assert names == ["predict.beton", "test.beton", "train.beton", "validation.beton"]

    plain = load_source(tmp_path / "val", image_size=12, framing="whole")
    stored = load_source(tmp_path / "out", "validation", image_size=12, loader="torch")
    assert stored.classes == plain.classes == ("ant", "bee") and stored.labels is not None and plain.labels is not None
    assert stored.labels.tolist() == plain.labels.tolist()
    indices = torch.arange(8)
    assert (stored.batch(indices).int() - plain.batch(indices).int()).abs().float().mean() < 6
    index = read_index(tmp_path / "out" / "validation.beton")
    assert max(index.width.max(), index.height.max()) == 50


def test_without_labels_whatever_the_folders(tmp_path: Path, monkeypatch, capsys) -> None:
    folder(tmp_path / "in")
    save(tmp_path / "in" / "loose.png", picture(0, 20, 30))
    code, out, _ = call(
        monkeypatch, capsys, "create_image_beton_file", "--output_folder", tmp_path, "--predict_folder", tmp_path / "in"
    )
    assert code == 0 and "predict.beton: 7 images," in out
    index = read_index(tmp_path / "predict.beton")
    assert index.label is None and len(index) == 7 and not list(tmp_path.glob("*.json"))


def test_transparency_and_rotation_are_those_of_the_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    see_through = np.dstack([picture(0, 40, 40), np.zeros((40, 40), np.uint8)])
    save(tmp_path / "in" / "a.png", see_through)
    argv = ("--output_folder", tmp_path, "--train_folder", tmp_path / "in")
    assert call(monkeypatch, capsys, "create_image_beton_file", *argv)[0] == 0
    assert (load_source(tmp_path, loader="torch").batch(torch.tensor([0])) >= 254).all()  # white


@pytest.mark.parametrize(
    ("make", "flags", "complaint"),
    [
        (None, ["--train_folder", "nowhere"], "no such folder of images"),
        (None, [], "give at least one of --train_folder"),
        ("bad", ["--train_folder", "in"], "1 of 7 images cannot be read: ant/bad.png: not an image"),
        ("plain", ["--train_folder", "in", "--with_labels"], "has no class folders"),
        ("differ", ["--train_folder", "in", "--val_folder", "other", "--with_labels"], "1 classes are in one of them"),
        ("fine", ["--train_folder", "in", "--max_resolution", "0"], "--max_resolution 0"),
        ("fine", ["--train_folder", "in", "--max_resolution", "5000"], "between 1 and 4096"),
        ("fine", ["--train_folder", "in", "--workers", "0"], "--workers 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch, capsys, make, flags, complaint
) -> None:
    monkeypatch.chdir(tmp_path)
    if make is not None:
        folder(tmp_path / "in", classes=() if make == "plain" else ("ant", "bee"))
    if make == "bad":
        (tmp_path / "in" / "ant" / "bad.png").write_text("x")
    if make == "differ":
        folder(tmp_path / "other", classes=("ant", "bee", "cow"))
    code, _, err = call(monkeypatch, capsys, "create_image_beton_file", "--output_folder", "out", *flags)
    assert code == 2 and complaint in err.splitlines()[-1], err
    assert not (tmp_path / "out").exists()


def test_bad_images_are_left_out_when_asked(tmp_path: Path, monkeypatch, capsys) -> None:
    folder(tmp_path / "in")
    (tmp_path / "in" / "ant" / "bad.png").write_text("x")
    argv = ("--output_folder", tmp_path, "--train_folder", tmp_path / "in", "--skip_bad")
    code, out, _ = call(monkeypatch, capsys, "create_image_beton_file", *argv)
    assert code == 0 and "6 images" in out
