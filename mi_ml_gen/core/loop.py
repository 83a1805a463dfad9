"""One session for every training: resume, signals, finite checks, states, metrics, progress, several processes.

A trainer writes its own step, in a plain loop, between a few calls of the session. It gets in return: exact resume
from the newest good state, a saved state and exit code 75 on SIGTERM, Ctrl-C and SIGUSR1, a full disk that harms
nothing, no file with a nan in it, and torchrun.

    import torch
    from torch.nn import functional
    from mi_ml_gen.core import loop, runtime

    def fit_line(path, lr=0.05, n_steps=200, state_interval_s=60.0):
        '''Fit y = 3 x + 1 from noisy points; the same call goes on with an interrupted run.'''
        runtime.setup_distributed(torch.device("cpu"))  # under torchrun; alone it does nothing
        settings = dict(lr=lr, n_steps=n_steps, state_interval_s=state_interval_s)
        torch.manual_seed(0)  # initial weights; every later draw names its stream
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        course = loop.Course(total=torch.zeros(()))  # sum of the loss since the last row of metrics
        with loop.Session.open(path, settings, free=("n_steps", "state_interval_s")) as session:
            session.resume(course, model=model, optimizer=optimizer)
            for step in session.steps(n_steps, unit="batch", progress=False):
                # --- The step
                rng = runtime.stream(0, "points", step, runtime.rank())
                x = torch.randn(16, 1, generator=rng)
                y = 3 * x + 1 + 0.1 * torch.randn(16, 1, generator=rng)
                loss = functional.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                runtime.average_gradients(model)
                optimizer.step()

                # --- What is remembered, logged and saved
                course.total += loss.detach()
                session.watch("loss", loss)
                if session.every(10):
                    session.log(loss=runtime.all_reduce_mean(course.total) / 10)
                    course.total.zero_()
                session.end_of_step(save=session.every(50))
            session.run.write_json("summary.json", {"slope": model.weight.item()})
        return model

The trainer keeps three rules. Randomness is a function of (seed, name, step, rank): `runtime.stream`. Whatever changes
from step to step goes to `resume`: modules, optimisers, schedules and averages as named parts, plain values and
counters in a `Course`. And tests/faults/trainers.py names the trainer in one line, which runs every fault on it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, NonFiniteError, Preempted
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.core.runs import RunFolder
from mi_ml_gen.core.runtime import is_distributed

# --- what a session saves -----------------------------------------------------------------------------------


class Part(Protocol):
    """What training changes: a module, an optimiser, a schedule, a scaler, an average."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Course(SimpleNamespace):
    """What a loop remembers of its own course, by names of its choice; saved and restored with the parts.

        course = Course(totals=torch.zeros(2, device=device), finished=None)
        course.totals += ...

    Values are tensors, numbers, text, None, lists and dicts of these, and further courses. A restored tensor goes to
    the device of the one that it replaces. Under torchrun every process keeps, and gets back, its own values.
    """

    def state_dict(self) -> dict[str, Any]:
        return {name: _packed(value) for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in vars(self).items():
            setattr(self, name, _unpacked(state[name], value))


def _packed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Course):
        return value.state_dict()
    if isinstance(value, list):
        return [_packed(item) for item in value]
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    return value


def _unpacked(saved: Any, current: Any) -> Any:
    if isinstance(current, Tensor):
        return saved.to(current.device)
    if isinstance(current, Course):
        current.load_state_dict(saved)
        return current
    if isinstance(current, list) and any(isinstance(item, Course) for item in current):
        return [_unpacked(*both) for both in zip(saved, current, strict=True)]
    return saved


# --- the session --------------------------------------------------------------------------------------------


