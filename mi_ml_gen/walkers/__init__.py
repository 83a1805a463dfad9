"""Walkers, T_z: what perturbs a latent vector into the positive partner of an anchor."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.walkers.base import IdentityWalker, Pair, PublishedSeed, Walker
    from mi_ml_gen.walkers.directions import DirectionsWalker, directions_walker
    from mi_ml_gen.walkers.files import save_walker
    from mi_ml_gen.walkers.grouped import GroupedWalker
    from mi_ml_gen.walkers.learned import ConvolutionalWalker, LowRankWalker, NonlinearWalker, learned_walker
    from mi_ml_gen.walkers.noise import Distribution, OccasionalNormal, RandomWalker
    from mi_ml_gen.walkers.scaled import ScaledWalker
    from mi_ml_gen.walkers.spec import load_groups, load_walker, walker_from

__getattr__, __dir__, __all__ = face(__name__)
