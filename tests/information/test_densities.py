"""The autoregressive densities, and the difference of two entropies."""

import pytest
import torch
from torch.nn import functional

from mi_ml_gen.information.densities import Autoregressive
from mi_ml_gen.information.ensembles import N_MEMBERS
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.tasks import make_task


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def wild(n_context, dim):
    """A model far from where it starts."""
    model = Autoregressive(n_context, dim, 16, 3, rng()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng(1), dtype=torch.float64))
    return model


@pytest.mark.parametrize("n_context", [0, 2])
def test_densities_integrate_to_one(n_context):
    model = wild(n_context, 2)
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis).expand(N_MEMBERS, -1, -1)
    context = torch.ones(N_MEMBERS, z.shape[1], n_context, dtype=torch.float64)
    with torch.no_grad():
        log_p = model(context, z) - 0.5 * z.square().sum(2) - torch.log(torch.tensor(2 * torch.pi))
    assert (log_p + 0.5 * z.square().sum(2) + torch.log(torch.tensor(2 * torch.pi))).abs().max() > 0.1
    total = log_p.exp().sum(1) * (axis[1] - axis[0]) ** 2
    assert torch.allclose(total, torch.ones(N_MEMBERS).double(), atol=5e-3)


def test_each_coordinate_sees_the_context_and_those_before_it_only():
    model = wild(1, 3)
    context = torch.randn(N_MEMBERS, 4, 1, generator=rng(), dtype=torch.float64)
    z = torch.randn(N_MEMBERS, 4, 3, generator=rng(1), dtype=torch.float64)

    def parameters(context, z):
        """Logits, means and log scales of each coordinate: (members, n, 3 * components, d)."""
        hidden = functional.silu(model.first(torch.cat([context, z], 2)))
        hidden = functional.silu(model.second(hidden)) + hidden
        return model.last(hidden).unflatten(2, (-1, 3))

    before = parameters(context, z)
    for changed in range(3):
        other = z.clone()
        other[:, :, changed] += 1.0
        differs = (parameters(context, other) - before).abs().amax(dim=(0, 1, 2)) > 0
        assert differs.tolist() == [i > changed for i in range(3)]
    assert ((parameters(context + 1.0, z) - before).abs().amax(dim=(0, 1, 2)) > 0).all()


def test_it_starts_at_the_normal_density():
    model = Autoregressive(2, 4, 64, 6, rng())
    context, z = torch.randn(N_MEMBERS, 500, 2, generator=rng(1)), torch.randn(N_MEMBERS, 500, 4, generator=rng(2))
    assert model(context, z).mean(1).abs().max() < 0.01


def test_gaussian_pairs_need_no_correction():
    estimate = estimate_information(*make_task("normal", 3.0, 2).sample(2000, rng()), "doe", n_steps=100, hidden=48)
    assert abs(estimate.nats - 3.0) < 0.12
    assert abs(estimate.nats - estimate.details["gaussian_nats"]) < 0.02
    assert not estimate.verdict.is_warning


def test_what_is_not_gaussian_is_learned():
    """Two clusters, in one of which the numbers are dependent: the Gaussian copula alone is far off."""
    pairs = make_task("clusters", 1.5, 1).sample(3000, rng())
    estimate = estimate_information(*pairs, "doe", n_steps=250, hidden=32)
    assert abs(estimate.details["gaussian_nats"] - 1.5) > 0.3
    assert abs(estimate.nats - 1.5) < 0.3
