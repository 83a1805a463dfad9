"""The Mutual Information Machine on images: hierarchical, convolutional and autoregressive models, and cMIM.

Livne, Swersky and Fleet (arXiv 1910.03175) for MIM, Tomczak and Welling (arXiv 1705.07120) for the networks and the
VampPrior, Livne (arXiv 2509.21511) for cMIM.
"""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.mim.images.networks import ImageModel, Latents, ModelSpec, build_model, load_model
    from mi_ml_gen.mim.images.settings import MimImageConfig
    from mi_ml_gen.mim.images.training import train_mim_image

__getattr__, __dir__, __all__ = face(__name__)
