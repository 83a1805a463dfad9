"""Which of a run's saved walkers stay on the disk (`--keep`), and which a rule may choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mi_ml_gen.core.files import disk_faults, hash_file
from mi_ml_gen.core.weights import description_file

Name = Callable[[int], Path]
"""The .safetensors file of the walker that was saved after so many samples."""


def thinned(samples: Sequence[int], keep: int | None) -> list[int]:
    """At most `keep` (at least 2, None: all) of a run's saved walkers, by their samples: evenly spread from the first
    on, with the newest. One that is left out stays out when later ones come."""
    if keep is None or len(samples) <= keep:
        return list(samples)
    stride = 1
    while len(range(0, len(samples), stride)) + ((len(samples) - 1) % stride > 0) > keep:
        stride *= 2
    return [*samples[:-1:stride], samples[-1]]


def remove_others(rows: Sequence[dict[str, Any]], keep: int | None, name: Name) -> None:
    """Remove the walkers that `thinned` leaves out; rows: the run's metrics so far."""
    samples = [row["samples"] for row in rows if row["saved"]]
    for left_out in sorted({*samples} - {*thinned(samples, keep)}):
        path = name(left_out)
        with disk_faults(path):  # the weights first: what describes them would mislead alone
            for file in (path, hash_file(path), description_file(path)):
                file.unlink(missing_ok=True)


def at_hand(rows: Sequence[dict[str, Any]], name: Name) -> list[dict[str, Any]]:
    """The rows of metrics, of which those whose walker is not on the disk count as not saved."""
    return [row | {"saved": bool(row["saved"]) and name(row["samples"]).exists()} for row in rows]


__all__ = ["at_hand", "remove_others", "thinned"]
