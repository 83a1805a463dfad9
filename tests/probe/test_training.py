"""The probe: the published classifier's numbers, a slow twin of SGD, a backbone that never moves, resuming."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from mi_ml_gen.core import files, runs
from mi_ml_gen.core.errors import CorruptCheckpointError, Preempted, UnsafeCheckpointError, UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.data.splits import PUBLISHED_CLASSES, Splits, Subset, class_names, has_split, load_splits
from mi_ml_gen.probe.accuracy import evaluate_scores
from mi_ml_gen.probe.classifier import load_classifier, save_classifier
from mi_ml_gen.probe.evaluation import evaluate_probe
from mi_ml_gen.probe.features import extract_features
from mi_ml_gen.probe.training import ProbeConfig, learning_rate, train_probe
from tests.conftest import GOLDEN, StopAt, load_helper
from tests.distributed import run_processes
from tests.probe.test_features import HOW, Counted, make_backbone, make_source

SETTINGS = ProbeConfig(
    device="cpu", max_epochs=4, cumulative_bs=6, base_lr=3.0, val_freq=2, n_neighbours=3, state_interval_s=0.0, seed=3
)


def make_splits() -> Splits:
    return Splits(make_source(22, seed=0), make_source(10, seed=1), make_source(12, seed=2))


def probe(path, backbone=None, splits=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return train_probe(settings, backbone or make_backbone(), splits or make_splits(), path, progress=False)


# --- published numbers


POSITIONS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def published_name(case: str, key: str) -> str:
    """The tensor of an encoder's checkpoint that the classifier's backbone was loaded from."""
    if case == "simsiam":
        return f"encoders/simsiam/encoder.{key}"
    first, _, rest = key.partition(".")
    return f"encoders/byol/online_network.encoder.{POSITIONS[first]}.{rest}"


@pytest.mark.parametrize("case", ["simsiam", "byol"])
def test_published_classifier(case, fill, tmp_path):
    """A Lightning checkpoint in the published layout gives the published logits, loss, top-1 and top-5."""
    golden = np.load(GOLDEN / "linear_classifiers.npz")
    shapes = {key: value.shape for key, value in ResNet(50).state_dict().items()}
    state = {f"model.{key}": fill(published_name(case, key), shape) for key, shape in shapes.items()}
    for key in state:
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
    prefix = str(golden[f"{case}/fc_prefix"])
    state |= {"model.fc.weight": fill(f"{prefix}model.fc.weight", (100, 2048))}
    state |= {"model.fc.bias": fill(f"{prefix}model.fc.bias", (100,))}
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 1, "global_step": 10, "state_dict": state, "loops": {}, "lr_schedulers": []}, path)

    classifier = load_classifier(tmp_path)
    assert classifier.image_size == 128 and not any(p.requires_grad for p in classifier.parameters())
    small = load_helper("fill").fill("encoders/x1", (8, 3, 4, 4))
    views = torch.from_numpy(np.repeat(np.repeat(small, 16, 2), 16, 3))
    with torch.no_grad():
        logits = classifier(views)
    assert logits.numpy() == pytest.approx(golden[f"{case}/logits"], abs=1e-5)
    found = evaluate_scores(logits, torch.from_numpy(golden[f"{case}/labels"]), [""] * 100, logits=True)
    loss, top1, top5 = golden[f"{case}/loss_acc1_acc5"].tolist()
    assert found.loss == pytest.approx(loss, abs=1e-4)
    assert (100 * found.top1.value, 100 * found.top5.value) == (top1, top5)


def test_the_papers_learning_rate():
    """30 at 256 images, 15 at 128, along half a cosine; a tenth is never quite reached."""
    settings = ProbeConfig()
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == 30.0 and rates[50] == pytest.approx(16.5) and 3.0 < rates[99] < 3.01
    assert learning_rate(dataclasses.replace(settings, cumulative_bs=128), 0, 10) == 15.0
    assert learning_rate(dataclasses.replace(settings, decay=False), 9, 10) == 30.0
    assert learning_rate(settings, 0, 10, batch_size=64) == 7.5


def test_the_rate_follows_the_images_of_a_step(tmp_path, caplog):
    """22 images are fewer than a batch of 256; 10 are two batches of 4, and 2 are left out."""
    small = probe(tmp_path / "small", cumulative_bs=256, max_epochs=1, readouts=["sgd"])
    assert runs.read_metrics(small.path)[0]["lr"] == pytest.approx(3.0 * 22 / 256)
    assert "fewer than --cumulative_bs 256: each step takes 22" in caplog.text
    whole = probe(tmp_path / "whole", cumulative_bs=11, max_epochs=1, readouts=["sgd"])
    assert runs.read_metrics(whole.path)[0]["lr"] < 3.0 * 11 / 256  # the second of two steps of 11


# --- the backbone stays


@pytest.mark.parametrize("views", ["none", "no_color"])
def test_neither_weights_nor_statistics_move(tmp_path, views):
    backbone = make_backbone().train()
    before = copy.deepcopy(backbone.state_dict())
    result = probe(tmp_path / "run", backbone, views=views)
    result.classifier.train().fc.requires_grad_(True)
    result.classifier(torch.randn(4, 3, 14, 14)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(module.training for module in result.classifier.backbone.modules())
    assert all(parameter.grad is None for parameter in backbone.parameters())


# --- SGD


def slow_sgd(values: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, n_steps: int) -> torch.Tensor:
    """Softmax regression on all images at once, written out: gradient, momentum, step. Returns the logits."""
    weight, bias = weight.double().clone(), torch.zeros(len(weight), dtype=torch.float64)
    pace_w, pace_b = torch.zeros_like(weight), torch.zeros_like(bias)
    values = values.double()
    for step in range(n_steps):
        error = torch.softmax(values @ weight.T + bias, dim=1) - functional.one_hot(labels, len(weight))
        pace_w = 0.9 * pace_w + error.T @ values / len(values)
        pace_b = 0.9 * pace_b + error.mean(dim=0)
        rate = 22 / 256 * (0.3 + 2.7 * (1 + math.cos(math.pi * step / n_steps)) / 2)
        weight, bias = weight - rate * pace_w, bias - rate * pace_b
    return values @ weight.T + bias


@pytest.mark.parametrize("scale", ["none", "unit"])
def test_sgd_is_its_slow_twin(tmp_path, scale):
    """With one batch an epoch; the kept layer is on features as they are, whatever SGD saw."""
    from mi_ml_gen.core import runtime

    backbone, splits = make_backbone(), make_splits()
    result = probe(tmp_path / "run", backbone, splits, cumulative_bs=22, max_epochs=6, val_freq=6, scale=scale,
                   readouts=["sgd"])  # fmt: skip
    values = extract_features(backbone, splits.train, HOW).values
    if scale == "unit":
        values = values - values.mean(dim=0)
        values = values / values.std(dim=0, correction=0) / 32**0.5
    first = torch.empty(4, 32).normal_(0, 0.01, generator=runtime.stream(3, "probe weights", 0, 0))
    truth = slow_sgd(values, splits.train.labels, first, 6)
    fc = result.classifier.fc
    found = extract_features(backbone, splits.train, HOW).values @ fc.weight.T + fc.bias
    assert found.detach().numpy() == pytest.approx(truth.numpy(), abs=1e-4)


def test_the_layer_of_least_validation_loss_is_kept(tmp_path):
    """Labels of noise: a high rate soon makes validation worse."""
    result = probe(tmp_path / "run", base_lr=2000.0, max_epochs=12, readouts=["sgd"])
    rows = [row for row in runs.read_metrics(result.path) if "validation_loss" in row]
    assert [row["epoch"] for row in rows] == [2, 4, 6, 8, 10, 12]
    summary = json.loads((result.path / "summary.json").read_text())["readouts"]["sgd"]
    least = min(rows, key=lambda row: row["validation_loss"])
    assert least is not rows[-1]
    assert (summary["epoch"], summary["validation_loss"]) == (least["epoch"], least["validation_loss"])
    own = evaluate_probe(result.classifier, make_splits().validation, "cpu")
    assert own.loss == pytest.approx(least["validation_loss"], rel=1e-4)


def test_the_last_epochs_layer_is_kept_where_asked_for(tmp_path):
    """The published protocol; on labels of noise the last layer is not the one of least validation loss."""
    settings = dict(base_lr=2000.0, max_epochs=12, readouts=["sgd"])
    last, best = (probe(tmp_path / keep, keep=keep, **settings) for keep in ("last", "best"))
    rows = [row for row in runs.read_metrics(last.path) if "validation_loss" in row]
    assert rows == [row for row in runs.read_metrics(best.path) if "validation_loss" in row]  # the same training
    summary = json.loads((last.path / "summary.json").read_text())["readouts"]["sgd"]
    assert (summary["epoch"], summary["kept"]) == (12, "last")
    assert summary["validation_loss"] == rows[-1]["validation_loss"] > min(row["validation_loss"] for row in rows)
    own = evaluate_probe(last.classifier, make_splits().validation, "cpu")
    assert own.loss == pytest.approx(rows[-1]["validation_loss"], rel=1e-4)
    for result, words in ((last, "layer of epoch 12, the last one"), (best, "the one of least validation loss")):
        assert words in result.layer and words in (result.path / "accuracy.md").read_text()
    with pytest.raises(UsageError, match="made with keep last"):
        probe(tmp_path / "last", keep="best", **settings)


def test_probes_of_version_0_1_which_recorded_no_choice_go_on(tmp_path):
    result = probe(tmp_path / "run")
    settings = runs.read_config(result.path)
    assert settings.pop("keep") == "best"
    (result.path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match="was made with keep best, not last, the default, because"):
        probe(tmp_path / "run", keep="last")
    assert probe(tmp_path / "run").evaluations["sgd"].top1 == result.evaluations["sgd"].top1


def last_state(path):
    return torch.load(sorted((path / "checkpoints").glob("*.pt"))[-1], weights_only=True)["state"]


def assert_same(one, other):
    assert runs.read_metrics(one) == runs.read_metrics(other)
    mine, theirs = (files.load_tensors(path / "classifier.safetensors").tensors for path in (one, other))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert (one / "summary.json").read_text() == (other / "summary.json").read_text()
    a, b = (last_state(path)["optimizer"]["state"] for path in (one, other))
    assert all(torch.equal(a[i]["momentum_buffer"], b[i]["momentum_buffer"]) for i in b)


@pytest.mark.parametrize("views", ["none", "no_color"])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, views):
    """Stopped between features, at the first step, within an epoch, at its end, and at the last step but one."""
    probe(tmp_path / "whole", views=views)
    assert len(runs.read_metrics(tmp_path / "whole")) == 4
    for looks in (2, 4, 5, 4, 8):  # three looks while features are computed, then one a step, of which there are 12
        with monkeypatch.context() as patch:
            StopAt(patch, looks)
            with pytest.raises(Preempted, match="the same command resumes"):
                probe(tmp_path / "run", views=views)
    probe(tmp_path / "run", views=views)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_finished_probe_says_the_same_again(tmp_path):
    first = probe(tmp_path / "run")
    again = probe(tmp_path / "run")
    assert again.evaluations["sgd"].as_dict() == first.evaluations["sgd"].as_dict()


# --- the whole


def test_what_a_probe_writes(tmp_path):
    backbone, splits = make_backbone(), make_splits()
    result = probe(tmp_path / "run", backbone, splits)
    assert list(result.evaluations) == ["sgd", "knn", "ridge"] and result.split == "test"
    summary = json.loads((result.path / "summary.json").read_text())
    assert summary["split"] == "test" and summary["readouts"]["ridge"]["penalty"] > 0
    for name, found in result.evaluations.items():
        assert summary["readouts"][name]["n_correct"] == found.top1.n_correct and found.top1.n == 12
    for name in ("accuracy.md", "accuracy.csv", "classes.md", "confusion.csv", "images/confusion.png"):
        assert (result.path / name).stat().st_size > 0
    loaded = load_classifier(result.path)
    assert loaded.classes == splits.train.classes and loaded.image_size == 16
    again = evaluate_probe(loaded, splits.test, "cpu")
    assert again.confusion.equal(result.evaluations["sgd"].confusion)


def test_separable_features_are_separated(tmp_path):
    """Images whose colour is their class: every readout finds it."""

    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])

    def coloured(n: int, seed: int):
        source = make_source(n, seed=seed)
        source.images = source.images // 8 + (150 * colours[source.labels]).to(torch.uint8)[:, :, None, None]
        return source

    splits = Splits(coloured(60, 0), coloured(20, 1), coloured(40, 2))
    result = probe(tmp_path / "run", Counted(), splits, max_epochs=30)
    assert {name: found.top1.value for name, found in result.evaluations.items()} == dict.fromkeys(
        ("sgd", "knn", "ridge"), 1.0
    )


def test_without_test_images_validation_is_judged(tmp_path):
    result = probe(tmp_path / "run", splits=make_splits()._replace(test=None), readouts=["knn"])
    assert result.split == "validation" and result.evaluations["knn"].top1.n == 10
    assert result.classifier is None and not (result.path / "classifier.safetensors").exists()


def test_refusals(tmp_path, caplog):
    with pytest.raises(UsageError, match="at most once"):
        probe(tmp_path / "a", readouts=["knn", "knn"])
    with pytest.raises(UsageError, match="different classes"):
        probe(tmp_path / "a", splits=make_splits()._replace(test=make_source(n_classes=5)))
    with pytest.raises(UsageError, match="has only one class"):
        probe(tmp_path / "a", splits=Splits(*(make_source(9, seed=i, n_classes=1) for i in range(3))))
    unlabelled = make_source()
    unlabelled.labels, unlabelled.classes = None, ()
    with pytest.raises(UsageError, match="has no labels"):
        probe(tmp_path / "a", splits=make_splits()._replace(validation=unlabelled))
    assert not (tmp_path / "a").exists()
    with caplog.at_level(logging.WARNING):
        probe(tmp_path / "b", dataset="pets", readouts=["knn"])
    assert "pets: 4 classes here, 37 in the paper's classifiers" in caplog.text


def test_more_classes_than_the_classifier(tmp_path):
    classifier = probe(tmp_path / "run").classifier
    with pytest.raises(UsageError, match="has 5 classes, the classifier 4"):
        evaluate_probe(classifier, make_source(n_classes=5), "cpu")


def renamed(source, classes, labels=None):
    source.classes = classes
    source.labels = source.labels if labels is None else labels
    return source


def test_a_classifier_knows_its_classes_by_name(tmp_path):
    classifier = probe(tmp_path / "run").classifier
    source = make_source(12, seed=2)
    expected = evaluate_probe(classifier, source, "cpu")
    names = source.classes
    turned = renamed(make_source(12, seed=2), names[::-1], 3 - source.labels)  # the same classes in another order
    found = evaluate_probe(classifier, turned, "cpu")
    assert found.confusion.equal(expected.confusion) and found.classes == names

    some = renamed(make_source(12, seed=2), names[1:3], torch.tensor([0, 1] * 6))
    assert evaluate_probe(classifier, some, "cpu").confusion.sum(dim=1).tolist() == [0, 6, 6, 0]

    others = renamed(make_source(12, seed=2), ("class 0", "class 1", "class 2", "zebra"))
    with pytest.raises(UsageError, match=r"\(zebra\) is not among.*class 2, zebra\); the classifier: \(class 0"):
        evaluate_probe(classifier, others, "cpu")


def test_a_published_classifier_takes_names_in_their_order(tmp_path, caplog):
    """Its file has no names, and its labels were those of folders sorted as text."""
    classifier = probe(tmp_path / "run").classifier
    numbers = renamed(make_source(12, seed=2), tuple("0123"))
    named = renamed(make_source(12, seed=2), ("10", "2", "a", "b"))
    classifier.classes = tuple("0123")
    with pytest.raises(UsageError, match="different classes"):
        evaluate_probe(classifier, named, "cpu")
    classifier.has_names = False
    expected = evaluate_probe(classifier, numbers, "cpu")
    assert "by number only" not in caplog.text
    found = evaluate_probe(classifier, named, "cpu")
    assert found.confusion.equal(expected.confusion) and found.classes == ("10", "2", "a", "b")
    assert "by number only" in caplog.text and "0 is 10, 3 is b" in caplog.text
    with pytest.raises(UsageError, match="has 3 classes, the classifier 4"):
        evaluate_probe(classifier, renamed(make_source(12, seed=2, n_classes=3), ("x", "y", "z")), "cpu")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s.pop("model.fc.bias"), "fc.bias is missing"),
        (lambda s: s.pop("model.conv1.weight"), "conv1.weight is missing"),
        (lambda s: s.pop("model.layer3.0.bn1.running_var"), "running_var"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda s: s.update({"model.fc.weight": torch.zeros(4, 31)}), "size mismatch"),
        (lambda s: s.update({"model.layer9.weight": torch.zeros(1)}), "layer9"),
    ],
)
def test_files_that_are_no_classifier(tmp_path, spoil, says):
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, probe(tmp_path / "run").classifier)
    tensors, header = files.load_tensors(path)
    spoil(tensors)
    files.save_tensors(path, tensors, header)
    with pytest.raises(CorruptCheckpointError, match=says) as refusal:
        load_classifier(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_hostile_and_missing_classifiers(tmp_path):
    class Payload:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Payload()}, tmp_path / "last.ckpt")
    with pytest.raises(UnsafeCheckpointError):
        load_classifier(tmp_path)
    assert not (tmp_path / "executed").exists()
    torch.save({"state_dict": {"model.fc.weight": "text"}}, tmp_path / "last.ckpt")
    with pytest.raises(CorruptCheckpointError, match="no state_dict of tensors"):
        load_classifier(tmp_path)
    with pytest.raises(UsageError, match=r"no classifier.safetensors or last.ckpt"):
        load_classifier(GOLDEN)


# --- splits


def test_held_out_images(monkeypatch):
    source, test = make_source(50), make_source(10, seed=1)
    monkeypatch.setattr(
        "mi_ml_gen.data.splits.load_source", lambda r, split, *a, **k: test if split == "test" else source
    )
    splits = load_splits("fashion-mnist", 16, seed=1, hold_out=0.2)
    assert isinstance(splits.train, Subset) and isinstance(splits.validation, Subset) and splits.test is test
    train, held = set(splits.train.indices.tolist()), set(splits.validation.indices.tolist())
    assert len(held) == 10 and train | held == set(range(50)) and not train & held
    again = load_splits("fashion-mnist", 16, seed=1, hold_out=0.2).validation
    other = load_splits("fashion-mnist", 16, seed=2, hold_out=0.2).validation
    assert isinstance(again, Subset) and again.indices.equal(splits.validation.indices)
    assert isinstance(other, Subset) and not other.indices.equal(again.indices)
    with pytest.raises(UsageError, match="--hold_out 0.001 takes 0 of the 50"):
        load_splits("fashion-mnist", 16, hold_out=0.001)


def test_a_folder_that_is_not_divided_is_not_its_own_test(tmp_path):
    """load_source gives such a folder for every split."""
    (tmp_path / "cats").mkdir()
    assert not has_split(str(tmp_path), "test") and not has_split(str(tmp_path), "validation")
    (tmp_path / "val").mkdir()
    (tmp_path / "test.beton").touch()
    assert has_split(str(tmp_path), "validation") and has_split(str(tmp_path), "test")
    assert has_split("digits", "test") and not has_split("digits", "validation")
    assert has_split("torchvision:DTD:x", "validation") and not has_split("torchvision:Caltech101:x", "test")


def test_class_names_come_from_the_data():
    splits = make_splits()
    assert class_names(splits) == ("class 0", "class 1", "class 2", "class 3")
    for source in splits:
        source.classes = ()
    assert class_names(splits) == ("0", "1", "2", "3")
    assert len(PUBLISHED_CLASSES) == 11 and PUBLISHED_CLASSES["StanfordCars"] == 196


# --- processes


def _probe(folder: str) -> dict:
    result = probe(f"{folder}/run", readouts=["sgd"])
    kept = probe(f"{folder}/drawn", readouts=["sgd"], views="no_color")
    features = extract_features(make_backbone(), make_source(9), HOW).values  # 9 are not to be divided by 2
    return {"weight": result.classifier.fc.weight.data, "drawn": kept.classifier.fc.weight.data, "features": features}


def test_two_processes_are_one(tmp_path):
    alone = _probe(str(tmp_path / "one"))
    first, second = run_processes(_probe, 2, str(tmp_path / "two"))
    assert first["weight"].numpy() == pytest.approx(alone["weight"].numpy(), abs=1e-4)
    assert first["features"].numpy() == pytest.approx(alone["features"].numpy(), abs=1e-5)
    assert all(torch.equal(first[key], second[key]) for key in first)  # also where each draws views of its own
