"""Published files, read without running anything that is in them."""

from typing import TYPE_CHECKING

from mi_ml_gen.core.faces import face

if TYPE_CHECKING:
    from mi_ml_gen.checkpoints.reading import (
        CheckpointFile,
        module_state_dict,
        naming,
        read_checkpoint,
        read_state_dict,
    )
    from mi_ml_gen.checkpoints.values import Record
    from mi_ml_gen.core.errors import CorruptCheckpointError, UnsafeCheckpointError

__getattr__, __dir__, __all__ = face(__name__)
