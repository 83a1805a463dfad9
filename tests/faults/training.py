"""Cases of trainings: killed, stopped, without disk, with values that are no numbers, twice, and long."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mi_ml_gen.core import runs, runtime
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.core.loop import Session
from tests.faults.acts import (
    PLACES,
    UNNOTICED,
    assert_same,
    at_step,
    bad_values,
    bad_weights,
    fill_disk,
    flat,
    newest,
    poison,
    states,
    step_at,
    stops_of,
    unnoticed_parts,
)
from tests.faults.cases import Check, family
from tests.faults.children import (
    POINTS,
    Child,
    acknowledge,
    acknowledged,
    kill_at,
    run,
    small_disk,
    train,
    whole,
)
from tests.faults.trainers import EVERY, TRAINERS, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
Cases = Iterator[tuple[str, Check]]


def assert_in_order(name: str, path: Path, least_step: int) -> None:
    """What a kill leaves, as the next start finds it: a good state, if one was acknowledged, and the first rows of an
    uninterrupted run, each once. Some trainers have several rows of a step."""
    found = states(path) if path.exists() else []
    assert max(found, default=0) >= least_step, f"step {least_step} was acknowledged, the states are {found}"
    rows = [row["step"] for row in runs.read_metrics(path)] if path.exists() else []
    expected = [row["step"] for row in runs.read_metrics(whole(name).path)]
    assert rows == expected[: len(rows)], f"rows of the steps {rows}"


def assert_goes_on(name: str, path: Path) -> None:
    """The same command again ends the run, with what an uninterrupted one gives and nothing left over."""
    train(name, path).check(0)
    left = [str(file.relative_to(path)) for file in path.rglob("*.partial")]
    assert not left, f"left over: {left}"
    assert_same(path, whole(name).path)


def resumable(trainer: Trainer, step: int) -> int:
    """The first step from `step` on after which a signal stops the run; the last one where there is none."""
    return next((at for at in stops_of(trainer) if at >= step), trainer.n_steps)


# --- killed


@family("killed", sample=2)
def at_points_of_writing(seed: int) -> Cases:
    for name, trainer in EVERY.items():
        prunes = len(trainer.saves) > 2  # so many states are kept
        for point in POINTS if prunes else [point for point in POINTS if point != "before a removal"]:
            for share in (0.0, 0.35, 0.7, 1.0):
                yield f"{name}, {point}, {share:.0%} of the way", functools.partial(_at_a_point, name, point, share)


def _at_a_point(name: str, point: str, share: float, folder: Path) -> None:
    path, said = folder / "run", folder / "acknowledged"
    n_points = whole(name).n_points[point]
    assert n_points > 0, f"no run of {name} passes a point {point}"

    def work() -> None:
        acknowledge(said)
        kill_at(path, point, 1 + round(share * (n_points - 1)))
        EVERY[name].train(path)

    ended = run(work)
    assert ended.code == -signal.SIGKILL, ended
    assert_in_order(name, path, acknowledged(said))
    assert_goes_on(name, path)


@family("killed", sample=0)
def at_random_moments(seed: int) -> Cases:
    for name in EVERY:
        for i in range(4):
            rng = random.Random(f"{seed} {name} {i}")
            yield f"{name}, moment {i}", functools.partial(_at_a_moment, name, rng.random())


def _at_a_moment(name: str, share: float, folder: Path) -> None:
    path, said = folder / "run", folder / "acknowledged"

    def work() -> None:
        acknowledge(said)
        EVERY[name].train(path)

    child = Child(work)
    time.sleep(share * whole(name).wall_s)
    child.signal(signal.SIGKILL)
    assert child.wait().code in (0, -signal.SIGKILL)
    assert_in_order(name, path, acknowledged(said))
    assert_goes_on(name, path)


@family("killed", sample=0)
def again_and_again(seed: int) -> Cases:
    """Each start is killed at a random point, until one comes through."""
    for name in EVERY:
        yield name, functools.partial(_again_and_again, name, seed)


def _again_and_again(name: str, seed: int, folder: Path) -> None:
    path, said = folder / "run", folder / "acknowledged"
    rng, n_points = random.Random(f"{seed} {name}"), whole(name).n_points
    for _ in range(5):
        point = rng.choice([point for point, n in n_points.items() if n])
        n = rng.randint(1, n_points[point])

        def work(point: str = point, n: int = n) -> None:
            acknowledge(said)
            kill_at(path, point, n)
            EVERY[name].train(path)

        assert run(work).code in (0, -signal.SIGKILL)
        assert_in_order(name, path, acknowledged(said))
    assert_goes_on(name, path)


# --- stopped and resumed

ENDS: dict[str, Callable[[Session], object]] = {
    **{each.name: functools.partial(lambda each, session: os.kill(os.getpid(), each), each) for each in SIGNALS},
    "SIGKILL": lambda session: os.kill(os.getpid(), signal.SIGKILL),
}


@family("resumed", sample=2)
def stopped_at_a_step(seed: int) -> Cases:
    for name, trainer in EVERY.items():
        places = {place: step_at(trainer, place) for place in PLACES} | {"where a state is saved": trainer.saves[0]}
        for place, step in places.items():
            for end in ENDS:
                yield f"{name}, {place}, {end}", functools.partial(_stopped, name, step, end)


def _stopped(name: str, step: int, end: str, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"

    def work() -> None:
        with at_step(step, ENDS[end]):
            trainer.train(path)

    ended = run(work)
    if end == "SIGKILL":
        assert ended.code == -signal.SIGKILL
    elif (wanted := resumable(trainer, step)) < trainer.n_steps:
        ended.check(75, f"saved at step {wanted} of")
        assert newest(path)[0] == wanted
    assert_goes_on(name, path)


@family("resumed", sample=0, limit_s=400)
def any_part_of_the_state_left_out_is_noticed(seed: int) -> Cases:
    for name in TRAINERS:
        yield name, functools.partial(_parts, name)


def _parts(name: str, folder: Path) -> None:
    path = whole(name).path
    left = set(unnoticed_parts(EVERY[name], path, folder)) - set(UNNOTICED)
    assert not left, f"nothing changes without {sorted(left)}"


@family("resumed", sample=0)
def several_stops_in_one_run(seed: int) -> Cases:
    for name in EVERY:
        for end in ("SIGTERM", "SIGKILL"):
            yield f"{name}, {end} in every step but the last", functools.partial(_every_step, name, end)


def _every_step(name: str, end: str, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"
    steps = [1, *trainer.saves[:-1]] if end == "SIGKILL" or trainer.stops else range(1, min(trainer.n_steps, 9))

    def work(step: int) -> None:
        with at_step(step, ENDS[end]):
            trainer.train(path)

    for step in steps:
        assert run(functools.partial(work, step)).code in (75, -signal.SIGKILL, 0)
    assert_goes_on(name, path)


# --- signals from outside


@family("preempted", sample=1)
def by_a_signal_from_outside(seed: int) -> Cases:
    for name, trainer in EVERY.items():
        for signum in SIGNALS:
            for i in range(2):
                step = random.Random(f"{seed} {name} {signum} {i}").randint(1, trainer.n_steps - 1)
                check = functools.partial(_from_outside, name, signum, step, {})
                yield f"{name}, {signum.name}, near step {step} ({i})", check


@family("preempted", sample=1)
def while_threads_decode(seed: int) -> Cases:
    for workers in (1, 2, 4):
        for signum in SIGNALS:
            for step in (1, 3, 4):
                check = functools.partial(_from_outside, "encoder on files", signum, step, {"workers": workers})
                yield f"{workers} threads, {signum.name}, near step {step}", check


def _from_outside(name: str, signum: int, step: int, changes: dict[str, Any], folder: Path) -> None:
    """The signal comes from another process, which a word from the step releases: it meets the run in this step, which
    waits a moment, or a little later. Without the wait the example's last steps, which take no time, could be over."""
    trainer, path = EVERY[name], folder / "run"
    reader, writer = os.pipe()

    def say_and_wait(session: Session) -> None:
        os.write(writer, b"x")
        time.sleep(0.5)

    def work() -> None:
        with at_step(step, say_and_wait):
            trainer.train(path, **changes)

    child = Child(work)
    os.close(writer)
    assert os.read(reader, 1), child.wait()
    child.signal(signum)
    sent_s = time.monotonic()
    ended = child.wait()
    assert time.monotonic() - sent_s < 10
    if ended.code != 0 or resumable(trainer, step) < trainer.n_steps - 2:
        ended.check(75, "the same command resumes from there")
        assert signal.Signals(signum).name in ended.said
    train(name, path, **changes).check(0)
    assert_same(path, whole(name).path)


