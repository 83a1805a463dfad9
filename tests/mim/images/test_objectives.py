"""The losses of the image models: published numbers and gradients, the sampling half, the contrastive terms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.images import objectives
from mi_ml_gen.mim.images.base import Latents, PriorNoise
from mi_ml_gen.mim.images.networks import FAMILIES
from mi_ml_gen.mim.images.objectives import OBJECTIVES, Sampled, batch_loss
from tests.mim.images.test_networks import (
    GOLDEN,
    filled_model,
    golden,
    golden_images,
    golden_noise,
    golden_spec,
    small_images,
    small_model,
)

LOSSES = sorted(name.removeprefix("img/").removesuffix("/loss") for name in GOLDEN.files if name.endswith("/loss"))


def sampled_as_published(prior: str) -> Sampled:
    """z2 of the first pseudo-inputs, z1 given it, the decoder's mean image."""
    return Sampled(PriorNoise(golden_noise("samp_eps"), torch.arange(3) if prior == "vampprior" else None))


@pytest.mark.parametrize("name", LOSSES)
@torch.no_grad()
def test_published_losses(name: str) -> None:
    model_name, prior, kind, beta = name.split("/")
    family, _, loss = model_name.partition("-")
    beta = float(beta.removeprefix("beta"))
    model, x = filled_model(golden_spec(family, prior, kind)), golden_images(kind)
    noise = golden_noise() if family != "vae" else Latents(golden("eps_z1"))
    seen, components = model.features_and_components(x)
    terms = objectives.terms_of(model, x, seen, model.q_z(seen, noise), components)
    found = objectives.mim_loss(terms, beta) if loss else objectives.vae_loss(terms, beta)
    if loss == "smim" and beta >= 1:
        found = (
            found
            + objectives.sampling_half(model, sampled_as_published(prior), beta, components, as_published=True).mean()
        )
    torch.testing.assert_close(found, golden(f"{name}/loss"), rtol=2e-5, atol=1e-4)
    torch.testing.assert_close(terms.x_given_z, golden(f"{name}/RE"), rtol=2e-5, atol=1e-4)
    torch.testing.assert_close(terms.kl, golden(f"{name}/KL"), rtol=2e-5, atol=2e-4)


def test_published_gradients() -> None:
    model = filled_model(golden_spec("convhvae_2level", "vampprior", "binary"))
    found = batch_loss(
        model, OBJECTIVES["smim"], golden_images("binary"), golden_noise(), 1.0, sampled_as_published("vampprior"),
        as_published=True,
    )  # fmt: skip
    name = "convhvae_2level-smim/vampprior/binary"
    torch.testing.assert_close(found.loss, golden(f"{name}/avg_loss"), rtol=2e-5, atol=0)
    found.loss.backward()
    prefix = f"img/{name}/avg_grad/"
    known = [key for key in GOLDEN.files if key.startswith(prefix)]
    assert len(known) == 4
    for key in known:
        expected = torch.from_numpy(GOLDEN[key])
        gradient = model.get_parameter(key.removeprefix(prefix)).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_every_loss(family: str, loss: str) -> None:
    """And every weight has a part in it."""
    model, x = small_model(family), small_images()
    rng = runtime.stream(0, "noise", 0, 0)
    sampled = Sampled(model.prior_noise(5, rng), small_images(seed=3)) if OBJECTIVES[loss].samples else None
    views = (objectives.shifted_views(x, rng), objectives.shifted_views(x, rng))
    outcome = batch_loss(model, OBJECTIVES[loss], x, model.noise(5, rng), 0.7, sampled, views)
    assert outcome.loss.isfinite()
    outcome.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert (outcome.contrast != 0) == (loss in ("cmim", "infonce_mim"))
    assert (outcome.sampled != 0) == (loss == "smim")


@torch.no_grad()
def test_the_encoder_drops_out_of_a_mim_on_data() -> None:
    """A-MIM with the marginal q(x) is -(1 + beta) / 2 [a + c]."""
    model, x = small_model("hvae_2level"), small_images()
    seen, components = model.features_and_components(x)
    terms = objectives.terms_of(model, x, seen, model.q_z(seen, model.noise(5, torch.Generator())), components)
    c = terms.p_lower + 0.3 * terms.p_top
    torch.testing.assert_close(objectives.mim_loss(terms, 0.3), -0.65 * (terms.x_given_z + c))
    with_density = objectives.mim_loss(terms, 0.3, torch.full((5,), -7.0))
    torch.testing.assert_close(with_density, -0.5 * (terms.x_given_z + c + 0.3 * (terms.z_given_x - 7.0)))


