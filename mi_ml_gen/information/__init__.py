"""Measuring mutual information: estimators with intervals and verdicts, the critic's bound, closed forms, and tasks of
known information."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.information.canonical import CanonicalCritic, Whitening, matching_bound, matching_estimate
    from mi_ml_gen.information.critic import Critic
    from mi_ml_gen.information.discrete import entropy, label_information, label_loss
    from mi_ml_gen.information.estimate import Estimate, MonteCarloMean, Verdict
    from mi_ml_gen.information.estimation import estimate_information
    from mi_ml_gen.information.estimator import Estimator
    from mi_ml_gen.information.gaussian import JointGaussian, marginal_divergence, optimal_bound
    from mi_ml_gen.information.infonce import Bound, infonce_bound, infonce_loss
    from mi_ml_gen.information.ksg import KsgEstimate, ksg_mutual_information
    from mi_ml_gen.information.registry import ESTIMATORS, register_estimator
    from mi_ml_gen.information.tasks import Task, make_task, register_task
    from mi_ml_gen.information.verdicts import Finding, judge

__getattr__, __dir__, __all__ = face(__name__)
