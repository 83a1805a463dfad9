"""Intervals of KSG estimates by subsampling, measured: docs/ksg.md has their coverage.

The points' own terms depend on one another, so that their spread is no standard error. Estimates from disjoint parts of
the pairs are independent. So the difference of two halves has twice the variance of an estimate from half of the pairs,
and the mean over several random halvings estimates that variance.

The variance falls as 1/n for large n (Holmes and Nemenman 2019, section IV), and a little more slowly for small n,
where the neighbourhoods of a part are wider and its estimate smoother. Halves need the least extrapolation. Parts of a
tenth would give errors that are too small by 15 to 25% at 1,000 pairs.

Smaller parts show the bias. Its size falls as n^-r, with r = 1/2 in 1 + 1 and 2 + 2 dimensions and 1/d in d + d (Gao,
Oh and Viswanath 2018, theorem 3). So an estimate that differs by D from that of a tenth of the pairs has D / (10^r - 1)
still to go. Where D is beyond its noise, the interval reaches that far.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.runtime import stream
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.ksg import KsgEstimate, KsgInterval, ksg_mutual_information

N_PARTS = 10
"""Parts that show the bias, fewer for few pairs."""
FEWEST_PER_PART = 4
"""Pairs of a part, for each of the k neighbours."""
VARIANCE_GROWTH = 0.1
"""n times the variance grows about as n to this power from halves to the whole: measured at 0.05 to 0.2 for normal
pairs in 1 + 1 and 2 + 2 dimensions, between 500 and 1,000 pairs."""
CHANGE_NOISE = 0.8
"""Standard error of the estimate less that of a tenth, in standard errors of the estimate: both hold much of the same
noise. Measured by bench/coverage.py."""
HALF_NOISE = 0.5
"""The same for halves."""


def ksg_with_interval(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    k: int = 5,
    *,
    n_halvings: int | None = None,
    seed: int = 0,
    **options: Any,
) -> KsgEstimate:
    """As `ksg_mutual_information`, with `interval` filled; `options` are that function's.

    n_halvings: how often the pairs are split into halves at random; more make the interval less noisy, and each costs
    about as much as the estimate. By default 8 below 5,000 pairs and 5 from there on. seed: of the random parts.
    Raises UsageError for fewer than 8 pairs for each of the k neighbours, and as `ksg_mutual_information`.
    """
    whole = ksg_mutual_information(x, y, k, **options)
    n, n_halvings = whole.n, n_halvings or (8 if whole.n < 5000 else 5)
    n_parts = min(N_PARTS, n // (FEWEST_PER_PART * k))
    if n_parts < 2:
        raise UsageError(f"{n} pairs: an interval with k {k} needs at least {2 * FEWEST_PER_PART * k}")
    quiet = {**options, "progress": False, "warn": False}

    def estimates(i: int, n_parts: int) -> np.ndarray:
        order = torch.randperm(n, generator=stream(seed, "ksg parts", i, 0))
        size = n // n_parts  # of every part; what is over is left out
        rows = order[: size * n_parts].view(n_parts, size)
        return np.array([ksg_mutual_information(x[part], y[part], k, **quiet).nats for part in rows])

    halves = np.stack([estimates(i, 2) for i in range(n_halvings)])
    parts = np.stack([estimates(n_halvings + i, n_parts) for i in range(2)])
    error = math.sqrt(halves.var(axis=1, ddof=1).mean() / 2 * 2**VARIANCE_GROWTH)
    at_part = MonteCarloMean(float(parts.mean()), CHANGE_NOISE * error)
    change = whole.nats - at_part.nats
    rate = bias_rate(x, y)
    left = change / (n_parts**rate - 1)
    bias = left if abs(change) > 2 * at_part.standard_error_nats else 0.0
    reach = float(student.ppf(0.975, n_halvings)) * error
    interval = KsgInterval(
        low_nats=whole.nats - reach + min(bias, 0.0),
        high_nats=whole.nats + reach + max(bias, 0.0),
        standard_error_nats=error,
        reach_nats=reach,
        bias_nats=bias,
        n_parts=n_parts,
        rate=rate,
        at_part=at_part,
        at_half=MonteCarloMean(float(halves.mean()), HALF_NOISE * error),
    )
    return dataclasses.replace(whole, interval=interval)


def bias_rate(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """The power of 1/n with which the bias falls."""
    d_x, d_y = (1 if side.ndim == 1 else int(side.shape[1]) for side in (x, y))
    return min(0.5, 1 / max(d_x, d_y))
