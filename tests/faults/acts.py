"""What may be done to a training, and what its folder is held against afterwards; shared by tests and cases."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mi_ml_gen.core import loop, runs
from mi_ml_gen.core.errors import Preempted
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.core.loop import Session
from mi_ml_gen.core.weights import LARGEST
from tests.faults.trainers import Trainer

PLACES = ("the first step", "the middle", "the last step but one")


class Killed(BaseException):
    """Ends a run as SIGKILL does, within this process: what is in work is not saved."""


# --- moments


def stops_of(trainer: Trainer) -> list[int]:
    """Steps after which a signal stops the run, counted from 1."""
    return list(trainer.stops or range(1, trainer.n_steps))


def step_at(trainer: Trainer, place: str) -> int:
    """A step, counted from 1. The middle one saves no state."""
    middle = max(step for step in stops_of(trainer) if step <= trainer.n_steps * 2 // 3 and step not in trainer.saves)
    return {PLACES[0]: 1, PLACES[1]: middle, PLACES[2]: trainer.n_steps - 1}[place]


@contextlib.contextmanager
def at_step(step: int, act: Callable[[Session], object]) -> Iterator[None]:
    """Something happens in the step of that number, before it ends."""
    plain = Session.end_of_step

    def end_of_step(self: Session, *arguments: Any, **named: Any) -> None:
        if self.done == step:
            act(self)
        plain(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "end_of_step", end_of_step)
        yield


# --- acts


def stop(session: Session) -> None:
    signal.raise_signal(signal.SIGTERM)


def kill(session: Session) -> None:
    raise Killed


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """`fill_disk` holds until the end of this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_disk(session: Session, n_bytes: int = 200) -> None:
    """No file of this process may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def forgotten(what: str) -> Iterator[None]:
    """A part, or a value of the course, is not restored: as if it had been left out of the state."""
    plain, (part, _, value) = Session._load, what.partition(".")

    def load(self: Session, state: dict[str, Any]) -> None:
        if value:
            state["course"][value] = loop._packed(getattr(self._course, value))
        else:
            state[part] = self._parts[part].state_dict()
        plain(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_load", load)
        yield


def poison(tensors: Any, value: float) -> None:
    """Spoil one value of the last tensor of floating point in a module, or in a tree of tensors."""
    tree = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    found = [tensor for _, tensor in loop._tensors(tree, "") if tensor.is_floating_point() and tensor.numel()]
    found[-1].detach()[(0,) * found[-1].ndim] = value


def rewrite(config: Path, changes: dict[str, Any]) -> None:
    """As if the run had been made with the changes: the state knows better."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changes, sort_keys=False))


# --- what a run is


def states(path: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("state_")) for file in (path / "checkpoints").glob("state_*.pt"))


def newest(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and content of the newest state."""
    saved = torch.load(max((path / "checkpoints").glob("state_*.pt")), weights_only=True)
    return saved["step"], saved["state"]


UNNOTICED = ("course.elapsed_s", "course.finished")
"""A clock, and why a rule ended the run, which tests/navigator ends a run to see."""


def values_of(path: Path) -> list[str]:
    """The parts of a run's state, and each value of its course."""
    _, state = newest(path)
    return [name for name in state if name != "course"] + [f"course.{name}" for name in state["course"]]


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by their dotted names; clocks left out."""
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {name: tree.tolist() if isinstance(tree, torch.Tensor) else tree}
    leaves = (flat(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items() if not is_clock(key))
    return {key: value for part in leaves for key, value in part.items()}


def is_clock(key: object) -> bool:
    return str(key).endswith(("_per_s", "elapsed_s"))


def result_of(path: Path, without: str = "") -> dict[str, Any]:
    """All that a run is: rows of metrics, weights, tables, the newest state (without a part of it)."""
    step, state = newest(path)
    leaves = {key: value for key, value in flat(state).items() if not f"{key}.".startswith(f"{without}.")}
    found: dict[str, Any] = {"rows": flat(runs.read_metrics(path)), "step": step, "state": leaves}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.suffix == ".safetensors":
            found[name] = flat(load_tensors(file).tensors)
        elif file.suffix in (".csv", ".json") and file.name != "environment.json":
            found[name] = file.read_text().replace(str(path), "")  # of where it is
    return found


def assert_same(one: Path, other: Path, without: str = "") -> None:
    mine, theirs = result_of(one, without), result_of(other, without)
    assert mine.keys() == theirs.keys(), f"other files: {sorted(mine.keys() ^ theirs.keys())}"
    for name in theirs:
        assert mine[name] == theirs[name], name


def bad_values(path: Path, beyond: float = float("inf"), in_states: bool = True) -> list[str]:
    """Files of a run that hold a nan, or a number as large as `beyond`, and where in them."""
    bad = []
    for file in path.rglob("*.*"):
        if file.suffix == ".safetensors":
            tensors = list(load_tensors(file).tensors.items())
        elif file.suffix == ".pt" and in_states:
            tensors = list(loop._tensors(torch.load(file, weights_only=True)["state"], "state"))
        else:
            continue
        values = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
        bad += [f"{file}: {name}" for name, tensor in values if not (tensor.abs() < beyond).all()]
    return bad


def bad_weights(path: Path) -> list[str]:
    """Files of trained models that hold what `core.weights` would refuse."""
    return bad_values(path, LARGEST, in_states=False)


def unnoticed_parts(trainer: Trainer, whole: Path, folder: Path) -> list[str]:
    """What can be left out of a state without a trace in all that is left of the run: of the parts and the values of
    the course."""
    starts = {}
    for act, place in ((stop, PLACES[1]), (kill, PLACES[2])):  # some values matter in one place, some in another
        starts[place] = folder / act.__name__ / "run"
        with at_step(step_at(trainer, place), act), contextlib.suppress(Preempted, Killed):
            trainer.train(starts[place])
    unnoticed = []
    for what in values_of(whole):
        for place, start in starts.items():
            path = folder / what / place / "run"
            shutil.copytree(start, path)
            with forgotten(what), contextlib.suppress(Exception):
                trainer.train(path)
            if result_of(path, what) != result_of(whole, what):
                break
        else:
            unnoticed.append(what)
    return unnoticed
