"""The wheel holds what users need and nothing else, and works away from the checkout."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mi_ml_gen

ROOT = Path(__file__).parents[1]
MAX_WHEEL_BYTES = 12 << 20
"""The bundled generators are most of it."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built, without a network, from a copy of the sources: building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    litter = shutil.ignore_patterns("__pycache__", "*.partial")
    for name in ("mi_ml_gen", "scripts", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=litter)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, elsewhere: Path, *command: object) -> subprocess.CompletedProcess:
    """Python with the unpacked wheel in front of everything, in a folder that has nothing to do with it."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    package = {path for path in (ROOT / "mi_ml_gen").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted = {str(path.relative_to(ROOT)) for path in package if not path.name.startswith(".")}
    wanted |= {f"mi_ml_gen/scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
    assert found == wanted  # modules, configurations, tables, bundled generators with hash and card; no tests
    assert {"licenses/LICENSE", "METADATA", "entry_points.txt"} <= about
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_every_module_imports_finds_its_data_and_works_away_from_the_checkout(unpacked, tmp_path):
    program = """
import importlib, pkgutil, mi_ml_gen
names = [module.name for module in pkgutil.walk_packages(mi_ml_gen.__path__, "mi_ml_gen.")]
for name in names:
    importlib.import_module(name)
from mi_ml_gen import generators, navigator
from mi_ml_gen.core import config
print(mi_ml_gen.__file__, len(names))
names_of_generators = generators.bundled()
print(*names_of_generators)
for name in generators.bundled():
    generators.load_generator(name)
given = {"generator": names_of_generators[0], "chunks": "0_1"}
print(config.load(navigator.NavigatorConfig, "navigator/small", given).generator)
from mi_ml_gen.__main__ import dispatch
dispatch(["train-navigator", "--generator", "tiny-bigbigan", "--chunks", "0_1", "--dry-run"])
"""
    done = run(unpacked, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    where, names, used, *settings = done.stdout.splitlines()
    assert where.startswith(str(unpacked)) and int(where.split()[-1]) > 40
    bundled = (ROOT / "mi_ml_gen" / "generators" / "pretrained").glob("*.safetensors")
    assert names.split() == sorted(path.stem for path in bundled)
    assert used == "tiny-bigbigan" and settings[0] == "generator: tiny-bigbigan" and len(settings) > 20
    assert list(tmp_path.iterdir()) == []


def test_scripts_run_by_module_and_by_the_one_command(unpacked, tmp_path):
    for way in (["-m", "mi_ml_gen.scripts.doctor"], ["-m", "mi_ml_gen", "doctor"]):
        refused = run(unpacked, tmp_path, *way, "--quik")
        assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1
        assert refused.stderr.startswith("error: unknown flag --quik; nearest known flag: --quick (see ")
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_scripts_and_names_the_nearest(unpacked, tmp_path):
    listed = run(unpacked, tmp_path, "-m", "mi_ml_gen")
    assert listed.returncode == 0, listed.stderr
    rows = [line.split(maxsplit=1) for line in listed.stdout.splitlines()[2:]]
    scripts = {path.stem for path in (ROOT / "scripts").glob("[!_]*.py")}
    assert {row[0] for row in rows} == scripts and all(len(row) == 2 for row in rows)
    wrong = run(unpacked, tmp_path, "-m", "mi_ml_gen", "train-navigatr")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1 and "nearest known script: train_navigator" in wrong.stderr
    assert run(unpacked, tmp_path, "-m", "mi_ml_gen", "--version").stdout == f"{mi_ml_gen.__version__}\n"


def test_every_script_starts_in_the_way_that_the_command_needs():
    """A docstring whose first line tells what it does, in a terminal's width, and main(argv)."""
    for path in (ROOT / "scripts").glob("[!_]*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        assert 20 < len(first) <= 117, path.name
        (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        assert [argument.arg for argument in main.args.args] == ["argv"] and len(main.args.defaults) == 1, path.name
