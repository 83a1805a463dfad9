"""Published files -> this package's own: safetensors with their configuration, to be loaded without a second look.

What a file is, is told by its content, not by its name. Nothing in it is run: see checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mi_ml_gen.checkpoints.names import checkpoint_names
from mi_ml_gen.checkpoints.reading import CheckpointFile
from mi_ml_gen.checkpoints.values import Meaning, shown
from mi_ml_gen.checkpoints.values import kind as kind_of_value
from mi_ml_gen.core import files, weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.weights import KINDS, Kind
from mi_ml_gen.hub import fetching as hub


class Conversion(NamedTuple):
    """What was read, and what was written for it."""

    what: str
    """The kind of file and its sizes, for people."""
    written: tuple[Path, ...]
    flags: str
    """How the scripts are given the result."""


def convert(source: str | Path, target: str | Path) -> Conversion:
    """Read a published generator, walker or encoder, a path or a reference (see hub/fetching.py), and write it as
    `target`, a .safetensors file that is not there yet.

    A walker gets a .json beside it, all files their SHA-256. Raises UsageError for paths that make no sense,
    UnsafeCheckpointError or CorruptCheckpointError for a file that is refused or not known, EnvironmentFault when
    writing fails; then nothing is left behind.
    """
    target = Path(target)
    _check_free(target)
    source = hub.local_path(source)
    with CheckpointFile(source, _names) as file:
        root = file.root
        if file.format == "safetensors" and weights.is_own(source):
            raise UsageError(f"{source}: is one of this package's own files; it needs no conversion")
    for kind in KINDS.values():
        if (found := kind.published(root, source)) is not None:
            with _all_or_nothing(target):
                found.save(target)
            written = tuple(path for path in _files(target) if path.exists())
            return Conversion(found.what, written, found.flags.replace("{path}", str(target)))
    raise CorruptCheckpointError(f"{source}: holds {_glimpse(root)}: no {', '.join(_convertible())} known here")


def _convertible() -> list[str]:
    """The kinds that know published files."""
    return [name for name, kind in KINDS.items() if type(kind).published is not Kind.published]


def _names(module: str, name: str) -> Meaning | None:
    """What a published pickle of any kind may name."""
    asked = (checkpoint_names, *(kind.pickle_names for kind in KINDS.values()))
    return next((meaning for names in asked if (meaning := names(module, name)) is not None), None)


def convert_beside(source: Path, name: str, folder: Path) -> str:
    """Convert a fetched file into a folder, under its name of the table, or its own; says what was done. What is there
    already stays. Raises as `convert`."""
    stem = source.stem if "/" in name else name
    target = folder / f"{stem}.safetensors"
    if target.exists():
        return f"{target}: already exists"
    folder.mkdir(parents=True, exist_ok=True)
    conversion = convert(source, target)
    return f"converted: {conversion.what}; use it with {conversion.flags}"


def _files(target: Path) -> tuple[Path, ...]:
    """All that may be written for a target: weights, their hash, a walker's description."""
    return target, files.hash_file(target), target.with_suffix(".json")


def _check_free(target: Path) -> None:
    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: the result is a .safetensors file; name it so")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}")
    for path in _files(target):
        if path.exists():
            raise UsageError(f"{path}: already exists; remove it or choose another name")


@contextmanager
def _all_or_nothing(target: Path) -> Iterator[None]:
    """Remove what was written for a target, none of which was there before, if not all of it could be."""
    try:
        yield
    except BaseException:
        for path in _files(target):
            path.unlink(missing_ok=True)
        raise


def _glimpse(root: Any) -> str:
    """A few words on a parsed file of no known kind."""
    if type(root) is not dict or not root:
        return kind_of_value(root)
    names = ", ".join(shown(key, 40) for key in list(root)[:3])
    return f"a dict of {names}{' ...' if len(root) > 3 else ''}"
