"""Stored images: what experiments compare generated ones with, behind one interface."""

from __future__ import annotations

from mi_ml_gen.data.framing import FRAMINGS, Framing
from mi_ml_gen.data.idx import LabelledImages, fashion_mnist, read_idx
from mi_ml_gen.data.sources import HeldImages, ImageSource, batches, held, load_source

__all__ = [
    "FRAMINGS",
    "Framing",
    "HeldImages",
    "ImageSource",
    "LabelledImages",
    "batches",
    "fashion_mnist",
    "held",
    "load_source",
    "read_idx",
]
