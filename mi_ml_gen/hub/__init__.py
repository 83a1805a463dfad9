"""Weights from the Hugging Face Hub and the web, and back: fetching, checking, sharing."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.hub.fetching import fetch, fetch_folder
    from mi_ml_gen.hub.sharing import load, push

__getattr__, __dir__, __all__ = face(__name__)
