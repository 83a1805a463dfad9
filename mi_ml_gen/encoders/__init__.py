"""Representation learning on views: SimCLR, SimSiam and BYOL, trained by one loop, and read back by `load_encoder`."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.encoders.base import Architecture, Encoder
    from mi_ml_gen.encoders.byol import BYOL
    from mi_ml_gen.encoders.loading import LoadedEncoder, load_encoder, save_encoder
    from mi_ml_gen.encoders.registry import method_names, register_method
    from mi_ml_gen.encoders.settings import EncoderConfig
    from mi_ml_gen.encoders.simclr import SimCLR
    from mi_ml_gen.encoders.simsiam import SimSiam
    from mi_ml_gen.encoders.training import EncoderResult, train_encoder

__getattr__, __dir__, __all__ = face(__name__)
