"""The Gaussian copula as an estimator of the registry. The closed form itself is in copula.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.information import copula
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean
from mi_ml_gen.information.estimator import Estimator, quantile
from mi_ml_gen.information.floors import floors
from mi_ml_gen.information.normality import not_normal
from mi_ml_gen.information.verdicts import findings

N_HALVINGS = 4
HALF_NOISE = 0.5
"""Standard error of the estimate less the mean of both halves, in standard errors of the estimate. A cautious figure:
the halves together hold the same noise as the whole, but for terms that fall as 1/n."""


@dataclass(frozen=True)
class GaussianCopula(Estimator):
    """The closed form for jointly Gaussian pairs after smooth scores, without the bias of few pairs.

    Right where the dependence is a Gaussian copula; too low in most other cases, which its verdict tests for.
    """

    name: ClassVar[str] = "gaussian"
    assumes: ClassVar[str] = "Monotone functions of the coordinates make x and y jointly Gaussian."
    fewest: ClassVar[int] = 20

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        pairs = copula.canonical(x, y)
        part = copula.gaussian_part(pairs)
        n = len(x)
        error = copula.standard_error(part)
        half_width = quantile(n) * error
        low, high = part.nats - half_width, part.nats + half_width
        half = _mean_of_halves(x, y, seed)
        found = copula.base_findings(pairs) + findings(
            part.nats, low, high,
            at_half_n=MonteCarloMean(half, HALF_NOISE * error) if math.isfinite(half) else None,
            floors=floors(x, y, pairs, part),
        )  # fmt: skip
        found += not_normal(pairs, part.nats)
        return self.result(
            part.nats, low, high, n, found,
            correlations=pairs.correlations.tolist(), standard_error_nats=error,
            at_half_n_nats=half if math.isfinite(half) else None,
        )  # fmt: skip


def _mean_of_halves(x: Tensor, y: Tensor, seed: int) -> float:
    """The closed form from halves of the pairs. Their curves of quantiles are coarser, which takes information away
    where it is high."""
    values = []
    for i in range(N_HALVINGS):
        order = torch.randperm(len(x), generator=runtime.stream(seed, "halves", i, 0))
        values += [copula.gaussian_part(copula.canonical(x[rows], y[rows])).nats for rows in order.tensor_split(2)]
    return sum(values) / len(values)
