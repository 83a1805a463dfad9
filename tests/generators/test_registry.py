"""load_generator: every name, our files and published ones, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import FAMILIES, bundled, load_generator, load_latent_space, names, save_generator
from mi_ml_gen.latents import TruncatedNormal
from tests.conftest import make_small_generator


@pytest.fixture(scope="module")
def every_generator(tmp_path_factory) -> list[MultiLatentGenerator]:
    """All that can be made without a published file: the bundled ones, the linear one, a small one from a file."""
    path = tmp_path_factory.mktemp("generators") / "small.safetensors"
    save_generator(path, make_small_generator(), "bigbigan")
    found = [load_generator(name) for name in bundled()]
    return [*found, load_generator("linear-gaussian"), load_generator("bigbigan", path)]


def test_what_is_bundled():
    assert bundled() == ["tiny-bigbigan", "tiny-stylegan"] and set(bundled()) <= set(names())


def test_every_generator_keeps_the_interfaces_promises(every_generator):
    for generator in every_generator:
        layout = generator.layout
        z = TruncatedNormal().sample((3, generator.noise_dim), torch.Generator().manual_seed(0))
        latents = generator.latents(z)
        assert latents.shape == (3, layout.dim)
        assert layout.slice(layout.all) == slice(0, layout.dim)
        rng = torch.Generator().manual_seed(1)
        images = generator.decode(latents, rng)
        assert images.shape == (3, 3, generator.resolution, generator.resolution)
        assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01
        assert not generator.training and not any(p.requires_grad for p in generator.parameters())
        z.requires_grad_()
        total = generator.decode(generator.latents(z), rng).sum()
        assert torch.autograd.grad(total, z)[0].abs().sum() > 0


def test_decode_pair_is_decoding_both(every_generator):
    for generator in every_generator:
        chunks = generator.chunks("1_2")
        first = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(0))
        second = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(1))
        anchor, moved = generator.latents(first), generator.latents(second)
        at = generator.layout.slice(chunks)
        positive = torch.cat([anchor[:, : at.start], moved[:, at], anchor[:, at.stop :]], dim=1)
        pair = generator.decode_pair(anchor, positive, chunks, torch.Generator().manual_seed(2))
        rng = torch.Generator().manual_seed(2)
        expected = generator.decode(anchor, rng), generator.decode(positive, rng)
        torch.testing.assert_close(pair.anchor, expected[0])
        torch.testing.assert_close(pair.positive, expected[1])
        expected_distance = (positive - anchor).norm(dim=1)
        torch.testing.assert_close(generator.distance(first, second, chunks), expected_distance)


def test_saved_generators_come_back_bit_for_bit(every_generator, tmp_path):
    families = {"linear-gaussian": "linear-gaussian", "small": "bigbigan", "tiny-bigbigan": "bigbigan"}
    families["tiny-stylegan"] = "stylegan2"
    for generator in every_generator:
        family = families.get(generator.name)
        if family is None:
            continue
        save_generator(tmp_path / "g.safetensors", generator, family)
        again = load_generator(family, tmp_path / "g.safetensors")
        assert again.name == generator.name and again.config() == generator.config()
        z = torch.randn(2, generator.noise_dim)
        images = [g.decode(g.latents(z), torch.Generator().manual_seed(0)) for g in (generator, again)]
        assert torch.equal(*images)


def test_latents_of_bigbigan_need_no_weights():
    generator = load_latent_space("bigbigan")
    assert generator.layout.sizes == (20,) * 6
    z = torch.randn(2, 120)
    assert torch.equal(generator.latents(z), z)


def test_wrong_names_and_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--generator nope: must be one of bigbigan, linear-gaussian"):
        load_generator("nope")
    with pytest.raises(UsageError, match=r"bigbigan: its weights are not bundled; give --g_path, .*BigBiGAN_x1.pth"):
        load_generator("bigbigan")
    save_generator(tmp_path / "linear.safetensors", load_generator("linear-gaussian"), "linear-gaussian")
    with pytest.raises(UsageError, match="holds a linear-gaussian, not a bigbigan; give --generator linear-gaussian"):
        load_generator("bigbigan", tmp_path / "linear.safetensors")
    from mi_ml_gen.core.files import save_tensors

    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CorruptCheckpointError, match="other.safetensors: its head describes no generator"):
        load_generator("bigbigan", tmp_path / "other.safetensors")


def test_every_family_says_how_it_is_had():
    for family in FAMILIES.values():
        assert family.make is not None or family.published_as
