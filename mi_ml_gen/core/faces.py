"""Faces: packages hand on their public names, and import the file behind a name only when the name is used.

    '''What the package is for.'''
    from typing import TYPE_CHECKING
    from mi_ml_gen.core.faces import face

    if TYPE_CHECKING:
        from mi_ml_gen.walkers.base import Pair, Walker
        from mi_ml_gen.walkers.files import save_walker
        from mi_ml_gen.walkers.spec import load_walker

    __getattr__, __dir__, __all__ = face(__name__)

So importing one light file of a package does not import torch, and type checkers, editors and the test of imports
see ordinary import statements.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any


def face(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from the imports under its `if TYPE_CHECKING:`."""
    places = _places(package)

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = places[name]
        if module == package:  # a submodule, handed on whole
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(module), name)

    names = sorted(places)
    return __getattr__, lambda: names, names


def _places(package: str) -> dict[str, str]:
    """The module that defines each public name."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.loader is not None
    source = spec.loader.get_source(package)  # type: ignore[attr-defined]
    return {
        alias.name: statement.module
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
