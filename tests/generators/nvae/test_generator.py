"""NVAE behind the generators' interface: chunks, temperature, encoding, shared decoding, files."""

from __future__ import annotations

import pytest
import torch

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.nvae.generator import NVAE, build
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.registry import load_generator, load_own, save_generator, save_own
from mi_ml_gen.latents import Chunks

SIZES = dict(
    num_scales=2, num_groups_per_scale=2, num_cells_per_group=1, num_latent_per_group=2, initial_channels=4,
    num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip


def small(n_colours: int = 3, seed: int = 0) -> NVAE:
    """8 px, four chunks, weights and statistics that make all of them matter; not frozen."""
    torch.manual_seed(seed)
    generator = NVAE(NVAEConfig((n_colours, 8, 8), **SIZES), "small").eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        statistics = generator.read_statistics()
        generator.write_statistics(statistics + 0.2 * torch.rand_like(statistics))
    return generator


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def generator(request) -> NVAE:
    return small(request.param).freeze()


def z_of(generator: NVAE, n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator.noise_dim, generator=torch.Generator().manual_seed(seed))


def test_chunks_are_groups_deepest_first(generator):
    assert generator.layout.sizes == (2 * 2 * 2, 2 * 2 * 2, 2 * 4 * 4, 2 * 4 * 4)
    assert generator.layout.shapes == ((2, 2, 2), (2, 2, 2), (2, 4, 4), (2, 4, 4))
    assert (generator.noise_dim, generator.resolution) == (80, 8)
    z = z_of(generator)
    assert torch.equal(generator.latents(z), z)
    images = generator.decode(z)
    assert images.shape == (3, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    for chunk in range(4):  # each one changes the image
        moved = z.clone()
        moved[:, generator.layout.slice(Chunks(chunk, chunk + 1))] += 1
        assert (generator.decode(moved) - images).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_freezing_leaves_the_images(generator):
    z = z_of(generator)
    plain = small(generator.settings.resolution[0])
    torch.testing.assert_close(generator.decode(z), plain.decode(z), rtol=0, atol=1e-5)


def test_temperature_scales_the_noise_of_every_group(generator):
    """Temperature t on noise z is temperature 1 on noise t z."""
    z = z_of(generator)
    expected = generator.decode(0.7 * z)
    cooled = small(generator.settings.resolution[0]).use(["temperature=0.7"]).freeze()
    torch.testing.assert_close(cooled.decode(z), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, generator.decode(z), atol=1e-3)


@pytest.mark.parametrize("text", ["temperature=0", "temperature=-1", "temperature=warm", "psi=0.7"])
def test_other_uses_are_refused(generator, text):
    with pytest.raises(UsageError, match="--g_use"):
        generator.use([text])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_encoding_gives_the_noise_of_the_reconstruction(temperature):
    for n_colours in (1, 3):
        generator = small(n_colours).use({"temperature": temperature}).freeze()
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        z = generator.encode(images)
        assert z.shape == (3, 80)
        reconstruction = generator.reconstruct(images)
        torch.testing.assert_close(generator.decode(generator.latents(z)), reconstruction, rtol=0, atol=1e-4)
        assert reconstruction.std(0).max() > 1e-3  # it depends on the image


def test_images_of_another_size_are_not_encoded(generator):
    with pytest.raises(UsageError, match=r"small encodes \(n, 3, 8, 8\)"):
        generator.encode(torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("chunks", [Chunks(0, 1), Chunks(1, 2), Chunks(1, 4), Chunks(3, 4)], ids=str)
def test_decoding_a_pair_is_decoding_both_bit_for_bit(generator, chunks):
    anchor, positive = z_of(generator), z_of(generator, seed=1)
    at = generator.layout.slice(chunks)
    positive = torch.cat([anchor[:, : at.start], positive[:, at], anchor[:, at.stop :]], 1).requires_grad_()
    pair = generator.decode_pair(anchor, positive, chunks)
    assert torch.equal(pair.anchor, generator.decode(anchor)) and not pair.anchor.requires_grad
    expected = generator.decode(positive)
    assert torch.equal(pair.positive, expected)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((image * weights).sum(), positive)[0] for image in (pair.positive, expected)]
    torch.testing.assert_close(gradients[0][:, at], gradients[1][:, at])


def test_decoding_a_pair_runs_what_both_share_once(generator, monkeypatch):
    ran = []
    prior = generator.autoencoder.prior
    monkeypatch.setattr(generator.autoencoder, "prior", lambda i, x: (ran.append(i), prior(i, x))[1])
    z = z_of(generator)
    generator.decode_pair(z, z, Chunks(2, 4))
    assert sorted(ran) == [0, 1, 2, 3, 3]


def test_a_saved_generator_comes_back(generator, tmp_path):
    z = z_of(generator)
    save_generator(tmp_path / "g.safetensors", generator, "nvae")
    for again in (load_generator("nvae", tmp_path / "g.safetensors"), load_own(tmp_path / "g.safetensors")):
        assert again.config() == generator.config() and again.name == "small"
        torch.testing.assert_close(again.decode(z), generator.decode(z), rtol=0, atol=1e-6)
    save_own(tmp_path / "own.safetensors", again)
    assert torch.equal(load_own(tmp_path / "own.safetensors").decode(z), again.decode(z))


def test_half_precision_is_for_the_file_alone(generator, tmp_path):
    save_generator(tmp_path / "g.safetensors", generator, "nvae")
    state = {key: value.half() if value.is_floating_point() else value for key, value in generator.state_dict().items()}
    again = build(generator.config(), state, "half").freeze()
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.decode(z_of(generator)), generator.decode(z_of(generator)), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"autoencoder": {}},
        {"resolution": [3, 16, 16]},
        {"temperature": 0},
        {"temperatures": ["warm"]},
        {"temperatures": [0.5]},
    ],
    ids=lambda change: "-".join(map(str, change)),
)
def test_a_file_whose_configuration_does_not_fit_is_refused(generator, tmp_path, change):
    config = {"family": "nvae", "name": "small", "settings": generator.config() | change}
    weights.write(tmp_path / "g.safetensors", "generator", generator.state_dict(), config, {})
    with pytest.raises(CorruptCheckpointError):
        load_generator("nvae", tmp_path / "g.safetensors")
