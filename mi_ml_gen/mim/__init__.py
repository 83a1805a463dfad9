"""The Mutual Information Machine (Livne, Swersky and Fleet, arXiv 1910.03175).

An encoder q(z|x) and a decoder p(x|z) that are trained to agree on one joint distribution of high mutual information,
beside the variational auto-encoder and the auto-encoder that it is held against.
"""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.mim import datasets, losses
    from mi_ml_gen.mim.model import MIM, load_mim
    from mi_ml_gen.mim.settings import MimConfig
    from mi_ml_gen.mim.training import train_mim

__getattr__, __dir__, __all__ = face(__name__)
