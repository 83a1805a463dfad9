"""How a generator is used: options by mapping, by flag, remembered in files, refused where they make no sense."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.registry import load_generator, load_latent_space, save_generator
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import train_navigator
from tests.conftest import GOLDEN, make_small_generator

PICKLE = GOLDEN / "fixtures" / "stylegan2_tiny_torch.pkl"


@pytest.fixture(scope="module")
def plain() -> StyleGAN2:
    return load_generator("stylegan2", PICKLE)


@pytest.mark.parametrize(
    "use",
    [
        {"psi": 0.5, "cutoff": 3, "size": 12, "crop": 24, "noise_mode": "none"},
        {"psi": "0.5", "cutoff": "3", "size": "12", "crop": "24", "noise_mode": "none"},
        ["psi=0.5", "cutoff=3", "size=12", "crop=24", "noise_mode=none"],
    ],
    ids=["values", "text", "flag"],
)
def test_options_reach_the_network_whichever_way_they_are_given(plain, use):
    generator = load_generator("stylegan2", PICKLE, use=use)
    z = torch.randn(2, plain.noise_dim, generator=torch.Generator().manual_seed(0))
    w = plain.mapping(z)
    rows = torch.lerp(plain.mapping.w_avg, w, 0.5).repeat(1, 3), w.repeat(1, plain.layout.n_chunks - 3)
    torch.testing.assert_close(generator.latents(z), torch.cat(rows, dim=1))
    assert generator.resolution == 12
    image = plain.synthesize(generator.latents(z), noise_mode="none")[..., 4:28, 4:28]
    image = (image * 127.5 + 128) / 255
    expected = torch.nn.functional.interpolate(image, size=(12, 12), mode="bilinear", antialias=True).clamp(0, 1)
    torch.testing.assert_close(generator.decode(generator.latents(z)), expected, rtol=0, atol=1e-5)


def test_what_is_not_named_stays(plain):
    settings = load_generator("stylegan2", PICKLE, use={"psi": 0.5}).use({"size": 16}).use(()).settings
    assert settings == dataclasses.replace(plain.settings, psi=0.5, size=16)
    assert load_generator("stylegan2", PICKLE).settings == plain.settings


def test_none_is_the_default_of_the_network():
    generator = load_generator("stylegan2", PICKLE, use=["size=16"])
    assert generator.use(["size=none"]).resolution == generator.settings.img_resolution == 32


def test_a_saved_generator_remembers_its_use(tmp_path):
    generator = load_generator("stylegan2", PICKLE, use={"psi": 0.5, "noise_mode": "random", "size": 16})
    save_generator(tmp_path / "g.safetensors", generator, "stylegan2")
    assert load_generator("stylegan2", tmp_path / "g.safetensors").settings == generator.settings
    again = load_generator("stylegan2", tmp_path / "g.safetensors", use=["psi=1"])
    assert again.settings == dataclasses.replace(generator.settings, psi=1.0)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (["pis=0.5"], "unknown key pis in --g_use of stylegan2; nearest known key: psi"),
        (["z_dim=64"], "unknown key z_dim in --g_use of stylegan2"),  # of the network, not of its use
        (["psi=strong"], "--g_use psi=strong: must be a finite number"),
        (["psi=nan"], "--g_use psi=nan: must be a finite number"),
        (["label=first"], "--g_use label=first: must be a whole number"),
        (["label=first"], "must be a whole number or random"),
        (["label=random"], "label random: must be below the number of classes, 0"),
        (["crop=64"], "crop 64: must be at most 32, the side of the image"),
        (["size=0"], "size 0: must be None or a whole number of at least 1"),
        (["label=1"], "label 1: must be below the number of classes, 0"),
        (["noise_mode=loud"], "noise_mode loud: must be one of const, random, none"),
        (["psi"], "override 'psi': must have the form key=value"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_make_no_sense_are_refused(use, says):
    with pytest.raises(UsageError) as refused:
        load_generator("stylegan2", PICKLE, use=use)
    assert says in str(refused.value)


def test_families_without_options_refuse_all(tmp_path):
    save_generator(tmp_path / "small.safetensors", make_small_generator(), "bigbigan")
    with pytest.raises(UsageError, match="unknown key psi in --g_use of small$"):
        load_generator("bigbigan", tmp_path / "small.safetensors", use={"psi": 0.5})
    for load in (load_latent_space, load_generator):
        with pytest.raises(UsageError, match="unknown key crop in --g_use"):
            load("bigbigan" if load is load_latent_space else "linear-gaussian", use=["crop=8"])


def test_truncation_counts_in_the_latent_space():
    """Delta of a psi of 0.5 is half of that at 1."""
    whole, half = (load_latent_space("stylegan2", PICKLE, use={"psi": psi}) for psi in (1.0, 0.5))
    a, b = torch.randn(2, 5, whole.noise_dim, generator=torch.Generator().manual_seed(0))
    chunks = whole.chunks("1_4")
    torch.testing.assert_close(half.distance(a, b, chunks), whole.distance(a, b, chunks) / 2)


def test_the_navigator_passes_the_options_on(tmp_path):
    settings = NavigatorConfig(
        generator="stylegan2", g_path=str(PICKLE), g_use=["size=16", "psi=0.7"], chunks="0_2", num_samples=8,
        batch_size=4, critic_width=4, save_freq=8, save_folder=str(tmp_path), device="cpu",
    )  # fmt: skip
    result = train_navigator(settings, progress=False)
    assert "g_use:\n- size=16\n- psi=0.7\n" in (result.path / "config.yaml").read_text()
    with pytest.raises(UsageError, match="was made with g_use"):
        train_navigator(dataclasses.replace(settings, g_use=["size=16"]), progress=False)


def test_a_file_whose_configuration_makes_no_sense_is_named(tmp_path):
    generator = load_generator("stylegan2", PICKLE)
    save_generator(tmp_path / "g.safetensors", generator, "stylegan2")
    content = weights.read(tmp_path / "g.safetensors")
    tensors = content.tensors
    for wrong in ({"img_resolution": 48}, {"sides": 32}):
        weights.write(tmp_path / "g.safetensors", "generator", tensors, {**content.config, "settings": wrong}, {})
        with pytest.raises(CorruptCheckpointError, match=r"g.safetensors: StyleGAN2 configuration: .*(48|sides)"):
            load_generator("stylegan2", tmp_path / "g.safetensors")
    weights.write(tmp_path / "g.safetensors", "generator", {**tensors, "more": torch.zeros(1)}, content.config, {})
    with pytest.raises(CorruptCheckpointError, match=r"g.safetensors: StyleGAN2 state dict: unknown keys more"):
        load_generator("stylegan2", tmp_path / "g.safetensors")
