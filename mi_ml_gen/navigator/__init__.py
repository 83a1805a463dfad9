"""The navigator: minimax training of a walker against a critic (Serez et al., 2025, section 4)."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.navigator.settings import NavigatorConfig
    from mi_ml_gen.navigator.training import NavigatorResult, train_navigator

__getattr__, __dir__, __all__ = face(__name__)
