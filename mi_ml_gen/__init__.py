"""What each latent variable of a pretrained generator does, measured by mutual information.

A generator here is a function of a flat latent vector cut into chunks. A walker perturbs some of the chunks,
a critic bounds the mutual information that survives the perturbation, and the pairs that result train
encoders. Importing the package imports nothing heavy: each name lives in its own module.
"""

from mi_ml_gen.core import registry

__version__ = "0.2.0"


def _import_rooms() -> None:
    """Import every file that registers a kind of model: what a file or a repository holds, its head alone says."""
    from mi_ml_gen.encoders import loading
    from mi_ml_gen.generators import registry as generators
    from mi_ml_gen.information import critic
    from mi_ml_gen.mim import model
    from mi_ml_gen.mim.images import networks
    from mi_ml_gen.probe import classifier
    from mi_ml_gen.walkers import files


registry.rooms_are(_import_rooms)
