"""What several tests share: the reference's pseudo-weights, and a generator small enough to train against."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import loop
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
