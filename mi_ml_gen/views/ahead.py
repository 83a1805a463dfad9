"""Views of the next step, made in a second thread while an encoder learns from those of this one.

The views of a step are a function of its number. So they are the same as without this, and only the time changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.views.sampler import Views, ViewSampler

logger = logging.getLogger(__name__)


class ViewsAhead:
    """Gives the views of a step, as `sampler` does, and begins those of the next one, up to the last of `n_steps`.

    Make it by `started`, which ends the thread as well. Steps that are asked for in turn are ready or under way; any
    other step is made when it is asked for. An error while views are made is raised where they are asked for. One more
    batch of views is held in memory.
    """

    def __init__(self, sampler: ViewSampler, n_steps: int, thread: ThreadPoolExecutor) -> None:
        self.sampler = sampler
        self.n_steps = n_steps
        self.made_s = 0.0
        """Seconds that the second thread has made views."""
        self.waited_s = 0.0
        """Seconds that the caller has waited for them."""
        self._thread = thread
        self._next: tuple[int, Future[Views]] | None = None

    @property
    def overlap(self) -> float:
        """Share of the time in which views were made that cost the caller nothing."""
        return max(0.0, 1 - self.waited_s / self.made_s) if self.made_s else 0.0

    def __call__(self, step: int) -> Views:
        started = time.perf_counter()
        if self._next is not None and self._next[0] == step:
            pending = self._next[1]
        else:
            pending = self._thread.submit(self._make, step)
        views = pending.result()
        self.waited_s += time.perf_counter() - started
        self._next = (step + 1, self._thread.submit(self._make, step + 1)) if step + 1 < self.n_steps else None
        return views

    def _make(self, step: int) -> Views:
        started = time.perf_counter()
        views = self.sampler(step)
        self.made_s += time.perf_counter() - started
        return views


@contextmanager
def started(sampler: ViewSampler, n_steps: int) -> Iterator[ViewsAhead]:
    """Views ahead, made with half of torch's threads, at least one. The caller keeps all of its own, and the second
    thread ends with the block."""
    before = torch.get_num_threads()
    n_views = max(1, before // 2)
    thread = ThreadPoolExecutor(1, "views", torch.set_num_threads, (n_views,))
    try:
        yield ViewsAhead(sampler, n_steps, thread)
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)  # for threads that begin later; the caller's own number never changed


def views_of_steps(
    sampler: ViewSampler, n_steps: int, is_ahead: bool
) -> AbstractContextManager[Callable[[int], Views]]:
    """What gives the views of a step: the sampler itself, or one step ahead where that is asked for and of use."""
    if is_ahead and sampler.device.type != "cpu":
        if runtime.is_main():
            logger.warning("--views_ahead: %s makes views and learns from them, so it does so in turn", sampler.device)
        is_ahead = False
    return started(sampler, n_steps) if is_ahead else nullcontext(sampler)
