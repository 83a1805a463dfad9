"""The navigator in two processes: one walker, one critic, different noise, and one signal stops both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mi_ml_gen.core import loop, runs, runtime
from mi_ml_gen.core.errors import Preempted
from mi_ml_gen.navigator.training import train_navigator
from tests.conftest import make_small_generator
from tests.distributed import run_processes
from tests.navigator.test_training import SETTINGS


class StopOnOneRank:
    """Asked to stop at the fifth step, on the last rank only."""

    def __init__(self):
        self.left = 5 if runtime.rank() == runtime.world_size() - 1 else -1

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    @property
    def requested(self):
        self.left -= 1
        return self.left == 0


def _train(folder: str, interrupt: bool) -> dict:
    plain = loop.Preemption
    settings = dataclasses.replace(SETTINGS, negatives="global", num_samples=192)
    stopped = ""
    if interrupt:
        loop.Preemption = StopOnOneRank
        with pytest.raises(Preempted) as error:
            train_navigator(settings, make_small_generator(), folder, progress=False)
        stopped = str(error.value)
        loop.Preemption = plain
    result = train_navigator(settings, make_small_generator(), folder, progress=False)
    state = sorted((Path(folder) / "checkpoints").glob("*.pt"))[-1]
    saved = torch.load(state, weights_only=True)["state"]
    rng = runtime.stream(0, "pairs", 0, runtime.rank())
    return {
        "walker": saved["walker"],
        "samples": result.samples,
        "stopped": stopped,
        "noise": torch.rand(4, generator=rng),
    }


def test_two_processes_share_one_walker_and_stop_together(tmp_path):
    one, two = run_processes(_train, 2, str(tmp_path / "whole"), False)
    assert one["samples"] == two["samples"] == 192
    rows = runs.read_metrics(tmp_path / "whole")
    assert rows[-1]["step"] == 12 and rows[-1]["samples"] == 192  # 2 x 8 pairs a step
    assert not torch.equal(one["noise"], two["noise"])

    first, second = run_processes(_train, 2, str(tmp_path / "stopped"), True)
    assert first["stopped"] == second["stopped"] != ""
    assert "saved at step 5 of 12" in first["stopped"]
    for key, value in one["walker"].items():
        assert torch.equal(first["walker"][key], value)


def _parameters(folder: str) -> list:
    """Each rank's own walker after a run, not the file that rank 0 wrote."""
    kept = []
    plain = runtime.broadcast_module
    runtime.broadcast_module = lambda module: (kept.append(module), plain(module))[1]
    train_navigator(dataclasses.replace(SETTINGS, num_samples=64), make_small_generator(), folder, progress=False)
    runtime.broadcast_module = plain
    return [parameter.detach() for module in kept for parameter in module.parameters()]


def test_ranks_never_drift_apart(tmp_path):
    """The whole critic is averaged, head included, and the walker is."""
    one, two = run_processes(_parameters, 2, str(tmp_path / "run"))
    assert len(one) > 10
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
