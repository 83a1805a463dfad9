"""train_classifier.py and eval_classifier.py as a user calls them, on a tiny encoder and a folder of images."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from mi_ml_gen.core import runs
from mi_ml_gen.encoders.base import Architecture
from mi_ml_gen.encoders.loading import save_encoder
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.probe import evaluation
from tests.scripts.test_scripts import assert_refused, call, cut, hostile, text


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, SimCLR(Architecture(18, 4, True, dim=8)), image_size=16, crop_size=14)
    return path


@pytest.fixture
def data(tmp_path):
    """Red and green squares of 20 px, in class folders: 24 for training, 8 for testing."""
    rng = torch.Generator().manual_seed(0)
    for split, n in (("train", 12), ("test", 4)):
        for name, colour in (("green", (40, 200, 40)), ("red", (200, 40, 40))):
            folder = tmp_path / "squares" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                shade = int(torch.randint(-30, 30, (1,), generator=rng))
                Image.new("RGB", (20, 20), tuple(value + shade for value in colour)).save(folder / f"{i}.png")
    return tmp_path / "squares"


def test_from_an_encoder_to_accuracies(monkeypatch, capsys, tmp_path, encoder, data):
    shared = ["--encoder_path", encoder, "--data_path", data, "--save_folder", tmp_path / "runs", "--device", "cpu"]
    probe = [*shared, "--dataset", "squares", "--run_name", "a", "--hold_out", "0.25", "--max_epochs", 20]
    code, out, err = call(monkeypatch, capsys, "train_classifier", *probe, "--dry-run")
    assert code == 0 and "base_lr: 30.0" in out and not (tmp_path / "runs").exists(), err

    code, out, err = call(monkeypatch, capsys, "train_classifier", *probe)
    assert code == 0, err
    run = tmp_path / "runs" / "LinCls-squares-a"
    assert "all 120 tensors of it matched" in out and "on the test images" in out and f"run folder: {run}" in out
    rows = {row["readout"]: row for row in json.loads((run / "accuracy.json").read_text())}
    assert rows.keys() == {"sgd", "knn", "ridge"} and rows["sgd"]["images"] == 8
    assert rows["sgd"]["top-1 (%)"] == 100

    again, out_again, _ = call(monkeypatch, capsys, "train_classifier", *shared[:4], "--resume_from", run, *probe[6:])
    assert again == 0 and out_again == out

    log = tmp_path / "log"
    code, out, err = call(
        monkeypatch, capsys, "eval_classifier", "--lin_cls_path", run, "--data_path", data, "--batch_size", 3,
        "--dataset", "squares", "--device", "cpu", "--out_log_file", log,
    )  # fmt: skip
    assert code == 0 and "top-1: 100.00% (95%: 67.56% to 100.00%, n = 8)" in out, err
    (row,) = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    assert float(row["top-1 (%)"]) == 100 and row["images"] == "8"
    assert (log / "images" / "confusion.png").stat().st_size > 0


def test_the_papers_configuration(monkeypatch, capsys, encoder, data):
    paths = ["--encoder_path", encoder, "--data_path", data, "--dry-run"]
    code, out, err = call(monkeypatch, capsys, "train_classifier", "--conf", "classifier_lsun", *paths)
    assert code == 0, err
    lines = [
        "Tx: no_color",
        "scale: none",
        "max_epochs: 100",
        "base_lr: 30.0",
        "image_size: 128",
        "- sgd",
        "keep: last",
    ]
    for line in [*lines, "keep: last"]:
        assert line in out


@pytest.mark.parametrize(
    ("flags", "framing"),
    [
        ((), "classification"),
        (("--dataset", "StanfordCars"), "classification"),
        (("--dataset", "imagenet100"), "classification"),
        (("--dataset", "imagenet"), "bigbigan"),
        (("--dataset", "imagenet", "--framing", "whole"), "whole"),
    ],
)
def test_the_framing_is_the_published_one_of_the_set(monkeypatch, capsys, encoder, data, flags, framing):
    paths = ["--encoder_path", encoder, "--data_path", data, "--dry-run"]
    code, out, err = call(monkeypatch, capsys, "train_classifier", *flags, *paths)
    assert code == 0 and f"framing: {framing}\n" in out, err


def test_evaluation_frames_as_the_run_recorded(monkeypatch, capsys, tmp_path, encoder, data):
    """The run's framing, an explicit one with a warning, and the set's where nothing was recorded."""
    seen = []
    load = evaluation.load_source
    monkeypatch.setattr(evaluation, "load_source", lambda *a, **k: seen.append(k["framing"]) or load(*a, **k))
    argv = ["--encoder_path", encoder, "--data_path", data, "--device", "cpu", "--readouts", "ridge"]
    argv += ["--image_size", 16, "--save_folder", tmp_path / "runs", "--framing", "bigbigan"]
    code, out, err = call(monkeypatch, capsys, "train_classifier", *argv)
    assert code == 0 and "framed as bigbigan" in out, err
    (run,) = (tmp_path / "runs").iterdir()
    shutil.copy(run / "classifier.safetensors", tmp_path / "alone.safetensors")
    shutil.copy(run / "classifier.safetensors.sha256", tmp_path / "alone.safetensors.sha256")

    def evaluate(classifier, *flags):
        paths = ["--lin_cls_path", classifier, "--data_path", data, "--device", "cpu"]
        code, _, err = call(monkeypatch, capsys, "eval_classifier", *paths, *flags)
        assert code == 0, err
        return seen[-1], " ".join(line for line in err.splitlines() if line.startswith("warning"))

    assert evaluate(run) == evaluate(run / "classifier.safetensors") == ("bigbigan", "")
    framing, err = evaluate(run, "--framing", "whole")
    assert framing == "whole" and "warning: framing whole where the classifier's run had bigbigan" in err
    assert evaluate(tmp_path / "alone.safetensors")[0] == "classification"
    framing, err = evaluate(tmp_path / "alone.safetensors", "--dataset", "imagenet")
    assert framing == "bigbigan" and "1000 in the paper's" in err


def test_drawn_views_through_the_script(monkeypatch, capsys, tmp_path, encoder, data):
    code, _, err = call(
        monkeypatch, capsys, "train_classifier", "--conf", "classifier_imagenet", "--image_size", 16, "--max_epochs", 2,
        "--cumulative_bs", 8, "--encoder_path", encoder, "--data_path", data, "--device", "cpu",
        "--save_folder", tmp_path / "runs",
    )  # fmt: skip
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    assert [row["epoch"] for row in runs.read_metrics(run)] == [1, 2]
    assert not list(run.glob("features_train_*")) and len(list(run.glob("features_*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--data_path", "none"], 2, "--data_path must be given"),
        (["--encoder_path", "absent.ckpt"], 2, "absent.ckpt"),
        (["--data_path", "absent"], 2, "absent: no such file or folder"),
        (["--conf", "classifier_imagnet"], 2, "classifier_imagnet"),
        (["--readouts", "knn", "svm"], 2, "--readouts knn svm: must be one of sgd, knn, ridge"),
        (["--readouts", "knn", "knn"], 2, "at most once"),
        (["--max_epochs", "0"], 2, "--max_epochs 0: must be at least 1"),
        (["--base_lr", "nan"], 2, "--base_lr nan"),
        (["--hold_out", "1"], 2, "--hold_out 1: must be below 1"),
        (["--epochs", "3"], 2, "nearest known flag: --max_epochs"),
        (["--device", "tpu"], 2, "--device tpu"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_settings(monkeypatch, capsys, tmp_path, encoder, data, flags, code, says):
    argv = ["--encoder_path", encoder, "--data_path", data, "--device", "cpu", "--save_folder", tmp_path / "runs"]
    assert_refused(monkeypatch, capsys, "train_classifier", [*argv, *flags], code, says)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda p, e: p / "absent.ckpt", 2, "absent.ckpt"),
        (lambda p, e: p, 2, "no classifier.safetensors or last.ckpt"),
        (lambda p, e: cut(e, 1000), 3, "encoder.safetensors"),
        (lambda p, e: e, 3, "holds an encoder, not a classifier"),
        (lambda p, e: text(p / "last.ckpt", "text"), 3, "last.ckpt"),
        (lambda p, e: hostile(p / "evil.ckpt"), 3, "evil.ckpt"),
    ],
    ids=["missing", "folder", "truncated", "encoder", "text", "hostile"],
)
def test_wrong_classifiers(monkeypatch, capsys, tmp_path, encoder, data, make, code, says):
    argv = ["--lin_cls_path", make(tmp_path, encoder), "--data_path", data, "--device", "cpu"]
    assert_refused(monkeypatch, capsys, "eval_classifier", argv, code, says)
    assert not (tmp_path / "executed").exists()


def test_test_images_are_never_the_training_images(monkeypatch, capsys, encoder, data):
    """A folder that is not divided into splits gives the same images for every split."""
    argv = ["--lin_cls_path", encoder, "--data_path", data / "train", "--device", "cpu"]
    assert_refused(monkeypatch, capsys, "eval_classifier", argv, 3, "holds an encoder, not a classifier")
    code, _, err = call(
        monkeypatch, capsys, "train_classifier", "--encoder_path", encoder, "--data_path", data / "train",
        "--device", "cpu", "--save_folder", data / "runs", "--hold_out", "0.25", "--readouts", "ridge",
    )  # fmt: skip
    assert code == 0, err
    (run,) = (data / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["split"] == "validation"
    argv = ["--lin_cls_path", run, "--data_path", data / "train", "--device", "cpu"]
    assert_refused(monkeypatch, capsys, "eval_classifier", argv, 2, "has no images of the test split")

    # --- What is called test is read: the folder itself, and the file itself
    flags = ["--output_folder", data / "stored", "--test_folder", data / "test", "--with_labels"]
    assert call(monkeypatch, capsys, "create_image_beton_file", *flags)[0] == 0
    for place in (data / "test", data / "stored" / "test.beton"):
        argv = ["--lin_cls_path", run, "--data_path", place, "--device", "cpu", "--loader", "torch"]
        code, out, err = call(monkeypatch, capsys, "eval_classifier", *argv)
        assert code == 0 and "n = 8" in out and f"{place}: 8 images, 2 classes, " in err, err


def test_bad_images_can_be_left_out_as_advised(monkeypatch, capsys, tmp_path, encoder, data):
    (data / "train" / "red" / "bad.png").write_text("x")
    shared = ["--data_path", data, "--device", "cpu", "--save_folder", tmp_path / "runs"]
    probe = ["--encoder_path", encoder, *shared, "--readouts", "ridge", "--hold_out", "0.25"]
    code, _, err = call(monkeypatch, capsys, "train_classifier", *probe)
    assert code == 2 and "leave them out with --skip_bad" in err.splitlines()[-1]
    code, _, err = call(monkeypatch, capsys, "train_classifier", *probe, "--skip_bad")
    assert code == 0 and "bad.png" in err, err


def test_a_single_class_is_no_probe(monkeypatch, capsys, tmp_path, encoder, data):
    (tmp_path / "one").mkdir()
    (data / "train" / "red").rename(tmp_path / "one" / "red")
    argv = ["--encoder_path", encoder, "--data_path", tmp_path / "one", "--device", "cpu"]
    code, _, err = call(monkeypatch, capsys, "train_classifier", *argv, "--save_folder", tmp_path / "runs")
    assert code == 2 and "has only one class, red" in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
