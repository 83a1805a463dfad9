"""StyleGAN2 (Karras et al., 2020): network, generator, and both published file formats."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config, StyleGAN2Use
    from mi_ml_gen.generators.stylegan2.generator import StyleGAN2

__getattr__, __dir__, __all__ = face(__name__)
