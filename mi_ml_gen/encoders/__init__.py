"""Representation learning on views: SimCLR, SimSiam and BYOL, trained by one loop, and read back by `load_encoder`."""

from __future__ import annotations

from mi_ml_gen.encoders.base import Architecture, Encoder
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.loading import LoadedEncoder, load_encoder, save_encoder
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.encoders.training import EncoderConfig, EncoderResult, train_encoder

__all__ = [
    "BYOL",
    "Architecture",
    "Encoder",
    "EncoderConfig",
    "EncoderResult",
    "LoadedEncoder",
    "SimCLR",
    "SimSiam",
    "load_encoder",
    "save_encoder",
    "train_encoder",
]
