"""Densities against the published code's numbers, and against what must hold for any density."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.images import densities
from mi_ml_gen.mim.images.base import Pixels

GOLDEN = Path(__file__).parents[2] / "golden" / "mim_images.npz"


@pytest.fixture(scope="module")
def golden():
    values = np.load(GOLDEN)
    return {name.removeprefix("logdens/"): torch.from_numpy(values[name]) for name in values if "logdens/" in name}


def test_densities_are_the_published_ones(golden):
    x, mean, log_var, scale = (golden[f"in/{name}"] for name in ("x", "mean", "log_var", "logistic_logvar"))
    found = {
        "log_Normal_diag_sum": densities.log_normal_diag(x, mean, log_var),
        "log_Normal_standard_sum": densities.log_normal_standard(x),
        "log_Bernoulli_sum": densities.log_bernoulli(golden["in/bits"], golden["in/probs"]),
        "neg_log_Logistic_256_sum": -densities.log_logistic_256(x, mean, scale),
    }
    for name, value in found.items():
        torch.testing.assert_close(
            value, golden[name], rtol=1e-9, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    each = [-densities.log_logistic_256(*(part.reshape(-1, 1) for part in (x, mean, scale)))]
    torch.testing.assert_close(each[0], golden["neg_log_Logistic_256_elementwise"].flatten(), rtol=1e-9, atol=0)


def test_pairs_of_images_and_means():
    """In full precision, whatever the precision of the layers before."""
    rng = torch.Generator().manual_seed(0)
    x, mean = (torch.rand(5, 1, 4, 4, generator=rng) < 0.5).float(), torch.rand(3, 1, 4, 4, generator=rng)
    mean[0, 0, 0, 0], mean[1, 0, 0, 0] = 0, 1
    expected = torch.stack([densities.log_bernoulli(x, one) for one in mean], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(densities.log_bernoulli_of_pairs(x, mean), expected)
        torch.testing.assert_close(Pixels(mean, None).log_prob_of_pairs(x), expected)
    log_var = torch.full_like(mean, -2.0)
    each = torch.stack([Pixels(m[None], v[None]).log_prob(x) for m, v in zip(mean, log_var, strict=True)], 1)
    torch.testing.assert_close(Pixels(mean, log_var).log_prob_of_pairs(x), each)


def test_a_colour_image_is_the_sum_over_its_channels():
    x, mean = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    log_var = torch.full_like(mean, -2.0)
    parts = sum(densities.log_logistic_256(x[:, i], mean[:, i], log_var[:, i]) for i in range(3))
    torch.testing.assert_close(densities.log_logistic_256(x, mean, log_var), parts)


def test_normalised_normals_integrate_to_one():
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    mean, log_var = torch.tensor([0.7], dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)
    own = densities.log_normal_diag(grid, mean, log_var, normalised=True).exp().sum() * 60 / 20_000
    standard = densities.log_normal_standard(grid, normalised=True).exp().sum() * 60 / 20_000
    assert own.item() == pytest.approx(1, abs=1e-9) and standard.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_of_a_narrow_logistic_add_up_to_one(dtype):
    """In float32 too, where the difference of two sigmoids would cancel."""
    levels = (torch.arange(256, dtype=dtype)[:, None] + 0.5) / 256
    mean, log_var = torch.full((256, 1), 0.43, dtype=dtype), torch.full((256, 1), -4.5, dtype=dtype)
    total = densities.log_logistic_256(levels, mean, log_var).double().exp().sum().item()
    assert total == pytest.approx(1 + 256 * densities.BIN_FLOOR, abs=2e-6)


def test_draws_of_pixels_follow_their_probabilities():
    n = 40_000
    uniforms = runtime.uniform((n, 1), runtime.stream(0, "test", 0, 0))
    logistic = Pixels(torch.full((n, 1), 0.4), torch.full((n, 1), -3.0))
    drawn = logistic.draw(uniforms)
    level = (110 + 0.5) / 256  # near the mean
    first = Pixels(logistic.mean[:1], logistic.log_var[:1])
    expected = first.log_prob(torch.tensor([[level]])).exp().item()
    assert (drawn == level).float().mean().item() == pytest.approx(expected, abs=4 * (expected / n) ** 0.5)
    bits = Pixels(torch.full((n, 1), 0.3), None).draw(uniforms)
    assert bits.mean().item() == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)
