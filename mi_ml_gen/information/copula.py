"""Gaussian coordinates of x and y, and the information of the Gaussian copula, in closed form.

Mutual information does not change when x and y are each mapped by an invertible function. Every estimator here that
trains something first maps them so:

1. **Smooth scores.** Each coordinate by itself: a monotone curve through the points (quantile of the coordinate,
   standard normal quantile of the same rank). Like normal scores it takes units, logarithms and heavy tails out. Unlike
   normal scores it is smooth, so it keeps differences between neighbours, which carry the information where x and y
   almost determine one another.
2. **Canonical coordinates** (Hotelling 1936). A linear map of x and one of y, after which each side has covariance 1
   and x_i correlates with y_i alone, by rho_i. For a jointly Gaussian pair I = -1/2 sum_i log(1 - rho_i**2).

Both maps are computed from all pairs, held-out ones too: any fixed invertible map would do, so none of them is fitted
to the information.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import digamma, ndtr, ndtri
from torch import Tensor

from mi_ml_gen.information.estimate import Verdict
from mi_ml_gen.information.verdicts import Finding

PAIRS_PER_KNOT, FEWEST_KNOTS, MOST_KNOTS = 50, 12, 200
_LEAST_VARIANCE = 1e-10  # of a direction, as a share of the largest: below it the direction holds nothing
_CLOSEST = 1e-13  # 1 - rho**2 that float64 can still tell from 0
DISCRETE_SHARE = 0.1
"""Share of repeated values from which a coordinate has no density."""


class Canonical(NamedTuple):
    """x (n, d_x) and y (n, d_y), each with mean 0 and covariance 1, float64; x_i correlates with y_i alone.

    correlations: (min(d_x, d_y),), from the largest. is_discrete: whether a coordinate of either side has repeated
    values, so that densities do not exist.
    """

    x: Tensor
    y: Tensor
    correlations: Tensor
    is_discrete: bool

    @property
    def rho(self) -> Tensor:
        """Correlation of each y_i with x_i: (d_y,), 0 where there is no x_i."""
        full = self.y.new_zeros(self.y.shape[1])
        full[: len(self.correlations)] = self.correlations
        return full

    @property
    def residual(self) -> Tensor:
        """(y - rho x) / sqrt(1 - rho**2): (n, d_y), covariance 1, uncorrelated with x."""
        k = len(self.correlations)
        expected = torch.zeros_like(self.y)
        expected[:, :k] = self.x[:, :k] * self.correlations
        return (self.y - expected) / (1 - self.rho.square()).sqrt()


def smooth_scores(points: Tensor) -> Tensor:
    """Each coordinate of points (n, d) by itself, through a monotone piecewise cubic curve (Fritsch and Carlson 1980)
    from its quantiles to those of the standard normal distribution. Strictly increasing; float64."""
    n = len(points)
    n_knots = min(max(n // PAIRS_PER_KNOT, FEWEST_KNOTS), MOST_KNOTS)
    edge = ndtri(0.5 / n)
    ranks = ndtr(np.linspace(edge, -edge, n_knots)) * n - 0.5  # places among the sorted values, 0 to n - 1
    scores = ndtri((ranks + 0.5) / n)
    columns = []
    for column in points.T.numpy():
        values = np.interp(ranks, np.arange(n), np.sort(column))
        knots, inverse = np.unique(values, return_inverse=True)
        if len(knots) < 2:
            columns.append(np.zeros(n))  # a constant: it tells nothing
            continue
        # Equal quantiles share their mean score.
        heights = np.bincount(inverse.reshape(-1), weights=scores) / np.bincount(inverse.reshape(-1))
        scale = knots[-1] - knots[0]
        columns.append(PchipInterpolator((knots - knots[0]) / scale, heights)((column - knots[0]) / scale))
    return torch.from_numpy(np.stack(columns, axis=1))


def canonical(x: Tensor, y: Tensor) -> Canonical:
    """The Gaussian coordinates of pairs x (n, d_x), y (n, d_y), float64 on the CPU. Directions without variance are
    left out; at least one stays on each side."""
    discrete = _has_repeats(x) or _has_repeats(y)
    white_x, white_y = _whitened(smooth_scores(x)), _whitened(smooth_scores(y))
    left, correlations, right = torch.linalg.svd(white_x.T @ white_y / len(x), full_matrices=True)
    return Canonical(white_x @ left, white_y @ right.T, correlations.clamp(max=math.sqrt(1 - _CLOSEST)), discrete)


def _has_repeats(points: Tensor) -> bool:
    for column in points.T:
        counts = column.unique(return_counts=True)[1]
        if int(counts[counts > 1].sum()) > DISCRETE_SHARE * len(column):
            return True
    return False


def _whitened(points: Tensor) -> Tensor:
    """(n, d) -> (n, <= d) with mean 0 and covariance 1."""
    centred = points - points.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(points))
    kept = variances > max(_LEAST_VARIANCE * variances[-1].item(), 1e-300)
    if not kept.any():
        return torch.zeros(len(points), 1, dtype=points.dtype)
    return centred @ (directions[:, kept] / variances[kept].sqrt())


# --- the closed form ------------------------------------------------------------------------------------------


class GaussianPart(NamedTuple):
    """The information of a Gaussian copula, in nats."""

    nats: float
    """Without the bias that n pairs have where the copula is Gaussian."""
    terms: Tensor
    """Log density ratio of each pair under the fitted Gaussian: (n,); their mean is the estimate with its bias."""
    fit_error_nats: float
    """Standard deviation that fitting d_x d_y correlations adds: sqrt(d_x d_y / 2) / n."""


def gaussian_part(pairs: Canonical) -> GaussianPart:
    """The closed form with the bias of its three log determinants taken off.

    For n draws with estimated mean, E log|S| - log|Sigma| = sum_{i=1..d} digamma((n - i) / 2) + d log(2 / n), S the
    covariance with divisor n (Wishart; Goodman 1963; Misra, Singh and Demchuk 2005).
    """
    n, d_x, d_y = len(pairs.x), pairs.x.shape[1], pairs.y.shape[1]
    biased = -0.5 * torch.log1p(-pairs.correlations.square()).sum().item()
    bias = 0.5 * (_log_det_bias(d_x, n) + _log_det_bias(d_y, n) - _log_det_bias(d_x + d_y, n))
    terms = 0.5 * (pairs.y.square().sum(1) - pairs.residual.square().sum(1)) + biased
    return GaussianPart(biased - bias, terms, math.sqrt(d_x * d_y / 2) / n)


def _log_det_bias(d: int, n: int) -> float:
    if n <= d + 1:
        return math.nan
    return float(digamma((n - np.arange(1, d + 1)) / 2).sum() + d * math.log(2 / n))


def standard_error(part: GaussianPart) -> float:
    """Of the closed form: the spread of the pairs' terms, and what fitting the correlations adds."""
    return math.hypot(part.terms.std().item() / math.sqrt(len(part.terms)), part.fit_error_nats)


def base_findings(pairs: Canonical) -> list[Finding]:
    """What speaks against any estimate that needs densities."""
    found = []
    if pairs.is_discrete:
        found.append(Finding(Verdict.NOT_TRUSTED, "values are repeated, and the estimator needs densities: use ksg"))
    n, n_numbers = len(pairs.x), pairs.x.shape[1] + pairs.y.shape[1]
    if n <= n_numbers + 1:
        reason = f"{n} pairs are too few for {n_numbers} numbers: correlations need more pairs than numbers"
        found.append(Finding(Verdict.NOT_TRUSTED, reason))
    elif 1 - pairs.correlations[0].square().item() <= 10 * _CLOSEST:
        found.append(
            Finding(Verdict.NOT_TRUSTED, "x and y almost determine one another: the information may be infinite")
        )
    return found
