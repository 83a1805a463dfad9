"""The image models: published numbers, shapes and keys, masks, priors, files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.mim.images import networks
from mi_ml_gen.mim.images.networks import FAMILIES, ImageModel, Latents, ModelSpec, build_model, load_model
from tests.golden.fill_nvae import fill

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = np.load(FOLDER / "mim_images.npz", allow_pickle=False)
LAYOUT = json.loads((FOLDER / "mim_image_models.json").read_text())["models"]
TWO_LEVELS = [name for name in FAMILIES if name != "vae"]


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[f"img/{name}"])


def golden_spec(family: str, prior: str, kind: str) -> ModelSpec:
    return ModelSpec(
        family, (1, 28, 28), "binary" if kind == "binary" else "gray", z1_size=5, z2_size=6, prior=prior,
        number_components=7, as_published=True,
    )  # fmt: skip


def filled_model(spec: ModelSpec) -> ImageModel:
    """The model of the published numbers."""
    model = build_model(spec)
    state = model.state_dict()
    for name, value in state.items():
        if not name.endswith(".mask"):
            value.copy_(torch.from_numpy(fill(name, value.shape)))
    return model.eval()


def golden_images(kind: str) -> Tensor:
    return golden("x" if kind == "binary" else "x_gray").float().reshape(-1, 1, 28, 28)


def golden_noise(prefix: str = "eps") -> Latents:
    return Latents(golden(f"{prefix}_z1"), golden(f"{prefix}_z2"))


def small_spec(family: str, **changes: object) -> ModelSpec:
    base = dict(kind="binary", z1_size=3, z2_size=2, prior="vampprior", number_components=4)
    return ModelSpec(family, **(dict(shape=(1, 8, 8)) | base | changes))


def small_model(family: str, **changes: object) -> ImageModel:
    model = build_model(small_spec(family, **changes), runtime.stream(0, "test weights", 0, 0))
    networks.start_pseudo_inputs(model, runtime.stream(0, "test pseudo", 0, 0), 0.5, 0.2)
    return model


def small_images(n: int = 5, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Tensor:
    return (torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


@pytest.mark.parametrize(("prior", "kind"), [("standard", "binary"), ("vampprior", "binary"), ("vampprior", "gray")])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_published_numbers(family: str, prior: str, kind: str) -> None:
    model = filled_model(golden_spec(family, prior, kind))
    x = golden_images(kind)
    noise = golden_noise() if family != "vae" else Latents(golden("eps_z1"))
    name = f"{family}/{prior}/{kind}"
    drawn = model.q_z(model.features(x), noise)
    found = {
        "z1": drawn.z.z1, "z1_mean": drawn.mean.z1, "z1_logvar": drawn.log_var.z1,
        "log_p_z_top": model.log_p_top(drawn.z.top, model.components()),
        "x_mean": model.p_x(drawn.z, x).mean[:2].flatten(1),
        "beta1.0/RE": model.log_p_x(x, drawn.z),
    }  # fmt: skip
    if family != "vae":
        found |= {"z2": drawn.z.z2, "z2_mean": drawn.mean.z2, "z2_logvar": drawn.log_var.z2}
        mean, log_var = model._p_lower(drawn.z.z2)
        found |= {"p_z1_mean": mean, "p_z1_logvar": log_var}
    for key, value in found.items():
        torch.testing.assert_close(value, golden(f"{name}/{key}"), rtol=2e-5, atol=2e-5)
    kl = drawn.log_q - model.log_prior(drawn.z, model.components())
    torch.testing.assert_close(kl, golden(f"{name}/beta1.0/KL"), rtol=2e-5, atol=2e-4)  # of terms of ten nats
    torch.testing.assert_close(model.log_q(model.features(x), drawn.z), drawn.log_q)


@pytest.mark.parametrize("kind", ["binary", "gray"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_shapes_are_the_published_ones(family: str, kind: str) -> None:
    about = LAYOUT[family]
    expected = dict(about["vampprior_binary"])
    if kind == "gray":
        expected |= about["gray_or_continuous_adds_or_changes"]
        expected = {key: shape for key, shape in expected.items() if key not in about["gray_drops"]}
    model = build_model(golden_spec(family, "vampprior", kind))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    standard = build_model(golden_spec(family, "standard", kind)).state_dict()
    assert set(expected) - set(standard) == set(about["standard_prior_drops"])


@pytest.mark.parametrize("shape", [(1, 28, 20), (3, 12, 12)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_shapes_of_images(family: str, shape: tuple[int, int, int]) -> None:
    model = small_model(family, shape=shape, kind="continuous").eval()
    x = torch.rand(2, *shape)
    drawn = model.q_z(model.features(x), model.noise(2, runtime.stream(0, "noise", 0, 0)))
    pixels = model.p_x(drawn.z, x)
    assert pixels.mean.shape == pixels.log_var.shape == (2, *shape)
    assert model.log_p_x(x, drawn.z).isfinite().all()
    assert model.encoder_mean(x).shape == (2, model.latent_size)
    assert len(model.decoder_states(x, drawn.z)) == 2


@torch.no_grad()
def seen_by(model: ImageModel, of: Tensor, through_maps: bool) -> Tensor:
    """Which inputs (image or latent maps) change the state at the pixel (4, 3): (H, W) of bool."""
    height, width = model.spec.shape[1:]
    base = torch.zeros(1, 3, height, width)
    before = model.pixelcnn(base)[0, :, 4, 3]
    seen = torch.zeros(height, width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            changed = base.clone()
            changed[0, 1 if through_maps else 0, row, column] = 5.0
            seen[row, column] = not torch.equal(model.pixelcnn(changed)[0, :, 4, 3], before)
    return seen


def test_a_pixel_sees_earlier_pixels_and_all_of_its_latents() -> None:
    model = small_model("pixelhvae_2level").eval()
    earlier = torch.arange(64).reshape(8, 8) < 4 * 8 + 3
    of_image, of_maps = seen_by(model, torch.empty(0), False), seen_by(model, torch.empty(0), True)
    assert not of_image[~earlier].any() and of_image[earlier].sum() > 20
    assert of_maps[4, 3] and of_maps[5, 2:5].all(), "the latents at the pixel, and around it"

    published = small_model("pixelhvae_2level", as_published=True).eval()
    of_maps = seen_by(published, torch.empty(0), True)
    assert not of_maps[~earlier].any(), "the published masks hide them"
    with torch.no_grad():
        corner = published.pixelcnn(torch.randn(4, 3, 8, 8))[:, :, 0, 0]
    assert torch.equal(corner[0], corner[3]), "the first pixel sees nothing"


def test_the_autoregressive_decoder_is_a_distribution() -> None:
    """The probabilities of all 2 x 2 images add up to 1."""
    model = small_model("pixelhvae_2level", shape=(1, 2, 2)).eval()
    images = torch.tensor([[(i >> k) & 1 for k in range(4)] for i in range(16)]).float().reshape(16, 1, 2, 2)
    z = model.sample_prior(1, runtime.stream(0, "z", 0, 0)).repeat(16)
    with torch.no_grad():
        total = model.log_p_x(images, z).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), rtol=1e-5, atol=0)


def test_plain_sampling_draws_from_the_decoder() -> None:
    model = small_model("pixelhvae_2level", shape=(1, 2, 2)).eval()
    n = 4000
    z = model.sample_prior(1, runtime.stream(0, "z", 0, 0))
    drawn = model.sample_plainly(z.repeat(n), torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    codes = (drawn.flatten(1) @ torch.tensor([1.0, 2, 4, 8])).long()
    found = torch.bincount(codes, minlength=16) / n
    images = torch.tensor([[(i >> k) & 1 for k in range(4)] for i in range(16)]).float().reshape(16, 1, 2, 2)
    with torch.no_grad():
        expected = model.log_p_x(images, z.repeat(16)).exp()
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_levels_that_are_drawn_have_their_probabilities() -> None:
    pixels = networks.Pixels(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), -4.0))
    uniforms = (torch.arange(20000) + 0.5).reshape(-1, 1, 1, 1) / 20000
    levels = (pixels.draw(uniforms) * 256).floor().long().flatten()
    found = torch.bincount(levels, minlength=256) / 20000
    each = (torch.arange(256) + 0.5).reshape(-1, 1, 1, 1) / 256
    expected = networks.Pixels(pixels.mean.expand(256, 1, 1, 1), pixels.log_var.expand(256, 1, 1, 1)).log_prob(each)
    inner = slice(1, 255)  # the outer levels take what lies beyond them
    torch.testing.assert_close(found[inner], expected.exp()[inner], rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_mixture_prior_is_the_encoder_at_its_pseudo_inputs(family: str) -> None:
    model = small_model(family).eval()
    x = small_images()
    seen, components = model.features_and_components(x)
    pseudo = model.pseudo_inputs()
    assert pseudo.shape == (4, 1, 8, 8) and pseudo.min() >= 0 and pseudo.max() <= 1
    torch.testing.assert_close(components, networks.Components(*model.features(pseudo)[:2]))
    torch.testing.assert_close(seen, model.features(x))
    top = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(4)),
        torch.distributions.Independent(
            torch.distributions.Normal(components.mean, (components.log_var / 2).exp()), 1
        ),
    )  # fmt: skip
    z = torch.randn(6, components.mean.shape[1])
    constant = 0.5 * np.log(2 * np.pi) * z.shape[1]
    torch.testing.assert_close(model.log_p_top(z, components) - constant, top.log_prob(z))

    n = 3000
    drawn = model.sample_prior(n, runtime.stream(0, "z", 0, 0)).top
    error = (drawn.mean(0) - top.mean).abs() / (top.variance / n).sqrt()
    assert (error < 4.5).all()
    first = model.sample_prior(9, runtime.stream(0, "z", 0, 0), in_order=True)
    assert len(first.top) == 4, "as published: no more draws than pseudo-inputs"


def test_pseudo_inputs_from_training_data() -> None:
    model = build_model(small_spec("vae"), runtime.stream(0, "w", 0, 0))
    images = small_images(4)
    networks.start_pseudo_inputs(model, runtime.stream(0, "p", 0, 0), 0.5, 0.1, images)
    assert (model.pseudo_inputs() - images).abs().max() < 0.06
    with pytest.raises(UsageError, match="4 are wanted, 5 images"):
        networks.start_pseudo_inputs(model, runtime.stream(0, "p", 0, 0), 0.5, 0.1, small_images(5))


@pytest.mark.parametrize("kind", ["binary", "gray"])
@torch.no_grad()
def test_a_learned_density_of_the_data(kind: str) -> None:
    model = small_model("convhvae_2level", kind=kind, q_x_prior="vampprior").eval()
    x = small_images(20)
    z = Latents(model.pseudo_latents[:, :3], model.pseudo_latents[:, 3:])
    each = torch.stack([model.log_p_x(image.expand(4, 1, 8, 8), z) for image in x])
    torch.testing.assert_close(model.log_q_x_mixture(x), each.logsumexp(1) - np.log(4))
    with pytest.raises(UsageError, match="q_x_prior"):
        small_model("pixelhvae_2level", q_x_prior="vampprior")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_repeated_alike(family: str) -> None:
    model = small_model(family).eval()
    seen = model.features(small_images(3))
    noise = model.noise(6, runtime.stream(0, "noise", 0, 0))
    both = model.q_z(seen.repeat(2), noise)
    one = model.q_z(seen.rows(slice(1, 2)).repeat(2), noise.rows(slice(2, 4)))
    torch.testing.assert_close(both.z.rows(slice(2, 4)), one.z)
    torch.testing.assert_close(model.mean_latents(small_images(3)).flat, model.encoder_mean(small_images(3)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_the_model_back(family: str, tmp_path: Path) -> None:
    model = small_model(family, kind="gray", prior="standard").eval()
    networks.save_model(tmp_path / "best.safetensors", model, epoch=3)
    again = load_model(tmp_path / "best.safetensors")
    assert again.spec == model.spec and not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    (tmp_path / "best.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptCheckpointError):
        load_model(tmp_path / "best.safetensors")


def test_an_unknown_family() -> None:
    with pytest.raises(UsageError, match="convhvae_2level"):
        build_model(dataclasses.replace(small_spec("vae"), family="convhvae"))


def test_weights_are_a_function_of_the_stream() -> None:
    first, again = small_model("convhvae_2level"), small_model("convhvae_2level")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    deviation = first.p_z1_layers[1].h.weight.std()
    torch.testing.assert_close(deviation, torch.tensor((2 / 300) ** 0.5), rtol=0.02, atol=0)
