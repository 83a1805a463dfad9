"""Cases of several processes (gloo, on the CPU): stopped together, one of them dead, restarted, equal to one."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mi_ml_gen.core import cli, optimizers, runtime
from mi_ml_gen.core.loop import Session
from mi_ml_gen.latents import TruncatedNormal
from tests.faults import children
from tests.faults.acts import assert_same, at_step, fill_disk, flat, newest, states, step_at
from tests.faults.cases import Check, family
from tests.faults.children import Child, Ended
from tests.faults.trainers import EVERY

Cases = Iterator[tuple[str, Check]]
ROOT = Path(__file__).parents[2]
SHARED_WORK = [name for name, trainer in EVERY.items() if trainer.is_distributed]
"""Trainers that several processes can run together."""


def start_group(work: Callable[[], object], n: int, folder: Path) -> list[Child]:
    """`work()` in each of n ranks of one group, which meet through a file."""
    meeting = folder / f"meeting {time.monotonic_ns()}"

    def member(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n)
        try:
            work()
        finally:
            # Torch writes to the file by which they met when it leaves the group: a full disk would abort the process.
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
            with contextlib.suppress(RuntimeError):  # of a group that has lost a member
                dist.destroy_process_group()

    return [Child(functools.partial(member, rank)) for rank in range(n)]


def train_group(name: str, path: Path, n: int = 2, **changes: Any) -> list[Ended]:
    of_n = EVERY[name].of_two if n == 2 else {}
    work = functools.partial(EVERY[name].train, path, **of_n | changes)
    return [child.wait() for child in start_group(work, n, path.parent)]


def whole_of_two(name: str) -> Path:
    """The uninterrupted run of a group of two, made once."""
    folder = children.SHARED / f"{name} by two"
    children.SHARED.mkdir(parents=True, exist_ok=True)
    with open(children.SHARED / f"{name} by two.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for ended in train_group(name, folder / "run"):
                ended.check(0)
            (folder / "done").touch()
    return folder / "run"


def assert_goes_on(name: str, path: Path) -> None:
    for ended in train_group(name, path):
        ended.check(0)
    assert_same(path, whole_of_two(name))


def act_of(rank: int, act: Callable[[Session], object]) -> Callable[[Session], object]:
    return lambda session: act(session) if runtime.rank() == rank else None


# --- stopped


@family("preempted", sample=0)
def one_signalled_process_stops_all(seed: int) -> Cases:
    for name in SHARED_WORK:
        for rank in (0, 1):
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                yield f"{name}, {signum.name} to rank {rank}", functools.partial(_one_signalled, name, rank, signum)


def _one_signalled(name: str, rank: int, signum: int, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"
    step = step_at(trainer, "the middle")

    def work() -> None:
        with at_step(step, act_of(rank, lambda session: os.kill(os.getpid(), signum))):
            trainer.train(path, **trainer.of_two)

    ended = [child.wait().check(75, f"saved at step {step} of") for child in start_group(work, 2, folder)]
    assert len(ended) == 2 and newest(path)[0] == step
    assert_goes_on(name, path)


@family("preempted", sample=0, limit_s=400)
def a_signal_to_torchruns_agent(seed: int) -> Cases:
    """As a scheduler sends it: the agent passes it on."""
    for name in SHARED_WORK:
        for signum in (signal.SIGTERM, signal.SIGINT):
            yield f"{name}, {signum.name}", functools.partial(_agent_signalled, name, signum)


def _agent_signalled(name: str, signum: int, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"
    step = step_at(trainer, "the middle")
    reader, writer = os.pipe()

    def wait(session: Session) -> None:
        os.write(writer, b"x")
        deadline_s = time.monotonic() + 30
        while not session._preemption.requested and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def work() -> None:
        with at_step(step, act_of(0, wait)):
            trainer.train(path, **trainer.of_two)

    agent = Child(lambda: launch(work))
    os.close(writer)
    assert os.read(reader, 1), agent.wait()
    agent.signal(signum)
    assert agent.wait().code != 0
    assert newest(path)[0] == step
    assert_goes_on(name, path)


def launch(work: Callable[[], object], max_restarts: int = 0) -> None:
    """`work()` in two processes under torchrun's agent, as commands do it: a fault ends one with an exit code."""

    def entry() -> None:
        for signum, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            signal.signal(signum, handler)  # as in a new program; a forked one has the agent's
        sys.argv = ["train"]
        try:
            cli.run(lambda argv: work() and None)
        except SystemExit as request:
            if request.code:
                raise

    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=f"case-{os.getpid()}", rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", max_restarts=max_restarts, start_method="fork", monitor_interval=0.1,
    )  # fmt: skip
    elastic_launch(settings, entry)()


