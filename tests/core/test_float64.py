"""What is summed in float64 works on a device without it, and gives what the CPU gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mi_ml_gen import delta
from mi_ml_gen.core import runtime
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.mim import evaluate, pictures
from mi_ml_gen.walkers.noise import RandomWalker
from tests.pretended_mps import OnMps, pretended_mps


def test_the_pretended_device_refuses_float64():
    with pretended_mps() as device:
        here = torch.ones(3, device=device)
        assert here.device.type == "mps" and (here + 1).sum().item() == 6 and here.cpu().device.type == "cpu"
        for planted in (here.double, lambda: torch.zeros(2, dtype=torch.float64, device=device)):
            with pytest.raises(TypeError, match="float64"):
                planted()
        assert runtime.in_float64(here).dtype == torch.float64


def test_delta(monkeypatch):
    monkeypatch.setattr(delta, "BATCH", 64)
    generator = LinearGaussian((2, 3))
    walker = RandomWalker("0_1", 0.5)
    on_cpu = delta.estimate_delta(generator, walker, 100), delta.independent_delta(generator, "0_2", 100)
    real = runtime.stream
    monkeypatch.setattr(runtime, "stream", lambda *where: real(*where[:4]))
    with pretended_mps() as device:
        there = delta.estimate_delta(generator, walker, 100, Drawn(), device=device)
        assert isinstance(Drawn.last, OnMps)
        independent = delta.independent_delta(generator, "0_2", 100, Drawn(), device=device)
    assert (there, independent) == on_cpu


class Drawn(TruncatedNormal):
    """The CPU's draws, put on the pretended device."""

    last = None

    def sample(self, shape, rng, device=None):
        Drawn.last = OnMps(TruncatedNormal().sample(shape, rng))
        return Drawn.last


def values(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape)


def test_measures_of_mim():
    def measured(put) -> list:
        names = ("x_given_z", "q_x", "p_z", "z_given_x")
        terms = SimpleNamespace(**{name: put(values(5).add(i)) for i, name in enumerate(names)})
        points = put(values(30, 3))
        labels = (points[:, 0] > 0).long()
        return [
            evaluate.entropies(terms),
            evaluate.reconstruction_error(points, points * 2),
            evaluate.neighbour_accuracy(points, labels, points, labels, (1, 3)),
            pictures._plane(points).tolist(),
        ]

    expected = measured(lambda tensor: tensor)
    with pretended_mps():
        assert measured(OnMps) == expected


def test_the_linear_gaussian_generator():
    generator = LinearGaussian((2, 2))
    expected = generator.clip_probability(), generator.mutual_information(GaussianPerturbation(std=0.5))
    with pretended_mps():
        for name, buffer in generator.named_buffers():
            setattr(generator, name, OnMps(buffer))
        assert generator.clip_probability() == expected[0]
        assert generator.mutual_information(GaussianPerturbation(std=0.5)) == expected[1]