# --- the disk


@family("disk", sample=1)
def no_room_at_a_save(seed: int) -> Cases:
    for name, trainer in EVERY.items():
        for which, step in (("first", trainer.saves[0]), ("second", trainer.saves[1]), ("last", trainer.saves[-1])):
            for n_bytes in (0, 200, 1000):
                yield f"{name}, {which} state, {n_bytes} bytes", functools.partial(_full, name, step, n_bytes)


def _full(name: str, step: int, n_bytes: int, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"

    def work() -> None:
        with at_step(step, lambda session: fill_disk(session, n_bytes)):
            trainer.train(path)

    run(work).check(4, f"cannot write {path}")
    assert_harmless(trainer, path, step)
    assert_goes_on(name, path)


def assert_harmless(trainer: Trainer, path: Path, step: int) -> None:
    """After a fault while the state of a step was to be saved: the older ones are there, and nothing is half there."""
    assert states(path) == [at for at in trainer.saves if at < step][-2:]
    assert not list(path.rglob("*.partial"))
    for file in (path / "checkpoints").glob("state_*.pt"):
        torch.load(file, weights_only=True)


@family("disk", sample=1)
def a_small_disk_fills_up(seed: int) -> Cases:
    """A file system of its own, filled by others to the last byte."""
    for name, trainer in EVERY.items():
        for which, step in (("first", trainer.saves[0]), ("second", trainer.saves[1])):
            yield f"{name}, {which} state", functools.partial(_filled, name, step)


def _filled(name: str, step: int, folder: Path) -> None:
    trainer = EVERY[name]
    with small_disk(folder / "disk", 24 << 20) as disk:
        path, filler = disk / "run", disk / "filler"

        def fill(session: Session) -> None:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while file.write(bytes(4096)) > 0:
                    pass

        def work() -> None:
            with at_step(step, fill):
                trainer.train(path)

        run(work).check(4, "No space left on device")
        assert_harmless(trainer, path, step)
        filler.unlink()
        assert_goes_on(name, path)


# --- values that are no numbers

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "1e38": 1e38}
WHERE = ("a loss", "the gradients", "the first module", "the last module", "the optimiser")


