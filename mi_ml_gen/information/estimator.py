"""What every estimator of mutual information is, and the one call that runs any of them.

from mi_ml_gen.information import estimate_information

estimate = estimate_information(x, y)                       # (n, d_x) and (n, d_y), arrays or tensors
print(estimate)                                             # 1.98 nats (95% interval 1.94 to 2.02): consistent
estimate_information(x, y, "infonce", critic="joint")       # options are the fields of the estimator's class
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.registry import DEFAULT_ESTIMATOR, ESTIMATORS
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


def estimate_information(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    estimator: str = DEFAULT_ESTIMATOR,
    *,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    progress: bool = False,
    **options: Any,
) -> Estimate:
    """Estimate I(x; y) in nats, with a 95% interval and a verdict, from independent pairs.

    x: (n, d_x) or (n,), y: (n, d_y) or (n,), real numbers. estimator: a name of the registry (`ESTIMATORS`), or
    FILE.py:CLASS. seed: of what is random: initial weights, the split into training and held-out pairs. device: where
    networks are trained. progress: show a bar. options: fields of the estimator's class.

    The same arguments give the same estimate on the same machine. Raises UsageError for another shape, for values that
    are not finite real numbers, for too few pairs, and for an unknown estimator or option.
    """
    cls = ESTIMATORS[estimator]
    known = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    for option in options:
        if option not in known:
            raise UsageError(f"estimator {estimator} has no option {option!r}{nearest(option, known, 'option')}")
    a, b = _pairs(x, "x"), _pairs(y, "y")
    if len(a) != len(b):
        raise UsageError(f"x holds {len(a)} points and y {len(b)}: they must come in pairs")
    if len(a) < cls.fewest:
        raise UsageError(f"{len(a)} pairs: estimator {estimator} needs at least {cls.fewest}")
    return cls(**options).estimate(a, b, seed, runtime.resolve_device(device), progress)


def _pairs(values: Any, name: str) -> Tensor:
    """(n, d) in float64 on the CPU."""
    try:
        points = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: must be an array of numbers ({error})") from error
    if points.is_complex():
        raise UsageError(f"{name} holds complex numbers: give real and imaginary parts as two columns")
    points = points.double()
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] < 1:
        raise UsageError(f"{name} of shape {tuple(points.shape)}: must be (n, d) or (n,)")
    if n_bad := int((~points.isfinite()).sum()):
        raise UsageError(f"{name} holds {n_bad} values that are not finite (nan or infinite): remove those pairs")
    return points


def quantile(n_blocks: int, one_sided: bool = False) -> float:
    """Student's quantile of a 95% interval whose standard error comes from the spread of `n_blocks` blocks."""
    return float(student.ppf(0.95 if one_sided else 0.975, n_blocks - 1)) if n_blocks > 1 else math.inf
