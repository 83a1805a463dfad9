"""Losses against published numbers with gradients, and against the identities that define them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_ml_gen.mim import losses
from mi_ml_gen.mim.distributions import Bernoulli, Gaussian

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mim_model.npz", allow_pickle=False)
LOSSES = {
    "vae": losses.vae,
    "vae_H": losses.vae_plus_entropy,
    "mim": losses.a_mim,
    "mim_noH": losses.mim_minus_entropy,
}


class Four(NamedTuple):
    x_given_z: Tensor
    q_x: Tensor
    p_z: Tensor
    z_given_x: Tensor


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def cases(kind: str) -> list[str]:
    """Every published case: name of the loss, beta, with or without the score-function term."""
    heads = (name.removesuffix("/loss") for name in GOLDEN.files if name.startswith(f"loss/{kind}/"))
    return sorted({head.removeprefix(f"loss/{kind}/") for head in heads if "/beta" in head and "/grad/" not in head})


def assert_gradients(leaves: dict[str, Tensor], value: Tensor, case: str) -> None:
    torch.testing.assert_close(value, golden(f"{case}/loss"), rtol=1e-6, atol=1e-9)
    published = [name for name in GOLDEN.files if name.startswith(f"{case}/grad/")]
    if not published:
        return
    names = [name.rsplit("/", 1)[1] for name in published]
    found = torch.autograd.grad(value, [leaves[name] for name in names], allow_unused=True)
    for leaf, gradient, name in zip(names, found, published, strict=True):
        gradient = torch.zeros_like(leaves[leaf]) if gradient is None else gradient
        torch.testing.assert_close(gradient, golden(name), rtol=1e-6, atol=1e-9)


def value_of(case: str, terms: Four) -> Tensor:
    name, beta = case.split("/")[:2]
    per_pair = LOSSES[name](terms, float(beta.removeprefix("beta")))
    if case.endswith("reinforce"):
        per_pair = losses.with_score(per_pair, terms.x_given_z)
    return per_pair.mean()


@pytest.mark.parametrize("case", cases("logprobs"))
def test_losses_of_log_probabilities_are_the_published_numbers(case):
    leaves = {name: golden(f"loss/logprobs/in/{name}").requires_grad_() for name in
              ("lp_x_given_z", "lp_x", "lp_z", "lp_z_given_x")}  # fmt: skip
    assert_gradients(leaves, value_of(case, Four(*leaves.values())), f"loss/logprobs/{case}")


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_losses_of_parameters_are_the_published_numbers(kind):
    inputs = [name for name in GOLDEN.files if name.startswith(f"loss/{kind}/in/")]
    for case in cases(kind):
        leaves = {name.rsplit("/", 1)[1]: golden(name).requires_grad_() for name in inputs}
        x, z = leaves["x_obs"], leaves["z_obs"]

        def normal(name: str, leaves=leaves) -> Gaussian:
            return Gaussian(leaves[f"{name}_loc"], leaves[f"{name}_logscale"].exp())

        def of_x(name: str, leaves=leaves, normal=normal) -> Gaussian | Bernoulli:
            if kind == "gaussian":
                return normal(name)
            return Bernoulli(leaves[f"{name}_logits"].sigmoid().clamp(1e-3, 1 - 1e-3))

        terms = Four(
            of_x("p_xz").log_prob(x), of_x("q_x").log_prob(x), normal("p_z").log_prob(z), normal("q_zx").log_prob(z)
        )
        assert_gradients(leaves, value_of(case, terms), f"loss/{kind}/{case}")
    assert len(cases(kind)) >= 12


def random_terms(seed: int = 0) -> Four:
    rng = torch.Generator().manual_seed(seed)
    return Four(*(torch.randn(8, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(4)))


def test_the_auto_encoder_is_the_vae_at_beta_0():
    terms = random_terms()
    torch.testing.assert_close(losses.auto_encoder(terms), losses.vae(terms, 0.0))
    torch.testing.assert_close(losses.auto_encoder_plus_entropy(terms), losses.vae_plus_entropy(terms, 0.0))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_with_a_marginal_data_density_the_encoder_drops_out_of_the_data_half(beta):
    a, _, c, d = random_terms()
    value = losses.a_mim(Four(a, a + c - d, c, d), beta)
    torch.testing.assert_close(value, -(1 + beta) / 2 * (a + c))
    (gradient,) = torch.autograd.grad(value.sum(), d, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradient, torch.zeros_like(d), atol=1e-12, rtol=0)


def test_mim_without_entropy_is_zero_where_both_distributions_agree():
    a, _, c, d = random_terms()
    agreed = losses.mim_minus_entropy(Four(a, a + c - d, c, d))
    torch.testing.assert_close(agreed, torch.zeros(8, dtype=torch.float64), atol=1e-12, rtol=0)


def test_mim_without_entropy_is_the_divergence_of_the_mixture_from_both_distributions():
    """Exactly, over four points: half KL(mixture | p) and half KL(mixture | q)."""
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([0.4, 0.4, 0.1, 0.1]).double()
    nothing = torch.zeros(4, dtype=torch.float64)
    per_point = losses.mim_minus_entropy(Four(p.log(), nothing, nothing, q.log()))
    mixture = (p + q) / 2
    divergences = [(mixture * (mixture / other).log()).sum() for other in (p, q)]
    torch.testing.assert_close((mixture * per_point).sum(), sum(divergences) / 2)


def test_the_sampling_half_is_added_and_not_averaged():
    assert losses.symmetric(torch.tensor(2.0), torch.tensor(3.0), 0.5).item() == 3.5


def test_the_score_function_term_makes_the_gradient_of_the_expectation_exact():
    """Over all outcomes of three coins: the mean of the estimator's gradient is the gradient of the mean."""
    logits = torch.tensor([[0.3, -1.2, 0.7]], dtype=torch.float64).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    coins = Bernoulli(logits.sigmoid())
    log_p = coins.log_prob(outcomes)

    def cost(x: Tensor) -> Tensor:
        return ((x - 0.3) * weights).sum(-1).square() + (logits * x).sum(-1)  # it depends on the parameters, too

    (expected,) = torch.autograd.grad((log_p.exp() * cost(outcomes)).sum(), logits, retain_graph=True)
    estimator = losses.with_score(cost(outcomes), log_p)
    torch.testing.assert_close(estimator, cost(outcomes))
    (found,) = torch.autograd.grad((log_p.exp().detach() * estimator).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_losses_keep_the_axes_of_a_stack():
    terms = Four(*(torch.randn(3, 5) for _ in range(4)))
    for loss in (*LOSSES.values(), losses.auto_encoder, losses.auto_encoder_plus_entropy):
        assert loss(terms, 0.5).shape == (3, 5)
        assert math.isfinite(loss(terms, 0.5).sum().item())
