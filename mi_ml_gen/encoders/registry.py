"""The methods of representation learning, by name; this file imports no torch.

A method of the package is a function here that imports it when it is asked for. A user's enters by
`@register_method("mine")` in any file that is imported, by an entry point of the group "mi_ml_gen.encoders", or as
--encoder path/to/file.py:Mine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry, short_name

if TYPE_CHECKING:
    from mi_ml_gen.encoders.base import Encoder

E = TypeVar("E", bound="type[Encoder]")


def _method_of_class(name: str, found: Any) -> type[Encoder]:
    from mi_ml_gen.encoders.base import Encoder

    if not (isinstance(found, type) and issubclass(found, Encoder)):
        raise UsageError(f"--encoder {name}: must be a class derived from mi_ml_gen.encoders.Encoder")
    if "method" not in vars(found):
        found.method = short_name(name)
    return found


METHODS: Registry[type[Encoder]] = Registry("encoder", "--encoder", "mi_ml_gen.encoders", _method_of_class)
"""Classes of encoders by the name of their method; a class knows its own as `method`."""


def register_method(name: str) -> Callable[[E], E]:
    """Class decorator: make an `Encoder` known under a name, for --encoder and in files."""

    def register(cls: E) -> E:
        cls.method = name
        METHODS.add(name, _method_of_class(name, cls))
        return cls

    return register


def method_names() -> list[str]:
    """The names that --encoder takes, beside FILE.py:CLASS."""
    return METHODS.names()


@METHODS.lazily("simclr")
def _simclr() -> type[Encoder]:
    from mi_ml_gen.encoders.simclr import SimCLR

    return SimCLR


@METHODS.lazily("simsiam")
def _simsiam() -> type[Encoder]:
    from mi_ml_gen.encoders.simsiam import SimSiam

    return SimSiam


@METHODS.lazily("byol")
def _byol() -> type[Encoder]:
    from mi_ml_gen.encoders.byol import BYOL

    return BYOL
