"""Stored data sets: what experiments compare generated images with."""

from __future__ import annotations

from mi_ml_gen.data.idx import LabelledImages, fashion_mnist, read_idx

__all__ = ["LabelledImages", "fashion_mnist", "read_idx"]
