"""The divergence that a discriminator finds, against the truth where it is known."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.divergence import divergence
from mi_ml_gen.information.gaussian import JointGaussian, marginal_divergence


def draws(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("std", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("dim", [1, 6])
def test_wider_normals_against_the_truth(std, dim):
    """y as x, wider: nothing but the covariance differs."""
    found = divergence(draws(4096, dim, 0), std * draws(4096, dim, 1), seed=3)
    identity = torch.eye(dim, dtype=torch.float64)
    centre = torch.zeros(dim, dtype=torch.float64)
    joint = JointGaussian(centre, centre, identity, std**2 * identity, 0 * identity)
    truth = marginal_divergence(joint, 200_000, torch.Generator().manual_seed(0)).nats
    assert found.nats == pytest.approx(truth, abs=4 * found.standard_error_nats + 0.01)
    assert found.standard_error_nats < 0.02


def test_what_means_and_covariances_do_not_show():
    """A coin of plus and minus 1 has mean and variance of a standard normal; the divergence is log 2."""
    coin = torch.where(draws(4096, 2, 1) > 0, 1.0, -1.0) + 0.01 * draws(4096, 2, 2)
    found = divergence(draws(4096, 2, 0), coin)
    assert found.nats > 0.4


def test_samples_that_share_nothing_and_samples_that_are_alike():
    assert divergence(draws(600, 3, 0), 50 + draws(600, 3, 1)).nats == pytest.approx(math.log(2), abs=0.01)
    for dim in (2, 40):  # with few draws in many dimensions a discriminator must not learn its own noise
        found = divergence(draws(600, dim, 0), draws(600, dim, 1))
        assert found.nats <= 3 * found.standard_error_nats + 0.005
    same = torch.ones(100, 4)
    assert divergence(same, same) == (0.0, 0.0)


def test_it_is_a_function_of_the_seed_and_leaves_the_global_one():
    x, y = draws(400, 5, 0), 1.3 * draws(400, 5, 1)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert divergence(x, y, 1) == divergence(x, y, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(UsageError, match="at least 32"):
        divergence(x[:10], y)
