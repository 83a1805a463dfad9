"""What this package raises when something outside it is wrong; each class has the exit code of a script it
ends.

A message is one line: what is wrong, where, and what would be right. `cli.run` prints it and exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MiMlGenError(Exception):
    """Base of all errors below."""

    exit_code = 1


class UsageError(MiMlGenError, ValueError):
    """A flag, configuration value, argument or path that the user gave is wrong."""

    exit_code = 2


class CheckpointError(MiMlGenError):
    """A file was refused."""

    exit_code = 3


class UnsafeCheckpointError(CheckpointError):
    """A file asks for something that reading weights does not need, such as running code."""


class CorruptCheckpointError(CheckpointError):
    """A file is damaged, incomplete, or not of the format that it should be."""


class EnvironmentFault(MiMlGenError):
    """The machine gave out: disk, memory, device, network, or a package that is not installed."""

    exit_code = 4


class NonFiniteError(MiMlGenError, ArithmeticError):
    """A quantity in training became nan or infinite."""

    exit_code = 5


class Preempted(MiMlGenError):
    """A signal asked the run to stop; it was saved, and the same command resumes it."""

    exit_code = 75


def nearest(word: str, known: Iterable[str], what: str) -> str:
    """How a message about an unknown `word` ends: "; nearest known key: lr_walk". Where none is near, all are
    named if they are few. `what` is the noun."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if matches:
        return f"; nearest known {what}: {matches[0]}"
    return f"; known {what}s: {', '.join(known)}" if 0 < len(known) <= 12 else ""


class CollapseError(NonFiniteError):
    """The features of an encoder in training collapsed, and the run was told to stop at that."""


def with_article(noun: str) -> str:
    """ "an encoder", "a walker": for messages."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"
