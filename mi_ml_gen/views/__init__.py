"""Views of generated or stored images: T_z, decoding and T_x as one step."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.views.augment import Augment
    from mi_ml_gen.views.policies import Policy
    from mi_ml_gen.views.registry import policy_from_flags, register_policy
    from mi_ml_gen.views.sampler import GeneratedImages, StoredImages, Views, ViewSampler
    from mi_ml_gen.walkers.spec import walker_from

__getattr__, __dir__, __all__ = face(__name__)
