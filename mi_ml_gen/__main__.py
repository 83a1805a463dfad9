"""One command for all scripts: `mi-ml-gen NAME ...`, or `python -m mi_ml_gen NAME ...`; without a name it lists them.

A script is a module of mi_ml_gen.scripts (the folder scripts/ of a checkout) with a `main(argv)`; its name may be
written with dashes.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen import __version__
from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import EnvironmentFault, UsageError, nearest


def main() -> None:
    cli.run(dispatch)


def dispatch(argv: Sequence[str] | None) -> int | None:
    """Run the script that the first word names with the words after it; raises what the script raises."""
    word, *rest = argv or ["--help"]
    if word == "--version":
        print(__version__)
        return 0
    scripts = _scripts()
    if word in ("-h", "--help"):
        return _overview(scripts)
    name = word.replace("-", "_")
    if name not in scripts:
        raise UsageError(f"no script {word!r}{nearest(name, scripts, 'script')} (see mi-ml-gen --help)")
    sys.argv = [f"mi-ml-gen {name}", *rest]  # what its --help and its pages call it
    return importlib.import_module(f"mi_ml_gen.scripts.{name}").main(rest)


def _scripts() -> dict[str, Path]:
    """The file of each script, by name."""
    try:
        package = importlib.import_module("mi_ml_gen.scripts")
    except ModuleNotFoundError:
        raise EnvironmentFault("mi_ml_gen is not installed; run in its folder: pip install -e .") from None
    files = sorted(path for folder in package.__path__ for path in Path(folder).glob("*.py"))
    return {path.stem: path for path in files if not path.stem.startswith("_")}


def _overview(scripts: dict[str, Path]) -> int:
    width = max(map(len, scripts))
    print("mi-ml-gen NAME ...      (--help after a name explains it)\n")
    for name, path in scripts.items():
        about = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"  {name:<{width}}  {about}")
    return 0


if __name__ == "__main__":
    main()