@family("disk", sample=0)
def no_room_for_the_process_that_writes(seed: int) -> Cases:
    for name in SHARED_WORK:
        yield name, functools.partial(_full_in_a_group, name)


def _full_in_a_group(name: str, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"

    def work() -> None:
        with at_step(trainer.saves[1], act_of(0, fill_disk)):
            trainer.train(path, **trainer.of_two)

    for child in start_group(work, 2, folder):
        child.wait().check(4, f"cannot write {path}")
    assert states(path) == [trainer.saves[0]] and not list(path.rglob("*.partial"))
    assert_goes_on(name, path)


# --- one dead


@family("processes", sample=0)
def one_killed_process_ends_all(seed: int) -> Cases:
    for name in SHARED_WORK:
        for rank in (0, 1):
            for place in ("the first step", "the middle", "the last step but one"):
                yield f"{name}, rank {rank}, {place}", functools.partial(_one_killed, name, rank, place)


def _one_killed(name: str, rank: int, place: str, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"
    step = step_at(trainer, place)

    def work() -> None:
        with at_step(step, act_of(rank, lambda session: os.kill(os.getpid(), signal.SIGKILL))):
            trainer.train(path, **trainer.of_two)

    ended = [child.wait() for child in start_group(work, 2, folder)]
    assert ended[rank].code == -signal.SIGKILL
    ended[1 - rank].check(4, "lost the connection to the other processes")
    assert_goes_on(name, path)


@family("processes", sample=0, limit_s=400)
def torchruns_agent_starts_all_again(seed: int) -> Cases:
    """As `torchrun --max-restarts 2` does, whose agent this is."""
    for name in SHARED_WORK:
        for rank in (0, 1):
            for place in ("the middle", "the last step but one"):
                yield f"{name}, rank {rank} killed in {place}", functools.partial(_restarted, name, rank, place)


def _restarted(name: str, rank: int, place: str, folder: Path) -> None:
    trainer, path = EVERY[name], folder / "run"
    step = step_at(trainer, place)
    began = folder / "began"

    def kill(session: Session) -> None:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    def note(session: Session) -> None:
        if runtime.is_main():
            with open(began, "a") as file:
                file.write(f"{session.first}\n")

    def work() -> None:
        with at_step(step, act_of(rank, kill)), at_step(trainer.n_steps, note):
            trainer.train(path, **trainer.of_two)

    launch(work, max_restarts=2)
    saved = [at for at in trainer.saves if at < step]
    assert [int(line) for line in began.read_text().split()] == [max(saved, default=0)]  # from the last state
    assert_same(path, whole_of_two(name))


@family("processes", sample=0, limit_s=900)
def torchrun_itself(seed: int) -> Cases:
    for script, flags in {
        "train_navigator.py": "--generator linear-gaussian --chunks 0_1 --num_samples 4000 --critic_width 4",
        "train_encoder.py": "--encoder simclr --generator linear-gaussian --Tz 0_1=0,0.3,2 --samples_per_epoch 800 "
        "--max_epochs 5 --depth 18 --width 4 --dim 8 --pred 4 --base_lr 0.1 --save_freq 5 --cumulative_bs 8",
    }.items():
        yield script, functools.partial(_torchrun, script, flags)


def _torchrun(script: str, flags: str, folder: Path) -> None:
    """The command of the documentation; its first process is killed once it has saved a state."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts",
             "2", f"scripts/{script}", *flags.split(), "--device", "cpu", "--state_interval_s", "0", "--save_folder",
             str(folder), "--batch_size", "4"]  # fmt: skip
    words = words[:-2] if script == "train_encoder.py" else words
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    with open(folder / "said", "wb") as said:
        agent = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=said, stderr=said)
    killed = False
    while agent.poll() is None:
        if not killed and (found := list(folder.rglob("state_*.pt"))):
            os.kill(int((found[0].parents[1] / ".lock").read_text().split()[1]), signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    said_text = (folder / "said").read_text(errors="replace")
    assert killed and agent.returncode == 0, said_text[-1500:]
    (run,) = {path.parents[1] for path in folder.rglob("state_*.pt")}
    assert (run / "summary.json").exists()


# --- equal to one


def _own_share_of_what_one_draws() -> contextlib.ExitStack:
    """Each process draws what a single one would draw, and takes its part, so that both see the same batch. SGD stands
    for Adam, which would divide gradients that are nothing but rounding by their own size."""
    patches = contextlib.ExitStack()
    patch = patches.enter_context(pytest.MonkeyPatch.context())
    plain, sample = runtime.stream, TruncatedNormal.sample

    def stream(seed: int, name: str, step: int, rank: int, *device: Any, **named: Any) -> torch.Generator:
        return plain(seed, name, step, 0, *device, **named)

    def share(self: TruncatedNormal, shape: Any, *generator: Any, **named: Any) -> torch.Tensor:
        n, world = shape[0], runtime.world_size()
        whole = sample(self, (n * world, *shape[1:]), *generator, **named)
        return whole[runtime.rank() * n : (runtime.rank() + 1) * n]

    patch.setattr(optimizers, "Adam", lambda parameters, lr, **_: optimizers.SGD(parameters, lr=1e-3))
    patch.setattr(runtime, "stream", stream)
    patch.setattr(TruncatedNormal, "sample", share)
    return patches


_NAVIGATOR = dict(negatives="global", Tx="none")
EQUAL: dict[str, Callable[[int], dict[str, Any]]] = {
    **{
        name: lambda n: dict(batch_size=24 // n, num_samples=48, save_freq=48, **_NAVIGATOR)
        for name in SHARED_WORK if name.startswith("navigator") and name != "navigator on linear"
    },
    **{
        name: lambda n: dict(cumulative_bs=24, samples_per_epoch=24, max_epochs=2, save_freq=2, base_lr=0.1, Tx="none")
        for name in ("encoder", "encoder simclr", "encoder simsiam")
    },
    "probe": lambda n: dict(cumulative_bs=12, max_epochs=10, val_freq=10),
}  # fmt: skip
"""By trainer: the changes under which n processes do what one does. The linear generator draws noise of its own."""
TOLERANCE = 0.02
"""Largest difference, relative to how far the second step has moved a tensor: float32 sums in another order. A
gradient that is not averaged, or statistics of one process alone, differ by as much as the movement itself. It is the
second step and no later one because the last bit of a number may decide on which side of a kink a neuron lies: within
ten steps, such bits changed a walker of StyleGAN2 by a tenth, in one process as well as in two."""


@family("processes", sample=0, limit_s=600)
def equal_to_one(seed: int) -> Cases:
    for name in EQUAL:
        for n in (2, 3, 4):
            yield f"{name}, {n} processes", functools.partial(_equal, name, n)


def _equal(name: str, n: int, folder: Path) -> None:
    def work(n: int, path: Path, **changes: Any) -> None:
        with _own_share_of_what_one_draws():
            EVERY[name].train(path, **EQUAL[name](n) | changes)

    def after(what: str, n: int, **changes: Any) -> dict[str, torch.Tensor]:
        path = folder / what / "run"
        path.parent.mkdir()
        for child in start_group(functools.partial(work, n, path, **changes), n, folder):
            child.wait().check(0)
        return _weights(path)

    shorter = dict(num_samples=24) if name.startswith("navigator") else dict(max_epochs=1)
    start, one, several = after("shorter", 1, **shorter), after("one", 1), after("several", n)
    assert one.keys() == several.keys() and one
    for key, value in one.items():
        moved = (value - start[key]).norm()
        difference = (value - several[key]).norm()
        rounding = 1e-7 * max(value.norm(), value.numel() ** 0.5)  # a running mean of normalised values is 0
        assert difference <= TOLERANCE * moved + rounding, f"{key}: {difference:.1e} of {moved:.1e}"


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the newest state, but for what optimisers keep and sums of the course."""
    _, state = newest(path)
    parts = {part: tree for part, tree in state.items() if not part.startswith(("optimi", "course"))}
    leaves = {key: value for key, value in flat(parts).items() if isinstance(value, (float, list))}
    tensors = {key: torch.as_tensor(value, dtype=torch.float64) for key, value in leaves.items()}
    return {key: value for key, value in tensors.items() if value.numel()}


@family("processes", sample=1)
def no_two_streams_alike(seed: int) -> Cases:
    for name in ("pairs", "anchors", "positives", "crops", "decode", "nvae noise", "diffusion noise", "probe views"):
        for start in range(4):
            yield f"{name}, seed {seed + start}", functools.partial(_streams, name, seed + start)


def _streams(name: str, seed: int, folder: Path) -> None:
    """Eight processes, a hundred epochs, no number drawn twice (of those that 64 bits tell apart)."""
    rng = random.Random(seed)
    steps = [epoch * 1000 + rng.randrange(1000) for epoch in range(100)]
    drawn = [
        tuple(torch.randint(2**62, (4,), generator=runtime.stream(seed, name, step, rank)).tolist())
        for step in steps for rank in range(8)
    ]  # fmt: skip
    assert len({number for four in drawn for number in four}) == 4 * len(drawn)