def test_the_sampling_half_is_the_gradient_of_an_expectation() -> None:
    """Of two-pixel images the expectation over x is a sum: the score function's mean over draws comes near its
    gradient, nearer with the baseline than as published."""
    model = small_model("vae", shape=(1, 1, 2), prior="standard")
    noise = model.prior_noise(1, runtime.stream(0, "z", 0, 0))
    z = model.from_prior(noise, None)
    images = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).reshape(4, 1, 1, 2)
    rows = z.repeat(4)
    parameter = model.p_x_mean.linear.bias

    def loss_of(x: Tensor, latents: Latents) -> Tensor:
        terms = objectives.Terms(
            model.log_p_x(x, latents), 0.0, model.log_p_top(latents.top, None), model.log_q(model.features(x), latents)
        )
        return objectives.sampled_loss(terms)

    exact = (model.log_p_x(images, rows).exp() * loss_of(images, rows)).sum()
    (expected,) = torch.autograd.grad(exact, parameter)

    n, errors = 4000, {}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = model.p_x(z.repeat(n)).draw(torch.rand(n, 1, 1, 2, generator=generator))
    for as_published in (False, True):
        halves = [
            objectives.sampling_half(
                model, Sampled(PriorNoise(z.repeat(20)), x), 1.0, None, score_function=True, as_published=as_published
            ).mean()
            for x in draws.split(20)
        ]
        found = torch.stack([torch.autograd.grad(half, parameter, retain_graph=True)[0] for half in halves])
        deviation = found.std(0) / math.sqrt(len(halves))
        assert ((found.mean(0) - expected).abs() < 4.5 * deviation).all()
        errors[as_published] = deviation
    assert (errors[False] < errors[True]).all()


@pytest.mark.parametrize("score_function", [False, True])
def test_a_sampling_half_leaves_the_norms_to_the_data(score_function: bool) -> None:
    """The running statistics of a PixelCNN are those of a run without the half, and the half is of the decoder that the
    draws are made with."""
    x, drawn = small_images(), torch.zeros(5, 1, 8, 8)  # unlike the data
    losses, norms = {}, {}
    for has_half in (False, True):
        model = small_model("pixelhvae_2level").train()
        noise = model.noise(5, runtime.stream(0, "noise", 0, 0))
        sampled = Sampled(model.prior_noise(5, runtime.stream(0, "z", 0, 0)), drawn)
        batch_loss(model, OBJECTIVES["smim"], x, noise, 1.0, sampled if has_half else None)
        assert model.training
        norms[has_half] = {name: value.clone() for name, value in model.named_buffers() if "mask" not in name}
        for mode in (True, False):
            half = objectives.sampling_half(model.train(mode), sampled, 1.0, model.components(), score_function)
            losses[mode] = half.detach()
    assert norms[True] and all(torch.equal(value, norms[False][name]) for name, value in norms[True].items())
    torch.testing.assert_close(losses[True], losses[False])


def test_a_sampling_half_as_published_passes_gradients_through_grey_images() -> None:
    """And through the latents that they come from."""
    gradients = {}
    for kind in ("gray", "binary"):
        model = small_model("convhvae_2level", kind=kind)
        noise = model.prior_noise(4, runtime.stream(0, "z", 0, 0))
        half = objectives.sampling_half(model, Sampled(noise), 1.0, model.components(), as_published=True)
        half.sum().backward()
        gradients[kind] = model.p_z1_mean.linear.bias.grad
        assert gradients[kind].abs().sum() > 0
    assert not torch.allclose(gradients["gray"], gradients["binary"])


@pytest.mark.parametrize("family", ["vae", "convhvae_2level"])
def test_the_published_score_function_has_no_effect(family: str) -> None:
    """The gradient of log p(x|z) at x = its own mean is 0."""
    model = small_model(family)
    noise = model.prior_noise(4, runtime.stream(0, "z", 0, 0))
    gradients = []
    for x, as_published in (
        (None, True),
        (model.p_x(model.from_prior(noise, model.components())).mean.detach(), False),
    ):
        half = objectives.sampling_half(model, Sampled(noise, x), 1.0, model.components(), as_published=as_published)
        gradients.append(torch.autograd.grad(half.sum(), list(model.parameters()), allow_unused=True))
    for parameter, published, own in zip(model.parameters(), *gradients, strict=True):
        expected = torch.zeros_like(parameter) if own is None else own  # None: of the decoder
        torch.testing.assert_close(published, expected, rtol=1e-4, atol=1e-4)


