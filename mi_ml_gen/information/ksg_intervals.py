"""Intervals of KSG estimates by subsampling, measured: docs/ksg.md has their coverage.

The points' own terms depend on one another, so that their spread is no standard error. Estimates from disjoint parts of
the pairs are independent. The variance of an estimate falls as 1/n (Holmes and Nemenman 2019, section IV), so that of
the whole is the variance between m parts over m. Several random partitions make this variance less noisy.

The same parts show the bias. Its size falls as n^-r, with r = 1/2 in 1 + 1 and 2 + 2 dimensions and 1/d in d + d (Gao,
Oh and Viswanath 2018, theorem 3). So an estimate that differs by D from that of a tenth of the pairs has D / (10^r - 1)
still to go. Where D is beyond its noise, the interval reaches that far. Where that is far, the verdict warns: rule 6 of
verdicts.py, which compares with half of the pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.runtime import stream
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean
from mi_ml_gen.information.ksg import KsgEstimate, KsgInterval, ksg_mutual_information
from mi_ml_gen.information.verdicts import Finding, changes_with_n, decide, no_number, too_uncertain

N_PARTS = 10
"""Parts of a partition, fewer for few pairs."""
FEWEST_PER_PART = 4
"""Pairs of a part, for each of the k neighbours."""
CHANGE_NOISE = 0.7
"""Standard error of the estimate less that of a part, or of half of the pairs, in standard errors of the estimate: both
hold much of the same noise. Measured by bench/ksg_coverage.py, where it is 0.4 to 0.75, and about 1 for independent
pairs."""
ASSUMES = "The pairs are independent, and the bias falls with the number of pairs at the usual rate."


def ksg_with_interval(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    k: int = 5,
    *,
    n_partitions: int | None = None,
    seed: int = 0,
    **options: Any,
) -> KsgEstimate:
    """As `ksg_mutual_information`, with `interval` filled; `options` are that function's.

    n_partitions: of the pairs into tenths; more make the interval less noisy. By default 3 below 5,000 pairs and 2 from
    there on. seed: of the partitions. What they cost is in docs/ksg.md.
    Raises UsageError for fewer than 8 pairs for each of the k neighbours, and as `ksg_mutual_information`.
    """
    whole = ksg_mutual_information(x, y, k, **options)
    n, n_partitions = whole.n, n_partitions or (3 if whole.n < 5000 else 2)
    n_parts = min(N_PARTS, n // (FEWEST_PER_PART * k))
    if n_parts < 2:
        raise UsageError(f"{n} pairs: an interval with k {k} needs at least {2 * FEWEST_PER_PART * k}")
    quiet = {**options, "progress": False, "warn": False}

    def estimates(order: Tensor, n_parts: int) -> np.ndarray:
        size = n // n_parts  # of every part; what is over is left out
        rows = order[: size * n_parts].view(n_parts, size)
        return np.array([ksg_mutual_information(x[part], y[part], k, **quiet).nats for part in rows])

    orders = [torch.randperm(n, generator=stream(seed, "ksg parts", i, 0)) for i in range(n_partitions)]
    parts = np.stack([estimates(order, n_parts) for order in orders])
    halves = estimates(orders[0], 2)
    error = math.sqrt(parts.var(axis=1, ddof=1).mean() / n_parts)
    at_part = MonteCarloMean(float(parts.mean()), CHANGE_NOISE * error)
    change = whole.nats - at_part.nats
    rate = bias_rate(x, y)
    left = change / (n_parts**rate - 1)
    bias = left if abs(change) > 2 * at_part.standard_error_nats else 0.0
    reach = float(student.ppf(0.975, n_partitions * (n_parts - 1))) * error
    interval = KsgInterval(
        low_nats=whole.nats - reach + min(bias, 0.0),
        high_nats=whole.nats + reach + max(bias, 0.0),
        standard_error_nats=error,
        bias_nats=bias,
        n_parts=n_parts,
        rate=rate,
        at_part=at_part,
        at_half=MonteCarloMean(float(halves.mean()), CHANGE_NOISE * error),
    )
    return dataclasses.replace(whole, interval=interval)


def ksg_estimate(found: KsgEstimate, rate: float | None = None, also: Sequence[Finding | None] = ()) -> Estimate:
    """The record of an estimate of `ksg_with_interval`: its interval, and its verdict.

    The verdict compares with half of the pairs, looks at the width of the interval, and counts what `also` found.
    The width is that of the noise of sampling: bias is for the comparison. rate: of the bias in that comparison, by
    default the interval's, which is cautious.
    """
    interval = found.interval
    assert interval is not None, "an estimate of ksg_with_interval is needed"
    low, high = interval.low_nats - min(interval.bias_nats, 0.0), interval.high_nats - max(interval.bias_nats, 0.0)
    findings = [
        no_number(found.nats, low, high),
        changes_with_n(found.nats, interval.at_half, interval.rate if rate is None else rate),
        *also,
        too_uncertain(found.nats, low, high),
    ]
    verdict, reason = decide([finding for finding in findings if finding is not None])
    details = {
        "k": found.k, "variant": found.variant, "scale": found.scale, "n_coincident": found.n_coincident,
        "standard_error_nats": interval.standard_error_nats, "bias_nats": interval.bias_nats,
        "at_half_n_nats": interval.at_half.nats,
    }  # fmt: skip
    return Estimate(
        found.nats, interval.low_nats, interval.high_nats, found.n, "ksg", ASSUMES, verdict, reason, details
    )


def bias_rate(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> float:
    """The power of 1/n with which the bias falls."""
    d_x, d_y = (1 if side.ndim == 1 else int(side.shape[1]) for side in (x, y))
    return min(0.5, 1 / max(d_x, d_y))
