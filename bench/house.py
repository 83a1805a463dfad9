"""How the code is laid out, in numbers: `make house`, or `python bench/house.py [CHECKOUT ...]` to compare checkouts.

Everything is read from the source as text; nothing of the package is imported. tests/test_house.py holds the package
to the rules that DESIGN calls for: no circle, no import from a higher room, no class named in a string.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOMS = (
    "core", "latents", "data", "checkpoints", "report", "hub", "features", "information", "generators", "walkers",
    "delta", "views", "probe", "encoders", "navigator", "mim", "experiments", "__main__",
)  # fmt: skip
"""The rooms of the package, lowest first. A file imports from lower rooms, and from its own room without a circle."""

LARGE_LINES = 400
PLUMBING = ("core", "checkpoints", "hub")
"""Rooms that serve every experiment and know none; files called published.py, which read foreign files, count too."""
PLUMBING_BEFORE = (
    "assets", "catalogue", "checkpoints", "cli", "config", "convert", "doctor", "downloads", "environment", "errors",
    "files", "hub", "model_card", "pickle_machine", "runs", "runtime", "sharing",
)  # fmt: skip
"""The same, in the layout of version 0.1, when they stood side by side at the top of the package."""
NO_PLUMBING = ("core/resnet.py", "core/schedules.py", "core/fixed.py", "core/norms.py")
"""Files of these rooms that are networks and their training: layers, norms, schedules."""


# --- imports ------------------------------------------------------------------------------------------------------


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def source_files(package: Path) -> dict[str, Path]:
    """Each file by its dotted name below the package, faces (`__init__.py`) left out."""
    found = sorted(path for path in package.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in found}


def imported(path: Path, names: Mapping[str, Path] | set[str], package: str = "mi_ml_gen") -> Iterator[tuple[int, str]]:
    """(line, dotted name below the package) of each import of the package's files or faces, wherever it stands."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and (node.module + ".").startswith(package + "."):
            module = node.module.removeprefix(package).lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                if inner in names or module:
                    yield node.lineno, inner if inner in names else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(package + "."):
                    yield node.lineno, alias.name.removeprefix(package + ".")


def graph(package: Path) -> dict[str, set[str]]:
    """What each file imports of the others."""
    files = source_files(package)
    return {name: {other for _, other in imported(path, files)} - {name} for name, path in files.items()}


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of names that import one another in a circle (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            start = stack.index(name)
            if len(stack) - start > 1:
                found.append(sorted(stack[start:]))
            del stack[start:]

    for name in sorted(edges):
        if name not in number:
            visit(name)
    return found


def upward(name: str, path: Path, files: Mapping[str, Path]) -> list[str]:
    """Each import of a file that leads to a higher room, to an unknown one, or to a face instead of a file."""
    faults = []
    room = name.partition(".")[0]
    for line, other in imported(path, files):
        there = other.partition(".")[0]
        if there not in ROOMS:
            faults.append(f"{name}:{line}: imports {other}, which is in no room of ROOMS")
        elif ROOMS.index(there) > ROOMS.index(room):
            faults.append(f"{name}:{line}: {room} imports {other}, from a higher room")
        elif other not in files:
            faults.append(f"{name}:{line}: imports the face {other}; name the file that defines what you need")
    return faults


def classes_in_strings(path: Path) -> list[str]:
    """Texts such as "mi_ml_gen.walkers.base:Walker", which name code that is looked up later."""
    pattern = re.compile(r"mi_ml_gen(\.\w+)+:\w+$")
    constants = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant))
    return [
        f"{path.name}:{c.lineno}: {c.value}" for c in constants if isinstance(c.value, str) and pattern.match(c.value)
    ]


# --- counts -------------------------------------------------------------------------------------------------------


def n_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def is_plumbing(name: str, is_old: bool) -> bool:
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    if name.replace(".", "/") + ".py" in NO_PLUMBING:
        return False
    return first in (PLUMBING_BEFORE if is_old else PLUMBING) or last in ("published", "stylegan2_pickle")


def calls(path: Path, *names: str) -> bool:
    """Whether a file calls something of one of these names."""
    called = (node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))
    return any(getattr(f, "attr", getattr(f, "id", "")) in names for f in called)


def counts(root: Path) -> dict[str, str]:
    """The numbers of one checkout, by what they count."""
    package = root / "mi_ml_gen"
    files = source_files(package)
    is_old = (package / "walkers.py").exists()
    top = {name.partition(".")[0] for name in files} - {"__main__"}
    edges = graph(package)
    between = {t: {o.partition(".")[0] for n, others in edges.items() if n.partition(".")[0] == t for o in others} - {t}
               for t in top}  # fmt: skip
    lines = {name: n_lines(path) for name, path in files.items()}
    plumbing = sum(n for name, n in lines.items() if is_plumbing(name, is_old))
    by_hand = [n for n, path in files.items() if calls(path, "FiniteGuard") and n not in ("core.loop", "runtime")]
    writers = [
        n for n, path in files.items() if calls(path, "save_tensors") and n not in ("core.weights", "core.files")
    ]
    upward_text = "-" if is_old else str(sum(len(upward(name, path, files)) for name, path in files.items()))
    strings = sum(len(classes_in_strings(path)) for path in files.values())
    return {
        "things at the package's top": str(len(top)),
        "files": str(len(files)),
        "lines": f"{sum(lines.values()):,}",
        "circles of imports between files": str(len(circles(edges))),
        "circles of imports between top-level things": str(len(circles(between))),
        "imports from a higher room, or through a face": upward_text,
        "classes named in strings": str(strings),
        f"files over {LARGE_LINES} lines": str(sum(n > LARGE_LINES for n in lines.values())),
        "training loops with machinery of their own": str(len(by_hand)),
        "places that write a weight file of their own format": str(len(writers)),
        "share of plumbing": f"{plumbing / sum(lines.values()):.1%} ({plumbing:,} lines)",
    }


def main(argv: list[str] | None = None) -> None:
    roots = [Path(text) for text in (sys.argv[1:] if argv is None else argv)] or [Path(__file__).parents[1]]
    found = [counts(root) for root in roots]
    width = max(map(len, found[0]))
    for what in found[0]:
        print(what.ljust(width), *(each[what].rjust(22) for each in found))


if __name__ == "__main__":
    main()