def test_the_contrast_without_positive_pairs() -> None:
    z = torch.tensor([[2.0, 0], [0, 3], [-1, 0]])
    temperature = 0.5
    cosines = torch.tensor([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]])
    expected = []
    for i in range(3):
        others = [math.exp(cosines[i, j] / temperature) for j in range(3) if j != i]
        own = math.exp(1 / temperature)
        expected.append(-math.log(own / (own + sum(others) / 2)))
    torch.testing.assert_close(objectives.self_contrast(z, temperature), torch.tensor(expected))

    same = objectives.self_contrast(torch.ones(6, 2), 0.1)
    torch.testing.assert_close(same, torch.full((6,), math.log(2)), msg="latents that are all alike")
    apart = objectives.self_contrast(torch.tensor([[1.0, 0], [-1, 0]]), 0.1)
    assert (apart < 1e-8).all()
    small, large = (objectives.self_contrast(torch.randn(n, 8), 0.5).mean() for n in (64, 1024))
    assert (small - large).abs() < 0.02, "the size of the batch matters little"


def test_cmim_is_the_loss_of_its_authors_laboratory() -> None:
    """-[log p(x|z) + log p(k = 1|x, z) + 1/2 (log q(z|x) + log p(z))], as KERMT's compute_cmim_loss has it."""
    model, x = small_model("hvae_2level"), small_images()
    noise = model.noise(5, runtime.stream(0, "noise", 0, 0))
    with torch.no_grad():
        seen, components = model.features_and_components(x)
        drawn = model.q_z(seen, noise)
        terms = objectives.terms_of(model, x, seen, drawn, components)
        unit = drawn.z.flat / drawn.z.flat.norm(dim=1, keepdim=True)
        cosines = unit @ unit.T
        others = cosines[~torch.eye(5, dtype=torch.bool)].reshape(5, 4)
        logits = torch.cat((cosines.diagonal()[:, None] / 0.1, others / 0.1 - math.log(4)), 1)
        log_p_k = logits[:, 0] - logits.logsumexp(1)
        prior = terms.p_lower + terms.p_top
        expected = -(terms.x_given_z + log_p_k + 0.5 * (terms.z_given_x + prior)).mean()
        without = -(terms.x_given_z + 0.5 * (terms.z_given_x + prior)).mean()
        torch.testing.assert_close(batch_loss(model, OBJECTIVES["cmim"], x, noise).loss, expected)
        torch.testing.assert_close(batch_loss(model, OBJECTIVES["amim_x"], x, noise).loss, without)
    assert not torch.isclose(expected, without)


def test_views_that_are_alike_and_unlike() -> None:
    first = torch.eye(4)
    assert objectives.view_contrast(first, first, 0.1) < 1e-3
    torch.testing.assert_close(objectives.view_contrast(torch.ones(4, 2), torch.ones(4, 2), 0.1).item(), math.log(7))


def test_shifted_views() -> None:
    x = torch.zeros(200, 2, 9, 7)
    x[:, 0, 4, 3], x[:, 1, 4, 3] = 1.0, 2.0
    moved = objectives.shifted_views(x, runtime.stream(0, "views", 0, 0))
    assert moved.shape == x.shape and (moved.flatten(2).sum(2) == torch.tensor([1.0, 2.0])).all()
    places = {tuple(place) for place in (moved[:, 0] > 0).nonzero()[:, 1:].tolist()}
    assert {row for row, _ in places} == set(range(1, 8)) and {column for _, column in places} == set(range(7))


def test_latents_of_all_processes_are_compared(monkeypatch) -> None:
    """The second of two processes tells its latents from those of both."""
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    whole = objectives.self_contrast(z, 0.3)
    everyone = torch.nn.functional.normalize(z, dim=1)
    monkeypatch.setattr(runtime, "gather", lambda own: everyone)
    monkeypatch.setattr(runtime, "rank", lambda: 1)
    torch.testing.assert_close(objectives.self_contrast(z[3:], 0.3), whole[3:])
    alone = objectives.self_contrast(z[3:], 0.3, alone=True)
    assert not torch.allclose(alone, whole[3:])
