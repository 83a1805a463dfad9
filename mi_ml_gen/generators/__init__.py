"""The generators, behind one interface: `load_generator(name)` gives any of them, frozen and ready to decode."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.generators.adapters import ModuleGenerator, from_module
    from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
    from mi_ml_gen.generators.checking import check_generator, examine_generator
    from mi_ml_gen.generators.families import FAMILIES, Family, bundled, names, register_generator
    from mi_ml_gen.generators.registry import (
        family_of,
        load_generator,
        load_latent_space,
        load_own,
        published_names,
        save_generator,
        save_own,
    )

__getattr__, __dir__, __all__ = face(__name__)
