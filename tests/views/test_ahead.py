"""Views made a step ahead, in a second thread: the same views, and errors where they belong."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.views.ahead import started, views_of_steps
from mi_ml_gen.views.sampler import Views


class Counting:
    """In place of a sampler: views that hold their step. Remembers which thread made them."""

    def __init__(self, fails_at: int | None = None, seconds: float = 0.0) -> None:
        self.device = torch.device("cpu")
        self.fails_at, self.seconds = fails_at, seconds
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.n_threads: set[int] = set()

    def __call__(self, step: int) -> Views:
        self.threads.add(threading.current_thread().name)
        self.n_threads.add(torch.get_num_threads())
        time.sleep(self.seconds)
        if step == self.fails_at:
            raise UsageError(f"step {step} cannot be made")
        self.made.append(step)
        return Views(torch.tensor(step), torch.tensor(-step))


def test_steps_come_in_any_order_and_none_is_made_in_vain():
    sampler = Counting()
    with started(sampler, 6) as views_of:
        assert [int(views_of(step).first) for step in (2, 3, 4, 5)] == [2, 3, 4, 5]
        assert sampler.made == [2, 3, 4, 5]  # nothing beyond the last step
        assert [int(views_of(step).second) for step in (0, 4)] == [0, -4]  # back, as no training does
    assert threading.current_thread().name not in sampler.threads and len(sampler.threads) == 1


def test_the_next_step_is_made_while_the_caller_works():
    begun, goes_on = threading.Event(), threading.Event()

    class Waiting(Counting):
        def __call__(self, step: int) -> Views:
            if step == 1:
                begun.set()
                assert goes_on.wait(60)
            return super().__call__(step)

    with started(Waiting(), 2) as views_of:
        views_of(0)
        assert begun.wait(60)  # step 1 is under way, and nobody has asked for it
        goes_on.set()
        assert int(views_of(1).first) == 1


def test_an_error_is_raised_for_the_step_that_it_belongs_to():
    with started(Counting(fails_at=1), 5) as views_of:
        assert int(views_of(0).first) == 0
        with pytest.raises(UsageError, match="step 1 cannot be made"):
            views_of(1)


def test_seconds_are_counted():
    with started(Counting(seconds=0.02), 4) as views_of:
        for step in range(4):
            views_of(step)
            time.sleep(0.06)  # the caller's own work, in which the next views are made
    assert views_of.made_s >= 0.08 and views_of.waited_s >= 0.02  # the first views are waited for
    assert 0 < views_of.overlap < 1


@pytest.mark.parametrize(("before", "theirs"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_views_are_made_with_half_of_the_threads(before, theirs):
    at_first = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        sampler = Counting()
        with pytest.raises(KeyboardInterrupt), started(sampler, 3) as views_of:
            views_of(0)
            assert torch.get_num_threads() == before and sampler.n_threads == {theirs}
            raise KeyboardInterrupt
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(at_first)


def test_a_gpu_makes_views_in_turn(caplog):
    sampler = Counting()
    with views_of_steps(sampler, 3, is_ahead=False) as views_of:
        assert views_of is sampler
    sampler.device = torch.device("cuda")
    with caplog.at_level(logging.WARNING), views_of_steps(sampler, 3, is_ahead=True) as views_of:
        assert views_of is sampler
    assert "cuda makes views and learns from them, so it does so in turn" in caplog.text
