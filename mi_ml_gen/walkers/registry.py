"""The kinds of walkers: a class and one registration each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry

W = TypeVar("W", bound=type)

WALKERS: Registry[Any] = Registry("walker", "kind of walker", "mi_ml_gen.walkers")
"""Classes of walkers by the `kind` that their configuration names."""


def register_walker(kind: str) -> Callable[[W], W]:
    """Class decorator: make a `Walker` known as a kind; its `from_config` takes what its `config` gives."""
    return WALKERS.register(kind)


def build_walker(config: Mapping[str, Any]) -> Any:
    """A walker from what its `config()` gave. Raises UsageError for a configuration that makes no sense."""
    try:
        return WALKERS[str(config["kind"])].from_config(config)
    except (KeyError, TypeError, ValueError) as error:
        said = str(error).removeprefix("walker configuration: ")
        raise UsageError(f"walker configuration: {said}") from None
