"""Nearest neighbours and ridge regression against slow twins and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.probe import readouts
from mi_ml_gen.probe.features import Features
from mi_ml_gen.probe.readouts import fit_ridge, knn_scores, unit_scale


def draw(n: int, d: int, n_classes: int, seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=rng)
    centers = torch.randn(n_classes, d, generator=torch.Generator().manual_seed(99))
    return Features(centers[labels] + torch.randn(n, d, generator=rng), labels)


def slow_votes(train: Features, query: torch.Tensor, n_classes: int, k: int, temperature: float) -> list[float]:
    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    near = sorted(((cosine(query, v), int(y)) for v, y in zip(*train, strict=True)), reverse=True)[:k]
    votes = [0.0] * n_classes
    for similarity, label in near:
        votes[label] += math.exp((similarity - 1) / temperature)
    return votes


@pytest.mark.parametrize("k", [1, 7, 20, 500])
def test_knn_is_its_slow_twin(k, monkeypatch):
    monkeypatch.setattr(readouts, "_MOST_SIMILARITIES", 300)  # a few queries at a time
    train, queries = draw(100, 6, 4), draw(11, 6, 4, seed=1).values
    truth = [slow_votes(train, query, 4, k, 0.1) for query in queries]
    assert knn_scores(train, queries, 4, k, 0.1).numpy() == pytest.approx(np.array(truth), rel=1e-4, abs=1e-7)


def test_knn_knows_its_own_images_and_not_their_length():
    train = draw(60, 5, 3)
    votes = knn_scores(train, train.values * 1000, 3, k=1)
    assert votes.argmax(dim=1).equal(train.labels)
    with pytest.raises(UsageError, match="k must be at least 1"):
        knn_scores(train, train.values, 3, k=0)


def test_ridge_is_the_normal_equations(monkeypatch):
    """Features of very different sizes, one constant, two equal; one penalty; rows worked on in parts."""
    monkeypatch.setattr(readouts, "_ROWS", 7)
    train, validation = draw(50, 6, 3), draw(20, 6, 3, seed=1)
    for values in (train.values, validation.values):
        values *= torch.tensor([1.0, 100.0, 1e-3, 1.0, 1.0, 1.0])
        values[:, 4] = 3.7
        values[:, 5] = values[:, 0]
    fit = fit_ridge(train, validation, 3, penalties=[0.05])

    x = train.values.double().numpy()
    deviation = x.std(axis=0)
    deviation[4] = 1
    standardised = (x - x.mean(axis=0)) / deviation
    standardised[:, 4] = 0
    y = np.eye(3)[train.labels.numpy()]
    left = standardised.T @ standardised / 50 + 0.05 * np.eye(6)
    weight = np.linalg.solve(left, standardised.T @ (y - y.mean(axis=0)) / 50)
    truth = standardised @ weight + y.mean(axis=0)
    assert fit.linear.scores(train.values).numpy() == pytest.approx(truth, abs=1e-8)
    assert fit.penalty == 0.05 and not fit.at_the_edge


def test_the_penalty_is_the_best_on_validation_images():
    """More features than images: without a penalty it would fit noise."""
    train, validation = draw(60, 80, 4), draw(300, 80, 4, seed=1)
    fit = fit_ridge(train, validation, 4)
    scores = dict(fit.validation)
    assert scores[fit.penalty] == max(scores.values()) > scores[min(scores)]
    assert fit.penalty == max(p for p, top1 in scores.items() if top1 == scores[fit.penalty])
    right = fit.linear.scores(validation.values).argmax(dim=1) == validation.labels
    assert right.double().mean().item() == pytest.approx(scores[fit.penalty])


def test_the_edge_of_the_penalties_is_told():
    train, validation = draw(60, 80, 4), draw(300, 80, 4, seed=1)
    assert fit_ridge(train, validation, 4, penalties=[1e-7, 1e-6]).at_the_edge


def test_ridge_without_images():
    some = draw(5, 2, 2)
    with pytest.raises(UsageError, match="needs training and validation images"):
        fit_ridge(some, some.rows(torch.arange(0)), 2)


def test_unit_scale():
    """Every feature gets the same variance, 1 / d; a constant one becomes 0; what is folded gives the same scores."""
    values = draw(40, 4, 2).values * torch.tensor([1.0, 5.0, 0.1, 0.0]) + 7
    standard = unit_scale(values)
    unit = standard(values)
    assert unit.mean(dim=0).abs().max() < 1e-5
    assert unit.var(dim=0, unbiased=False).numpy() == pytest.approx([0.25, 0.25, 0.25, 0], abs=1e-5)
    weight, bias = torch.randn(2, 4), torch.randn(2)
    folded = standard.fold(weight, bias)
    assert folded.scores(values).numpy() == pytest.approx((unit @ weight.T + bias).numpy(), abs=1e-4)
    assert unit_scale(torch.full((4, 3), 2.0))(torch.full((4, 3), 2.0)).equal(torch.zeros(4, 3))
