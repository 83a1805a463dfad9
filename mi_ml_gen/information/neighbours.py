"""KSG as an estimator of the registry. The estimate itself is in ksg.py, its interval in ksg_intervals.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mi_ml_gen.information import copula
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.estimator import Estimator
from mi_ml_gen.information.floors import gaussian_floor, one_number_floors
from mi_ml_gen.information.ksg_intervals import ksg_with_interval
from mi_ml_gen.information.verdicts import Finding, below_floor, changes_with_n, too_uncertain


@dataclass(frozen=True)
class Ksg(Estimator):
    """Kraskov, Stoegbauer and Grassberger 2004, equation 8, on normal scores: see `ksg_mutual_information`.

    For few dimensions, and the only one here for discrete and mixed values. Its bias is downwards and grows with the
    information and the dimensions; the estimate from half of the pairs shows it.
    """

    name: ClassVar[str] = "ksg"
    k: int = 5

    assumes: ClassVar[str] = (
        "The pairs are independent, the density is about constant within the distance of the k-th neighbour, and the "
        "bias falls with the number of pairs at the usual rate."
    )
    fewest: ClassVar[int] = 40

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        found = ksg_with_interval(x, y, self.k, seed=seed, progress=progress)
        interval = found.interval
        assert interval is not None
        # How fast the bias falls with n: normal pairs have 0.78 in 2 + 2 dimensions, 0.28 in 5 + 5 and 0.05 in
        # 20 + 20 (docs/information.md); other pairs are slower, by less than the tolerance allows for.
        rate = min(1.0, 3 / (x.shape[1] + y.shape[1]))
        pairs = copula.canonical(x, y)
        least = gaussian_floor(pairs, copula.gaussian_part(pairs)) | one_number_floors(x, y, pairs)
        nats, reach = found.nats, interval.reach_nats  # the width is judged without the part for bias
        findings: list[Finding | None] = [
            changes_with_n(nats, interval.at_half, rate),
            *(below_floor(nats, floor, name) for name, floor in least.items()),
            too_uncertain(nats, nats - reach, nats + reach),
        ]
        return self.result(
            nats, interval.low_nats, interval.high_nats, found.n,
            [finding for finding in findings if finding is not None],
            k=self.k, at_half_n_nats=interval.at_half.nats, standard_error_nats=interval.standard_error_nats,
            at_tenth_n_nats=interval.at_part.nats, bias_nats=interval.bias_nats, n_coincident=found.n_coincident,
        )  # fmt: skip
