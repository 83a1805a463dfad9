"""KSG as an estimator of the registry. The estimate itself is in ksg.py."""

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
from mi_ml_gen.information.floors import KSG_SPREAD, gaussian_floor
from mi_ml_gen.information.ksg import ksg_mutual_information
from mi_ml_gen.information.verdicts import Finding, below_floor, changes_with_n, too_uncertain


@dataclass(frozen=True)
class Ksg(Estimator):
    """Kraskov, Stoegbauer and Grassberger 2004, equation 8, on normal scores: see `ksg_mutual_information`.

    For few dimensions, and the only one here for discrete and mixed values. Its bias is downwards and grows with the
    information and the dimensions; the estimate from half of the pairs shows it.
    """

    name: ClassVar[str] = "ksg"
    k: int = 5

    assumes: ClassVar[str] = "The density is about constant within the distance of the k-th neighbour."
    fewest: ClassVar[int] = 40

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        n = len(x)
        whole = ksg_mutual_information(x, y, self.k, progress=progress)
        order = torch.randperm(n, generator=runtime.stream(seed, "halves", 0, 0))
        halves = [ksg_mutual_information(x[rows], y[rows], self.k) for rows in order.chunk(2)]
        at_half = sum(half.nats for half in halves) / 2
        # Both halves together are the whole, so what differs is mostly bias; the halves' spread bounds its noise.
        noise = math.sqrt(sum(half.standard_error_nats**2 for half in halves)) / 2
        error = KSG_SPREAD * whole.standard_error_nats
        half_width = quantile(n) * error
        low, high = whole.nats - half_width, whole.nats + half_width
        # How fast the bias falls with n. In docs/information.md normal pairs have 0.78 in 2 + 2 dimensions, 0.28 in
        # 5 + 5 and 0.05 in 20 + 20; other pairs are slower.
        rate = min(1.0, 2 / (x.shape[1] + y.shape[1]))
        pairs = copula.canonical(x, y)
        least = gaussian_floor(pairs, copula.gaussian_part(pairs))
        found: list[Finding | None] = [
            changes_with_n(whole.nats, MonteCarloMean(at_half, noise), rate),
            *(below_floor(whole.nats, floor, name) for name, floor in least.items()),
            too_uncertain(whole.nats, low, high),
        ]
        return self.result(
            whole.nats, low, high, n, [finding for finding in found if finding is not None],
            k=self.k, at_half_n_nats=at_half, standard_error_nats=error, n_coincident=whole.n_coincident,
        )  # fmt: skip