@family("finite", sample=2)
def in_training(seed: int) -> Cases:
    for name in EVERY:
        for where in WHERE:
            for value in VALUES:
                if (where, value) != ("a loss", "1e38"):  # a loss may be large
                    yield f"{name}, {value} in {where}", functools.partial(_spoilt, name, where, VALUES[value])


def _spoilt(name: str, where: str, value: float, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"
    finite = value == 1e38
    ended = run(lambda: _train_spoilt(trainer, path, where, value))
    if not (finite and ended.code == 0):  # an update may take such a number away again
        ended.check(5)
        assert "became nan or infinite" in ended.said or "is not written: " in ended.said, ended.said
    assert not bad_values(path), "a nan or an infinity was saved"
    assert not bad_weights(path), "weights beyond the limit were saved"


def _train_spoilt(trainer: Trainer, path: Path, where: str, value: float) -> None:
    """Train, with one value replaced: a loss or gradients after the first saved state, other things by the last
    update, after the last loss was looked at."""
    plain_watch, plain_resume = Session.watch, Session.resume
    spoilt: list[str] = []

    def is_time(session: Session) -> bool:
        early = where in ("a loss", "the gradients")
        return not spoilt and (session.done > trainer.saves[0] if early else session.done == trainer.n_steps)

    def resume(self: Session, *arguments: Any, **named: Any) -> None:
        plain_resume(self, *arguments, **named)
        if where == "the gradients":
            for part in self._parts.values():
                if hasattr(part, "param_groups"):
                    part.register_step_pre_hook(lambda optimizer, *_: _spoil_gradients(self, optimizer))  # type: ignore[attr-defined]

    def _spoil_gradients(session: Session, optimizer: Any) -> None:
        if is_time(session):
            gradients = [
                one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None
            ]
            gradients[-1].detach()[(0,) * gradients[-1].ndim] = value  # a view may not exist: NVAE's are channels-last
            spoilt.append(where)

    def watch(self: Session, quantity: str, *tensors: torch.Tensor) -> None:
        if where == "a loss" and is_time(self):
            tensors = (torch.tensor(value),)
            spoilt.append(quantity)
        plain_watch(self, quantity, *tensors)
        if where in WHERE[2:] and is_time(self):
            modules = [getattr(part, "_model", part) for part in self._parts.values()]
            modules = [module for module in modules if isinstance(module, nn.Module)]
            optimizers = [part for part in self._parts.values() if hasattr(part, "param_groups")]
            if where == "the optimiser":
                poison(optimizers[-1].state_dict()["state"], value)  # type: ignore[attr-defined]
            else:
                poison(modules[0 if where == "the first module" else -1], value)
            spoilt.append(where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "resume", resume)
        patch.setattr(Session, "watch", watch)
        patch.setattr(runtime, "broadcast_module", lambda module: None)
        trainer.train(path)
    assert spoilt


# --- the same seed

CIRCUMSTANCES = ("nothing else", "other global random states", "another folder, after another run")


@family("seeds", sample=1)
def repeated(seed: int) -> Cases:
    for name in EVERY:
        for circumstance in CIRCUMSTANCES:
            yield f"{name}, {circumstance}", functools.partial(_repeated, name, circumstance, seed)


def _repeated(name: str, circumstance: str, seed: int, folder: Path) -> None:
    path = folder / "run"

    def work() -> None:
        if circumstance == CIRCUMSTANCES[1]:
            torch.manual_seed(seed + 17)
            np.random.seed(seed + 17)
            random.seed(seed + 17)
        if circumstance == CIRCUMSTANCES[2]:
            EVERY[name].train(folder / "another" / "run")
        EVERY[name].train(path)

    run(work).check(0)
    assert_same(path, whole(name).path)
    for file in whole(name).path.rglob("*.safetensors"):
        again = path / file.relative_to(whole(name).path)
        assert _without_place(again, path) == _without_place(file, whole(name).path), file.name


def _without_place(file: Path, run: Path) -> Any:
    """The bytes of a file of weights; where they name the folder of the images, which lie beside the run, what is in
    them."""
    place = str(run.parent)
    if place.encode() not in (data := file.read_bytes()):
        return data
    found = load_tensors(file)
    return flat(found.tensors), {key: value.replace(place, "") for key, value in found.metadata.items()}


# --- one process a folder


@family("folder", sample=1)
def eight_starts_at_once(seed: int) -> Cases:
    for name in EVERY:
        yield name, functools.partial(_eight, name)


def _eight(name: str, folder: Path) -> None:
    path = folder / "run"
    (go, start), (over, end) = os.pipe(), os.pipe()

    def work() -> None:
        os.close(end)
        os.read(go, 1)
        with at_step(1, lambda session: os.read(over, 1)):  # the winner waits for the others' end
            EVERY[name].train(path)

    children = [Child(work) for _ in range(8)]
    os.write(start, b"x" * 8)
    ended, waiting = [], dict(enumerate(children))
    while len(waiting) > 1:
        for i, child in list(waiting.items()):
            if child.has_ended():
                ended.append(waiting.pop(i).wait())
        time.sleep(0.01)
    for each in ended:
        each.check(2, "is in use by pid")
    os.write(end, b"x")
    (winner,) = waiting.values()
    assert all(f"in use by pid {winner.pid} on " in each.said for each in ended)
    winner.wait().check(0)
    assert_same(path, whole(name).path)


@family("folder", sample=1)
def a_lock_that_nobody_holds(seed: int) -> Cases:
    for name in EVERY:
        for left in ("of a killed run", "of a living process", "of another machine", "of bytes"):
            yield f"{name}, {left}", functools.partial(_stale, name, left)


def _stale(name: str, left: str, folder: Path) -> None:
    path = folder / "run"

    def work() -> None:
        with at_step(2, ENDS["SIGKILL"]):
            EVERY[name].train(path)

    assert run(work).code == -signal.SIGKILL
    texts = {
        "of a living process": f"pid {os.getppid()} on {os.uname().nodename}".encode(),
        "of another machine": b"pid 1 on elsewhere",
        "of bytes": b"\xff\x00" * 40,
    }
    if left in texts:
        (path / ".lock").write_bytes(texts[left])
    assert_goes_on(name, path)


# --- long runs


@family("long", sample=0, limit_s=900)
def many_steps(seed: int) -> Cases:
    for name, trainer in TRAINERS.items():
        yield f"{name}, {trainer.long[0]:,} steps", functools.partial(_long, name)


def _long(name: str, folder: Path) -> None:
    """Memory and open files after half of the steps are those after all of them."""
    trainer = TRAINERS[name]
    n_steps, changes = trainer.long
    seen: dict[int, tuple[int, int]] = {}

    def note(session: Session) -> None:
        if session.done in (n_steps // 2, n_steps - 1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen[session.done] = pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    def work() -> None:
        with at_step(n_steps // 2, note), at_step(n_steps - 1, note):
            trainer.train(folder / "run", **changes)
        (bytes_half, files_half), (bytes_end, files_end) = seen.values()
        assert files_end <= files_half, f"{files_half} open files became {files_end}"
        grown_mib = (bytes_end - bytes_half) / 2**20
        assert grown_mib < 4, f"{grown_mib:.1f} MiB more after the second half"

    ended = run(work)
    assert ended.code == 0, ended.said
