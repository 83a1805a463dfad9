"""The Mutual Information Machine (Livne, Swersky and Fleet, arXiv 1910.03175).

An encoder q(z|x) and a decoder p(x|z) that are trained to agree on one joint distribution of high mutual information,
beside the variational auto-encoder and the auto-encoder that it is held against.
"""

from __future__ import annotations

from mi_ml_gen.mim import losses as losses
from mi_ml_gen.mim.model import MIM, load_mim

__all__ = ["MIM", "datasets", "load_mim", "losses"]


def __getattr__(name: str):
    if name == "datasets":  # reads images and fits a PCA: imported where it is used
        import importlib

        return importlib.import_module("mi_ml_gen.mim.datasets")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
