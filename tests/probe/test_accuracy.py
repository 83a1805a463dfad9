"""Accuracies against SciPy's intervals, slow twins, and scores that know nothing."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from mi_ml_gen.core.errors import NonFiniteError, UsageError
from mi_ml_gen.probe.accuracy import (
    Accuracy,
    accuracy_table,
    class_table,
    confusion_figure,
    evaluate_scores,
    wilson,
    write_evaluations,
)
from mi_ml_gen.report.figures import figure_png


@pytest.mark.parametrize(("n_correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (9_012, 10_000), (1, 50_000)])
def test_wilson_is_scipys(n_correct, n):
    truth = binomtest(n_correct, n).proportion_ci(method="wilson")
    assert wilson(n_correct, n) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_without_images_an_interval_is_everything():
    assert Accuracy(0, 0).interval == (0.0, 1.0) and math.isnan(Accuracy(0, 0).value)


def slow_rank(scores: list[float], label: int) -> int:
    return sum(1 for i, score in enumerate(scores) if i != label and score >= scores[label])


def test_against_a_slow_twin_with_many_ties():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (300, 8), generator=rng).double()
    labels = torch.randint(0, 8, (300,), generator=rng)
    found = evaluate_scores(scores, labels, [f"c{i}" for i in range(8)])
    ranks = [slow_rank(row, label) for row, label in zip(scores.tolist(), labels.tolist(), strict=True)]
    assert found.top1 == (sum(rank < 1 for rank in ranks), 300)
    assert found.top5 == (sum(rank < 5 for rank in ranks), 300)
    assert found.confusion.sum() == 300 and found.confusion.diagonal().sum() == found.top1.n_correct
    for label, accuracy in enumerate(found.per_class):
        own = [rank for rank, other in zip(ranks, labels.tolist(), strict=True) if other == label]
        assert accuracy == (sum(rank < 1 for rank in own), len(own))


def test_equal_scores_know_nothing():
    """As those of a collapsed encoder: argmax alone would call a tenth of them right."""
    found = evaluate_scores(torch.zeros(50, 10), torch.arange(50) % 10, [str(i) for i in range(10)])
    assert found.top1.n_correct == 0 and found.top5.n_correct == 0


def test_cross_entropy_of_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    found = evaluate_scores(logits, torch.tensor([0, 0]), ["a", "b"], logits=True)
    truth = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert found.loss == pytest.approx(truth, abs=1e-12)
    assert found.confusion.tolist() == [[1, 1], [0, 0]]
    assert evaluate_scores(logits, torch.tensor([0, 0]), ["a", "b"]).loss is None


def test_refusals():
    with pytest.raises(NonFiniteError, match="nan or infinity"):
        evaluate_scores(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), ["a", "b"])
    with pytest.raises(UsageError, match="labels 2 to 2: the classifier has 2 classes"):
        evaluate_scores(torch.zeros(1, 2), torch.tensor([2]), ["a", "b"])
    with pytest.raises(UsageError, match="no images"):
        evaluate_scores(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ["a", "b"])


def test_tables_say_who_is_taken_for_whom():
    scores = torch.eye(3)[torch.tensor([0, 1, 1, 1, 2])]
    found = evaluate_scores(scores, torch.tensor([0, 0, 0, 1, 1]), ["cat", "dog", "cow"])
    rows = {row["class"]: row for row in class_table(found).to_records()}
    assert rows["cat"]["top-1 (%)"] == pytest.approx(100 / 3) and rows["cat"]["most often taken for"] == "dog"
    assert rows["cat"]["of its images (%)"] == pytest.approx(200 / 3)
    assert rows["dog"]["most often taken for"] == "cow"
    assert rows["cow"]["images"] == 0 and rows["cow"]["top-1 (%)"] is None
    (row,) = accuracy_table({"knn": found}).to_records()
    low, high = wilson(2, 5)
    assert row["top-1 (%)"] == 40 and row["95% interval"] == f"{100 * low:.2f} to {100 * high:.2f}"


def test_files(tmp_path):
    scores = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    found = evaluate_scores(scores, torch.tensor([0, 1, 2, 1]), ["T-shirt/top", 'a "b", c', "d"])
    write_evaluations(tmp_path, {"sgd": found, "knn": found}, "sgd")
    assert len(json.loads((tmp_path / "accuracy.json").read_text())) == 2
    assert (tmp_path / "classes.md").read_text().count("\n") == 5
    lines = list(csv.reader(io.StringIO((tmp_path / "confusion.csv").read_text())))
    assert [line[1:] for line in lines[1:]] == [["1", "0", "0"], ["1", "1", "0"], ["0", "0", "1"]]
    assert Image.open(tmp_path / "images" / "confusion.png").width > 300


@pytest.mark.parametrize("n_classes", [2, 30, 300])
def test_a_figure_for_any_number_of_classes(n_classes):
    labels = torch.arange(4 * n_classes) % n_classes
    found = evaluate_scores(torch.eye(n_classes)[labels.flip(0)], labels, [f"class {i}" for i in range(n_classes)])
    width, height = Image.open(io.BytesIO(figure_png(confusion_figure(found, "title")))).size
    assert 300 < width < 2600 and 300 < height < 2700
