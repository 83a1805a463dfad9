"""What every estimator of mutual information is, and how blocks of pairs give intervals. `estimation.py` runs them."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from scipy.stats import t as student
from torch import Tensor

from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.verdicts import Finding, decide

N_BLOCKS = 20
"""Blocks of pairs whose spread gives an interval."""


class Estimator(abc.ABC):
    """One way to estimate I(x; y) from pairs. A class is a dataclass: its fields are its options."""

    name: ClassVar[str]
    assumes: ClassVar[str]
    """What must hold for the interval to be right: one sentence."""
    fewest: ClassVar[int] = 100
    """Pairs below which it refuses to work."""

    @abc.abstractmethod
    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        """From checked pairs x (n, d_x) and y (n, d_y): float64, finite, on the CPU, at least `fewest` of them."""

    def result(
        self, nats: float, low_nats: float, high_nats: float, n: int, found: Sequence[Finding], **details: Any
    ) -> Estimate:
        """The record of an estimate under what its checks found."""
        verdict, reason = decide(found)
        return Estimate(nats, low_nats, high_nats, n, self.name, self.assumes, verdict, reason, details)


def quantile(n_blocks: int, one_sided: bool = False) -> float:
    """Student's quantile of a 95% interval whose standard error comes from the spread of `n_blocks` blocks."""
    return float(student.ppf(0.95 if one_sided else 0.975, n_blocks - 1)) if n_blocks > 1 else math.inf


def jackknife_error(left_out: Tensor) -> float:
    """Standard error of a value, from its values without one block at a time (Efron and Tibshirani 1993, section
    11.5)."""
    n_blocks = len(left_out)
    return math.sqrt((n_blocks - 1) / n_blocks * (left_out - left_out.mean()).square().sum().item())
