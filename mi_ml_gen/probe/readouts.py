"""Readouts of features that need no training: nearest neighbours, and ridge regression in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.probe.accuracy import evaluate_scores
from mi_ml_gen.probe.features import Features

N_NEIGHBOURS = 20
TEMPERATURE = 0.1
PENALTIES = tuple(10.0**power for power in (-7, -6, -5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1))
"""Ridge penalties that are tried; 1 is the mean eigenvalue of the standardised features' covariance."""

_MOST_SIMILARITIES = 2**25  # at a time
_ROWS = 8192


class Linear(NamedTuple):
    """Scores = features @ weight.T + bias, of features as the backbone gives them."""

    weight: Tensor
    """(n_classes, d)"""
    bias: Tensor
    """(n_classes,)"""

    def scores(self, features: Tensor) -> Tensor:
        return features.to(self.weight) @ self.weight.T + self.bias


class Affine(NamedTuple):
    """Standardisation of features: (features - mean) / scale."""

    mean: Tensor
    """(d,)"""
    scale: Tensor
    """(d,)"""

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def fold(self, weight: Tensor, bias: Tensor) -> Linear:
        """The same scores, of features that are not standardised."""
        own = weight / self.scale
        return Linear(own, bias - own @ self.mean)


@torch.no_grad()
def knn_scores(
    train: Features,
    queries: Tensor,
    n_classes: int,
    k: int = N_NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Votes (m, n_classes) of the k nearest training images of queries (m, d), as is usual for learned features.

    Nearest by cosine; each votes for its class with weight exp(cosine / temperature) (Wu et al. 2018, section 3.4),
    which for small temperatures is nearly a vote of the nearest alone. Where there are fewer than k training images,
    all of them vote.
    """
    if k < 1 or temperature <= 0:
        raise UsageError(f"kNN with k = {k}, temperature = {temperature}: k must be at least 1, temperature above 0")
    device = torch.device(device)
    base = functional.normalize(train.values.to(device), dim=1)
    labels = train.labels.to(device)
    k = min(k, len(base))
    votes = []
    for part in queries.split(max(1, _MOST_SIMILARITIES // len(base))):
        cosine = functional.normalize(part.to(device), dim=1) @ base.T
        nearest = cosine.topk(k, dim=1)
        weights = ((nearest.values - 1) / temperature).exp()  # - 1: the same ratios, none above 1
        empty = torch.zeros(len(part), n_classes, device=device)
        votes.append(empty.scatter_add(1, labels[nearest.indices], weights).cpu())
    return torch.cat(votes)


class RidgeFit(NamedTuple):
    """Ridge regression at the penalty that did best on validation images."""

    linear: Linear
    """float64, of features that are not standardised."""
    penalty: float
    at_the_edge: bool
    """Whether that penalty is the smallest or largest of those tried."""
    validation: tuple[tuple[float, float], ...]
    """(penalty, top-1) of all that were tried."""


@torch.no_grad()
def fit_ridge(
    train: Features,
    validation: Features,
    n_classes: int,
    penalties: Sequence[float] = PENALTIES,
    device: torch.device | str = "cpu",
) -> RidgeFit:
    """Least squares from features to one-hot labels with a penalty on the squared weights, in float64.

    Every feature is centred and divided by its standard deviation over the training images (constant ones stay at 0);
    the weights solve (X'X / n + penalty I) W = X'Y / n with Y centred, so that the bias bears no penalty. One
    eigendecomposition serves all penalties; of equally good ones the largest is kept.
    """
    device = torch.device(device)
    where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    n, d = train.values.shape
    if n == 0 or len(validation.values) == 0:
        raise UsageError("ridge regression: needs training and validation images")
    standard = _standard(train.values, where)
    shares = torch.bincount(train.labels, minlength=n_classes).to(where, torch.float64) / n
    gram = torch.zeros(d, d, dtype=torch.float64, device=where)
    cross = torch.zeros(d, n_classes, dtype=torch.float64, device=where)
    for values, labels in zip(train.values.split(_ROWS), train.labels.split(_ROWS), strict=True):
        x = standard(values.to(where, torch.float64))
        gram += x.T @ x / n
        y = functional.one_hot(labels.to(where), n_classes).double() - shares
        cross += x.T @ y / n
    eigenvalues, basis = torch.linalg.eigh(gram)
    eigenvalues, projected = eigenvalues.clamp(min=0), basis.T @ cross

    names = [""] * n_classes
    tried: list[tuple[float, float]] = []
    best: tuple[float, float, Linear] | None = None
    for penalty in sorted(penalties, reverse=True):
        weight = (basis @ (projected / (eigenvalues + penalty)[:, None])).T
        linear = standard.fold(weight, shares)
        linear = Linear(linear.weight.cpu(), linear.bias.cpu())
        scores = torch.cat([linear.scores(part) for part in validation.values.split(_ROWS)])
        top1 = evaluate_scores(scores, validation.labels, names).top1.value
        tried.append((penalty, top1))
        if best is None or top1 > best[1]:
            best = penalty, top1, linear
    assert best is not None
    edge = best[0] in (min(penalties), max(penalties)) and len(penalties) > 1
    return RidgeFit(best[2], best[0], edge, tuple(tried))


def _standard(values: Tensor, device: torch.device) -> Affine:
    """Mean and standard deviation of each feature, float64; 1 in place of a deviation that is rounding alone."""
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=device)
    for part in values.split(_ROWS):
        total += part.to(device, torch.float64).sum(dim=0)
    mean = total / len(values)
    square = torch.zeros_like(mean)
    for part in values.split(_ROWS):
        square += (part.to(device, torch.float64) - mean).square().sum(dim=0)
    deviation = (square / len(values)).sqrt()
    is_constant = deviation <= 1e-6 * mean.abs()
    return Affine(mean, torch.where(is_constant | (deviation == 0), 1.0, deviation))


def unit_scale(values: Tensor) -> Affine:
    """Centre each feature of values (n, d), divide it by its standard deviation, and all by the root of their number.

    The mean squared length is then 1, so that one learning rate suits every backbone; and no feature rules the others,
    as the largest do in features after a ReLU, most of whose variance lies along one direction.
    """
    standard = _standard(values, torch.device("cpu"))
    return Affine(standard.mean.float(), (standard.scale * values.shape[1] ** 0.5).float())


__all__ = ["Affine", "Linear", "RidgeFit", "fit_ridge", "knn_scores", "unit_scale"]
