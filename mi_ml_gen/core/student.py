"""Student's t over few units: the interval of a mean, and of a paired difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class MeanInterval(NamedTuple):
    """The mean of n independent values, with its 95% interval; infinite for one value."""

    mean: float
    low: float
    high: float
    n: int
    p: float
    """Of the two-sided test that the mean is 0; 1 for one value."""


def over_units(values: Sequence[float]) -> MeanInterval:
    """The mean of independent values (at least one), with Student's two-sided 95% interval and test against 0."""
    from scipy import stats  # takes longer to import than everything above

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return MeanInterval(mean, -math.inf, math.inf, n, 1.0)
    error = statistics.stdev(values) / math.sqrt(n)
    if error == 0:
        return MeanInterval(mean, mean, mean, n, 1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return MeanInterval(mean, mean - half, mean + half, n, float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def paired(values: Mapping[K, float], reference: Mapping[K, float]) -> MeanInterval | None:
    """The mean difference values - reference over the units that both have; None where there is none.

    What units share, such as the seed of the data's order, cancels within each. That is why this interval may be
    narrower than those of the two means.
    """
    both = [key for key in values if key in reference]
    return over_units([values[key] - reference[key] for key in both]) if both else None
