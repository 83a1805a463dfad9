"""The linear Gaussian generator against its own law, drawn and computed by other roads."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian, build
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.latents import Chunks


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_interface():
    generator = load_generator("linear-gaussian")
    assert generator.layout.sizes == (2, 2, 2, 2) and generator.noise_dim == 8
    images = generator.decode(torch.randn(5, 8, generator=_rng()), _rng())
    assert images.shape == (5, 3, 8, 8) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


def test_is_a_sum_over_chunks():
    generator = LinearGaussian((1, 3), observed_dim=7, gains=(1.0, 2.0), seed=3)
    z = torch.randn(4, 4, generator=_rng())
    a_0, a_1 = generator.mixing[:, :1], generator.mixing[:, 1:]
    torch.testing.assert_close(generator.synthesize(z), z[:, :1] @ a_0.T + z[:, 1:] @ a_1.T)
    torch.testing.assert_close(a_0.T @ a_0, torch.eye(1))
    torch.testing.assert_close(a_1.T @ a_1, 4 * torch.eye(3))


@pytest.mark.parametrize(("observed_dim", "resolution"), [(1, 1), (3, 4), (8, 8), (12, 7), (30, 9)])
def test_images_can_be_read_back(observed_dim, resolution):
    generator = LinearGaussian((4, 4), observed_dim=observed_dim, resolution=resolution)
    x = generator.synthesize(torch.randn(6, 8, generator=_rng()))
    torch.testing.assert_close(generator.observe(generator.render(x)), x, rtol=0, atol=1e-5)


def test_each_decode_draws_fresh_noise_of_the_given_size():
    generator = LinearGaussian((2, 2), noise=0.3)
    latents = torch.zeros(20_000, 4)
    rng = _rng()
    first, second = (generator.observe(generator.decode(latents, rng)) for _ in range(2))
    assert first.std().item() == pytest.approx(0.3, rel=0.02)
    assert (first * second).mean().abs().item() < 0.3**2 * 0.05
    assert torch.equal(generator.decode(latents, _rng(5)), generator.decode(latents, _rng(5)))


def test_clipping_is_as_rare_as_stated():
    generator = LinearGaussian((2, 2))
    assert generator.clip_probability() == pytest.approx(math.erfc(5 / math.sqrt(2)), rel=1e-3)
    wide = generator.clip_probability(latent_std=4.0)
    images = generator.decode(4.0 * torch.randn(50_000, 4, generator=_rng()), _rng(1))
    clipped = generator.observe(images).abs() >= generator.half_range * 0.999999
    assert clipped.float().mean().item() == pytest.approx(wide, rel=0.05)


@pytest.mark.parametrize(
    "perturbation",
    [GaussianPerturbation(0.7, 0.4), GaussianPerturbation.stationary(0.6), GaussianPerturbation()],
)
def test_drawn_pairs_follow_the_law(perturbation):
    generator = LinearGaussian((2, 1, 2), observed_dim=6, noise=0.4, gains=(1, 2, 0.5), seed=2)
    chunks = Chunks(1, 3)
    pair = generator.draw_pair(200_000, perturbation, chunks, _rng())
    drawn = torch.cat([generator.observe(images) for images in pair], 1).double()
    law = generator.joint(perturbation, chunks).both
    torch.testing.assert_close(drawn.T.cov(), law.cov, rtol=0.02, atol=0.03)
    torch.testing.assert_close(drawn.mean(0), law.mean, rtol=0, atol=0.02)


def test_information_of_orthonormal_mixing_by_hand():
    # x = z_k + noise in a turned frame, so every number of z is a channel of its own.
    generator, std = LinearGaussian((1, 2), noise=0.5), 0.8
    signal, noise = 1.0, 0.25
    perturbed = signal**2 / ((signal + noise) * (signal + std**2 + noise))
    shared = signal**2 / (signal + noise) ** 2
    expected = -0.5 * (2 * math.log(1 - perturbed) + math.log(1 - shared))
    value = generator.mutual_information(GaussianPerturbation(std=std), Chunks(1, 2))
    assert value == pytest.approx(expected, rel=1e-6)


def test_information_does_not_depend_on_the_mean_and_falls_with_the_spread():
    generator = LinearGaussian()
    by_std = [generator.mutual_information(GaussianPerturbation(std)) for std in (0.1, 0.5, 2.0)]
    assert by_std[0] > by_std[1] > by_std[2] > 0
    moved = generator.mutual_information(GaussianPerturbation(0.5, mean=3.0))
    assert moved == pytest.approx(by_std[1], rel=1e-12)


def test_mean_log_ratio_of_images_is_the_information():
    generator = LinearGaussian()
    perturbation = generator.stationary_perturbation(1.5)
    ratios = generator.log_ratio(generator.draw_pair(20_000, perturbation, rng=_rng()), perturbation)
    assert abs(ratios.mean().item() - 1.5) < 4 * ratios.std().item() / math.sqrt(20_000)


@pytest.mark.parametrize("nats", [0.5, 1.0, 4.0])
def test_asked_for_information_is_given(nats):
    generator = LinearGaussian((2, 2), noise=0.05)
    stationary, additive = generator.stationary_perturbation(nats), generator.additive_perturbation(nats)
    assert stationary.scale**2 + stationary.std**2 == pytest.approx(1) and additive.scale == 1
    for perturbation in (stationary, additive):
        assert generator.mutual_information(perturbation) == pytest.approx(nats, rel=1e-7)
    noisy = LinearGaussian.with_information(nats, sizes=(2, 2))
    assert noisy.mutual_information(GaussianPerturbation()) == pytest.approx(nats, rel=1e-6)


def test_stationary_perturbation_keeps_the_law_of_the_positives():
    joint = LinearGaussian().joint(GaussianPerturbation.stationary(0.3))
    torch.testing.assert_close(joint.cov_x, joint.cov_y)


def test_information_out_of_reach_is_refused():
    generator = LinearGaussian((2, 2), noise=0.5)
    with pytest.raises(UsageError, match="out of reach"):
        generator.stationary_perturbation(100.0)  # the observation noise leaves less
    with pytest.raises(UsageError, match="out of reach"):
        generator.stationary_perturbation(0.01, Chunks(0, 1))  # the other chunk is shared
    with pytest.raises(UsageError, match="positive definite"):
        LinearGaussian((2, 2), noise=0.0).mutual_information(GaussianPerturbation())


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": -1.0},
        {"noise": math.nan},
        {"observed_dim": 0},
        {"gains": [1.0]},
        {"resolution": 1},
        {"sizes": (0,)},
    ],
)
def test_refuses_wrong_settings(settings):
    with pytest.raises(UsageError):
        LinearGaussian(**settings)


def test_gradients_reach_the_latents():
    generator = load_generator("linear-gaussian")
    latents = torch.randn(3, 8, generator=_rng()).requires_grad_()
    generator.decode(latents, _rng()).sum().backward()
    assert latents.grad.abs().min() > 0


def test_saved_and_loaded_it_is_the_same(tmp_path):
    generator = LinearGaussian((1, 2), observed_dim=4, noise=0.2, resolution=4, gains=(1.0, 3.0), seed=7)
    save_generator(tmp_path / "g.safetensors", generator, "linear-gaussian")
    loaded = load_generator("linear-gaussian", tmp_path / "g.safetensors")
    z = torch.randn(3, 3, generator=_rng())
    assert torch.equal(loaded.decode(z, _rng()), generator.decode(z, _rng()))
    assert loaded.config() == generator.config()


@pytest.mark.parametrize("config", [{"sizes": [1, 2], "colour": 1}, {"sizes": [4]}, {"sizes": [1, 2], "noise": -1}])
def test_a_file_that_does_not_fit_is_refused(config):
    state = LinearGaussian((1, 2)).state_dict()
    with pytest.raises(CorruptCheckpointError, match="linear-gaussian"):
        build(config, state, "linear-gaussian")
