"""The importance-sampled likelihood against closed forms, and against the plain loop."""

import math

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import NonFiniteError, UsageError
from mi_ml_gen.mim.images.base import Latents
from mi_ml_gen.mim.images.likelihood import log_likelihood, top_density
from mi_ml_gen.mim.images.networks import FAMILIES
from tests.mim.images.linear_model import LinearModel
from tests.mim.images.test_networks import small_images, small_model


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_and_bound_of_a_linear_model(seed):
    model = LinearModel(exact=False, seed=seed)
    x = model.draw(60, torch.Generator().manual_seed(seed))
    found = log_likelihood(model, x, 2000, seed)
    truth, kl = model.log_marginal(x), model.kl(x)
    off = (found.nats - truth) / found.errors
    assert off.abs().max() < 5 and off.square().mean().item() == pytest.approx(1, abs=0.6)  # errors as large as told
    assert abs(found.nats.mean() - truth.mean()) < 3 * found.draws_error
    assert found.bound.value < truth.mean() and (found.bounds < truth).all()
    gap = (truth - found.bounds).mean().item()  # KL of q from the true posterior, the same for each image
    ratio = 1.5
    assert gap == pytest.approx(model.d * 0.5 * (ratio - 1 - math.log(ratio)), rel=0.1)
    assert found.kl.value == pytest.approx(kl.mean().item(), rel=0.02)
    assert found.bits_per_dimension.value == pytest.approx(-found.mean.value / (8 * math.log(2)))
    assert found.n_uncertain == 0


def test_the_true_posterior_makes_every_weight_equal():
    model = LinearModel(exact=True)
    x = model.draw(20, torch.Generator().manual_seed(0))
    found = log_likelihood(model, x, 10)
    torch.testing.assert_close(found.nats, model.log_marginal(x))
    torch.testing.assert_close(found.bounds, found.nats)
    torch.testing.assert_close(found.effective_draws, torch.full((20,), 10.0, dtype=torch.float64))
    assert found.errors.max() < 1e-6


def plain_log_weights(model, x, n_draws, seed):
    """(n, S): one image after the other, through the whole model."""
    rows = []
    for i, image in enumerate(x):
        many = image.expand(n_draws, *image.shape)
        noise = model.noise(n_draws, runtime.stream(seed, "importance draws", i, 0))
        drawn = model.q_z(model.features(many), noise)
        rows.append(model.log_p_x(many, drawn.z) + model.log_prior(drawn.z, model.components()) - drawn.log_q)
    return torch.stack(rows).double()


@pytest.mark.parametrize("kind", ["binary", "gray"])
@pytest.mark.parametrize("prior", ["standard", "vampprior"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batches_are_the_plain_loop(family, prior, kind):
    model = small_model(family, prior=prior, kind=kind).eval()
    x = small_images(4) if kind == "binary" else small_images(4) * 0.7 + 0.1
    plain = plain_log_weights(model, x, 6, seed=3)
    expected = plain.logsumexp(1) - math.log(6)
    per_draw = 8 * 8 * 2 * 64
    for floats in (None, 1, 4 * per_draw, 12 * per_draw):  # all at once, draw by draw, parts of an image, two images
        found = log_likelihood(model, x, 6, 3, floats)
        torch.testing.assert_close(found.nats, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.bounds, plain.mean(1), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_the_mixture_prior_by_matrix_products():
    model = small_model("hvae_2level", number_components=9).eval()
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        top_density(model)(z), model.log_p_top(z, model.components()).double(), rtol=1e-5, atol=1e-5
    )


def test_what_cannot_be_measured_is_said():
    model = LinearModel(exact=True)
    with pytest.raises(UsageError, match="likelihood of 0 images"):
        log_likelihood(model, torch.zeros(0, 1, 4, 2))
    x = model.draw(3, torch.Generator().manual_seed(0))
    x[1] = math.nan
    with pytest.raises(NonFiniteError, match="image 1"):
        log_likelihood(model, x, 5)


def test_one_draw_tells_nothing_about_its_error():
    model = LinearModel(exact=False)
    found = log_likelihood(model, model.draw(4, torch.Generator().manual_seed(0)), 1)
    assert found.errors.isnan().all() and math.isnan(found.draws_error)
    torch.testing.assert_close(found.nats, found.bounds)


def test_noise_belongs_to_an_image():
    model = LinearModel(exact=False)
    x = model.draw(5, torch.Generator().manual_seed(0))
    whole, first = log_likelihood(model, x, 50), log_likelihood(model, x[:2], 50)
    assert torch.equal(whole.nats[:2], first.nats)
    other = log_likelihood(model, x, 50, seed=1)
    assert not torch.allclose(whole.nats, other.nats, rtol=1e-9)
    assert isinstance(model.noise(1, runtime.stream(0, "a", 0, 0)), Latents)
