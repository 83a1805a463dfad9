"""Measuring mutual information: the critic's bound, the estimate from nearest neighbours, and closed forms."""

from __future__ import annotations

from mi_ml_gen.information.gaussian import Estimate, JointGaussian, marginal_divergence, optimal_bound
from mi_ml_gen.information.infonce import Bound, infonce_bound, infonce_loss
from mi_ml_gen.information.ksg import KsgEstimate, ksg_mutual_information

__all__ = [
    "Bound",
    "Estimate",
    "JointGaussian",
    "KsgEstimate",
    "infonce_bound",
    "infonce_loss",
    "ksg_mutual_information",
    "marginal_divergence",
    "optimal_bound",
]
