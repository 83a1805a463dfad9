"""Encoders read back with their heads, as they were saved; `load_encoder` gives the backbone alone."""

from __future__ import annotations

import json
from pathlib import Path

from mi_ml_gen.core import files
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.encoders.base import Architecture, Encoder
from mi_ml_gen.encoders.loading import FORMAT, METHODS


def load_whole(path: str | Path) -> Encoder:
    """The encoder that `save_encoder` wrote. Raises UsageError for a missing file, CorruptCheckpointError for one that
    holds no whole encoder of a method known here."""
    tensors, header = files.load_tensors(path)
    if header.get("format") != FORMAT or header.get("method") not in METHODS:
        raise CorruptCheckpointError(f"{path}: holds no encoder with its heads ({', '.join(METHODS)})")
    try:
        encoder = METHODS[header["method"]](Architecture(**json.loads(header["architecture"])))  # type: ignore[call-arg]
        encoder.load_state_dict(tensors)
    except (UsageError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return encoder
