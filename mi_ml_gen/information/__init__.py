"""Measuring mutual information: the critic's bound, and the closed forms that it is held against."""

from __future__ import annotations

from mi_ml_gen.information.infonce import Bound, infonce_bound, infonce_loss

__all__ = ["Bound", "infonce_bound", "infonce_loss"]
