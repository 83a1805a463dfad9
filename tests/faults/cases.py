"""The cases of the fault harness. Each promise of docs/reliability.md is tested by families of cases with parameters.

    @family("killed", sample=3)
    def at_random_moments(seed):
        for name in EVERY:
            yield name, functools.partial(_killed_at_a_moment, name, seed)

A family yields (name, check). `check(folder)` gets an empty folder and a process of its own, whose children die with
it; it raises where the promise is broken. The enumeration runs nothing, and depends on the seed alone. Trainings run
in further processes (`children.py`), which can be killed and whose exit codes are those of the commands.

torture.py runs all cases, test_torture.py a few of each family.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROWS = {
    "hostile": "A file from outside runs nothing",
    "rot": "Damage to a file is noticed",
    "killed": "`kill -9` loses nothing that was saved",
    "resumed": "A resumed run equals an uninterrupted one",
    "preempted": "A signal saves the run and ends it with exit code 75",
    "disk": "A full disk ends a run and harms nothing",
    "folder": "Two runs never share a folder",
    "processes": "Several processes equal one, and outlive the death of one",
    "finite": "Nan, infinity and numbers beyond float32's squares stop a run and are never saved or loaded",
    "bombs": "Files that ask for too much memory or time are refused",
    "seeds": "The same seed gives the same result",
    "downloads": "A download is whole or absent",
    "long": "Long runs keep their memory and open files",
}
"""The promises, by the names that `--only` takes."""
MODULES = ("files", "training", "processes", "network")
"""Where families are, in this folder."""

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    row: str
    family: str
    name: str
    check: Check
    limit_s: float

    def __str__(self) -> str:
        return f"{self.row} / {self.family} / {self.name}"


@dataclass(frozen=True)
class Family:
    row: str
    name: str
    n_in_sample: int
    limit_s: float
    enumerate: Callable[[int], Iterator[tuple[str, Check]]]

    def cases(self, seed: int = 0) -> list[Case]:
        made = [Case(self.row, self.name, name, check, self.limit_s) for name, check in self.enumerate(seed)]
        assert len({case.name for case in made}) == len(made), f"{self.name}: two cases of one name"
        return made


FAMILIES: list[Family] = []


def family(row: str, sample: int = 1, limit_s: float = 120.0) -> Callable:
    """Add a family to a row. sample: how many of its cases the test suite runs. limit_s: after which a case counts as
    hanging."""
    assert row in ROWS

    def add(enumerate: Callable[[int], Iterator[tuple[str, Check]]]) -> Callable[[int], Iterator[tuple[str, Check]]]:
        FAMILIES.append(Family(row, enumerate.__name__.replace("_", " "), sample, limit_s, enumerate))
        return enumerate

    return add


def families() -> list[Family]:
    for module in MODULES:
        importlib.import_module(f"tests.faults.{module}")
    return FAMILIES


def spread(cases: list[list[Case]]) -> list[Case]:
    """The cases of all families in an order whose every beginning holds about the same share of each family."""
    placed = [((i + 0.5) / len(members), case) for members in cases for i, case in enumerate(members)]
    return [case for _, case in sorted(placed, key=lambda both: both[0])]


def all_cases(seed: int = 0) -> list[Case]:
    return spread([each.cases(seed) for each in families()])


def sample(seed: int = 0) -> list[Case]:
    """The same few of each family each time, far apart."""
    chosen = []
    for each in families():
        members = each.cases(seed)
        n = min(each.n_in_sample, len(members))
        chosen += [members[(2 * i + 1) * len(members) // (2 * n)] for i in range(n)]
    return chosen
