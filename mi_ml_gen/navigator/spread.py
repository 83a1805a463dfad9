"""Intervals over walkers: how far the mean over several trainings may lie from the mean over all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mi_ml_gen.core import student


@dataclass(frozen=True)
class WalkerMean:
    """A mean over walkers, with its 95% interval."""

    mean: float
    low: float
    high: float
    n_walkers: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def agrees_with(self, other: WalkerMean) -> bool:
        """Whether two means of disjoint walkers differ by no more than their 95% intervals together allow."""
        return abs(self.mean - other.mean) <= math.hypot(self.half_width, other.half_width)


def over_walkers(values: Sequence[float], standard_errors: Sequence[float] = ()) -> WalkerMean | None:
    """The mean of one value of each walker, with Student's 95% interval: the walkers are its units.

    standard_errors: of each value by the draws that it was measured on. They may be the same draws for all walkers, so
    that the spread does not contain their error; their mean is added. Of one walker there is no interval: None.
    """
    if len(values) < 2:
        return None
    walkers = student.over_units(values)
    draws = 1.96 * statistics.fmean(standard_errors) if standard_errors else 0.0
    half = math.hypot((walkers.high - walkers.low) / 2, draws)
    return WalkerMean(walkers.mean, walkers.mean - half, walkers.mean + half, walkers.n)