class Session:
    """One run of a training in its run folder; made by `Session.open`, used in a `with` block by all ranks together.

    `run` is the run folder, for files of the trainer's own; `rows` are the rows of metrics so far, as metrics.jsonl
    has them, on every rank.
    """

    def __init__(self, run: RunFolder, state_interval_s: float) -> None:
        self.run = run
        self.rows: list[dict[str, Any]] = []
        self.first = 0
        """The step that this start begins with."""
        self.done = 0
        """Steps that are done, the one in work counted."""
        self.is_last = False
        """Whether the step in work is the last one."""
        self._interval_s = state_interval_s
        self._preemption = Preemption()
        self._guard = FiniteGuard()
        self._parts: dict[str, Part] = {}
        self._course = Course()
        self._per_step = 1
        self._n_steps = 0
        self._ended = 0
        self._bar: Bar | None = None
        self._began_s = self._saved_at_s = time.monotonic()

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: Mapping[str, Any],
        free: Collection[str] = (),
        state_interval_s: float | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Session:
        """Open the run folder, new or of an interrupted run with the same settings, but for those in `free`.

        defaults: as for `RunFolder.open`; `config.resuming` gives both. state_interval_s: least seconds between saved
        states (default: the setting of that name, else 60). Raises what `RunFolder.open` raises.
        """
        if state_interval_s is None:
            state_interval_s = settings.get("state_interval_s", 60.0)
        return cls(RunFolder.open(path, settings, free, defaults=defaults), state_interval_s)

    def __enter__(self) -> Session:
        self._preemption.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()  # what is said next begins on a line of its own
        self._preemption.__exit__()
        self.run.close(exception[1])

    # what is kept

    def resume(self, course: Course | None = None, **parts: Part) -> None:
        """Name what training changes, and bring it to where the newest good state has it.

        Parts are loaded in the order given. Modules then get rank 0's values on every rank. Raises
        CorruptCheckpointError where states or metrics are damaged, or the states not of these parts; NonFiniteError
        where one holds a nan or an infinity.
        """
        self._parts, self._course = parts, course if course is not None else Course()
        saved = self.run.load_latest()
        self.rows = runtime.on_main(lambda: self.run.metrics(whole=True))
        if saved is not None:
            self.first, state = saved
            self.done = self.first
            self._load(state)
            if (bad := self._bad_part()) is not None:
                where = self.run.last_state
                raise NonFiniteError(f"{where}: {bad} is nan or infinite; choose another --run_name or folder")
        for part in parts.values():
            if isinstance(part, nn.Module):
                runtime.broadcast_module(part)
        self._began_s = self._saved_at_s = time.monotonic()

    def _load(self, state: dict[str, Any]) -> None:
        # Generators and probes of earlier versions have the course's values among the parts.
        own = state.get("course", state)
        courses = state.get("courses", [])
        if len(courses) == runtime.world_size():
            own = courses[runtime.rank()]
        try:
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            self._course.load_state_dict(own)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise CorruptCheckpointError(f"{self.run.last_state}: not a state of this training: {what}") from error

    def _save(self) -> None:
        self.check()
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
        state["course"] = self._course.state_dict()
        if is_distributed():
            state["courses"] = [None] * runtime.world_size()
            dist.all_gather_object(state["courses"], state["course"])
        runtime.on_main(lambda: self.run.save_state(self.done, state))
        self._saved_at_s = time.monotonic()

    # steps

    def steps(
        self,
        n_steps: int,
        unit: str = "step",
        per_step: int = 1,
        title: str | None = None,
        progress: bool = True,
        bar_interval: int | None = None,
    ) -> Iterator[int]:
        """The steps that are left of `n_steps`, numbered from 0; every one must end with `end_of_step`.

        unit, per_step: what the progress bar and the rates count, and how many of it all ranks do in a step. title:
        of the bar. progress: whether there is one. bar_interval: least steps between its moves (default: as tqdm
        likes).
        """
        self._per_step, self._n_steps = per_step, n_steps
        self._bar = Bar(
            total=n_steps * per_step, initial=self.first * per_step, unit=unit, unit_scale=per_step > 1, desc=title,
            miniters=bar_interval and bar_interval * per_step, disable=not (progress and runtime.is_main()),
        )  # fmt: skip
        for step in range(self.first, n_steps):
            self.done = step + 1
            self.is_last = self.done == n_steps
            yield step
            if self._ended != self.done:
                raise RuntimeError(f"step {step} has ended without a call of end_of_step")
            if self.is_last:
                break
        self._bar.close()

    @property
    def samples(self) -> int:
        """How many of the unit are done, the step in work counted."""
        return self.done * self._per_step

    @property
    def per_s(self) -> float:
        """How many of the unit a second, since this start."""
        return (self.done - self.first) * self._per_step / (time.monotonic() - self._began_s)

    def every(self, n_steps: int) -> bool:
        """Whether this step ends the next `n_steps`: whether it is time to log, save or draw what comes so often."""
        return self.done % n_steps == 0

    def passes(self, n_samples: int) -> bool:
        """Whether this step reaches or passes a multiple of `n_samples` of the unit."""
        return self.samples // n_samples > (self.samples - self._per_step) // n_samples

    def end(self) -> None:
        """Make the step in work the last one."""
        self.is_last = True

    def end_of_step(self, save: bool = False, may_stop: bool = True) -> None:
        """Finish a step. The state is saved after the last one, at a signal, and where `save` says that it is a
        good moment and the last one is `state_interval_s` old.

        may_stop: whether the run can go on exactly from here; a signal waits until it can. Raises Preempted at a
        signal, never after the last step; NonFiniteError and EnvironmentFault where the state cannot be saved. All
        of them are raised on every rank.
        """
        self._ended = self.done
        self._guard.gather()
        if self._bar is not None:
            self._bar.update(self._per_step)
        stop = runtime.broadcast_flag(may_stop and self._preemption.requested)
        is_due = save and runtime.broadcast_flag(time.monotonic() - self._saved_at_s >= self._interval_s)
        if stop or is_due or self.is_last:
            self._save()
        if stop and not self.is_last:
            where = f"step {self.done:,} of {self._n_steps:,}"
            raise Preempted(f"{self.run.path} is saved at {where}; the same command resumes from there")

    def stop_if_asked(self, what: str) -> None:
        """Between two parts of the work before the first step: raise Preempted after a signal. `what` is safe by now:
        "the features are saved"."""
        if runtime.broadcast_flag(self._preemption.requested):
            raise Preempted(f"{self.run.path}: {what}; the same command resumes from there")

    # what is seen

    def watch(self, name: str, *tensors: Tensor) -> None:
        """Hold these values, every step, to being finite; see `FiniteGuard.watch`. Nothing waits for the device."""
        self._guard.watch(name, *tensors)

    def check(self) -> None:
        """Raise NonFiniteError, on all ranks, unless everything watched and every value of every part is finite.

        States are checked by themselves. Call this before writing weights to any other file.
        """
        self._guard.check(self.done, self.run.last_state)
        if (bad := self._bad_part()) is not None:
            raise _non_finite(bad, self.done, self.run.last_state)

    def _bad_part(self) -> str | None:
        """Where a nan or an infinity is in what will be saved, or None; the same part on all ranks."""
        trees = {name: part.state_dict() for name, part in self._parts.items()} | {"course": self._course.state_dict()}
        guard = FiniteGuard()
        for name, tree in trees.items():
            guard.watch(name, *(tensor for _, tensor in _tensors(tree, name)))
        if (name := guard.first_bad()) is None:
            return None
        return next((where for where, tensor in _tensors(trees[name], name) if not tensor.isfinite().all()), name)

    def log(self, **values: Any) -> dict[str, Any]:
        """Write a row of metrics, the same on all ranks, and give it back with its step.

        Raises NonFiniteError in its place where something watched is not finite.
        """
        self._guard.check(self.done, self.run.last_state)
        row = runtime.on_main(lambda: self.run.log(self.done, **values))
        self.rows.append(row)
        return row

    def show(self, **values: str | int) -> None:
        """Values beside the progress bar."""
        if self._bar is not None:
            self._bar.set_postfix(values)


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors within dicts and lists, each with where it is: "optimizer.state.0.exp_avg"."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from _tensors(value, f"{name}.{key}")


