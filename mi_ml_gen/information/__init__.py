"""Measuring mutual information: the critic's bound, and the closed forms that it is held against."""

from __future__ import annotations

from mi_ml_gen.information.gaussian import Estimate, JointGaussian, marginal_divergence, optimal_bound
from mi_ml_gen.information.infonce import Bound, infonce_bound, infonce_loss

__all__ = [
    "Bound",
    "Estimate",
    "JointGaussian",
    "infonce_bound",
    "infonce_loss",
    "marginal_divergence",
    "optimal_bound",
]
