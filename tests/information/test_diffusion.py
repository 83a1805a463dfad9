"""MINDE: the integral over noise levels gives the information of Gaussian pairs."""

import math

import pytest
import torch

from mi_ml_gen.information.diffusion import noised
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.tasks import make_task


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rho", [0.3, 0.9, 0.999])
def test_the_integral_of_gaussian_guesses_is_the_closed_form(rho):
    """Franzese et al. 2024, equation 17, with the exact denoisers of one normal pair."""
    n = 50_000
    x, rest, noise = torch.randn(3, n, 1, generator=rng(), dtype=torch.float64)
    variance = torch.tensor([1 - rho**2], dtype=torch.float64)
    y = rho * x + variance.sqrt() * rest
    low, high = -12.0, 12.0 - math.log(1 - rho**2)
    t = low + (high - low) * (torch.arange(n).double()[:, None] + 0.5) / n
    drawn = noised(y, rho * x, variance, t, noise)
    integral = 0.5 * (high - low) * (drawn.guess_alone - drawn.guess_given_x).square().mean()
    assert integral.item() == pytest.approx(-0.5 * math.log(1 - rho**2), rel=0.05)


def test_guesses_are_the_best_linear_ones():
    """The error of a conditional mean is uncorrelated with what it was computed from."""
    n, rho = 100_000, 0.8
    x, rest, noise = torch.randn(3, n, 1, generator=rng(), dtype=torch.float64)
    variance = torch.tensor([1 - rho**2], dtype=torch.float64)
    drawn = noised(rho * x + variance.sqrt() * rest, rho * x, variance, torch.zeros(n, 1).double() + 1.0, noise)
    for guess, known in ((drawn.guess_alone, [drawn.y_t]), (drawn.guess_given_x, [drawn.y_t, x])):
        for value in known:
            assert abs(((noise - guess) * value).mean()) < 4 / math.sqrt(n)


def test_gaussian_pairs_need_no_correction():
    estimate = estimate_information(*make_task("normal", 6.0, 2).sample(1000, rng()), "minde", n_steps=100, hidden=32)
    assert abs(estimate.nats - 6.0) < 0.25  # far above log of the 250 held-out pairs
    assert not math.isinf(estimate.high_nats)


def test_what_is_not_gaussian_is_learned():
    pairs = make_task("clusters", 1.5, 1).sample(3000, rng())
    estimate = estimate_information(*pairs, "minde", n_steps=300, hidden=32)
    assert abs(estimate.nats - 1.5) < 0.8 * abs(estimate.details["gaussian_nats"] - 1.5)
