"""The package is laid out as docs/architecture.md says: rooms, no circles, no class named in a string."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench import house

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mi_ml_gen"
FILES = house.source_files(PACKAGE)


def test_the_rooms_are_those_that_are_there():
    there = {name.partition(".")[0] for name in FILES}
    assert there == set(house.ROOMS), "ROOMS of bench/house.py and the package differ"
    assert len(house.ROOMS) == len(set(house.ROOMS))


def test_no_circle():
    assert house.circles(house.graph(PACKAGE)) == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_import_from_below(name):
    assert house.upward(name, FILES[name], FILES) == []


FAMILIES = ("bigbigan", "linear_gaussian", "stylegan2", "nvae", "diffusion", "gan")
OF_ONE_FAMILY = {
    "experiments.critic_calibration": {"linear_gaussian"},  # whose information is known
    "experiments.information_calibration": {"linear_gaussian"},
    "experiments.nvae_ablation": {"nvae"},
    "experiments.nvae_report": {"nvae"},
}
"""Experiments about one family."""
OF_ALL = {"generators.gan.quality"}
"""A classifier of small images, which measures any generator."""


def test_nothing_above_the_generators_asks_for_a_family():
    rooms = house.ROOMS[house.ROOMS.index("generators") + 1 :]
    asking: dict[str, set[str]] = {}
    for name, others in house.graph(PACKAGE).items():
        parts = [other.split(".") for other in others - OF_ALL if other.startswith("generators.")]
        found = {part[1] for part in parts if part[1] in FAMILIES}
        if found and name.partition(".")[0] in rooms:
            asking[name] = found
    assert asking == OF_ONE_FAMILY


PARTS = {
    "generator_map": {"map_critic", "map_labels"},
    "mim_image_comparison": {"mim_image_learners"},
    "view_comparison": {"comparison_report"},
}
"""Experiments in several files, besides their settings."""
BUILT_ON = {
    "encoder_search": {"view_comparison"},  # the images that its probes see
    "nvae_ablation": {"table1"},  # a row of the table for each network
    "view_comparison": {"table1"},  # which trains the walkers
    "view_grids": {"generated_dataset"},  # how images become files
}
"""Experiments that use another one's work."""


def test_experiments_know_one_another_only_where_it_is_said():
    used: dict[str, set[str]] = {}
    for name, others in house.graph(PACKAGE).items():
        room, _, own = name.partition(".")
        named = {other.partition(".")[2] for other in others if other.startswith("experiments.")}
        found = {other for other in named if not other.endswith("settings")}
        if room == "experiments" and found:
            used[own] = found
    expected = {name: PARTS.get(name, set()) | BUILT_ON.get(name, set()) for name in (*PARTS, *BUILT_ON)}
    assert used == expected


def test_no_class_is_named_in_a_string():
    assert [fault for path in FILES.values() for fault in house.classes_in_strings(path)] == []


def test_faults_are_seen(tmp_path):
    package = tmp_path / "mi_ml_gen"
    for name, text in {
        "core/runs.py": "from mi_ml_gen.core import files\n",
        "core/files.py": "def f():\n    from mi_ml_gen.core.runs import g\n",
        "walkers/base.py": "import torch\nfrom mi_ml_gen.views import sampler\nfrom mi_ml_gen.core import runs\n",
        "views/sampler.py": "from mi_ml_gen.walkers import load_walker\nKIND = 'mi_ml_gen.walkers.base:Walker'\n",
        "attic/old.py": "from mi_ml_gen.attic import more\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    files = house.source_files(package)
    assert house.circles(house.graph(package)) == [["core.files", "core.runs"]]
    assert house.upward("walkers.base", files["walkers.base"], files) == [
        "walkers.base:2: walkers imports views.sampler, from a higher room"
    ]
    assert house.upward("views.sampler", files["views.sampler"], files) == [
        "views.sampler:1: imports the face walkers; name the file that defines what you need"
    ]
    assert house.upward("core.runs", files["core.runs"], files) == []
    assert "in no room" in house.upward("views.sampler", files["attic.old"], files)[0]
    assert house.classes_in_strings(files["views.sampler"]) == ["sampler.py:2: mi_ml_gen.walkers.base:Walker"]


def test_counts_of_this_checkout():
    counted = house.counts(ROOT)
    assert counted["circles of imports between files"] == "0"
    assert counted["imports from a higher room, or through a face"] == "0"


def test_the_library_knows_no_command_line():
    parsing = {name for name, path in FILES.items() for node in ast.walk(house.parsed(path))
               if isinstance(node, ast.Import) and "argparse" in {alias.name for alias in node.names}}  # fmt: skip
    assert parsing == {"core.cli", "core.config"}
    for name, path in FILES.items():
        assert not [other for _, other in house.imported(path, FILES) if other.startswith("scripts")], name


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_scripts_parse_call_and_print(path):
    """A script has a `main` and helpers of its text, no classes, and uses nothing that the package keeps to itself."""
    tree = house.parsed(path)
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    own = [other for _, other in house.imported(path, FILES)]
    assert own and not [other for other in own if any(part.startswith("_") for part in other.split("."))]
