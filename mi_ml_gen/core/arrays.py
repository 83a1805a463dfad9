"""NumPy's files, .npy and .npz, from outside: nothing in them is unpickled, and a small file does not become a large
array."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError

MOST_BYTES = 8 << 30
"""Of unpacked arrays: a million pairs of a thousand numbers each."""


def read_npy(path: str | Path) -> np.ndarray:
    """The array in a .npy file. Raises UsageError where there is no such file, CorruptCheckpointError for one that is
    damaged or holds Python objects."""
    with _faults(Path(path)):
        return np.load(path, mmap_mode="r", allow_pickle=False).copy()  # held against the file's size before memory


def read_npz(path: str | Path, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays of these names in a .npz file. Raises as `read_npy`, UsageError where one is not there, and
    CorruptCheckpointError where they unpack to more than MOST_BYTES."""
    path = Path(path)
    with _faults(path):
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
        missing = [name for name in names if f"{name}.npy" not in sizes]
        if missing:
            raise UsageError(f"{path}: must hold arrays named {' and '.join(names)}")
        if (n_bytes := sum(sizes[f"{name}.npy"] for name in names)) > MOST_BYTES:
            raise CorruptCheckpointError(f"{path}: unpacks to {n_bytes:,} bytes, more than {MOST_BYTES:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]


@contextlib.contextmanager
def _faults(path: Path) -> Iterator[None]:
    """What NumPy and zipfile raise, as errors of ours."""
    try:
        yield
    except (UsageError, CorruptCheckpointError):
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except Exception as error:  # their readers raise anything on a damaged file
        if isinstance(error, OSError) and error.strerror:
            raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from None
        ending = path.suffix if path.suffix in (".npy", ".npz") else ".npz"
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorruptCheckpointError(f"{path}: not a whole {ending} file of arrays of numbers: {text}") from None


__all__ = ["read_npy", "read_npz"]