# --- being asked to stop ------------------------------------------------------------------------------------


class Preemption:
    """Turns the first SIGTERM, SIGINT or SIGUSR1 into `.requested`, to be acted on between two steps:

        with Preemption() as preemption:
            for step in ...:
                if runtime.broadcast_flag(preemption.requested):
                    folder.save_state(step, ...)
                    raise Preempted(...)

    A second signal acts at once, as it would without this. Outside the main thread nothing can be requested.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    SAME_REQUEST_S = 1.0  # Ctrl-C under torchrun arrives twice: from the terminal and from torchrun

    def __init__(self) -> None:
        self.requested = False
        self._requested_at_s = 0.0
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Preemption:
        with contextlib.suppress(ValueError):  # not the main thread
            for signum in self.SIGNALS:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler or signal.SIG_DFL)

    def _receive(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:  # a forked worker: it ends when its parent does
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)
        elif not self.requested:
            self.requested = True
            self._requested_at_s = time.monotonic()
            if runtime.is_main():
                name = signal.Signals(signum).name
                os.write(2, f"{name}: stopping after this step; again to stop at once\n".encode())
        elif time.monotonic() - self._requested_at_s > self.SAME_REQUEST_S:
            self.__exit__()
            signal.raise_signal(signum)


# --- non-finite values --------------------------------------------------------------------------------------


class FiniteGuard:
    """Notices nan and infinity in named quantities without a host sync per step.

    guard.watch("critic loss", loss)            # every step; stays on the device
    guard.gather()                              # at the end of the step: two kernels for all that was watched in it
    guard.check(step, last_good=checkpoint)     # every K steps and before each checkpoint; reads the device once
    """

    MOST_WAITING = 64
    """Values that are kept before they are gathered unasked."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # in the order of watching
        self._waiting: list[tuple[str, Tensor, int]] = []  # name, a value, its version when it was watched
        self._sums: dict[tuple[Any, ...], Tensor] = {}  # of 0 times each value, which is 0 while all are finite

    def watch(self, name: str, *tensors: Tensor) -> None:
        """Remember whether any of `tensors` (any shapes) holds a nan or an infinity.

        A tensor of one value is kept until it is gathered, and may not be changed in place before that.
        """
        tensors = tuple(tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel())
        if not tensors:
            return
        self._names[name] = None
        if any(tensor.numel() > 1 for tensor in tensors):
            # The largest magnitude is finite exactly when all are, and a list of gradients costs a few kernels.
            tensors = (get_total_norm(tensors, norm_type=math.inf),)
        self._waiting += [(name, tensor.reshape(()), tensor._version) for tensor in tensors]
        if len(self._waiting) >= self.MOST_WAITING:
            self.gather()

    def gather(self) -> None:
        """Take over what was watched since the last time: a stack and a sum for each type of value."""
        kinds: dict[tuple[Any, ...], list[tuple[str, Tensor]]] = {}
        for name, value, version in self._waiting:
            if value._version != version:
                raise RuntimeError(f"{name} was changed in place after it was watched; watch a copy of it")
            kinds.setdefault((value.device, value.dtype), []).append((name, value))
        self._waiting = []
        for kind, members in kinds.items():
            key = (*kind, *(name for name, _ in members))
            values = torch.stack([value for _, value in members])
            if key in self._sums:
                self._sums[key].add_(values, alpha=0)
            else:
                self._sums[key] = values * 0

    def check(self, step: int, last_good: object = None) -> None:
        """Raise NonFiniteError, on all ranks together, if a watched quantity was ever non-finite on any rank.

        It names the first such quantity in the order of watching. All ranks must call this at the same steps.
        """
        if (name := self.first_bad()) is not None:
            raise _non_finite(name, step, last_good)
        self._names.clear()
        self._sums.clear()

    def first_bad(self) -> str | None:
        """The first watched quantity that was ever non-finite on any rank, or None. Reads the device once."""
        self.gather()
        if not self._names:
            return None
        device = next((one.device for one in self._sums.values() if one.device.type != "cpu"), torch.device("cpu"))
        flags = torch.cat([(~one.isfinite()).to(device) for one in self._sums.values()]).tolist()
        owners = [name for key in self._sums for name in key[2:]]
        found = {name for name, is_bad in zip(owners, flags, strict=True) if is_bad}
        bad = torch.tensor([name in found for name in self._names], dtype=torch.int32)
        if is_distributed():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        return list(self._names)[int(bad.argmax())] if bad.any() else None


def _non_finite(name: str, step: int, last_good: object) -> NonFiniteError:
    where = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
    return NonFiniteError(f"{name} became nan or infinite at or before step {step}; {where}")
