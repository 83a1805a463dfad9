"""What this package raises when something outside it is wrong, each class with the exit code that a script ends with.

A message is one line: what is wrong, where, and what would be right. `cli.run` prints it and exits.
"""

from __future__ import annotations


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
    """A signal asked the run to stop; it was saved, and the same command goes on with it."""

    exit_code = 75
