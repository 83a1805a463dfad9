"""Densities against torch.distributions, loops and closed forms; draws and their gradients against moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributions

from mi_ml_gen.mim.distributions import (
    Bernoulli,
    BernoulliLayer,
    BernoulliPrior,
    Gaussian,
    GaussianLayer,
    GaussianPrior,
    Mixture,
    Noise,
    equal_mixture,
    truncated,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mim_model.npz", allow_pickle=False)
SHAPES = [(5, 3), (2, 5, 3)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_torchs(shape):
    loc, std, value = double(*shape), double(*shape, seed=1).exp(), double(*shape, seed=2)
    own, torchs = Gaussian(loc, std), distributions.Independent(distributions.Normal(loc, std), 1)
    torch.testing.assert_close(own.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(own.mean, torchs.mean)
    torch.testing.assert_close(own.stddev, torchs.stddev)


@pytest.mark.parametrize("shape", SHAPES)
def test_bernoulli_is_torchs_also_for_grey_values(shape):
    probs, value = double(*shape).sigmoid(), double(*shape, seed=2).sigmoid()
    own = Bernoulli(probs)
    torchs = distributions.Independent(distributions.Bernoulli(probs, validate_args=False), 1)
    torch.testing.assert_close(own.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(own.stddev, torchs.stddev)


@pytest.mark.parametrize("shape", SHAPES)
def test_mixture_is_torchs(shape):
    k = 4
    weights, value = double(*shape[:-1], k), double(*shape, seed=4)
    loc, std = double(*shape[:-1], k, shape[-1], seed=1), double(*shape[:-1], k, shape[-1], seed=2).exp()
    own = Mixture(weights, Gaussian(loc, std))
    parts = distributions.Independent(distributions.Normal(loc, std), 1)
    torchs = distributions.MixtureSameFamily(distributions.Categorical(logits=weights), parts)
    torch.testing.assert_close(own.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(own.mean, torchs.mean)
    torch.testing.assert_close(own.stddev, torchs.stddev)


def test_a_draws_log_density_has_the_values_and_gradients_of_the_long_way():
    loc, log_std = double(6, 3).requires_grad_(), double(6, 3, seed=1).requires_grad_()
    weights = double(6, seed=5)

    def gradients(short: bool) -> tuple[Tensor, ...]:
        gaussian = Gaussian(loc, log_std.exp() + 1e-3)
        if short:
            value, log_prob = gaussian.sample_with_log_prob(rng(7))
        else:
            value = gaussian.rsample(rng(7))
            log_prob = gaussian.log_prob(value)
        total = (weights * log_prob).sum() + value.square().sum()
        return value.detach(), log_prob.detach(), *torch.autograd.grad(total, (loc, log_std))

    for short, long in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(short, long, rtol=1e-10, atol=1e-12)


def test_a_draws_log_density_survives_a_tiny_standard_deviation():
    loc = torch.full((1000, 2), 300.0)
    _, log_prob = Gaussian(loc, torch.full_like(loc, 1e-6)).sample_with_log_prob(rng())
    entropy = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(1e-6))
    assert -log_prob.mean().item() == pytest.approx(entropy, abs=0.1)


def test_draws_of_a_mixture_have_its_moments_and_shares():
    weights = torch.tensor([[0.2, 0.5, 0.3]]).log()
    loc = torch.tensor([[[0.0, 0.0], [4.0, 1.0], [-3.0, 2.0]]])
    mixture = Mixture(weights, Gaussian(loc, torch.full((1, 3, 2), 0.1)))
    draws = mixture.rsample(rng(), 20_000)
    assert draws.shape == (20_000, 2)
    torch.testing.assert_close(draws.mean(0), mixture.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(draws.std(0), mixture.stddev[0], atol=0.05, rtol=0)
    nearest = (draws[:, None] - loc[0]).norm(dim=-1).argmin(-1)
    shares = torch.bincount(nearest, minlength=3) / len(draws)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.02, rtol=0)


def test_path_gradient_of_a_mixture_is_that_of_its_moments():
    """Of E[z_0^2 + z_0 z_1 + z_1], in closed form, by weights, means and standard deviations."""
    weights = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64).requires_grad_()
    loc = torch.tensor([[0.5, -1.0], [1.5, 0.3], [-1.0, 1.0]], dtype=torch.float64).requires_grad_()
    std = torch.tensor([[0.7, 0.9], [0.5, 0.4], [0.8, 0.6]], dtype=torch.float64).requires_grad_()
    n = 200_000
    z = Mixture(weights.expand(n, 3), Gaussian(loc.expand(n, 3, 2), std.expand(n, 3, 2))).rsample(rng())
    estimate = (z[:, 0].square() + z[:, 0] * z[:, 1] + z[:, 1]).mean()
    share = weights.softmax(0)
    truth = (share * (loc[:, 0].square() + std[:, 0].square() + loc[:, 0] * loc[:, 1] + loc[:, 1])).sum()
    assert estimate.item() == pytest.approx(truth.item(), abs=0.02)
    found = torch.autograd.grad(estimate, (weights, loc, std))
    expected = torch.autograd.grad(truth, (weights, loc, std))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0.015, rtol=0)


def test_a_stack_of_mixtures_draws_from_each():
    loc = torch.tensor([0.0, 100.0])[:, None, None, None] + torch.arange(3.0)[:, None]  # (2, 1, 3, 1)
    mixture = Mixture(torch.zeros(2, 1, 3), Gaussian(loc, torch.full((2, 1, 3, 1), 1e-3)))
    draws = mixture.rsample(Noise([rng(1), rng(2)]), 500)
    assert draws.shape == (2, 500, 1)
    assert set(draws[0].round().flatten().tolist()) == {0.0, 1.0, 2.0}
    assert set(draws[1].round().flatten().tolist()) == {100.0, 101.0, 102.0}
    assert mixture.log_prob(draws).shape == (2, 500)


def test_coins_are_drawn_and_carry_no_gradient_unless_relaxed():
    probs = torch.full((1, 3), 0.3).requires_grad_()
    draws = Bernoulli(probs).rsample(rng(), 10_000)
    assert set(draws.unique().tolist()) == {0.0, 1.0} and not draws.requires_grad
    assert draws.mean().item() == pytest.approx(0.3, abs=0.02)
    relaxed = Bernoulli(probs, relaxed=True).rsample(rng(), 4)
    assert relaxed.requires_grad and torch.equal(relaxed, probs.expand(4, 3))


def test_the_finest_floor_keeps_certain_coins_finite():
    layer = BernoulliLayer(1, 2, floor=1e-10)
    torch.nn.init.constant_(layer.linear.weight, 1e4)
    sure = layer(torch.ones(1, 1))
    assert torch.isfinite(sure.log_prob(torch.zeros(1, 2))).all()


# --- noise


def test_noise_of_a_model_does_not_depend_on_the_others():
    together = Noise([rng(1), rng(2), rng(3)], block=50)
    alone = Noise([rng(2)], block=50)
    for shape in ((4, 3), (7, 5), (100,), (2,)):
        for kind in ("normal", "uniform", "normal"):
            several = getattr(together, kind)((3, *shape))
            assert torch.equal(several[1:2], getattr(alone, kind)((1, *shape)))
            assert not torch.equal(several[0], several[1])


def test_noise_never_gives_a_number_twice():
    noise = Noise([rng(0)], block=64)
    drawn = torch.cat([noise.normal((1, n)).flatten() for n in (10, 60, 1, 200, 64, 3)])
    assert len(drawn.unique()) == len(drawn)
    assert drawn.std().item() == pytest.approx(1, abs=0.15)


# --- layers


def test_standard_deviations_lie_above_the_floor_and_are_fixed_to_it_on_demand():
    layer = GaussianLayer(4, 2, floor=0.25)
    out = layer(-1e3 * torch.rand(6, 4, generator=rng()))
    assert (out.stddev >= 0.25).all() and out.mean.shape == (6, 2)
    fixed = GaussianLayer(4, 2, floor=0.25, fixed=True)
    assert (fixed(torch.randn(6, 4)).stddev == 0.25).all()
    assert sum(parameter.numel() for parameter in fixed.parameters()) == 2 * (4 + 1)


@pytest.mark.parametrize("kind", [GaussianLayer, BernoulliLayer])
@pytest.mark.parametrize("n_components", [0, 1, 3])
def test_conditional_layers_of_a_stack_are_those_of_its_models(kind, n_components):
    torch.manual_seed(0)
    stack = kind(4, 2, floor=1e-3, n_components=n_components, n_models=2)
    features, value = torch.randn(2, 5, 4), torch.rand(2, 5, 2)
    together = stack(features)
    for i in range(2):
        one = kind(4, 2, floor=1e-3, n_components=n_components)
        one.load_state_dict({name: tensor[i] for name, tensor in stack.state_dict().items()})
        torch.testing.assert_close(together.log_prob(value)[i], one(features[i]).log_prob(value[i]))
        torch.testing.assert_close(together.mean[i], one(features[i]).mean)


@pytest.mark.parametrize("kind", [GaussianPrior, BernoulliPrior])
@pytest.mark.parametrize("n_components", [0, 1, 3])
def test_priors_integrate_to_one(kind, n_components):
    torch.manual_seed(1)
    prior = kind(1, floor=1e-3, n_components=n_components)()
    if kind is BernoulliPrior:
        total = prior.log_prob(torch.tensor([[0.0], [1.0]])).exp().sum()
    else:
        grid = torch.linspace(-15, 15, 6001)[:, None]
        total = torch.trapezoid(prior.log_prob(grid).exp(), grid[:, 0])
    assert total.item() == pytest.approx(1, abs=1e-4)
    assert prior.rsample(rng(), 7).shape == (7, 1)


@pytest.mark.parametrize("n_components", [0, 2])
def test_equal_mixture_is_the_mean_of_its_members(n_components):
    torch.manual_seed(2)
    layer = GaussianLayer(4, 2, floor=1e-3, n_components=n_components, n_models=3)
    pseudo, value = torch.randn(3, 5, 4), torch.randn(3, 6, 2)
    mixture = equal_mixture(layer(pseudo))
    slow = [layer(pseudo[:, i : i + 1]).log_prob(value) for i in range(5)]
    torch.testing.assert_close(mixture.log_prob(value), torch.stack(slow).exp().mean(0).log(), rtol=1e-4, atol=1e-5)
    assert mixture.rsample(Noise([rng(i) for i in range(3)]), 8).shape == (3, 8, 2)


def test_truncation_is_the_published_one():
    weights = truncated(torch.from_numpy(GOLDEN["gmm_truncate/logcoefs_in"]))
    torch.testing.assert_close(weights.exp(), torch.from_numpy(GOLDEN["gmm_truncate/coefs"]), rtol=1e-5, atol=1e-5)
    loc = torch.stack([torch.arange(4.0), torch.zeros(4)], 1)[None]
    points = torch.from_numpy(GOLDEN["gmm_truncate/points"])
    for coefficients, name in ((weights, "log_prob"), (torch.from_numpy(GOLDEN["gmm_truncate/logcoefs_in"]), None)):
        found = Mixture(coefficients, Gaussian(loc, torch.full_like(loc, 0.5))).log_prob(points)
        expected = GOLDEN[f"gmm_truncate/{name or 'log_prob_untruncated'}"]
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(truncated(torch.tensor([[-3.0]])), torch.zeros(1, 1))
