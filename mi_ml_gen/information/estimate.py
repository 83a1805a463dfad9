"""One record for an estimate of mutual information."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch


class Estimate(NamedTuple):
    """A Monte Carlo mean and its standard error, in nats."""

    nats: float
    standard_error_nats: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """From independent values, at least two."""
        draws = torch.tensor(list(values), dtype=torch.float64)
        assert len(draws) >= 2
        return cls(draws.mean().item(), draws.std().item() / math.sqrt(len(draws)))
