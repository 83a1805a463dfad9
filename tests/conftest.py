"""What several tests share: the reference's pseudo-weights, and a generator small enough to train against."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mi_ml_gen.core import loop
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.generators.bigbigan import BigBiGAN, BigBiGANConfig

GOLDEN = Path(__file__).parent / "golden"
collect_ignore = [] if importlib.util.find_spec("ffcv") else ["with_ffcv"]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names bytes by their number. Every process must collect the same names, and bytes may hold the time."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def load_helper(name: str):
    """A module of tests/golden by its file's name."""
    spec = importlib.util.spec_from_file_location(f"golden_{name}", GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fill():
    """fill(name, shape) -> tensor of the reference's pseudo-weights."""
    helper = load_helper("fill")
    return lambda name, shape: torch.from_numpy(np.asarray(helper.fill(name, shape)))


@pytest.fixture(scope="session")
def published_bigbigan():
    """published_bigbigan(contract, prefix) -> state dict in the published layout."""
    helper = load_helper("fill")

    def state(contract: str, prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        layout = json.loads((GOLDEN / f"{contract}.json").read_text())["state_dict"]
        arrays = helper.fill_state_dict(layout, prefix)
        return {key: torch.from_numpy(np.asarray(value)).to(dtype) for key, value in arrays.items()}

    return state


def make_small_generator(seed: int = 0) -> BigBiGAN:
    """8 px, two chunks of four numbers, random weights that make both chunks matter."""
    torch.manual_seed(seed)
    settings = BigBiGANConfig(resolution=8, width=8, multipliers=(1,), chunk_dim=4, attention_resolution=None)
    return BigBiGAN(settings, "small").freeze()


@pytest.fixture
def small_generator() -> BigBiGAN:
    return make_small_generator()


def assert_same_weights(one: Path, other: Path, names: Sequence[str], last: str) -> None:
    """Files of weights, and everything in the state `last`, are bit-equal in two run folders."""
    for name in names:
        mine, theirs = load_tensors(one / name).tensors, load_tensors(other / name).tensors
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs), name
    mine, theirs = (torch.load(path / "checkpoints" / last, weights_only=True)["state"] for path in (one, other))
    assert _flat(mine) == _flat(theirs)


def _flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in _flat(value, f"{prefix}.{key}").items()}
    if isinstance(state, (list, tuple)):
        return _flat(dict(enumerate(state)), prefix)
    return {prefix: state.tolist() if isinstance(state, torch.Tensor) else state}


def arrays_of_child(program: str, words: Sequence[str], environment: Mapping[str, str], found: Path) -> dict[str, Any]:
    """What a Python process of its own writes into `found`, an .npz file."""
    environment = dict(environment) | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(found) as arrays:
        return dict(arrays)


class StopAt:
    """Stands for `loop.Preemption`, and asks for a stop at the n-th time of being looked at."""

    def __init__(self, monkeypatch, n: int):
        self.left = n
        monkeypatch.setattr(loop, "Preemption", lambda: self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    @property
    def requested(self):
        self.left -= 1
        return self.left == 0
