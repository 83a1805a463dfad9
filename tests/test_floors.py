"""The floors of the package: a module imports only from floors below its own, or from further left on its own.

A new module, or package of modules, takes its place in FLOORS, as low as what it imports allows and not above those
that are to use it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mi_ml_gen"

FLOORS = (
    # 0: what everything stands on: errors, settings, files, processes, run folders, safe reading
    "errors cli latents config files runtime environment runs pickle_machine checkpoints",
    # 1: what measures, what is read, the ResNets; fetching and sharing
    "resampling data splits information backbone critic assets downloads hub catalogue model_card sharing",
    # 2: the families behind one interface; pages of a run; the state of a machine
    "report generators doctor",
    # 3: what perturbs
    "walkers",
    # 4: pairs as views and pictures, delta, the judges of an encoder
    "views delta pictures features classification readouts probe",
    # 5: the experiments, and what is made with them
    "navigator table1 calibration encoders mim convert export view_generation sampling_benchmark comparison",
    # 6: the command that starts the scripts
    "__main__",
)
PLACES = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names.split())}
NEEDS_TORCH_TO_START = {"report", "generators", "walkers", "critic", "backbone", "runtime"}
"""A few that surely import torch, so that the test of those that must not can fail."""


def modules() -> dict[str, list[Path]]:
    """The files of each module or package directly in mi_ml_gen, by its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return {name: paths for name, paths in found.items() if name != "__init__"}


def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, dotted name) of all imports in a file, wherever they stand; `from a import b` counts as a.b."""
    return _imports(path, path.stat().st_mtime_ns)


@functools.cache
def _imports(path: Path, changed_ns: int) -> tuple[tuple[int, str], ...]:
    return tuple(_found(path))


def _found(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name, from mi_ml_gen..."
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def misplaced(name: str, path: Path) -> list[str]:
    """What a file of module `name` imports from its own floor's right or from above."""
    found = []
    for line, dotted in imports(path):
        package, _, rest = dotted.partition(".")
        other = rest.partition(".")[0]
        if package != "mi_ml_gen" or other == name or other == "__version__":
            continue
        if other not in PLACES:
            found.append(f"{path.name}:{line}: imports mi_ml_gen.{other}, which has no place in FLOORS")
        elif PLACES[other] >= PLACES[name]:
            mine, theirs = PLACES[name][0], PLACES[other][0]
            found.append(f"{path.name}:{line}: {name} (floor {mine}) imports {other} (floor {theirs})")
    return found


def test_every_module_has_its_place():
    there = set(modules())
    unplaced = sorted(there - set(PLACES))
    assert not unplaced, (
        f"give {', '.join(unplaced)} a place in FLOORS of {Path(__file__).name}: which floor, and where"
    )
    gone = sorted(set(PLACES) - there)
    assert not gone, f"FLOORS of {Path(__file__).name} names {', '.join(gone)}, which the package no longer has"
    assert len(PLACES) == sum(len(names.split()) for names in FLOORS), "a name stands in FLOORS twice"


@pytest.mark.parametrize("name", sorted(set(modules()) & set(PLACES)))
def test_modules_import_from_below(name):
    assert [fault for path in modules()[name] for fault in misplaced(name, path)] == []


def test_a_misplaced_import_is_seen(tmp_path):
    path = tmp_path / "latents.py"
    path.write_text("def f():\n    from mi_ml_gen.generators.base import x\nimport mi_ml_gen.nowhere\nimport torch\n")
    assert misplaced("latents", path) == [
        "latents.py:3: imports mi_ml_gen.nowhere, which has no place in FLOORS",
        "latents.py:2: latents (floor 0) imports generators (floor 2)",
    ]
    path.write_text("from mi_ml_gen import errors, __version__\nfrom mi_ml_gen.latents import y\n")
    assert misplaced("latents", path) == []
    assert len(misplaced("errors", path)) == 1  # errors may not import latents, right of it


def test_the_library_knows_no_command_line():
    parsing = {name for name, paths in modules().items() for path in paths for _, dotted in imports(path)
               if dotted.partition(".")[0] == "argparse"}  # fmt: skip
    assert parsing == {"cli", "config"}
    starters = {"mi_ml_gen.scripts", "scripts"}
    for name, paths in modules().items():
        for path in paths:
            assert not [d for _, d in imports(path) if ".".join(d.split(".")[:2]) in starters or d in starters], name


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_scripts_parse_call_and_print(path):
    """A script has a `main` and helpers of its text, no classes, and uses nothing that the package keeps to itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    own = [dotted for _, dotted in imports(path) if dotted.startswith("mi_ml_gen")]
    assert own and not [dotted for dotted in own if any(part.startswith("_") for part in dotted.split("."))]


def test_what_needs_no_torch_does_not_wait_for_it():
    """Importing torch takes seconds; what fetches, lists and diagnoses starts without."""
    light = {"errors", "cli", "config", "files", "assets", "downloads", "hub", "catalogue", "doctor", "__main__"}

    def direct(name: str) -> set[str]:
        """What importing a module imports at once: statements of its top level."""
        found = set()
        for path in modules()[name]:
            if path.name == "__init__.py" or path.parent == PACKAGE:
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.Import):
                        found |= {alias.name for alias in node.names}
                    elif isinstance(node, ast.ImportFrom):
                        found |= {f"{node.module}.{alias.name}" for alias in node.names}
        return found

    heavy = {name for name in modules() if any(dotted.partition(".")[0] == "torch" for dotted in direct(name))}
    assert heavy >= NEEDS_TORCH_TO_START and not heavy & light
    for name in light:
        assert not {dotted.split(".")[1] for dotted in direct(name) if dotted.startswith("mi_ml_gen.")} & heavy, name
