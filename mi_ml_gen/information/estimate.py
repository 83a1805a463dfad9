"""The records of information: an estimate with its interval and a verdict, and a Monte Carlo mean with its error."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Verdict(str, enum.Enum):
    """Whether an estimate may be believed. The rules are in `information/verdicts.py` and docs/information.md."""

    CONSISTENT = "consistent"
    """Nothing speaks against the estimate and its interval."""
    SATURATED = "lower bound, saturated"
    """The number is near the most that the estimator can show; the information may be much higher."""
    NOT_CONVERGED = "not converged"
    """The number was still changing with training when the training ended."""
    MARGINALS_DIFFER = "marginals differ"
    """Anchors and positives follow different distributions, which the number may contain as information."""
    NOT_TRUSTED = "not to be trusted"
    """The number changes with the number of pairs or the seed by more than its interval, or is no number."""

    def __str__(self) -> str:
        return self.value

    @property
    def is_warning(self) -> bool:
        return self is not Verdict.CONSISTENT


@dataclass(frozen=True)
class Estimate:
    """An estimate of a mutual information, in nats."""

    nats: float
    low_nats: float
    """Lower end of the 95% interval."""
    high_nats: float
    """Upper end of the 95% interval; infinite where the estimator is a lower bound, for then nothing limits it."""
    n: int
    """Independent pairs that the number was computed from (held out from training, where something was trained)."""
    estimator: str
    """Its name in the registry of estimators, such as "ksg" or "infonce"."""
    assumes: str
    """What must hold for the interval to be right: one sentence."""
    verdict: Verdict
    reason: str
    """Why this verdict: one sentence."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further plain values: the ceiling, the number of candidates, the steps of training, and so on."""

    @property
    def is_lower_bound(self) -> bool:
        return math.isinf(self.high_nats)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; an infinite end is None."""
        return {
            "nats": self.nats,
            "interval_nats": [self.low_nats, None if self.is_lower_bound else self.high_nats],
            "n": self.n,
            "estimator": self.estimator,
            "assumes": self.assumes,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate that `to_json` gave. Raises KeyError, TypeError or ValueError for other values."""
        low, high = values["interval_nats"]
        return cls(
            float(values["nats"]), float(low), math.inf if high is None else float(high), int(values["n"]),
            str(values["estimator"]), str(values["assumes"]), Verdict(values["verdict"]), str(values["reason"]),
            dict(values["details"]),
        )  # fmt: skip

    def __str__(self) -> str:
        """`3.21 nats (95% interval 3.10 to 3.32): consistent`, for a line of output."""
        nats, low, high = (f"{round(value, 2) + 0.0:.2f}" for value in (self.nats, self.low_nats, self.high_nats))
        interval = f"at least {low} at 95%" if self.is_lower_bound else f"95% interval {low} to {high}"
        return f"{nats} nats ({interval}): {self.verdict}"  # + 0.0: no "-0.00"


class MonteCarloMean(NamedTuple):
    """The mean of independent values and its standard error, in nats."""

    nats: float
    standard_error_nats: float

    @classmethod
    def of(cls, values: Iterable[float]) -> MonteCarloMean:
        """From independent values, at least two."""
        draws = torch.tensor(list(values), dtype=torch.float64)
        assert len(draws) >= 2
        return cls(draws.mean().item(), draws.std().item() / math.sqrt(len(draws)))
