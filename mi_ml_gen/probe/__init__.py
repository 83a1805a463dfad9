"""Linear probes: how good are an encoder's features?"""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.probe.classifier import LinearClassifier, load_classifier, save_classifier
    from mi_ml_gen.probe.evaluation import evaluate_probe, run_evaluation
    from mi_ml_gen.probe.settings import EvaluationConfig, ProbeConfig
    from mi_ml_gen.probe.training import ProbeResult, train_probe

__getattr__, __dir__, __all__ = face(__name__)
