"""KSG as an estimator of the registry. The estimate itself is in ksg.py, its interval in ksg_intervals.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mi_ml_gen.information import copula
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.estimator import Estimator
from mi_ml_gen.information.floors import gaussian_floor
from mi_ml_gen.information.ksg_intervals import ASSUMES, ksg_estimate, ksg_with_interval
from mi_ml_gen.information.verdicts import below_floor


@dataclass(frozen=True)
class Ksg(Estimator):
    """Kraskov, Stoegbauer and Grassberger 2004, equation 8, on normal scores: see `ksg_mutual_information`.

    For few dimensions, and the only one here for discrete and mixed values. Its bias is downwards and grows with the
    information and the dimensions; smaller parts of the pairs show it (docs/ksg.md).
    """

    name: ClassVar[str] = "ksg"
    k: int = 5

    assumes: ClassVar[str] = ASSUMES
    fewest: ClassVar[int] = 40

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        found = ksg_with_interval(x, y, self.k, seed=seed, progress=progress)
        # How fast the bias falls with n. In docs/information.md normal pairs have 0.78 in 2 + 2 dimensions, 0.28 in
        # 5 + 5 and 0.05 in 20 + 20; other pairs are slower.
        rate = min(1.0, 2 / (x.shape[1] + y.shape[1]))
        pairs = copula.canonical(x, y)
        least = gaussian_floor(pairs, copula.gaussian_part(pairs))
        return ksg_estimate(found, rate, [below_floor(found.nats, floor, name) for name, floor in least.items()])
