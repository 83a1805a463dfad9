"""The Gaussian copula as an estimator of the registry. The closed form itself is in copula.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mi_ml_gen.information import copula
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.estimator import Estimator, quantile
from mi_ml_gen.information.floors import floors
from mi_ml_gen.information.normality import not_normal
from mi_ml_gen.information.verdicts import findings


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
        found = copula.base_findings(pairs) + findings(part.nats, low, high, floors=floors(x, y, pairs, part))
        found += not_normal(pairs, part.nats)
        return self.result(
            part.nats, low, high, n, found,
            correlations=pairs.correlations.tolist(), standard_error_nats=error,
        )  # fmt: skip
