"""File locks: what they need of the system and of the disk, and what happens where these have none.

A system without `fcntl` (Windows) is not supported, and says so in one line. A disk without locks (NFS or Lustre
mounted without them, some FUSE file systems) is: the work goes on unlocked, and a warning says what that means.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from typing import IO

from mi_ml_gen.core.errors import EnvironmentFault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

SUPPORTED = "mi_ml_gen works on Linux and macOS, and on Windows inside WSL"
_BUSY = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_warned: set[int] = set()
"""Devices whose lack of locks was reported by this process."""


def unsupported() -> str | None:
    """Why this system is not supported, in one line; None where it is."""
    if fcntl is not None:
        return None
    return f"this Python has no file locks (no module fcntl; system: {platform.system() or os.name}): {SUPPORTED}"


def check_system() -> None:
    """Raise EnvironmentFault on a system that is not supported."""
    if (reason := unsupported()) is not None:
        raise EnvironmentFault(reason)


def are_missing(error: OSError) -> bool:
    """Whether an error of locking a file means that its disk has no locks."""
    return error.errno in _NO_LOCKS


def take(file: IO, wait: bool, of_process: bool = False) -> bool:
    """Lock an open, writable file until it is closed or its process dies; whether this process may go on.

    wait: until another holder lets go, else False is given at once. of_process: a POSIX record lock, which forked
    children do not inherit, in place of flock. On a disk without locks this warns, once for each disk, and gives True.
    Raises EnvironmentFault on a system without locks, OSError for other faults of the disk.
    """
    check_system()
    lock = fcntl.lockf if of_process else fcntl.flock
    try:
        lock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY and not wait:
            return False
        if not are_missing(error):
            raise
        _warn(file, error)
    return True


def without_locks(file: IO) -> str | None:
    """What the system says where the disk of an open, writable file has no locks; None where it has."""
    if fcntl is None:
        return None  # the system's fault, see `unsupported`
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        return error.strerror if are_missing(error) else None
    return None


def _warn(file: IO, error: OSError) -> None:
    device = os.fstat(file.fileno()).st_dev
    if device not in _warned:
        _warned.add(device)
        folder = os.path.dirname(os.path.abspath(file.name))
        logger.warning(
            f"{folder}: this disk has no file locks ({error.strerror}); the work continues without them, so make sure "
            "that no second process writes there"
        )
