"""What every training has in common: finite values, and being asked to stop."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import NonFiniteError
from mi_ml_gen.core.runtime import is_distributed

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

    guard.watch("critic loss", loss)            every step; stays on the device guard.check(step,
    last_good=checkpoint)     every K steps and before each checkpoint; reads the device once
    """

    def __init__(self) -> None:
        self._bad: dict[str, Tensor] = {}

    def watch(self, name: str, *tensors: Tensor) -> None:
        """Remember whether any of `tensors` (floating point, none empty, any shapes) holds a nan or an
        infinity."""
        # The largest magnitude is finite exactly when all are, and a list of gradients costs a few kernels.
        bad = ~get_total_norm([tensor.detach() for tensor in tensors], norm_type=math.inf).isfinite()
        self._bad[name] = bad if name not in self._bad else self._bad[name] | bad

    def check(self, step: int, last_good: object = None) -> None:
        """Raise NonFiniteError, on all ranks together, if a watched quantity was ever non-finite on any rank.

        It names the first such quantity in the order of watching. All ranks must call this at the same steps.
        """
        if not self._bad:
            return
        bad = torch.stack(list(self._bad.values())).to("cpu", torch.int32)
        if is_distributed():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if bad.any():
            name = list(self._bad)[int(bad.argmax())]
            where = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
            raise NonFiniteError(f"{name} became nan or infinite at or before step {step}; {where}")
