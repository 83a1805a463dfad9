"""Densities against the published code's numbers, and against what must hold for any density."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.images import densities
from mi_ml_gen.mim.images.densities import Bernoulli, Logistic

GOLDEN = Path(__file__).parents[2] / "golden" / "mim_densities.npz"


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(values) for name, values in np.load(GOLDEN).items()}


def test_densities_are_the_published_ones(golden):
    x, mean, log_var = golden["x"], golden["mean"], golden["log_var"]
    found = {
        "log_Normal_diag_sum": densities.log_normal_diag(x, mean, log_var),
        "log_Normal_standard_sum": densities.log_normal_standard(x),
        "log_Bernoulli_sum": densities.log_bernoulli(golden["bits"], golden["probs"]),
        "neg_log_Logistic_256_sum": -densities.log_logistic_256(x, mean, golden["logistic_logvar"]),
    }
    for name, value in found.items():
        torch.testing.assert_close(
            value, golden[name], rtol=1e-9, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    each = -densities.log_logistic_256(x[..., None], mean[..., None], golden["logistic_logvar"][..., None])
    torch.testing.assert_close(each, golden["neg_log_Logistic_256_elementwise"], rtol=1e-9, atol=0)


def test_a_point_stands_against_many_parameters():
    rng = torch.Generator().manual_seed(0)
    x, probs = torch.rand(2, 1, 5, generator=rng).round(), torch.rand(2, 7, 5, generator=rng)
    found = densities.log_bernoulli(x, probs)
    assert found.shape == (2, 7)
    torch.testing.assert_close(found[1, 3], densities.log_bernoulli(x[1, 0], probs[1, 3]))


def test_normalised_normals_integrate_to_one():
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    width = 60 / 20_000
    mean, log_var = torch.tensor([0.7], dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)
    own = densities.log_normal_diag(grid[:, None], mean, log_var, normalised=True).exp().sum() * width
    standard = densities.log_normal_standard(grid[:, None], normalised=True).exp().sum() * width
    assert own.item() == pytest.approx(1, abs=1e-9) and standard.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_steps_of_a_narrow_logistic_add_up_to_one(dtype):
    """In float32 too, where the difference of two sigmoids would cancel."""
    steps = (torch.arange(256, dtype=dtype) + 0.5) / 256
    mean, log_var = torch.full((256, 1), 0.43, dtype=dtype), torch.full((256, 1), -4.5, dtype=dtype)
    total = densities.log_logistic_256(steps[:, None], mean, log_var).double().exp().sum().item()
    assert total == pytest.approx(1 + 256 * densities.LEAST_LOGISTIC, abs=2e-6)


def test_samples_follow_their_probabilities():
    n = 40_000
    bits = Bernoulli(torch.full((n, 2), 0.3)).sample(runtime.stream(0, "test", 0, 0))
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert bits.mean().item() == pytest.approx(0.3, abs=4 * (0.21 / (2 * n)) ** 0.5)
    logistic = Logistic(torch.full((n, 1), 0.4), torch.full((n, 1), -3.0))
    drawn = logistic.sample(runtime.stream(0, "test", 1, 0))
    assert drawn.min() >= 1 / 512 and drawn.max() <= 1 - 1 / 512
    assert torch.equal((drawn * 256 - 0.5).round(), drawn * 256 - 0.5)  # the middles of steps
    step = 110  # a step near the mean
    expected = densities.log_logistic_256(
        torch.tensor([[(step + 0.5) / 256]]), logistic.mean[:1], logistic.log_var[:1]
    ).exp()
    share = (drawn == (step + 0.5) / 256).float().mean().item()
    assert share == pytest.approx(expected.item(), abs=4 * (expected.item() / n) ** 0.5)
