"""Fixed networks by whose features images are measured, and distances between sets of images in them."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.features.base import FeatureNetwork
    from mi_ml_gen.features.distances import Distance, frechet_distance, kernel_distance, precision_recall
    from mi_ml_gen.features.registry import FEATURES, load_network

__getattr__, __dir__, __all__ = face(__name__)
