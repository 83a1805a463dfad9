"""Numbers that an estimate should not fall below: cheap estimates that err downwards.

The Gaussian copula with the same correlations shares least of all pairs whose sides are each normal. KSG errs downwards
where the information is high for so many dimensions and pairs, and hardly upwards (docs/information.md).
"""

from __future__ import annotations

import math

from torch import Tensor

from mi_ml_gen.information.copula import Canonical, GaussianPart, standard_error
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.ksg import ksg_mutual_information

KSG_SPREAD = 1.7
"""By how much the points' own spread can be too small for continuous data: docs/information.md, table of kinds."""
MOST_PAIRS, MOST_DIMS = 20_000, 10
"""Of KSG here: beyond, it costs more than it tells."""


def gaussian_floor(pairs: Canonical, part: GaussianPart) -> dict[str, MonteCarloMean]:
    """By what finds it. Empty for repeated values, which no map makes normal, and for too few pairs."""
    if pairs.is_discrete or not math.isfinite(part.nats):
        return {}
    return {"the correlations alone": MonteCarloMean(part.nats, standard_error(part))}


def floors(x: Tensor, y: Tensor, pairs: Canonical, part: GaussianPart) -> dict[str, MonteCarloMean]:
    """Every floor of pairs x (n, d_x), y (n, d_y), by what finds it."""
    found = gaussian_floor(pairs, part)
    if x.shape[1] + y.shape[1] <= MOST_DIMS:
        ksg = ksg_mutual_information(x[:MOST_PAIRS], y[:MOST_PAIRS], n_jobs=1)
        found["nearest neighbours"] = MonteCarloMean(ksg.nats, KSG_SPREAD * ksg.standard_error_nats)
    return found
