"""Stored images: what experiments compare generated ones with, behind one interface."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.data.framing import FRAMINGS, Framing
    from mi_ml_gen.data.idx import LabelledImages, fashion_mnist, read_idx
    from mi_ml_gen.data.loading import load_source
    from mi_ml_gen.data.source import HeldImages, ImageSource, batches, held

__getattr__, __dir__, __all__ = face(__name__)
