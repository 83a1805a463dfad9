"""Bits per dimension, reconstruction error and KL of each group; batch statistics of a temperature."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.encoders.base import Architecture
from mi_ml_gen.encoders.loading import save_encoder
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.features.distances import frechet_distance
from mi_ml_gen.generators.nvae.evaluation import estimate_statistics, evaluate_nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.likelihood import LogisticMixture
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.probe.classifier import LinearClassifier, save_classifier
from mi_ml_gen.views.augment import Augment

CONFIG = NVAEConfig(
    (1, 8, 8), num_scales=2, num_groups_per_scale=1, num_cells_per_group=1, num_latent_per_group=2,
    initial_channels=4, num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip


def small() -> NVAE:
    torch.manual_seed(0)
    return NVAE(CONFIG, "small").freeze()


def images(n: int = 6) -> torch.Tensor:
    return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_numbers_are_those_of_their_definitions():
    generator, batch = small(), images().float() / 255
    quality = evaluate_nvae(generator, images(), n_samples=2, seed=3)
    rng = runtime.stream(3, "nvae evaluation", 0, 0)
    weights = []
    for _ in range(2):
        noise = [torch.randn(6, *shape, generator=rng) for shape in CONFIG.latent_shapes]
        # log p(x | z) + log p(z) - log q(z | x), with torch's own normals
        network, x = generator.autoencoder, generator.autoencoder.start(6)
        features, log_weight = network.features(batch), torch.zeros(6)
        for i in range(2):
            prior = network.prior(i, x)
            q = network.posterior(i, features[i], prior)
            p = prior.normal(q.mean)
            z = q.mean + q.sigma * noise[i]
            q, p = torch.distributions.Normal(*q), torch.distributions.Normal(*p)
            log_weight += (p.log_prob(z) - q.log_prob(z)).sum((1, 2, 3))
            x = network.absorb(i, prior.features, z)
        weights.append(log_weight + LogisticMixture.of(network.head(x), 2, 1).log_prob(batch * 2 - 1))
    bits = -torch.stack(weights).exp().mean(0).log() / (64 * math.log(2))
    if bits.isinf().any():  # the plain mean of such small numbers is zero in float32
        bits = -torch.stack(weights).double().exp().mean(0).log() / (64 * math.log(2))
    assert quality.bits_per_dimension == pytest.approx(bits.mean().item(), rel=1e-4)
    assert quality.bits_per_dimension_error == pytest.approx(bits.std().item() / math.sqrt(6), rel=1e-3)

    out = generator.autoencoder(batch, None)
    mean = LogisticMixture.of(out.logits, 2, 1).mean() * 0.5 + 0.5
    assert quality.l2 == pytest.approx((mean - batch).square().mean().item(), rel=1e-5)
    assert len(quality.kl_nats) == 2 and min(quality.kl_nats) > 0 and quality.n_samples == 2
    assert json.loads(json.dumps(quality.as_dict()))["n_images"] == 6


def test_more_importance_samples_tighten_the_bound():
    generator = small()
    quality = evaluate_nvae(generator, images(), n_samples=50)
    assert quality.bits_per_dimension < quality.bits_per_dimension_elbo


def test_images_of_another_size_are_refused():
    with pytest.raises(UsageError, match=r"images \[3, 8, 8\]: small describes \[1, 8, 8\]"):
        evaluate_nvae(small(), images().expand(-1, 3, -1, -1))


@torch.no_grad()
def test_statistics_follow_the_samples_of_a_temperature(tmp_path):
    generator = small()
    base = generator.read_statistics()
    z = torch.randn(2, generator.noise_dim)
    before = generator.use({"temperature": 0.5}).decode(z)
    first = generator.autoencoder.decoder_norms()[0]
    mean, n_batches = first.running_mean.clone(), 3
    for i in range(n_batches):  # the first norm sees group 0:0 alone, so its statistics can be followed by hand
        noise = torch.randn(10, generator.noise_dim, generator=runtime.stream(0, "nvae batch statistics", i, 0))
        zero = 0.5 * noise[:, : generator.layout.sizes[0]].unflatten(1, CONFIG.latent_shapes[0])
        x = generator.autoencoder.decoder_combiners["combiner_0:0"](
            torch.cat([generator.autoencoder.start(10), zero], 1)
        )
        mean = 0.95 * mean + 0.05 * x.mean((0, 2, 3))
    estimate_statistics(generator, 0.5, n_batches, batch_size=10)
    torch.testing.assert_close(first.running_mean, mean)
    after = generator.decode(z)
    assert not torch.allclose(before, after, atol=1e-4) and not generator.autoencoder.training
    assert torch.equal(generator.statistics[0], base)

    save_generator(tmp_path / "g.safetensors", generator, "nvae")
    again = load_generator("nvae", tmp_path / "g.safetensors", use=["temperature=0.5"])
    torch.testing.assert_close(again.decode(z), after, rtol=0, atol=1e-6)


def test_the_scripts_measure_and_update(tmp_path, capsys):
    from scripts.evaluate_nvae import main as evaluate
    from scripts.update_bn_stats import main as update

    save_generator(tmp_path / "g.safetensors", small(), "nvae")
    common = ["--g_path", str(tmp_path / "g.safetensors"), "--device", "cpu"]
    output = tmp_path / "numbers.json"
    evaluate([*common, "--data", "digits", "--n-images", "4", "--output", str(output), "--card", str(tmp_path)])
    card = (tmp_path / "small.md").read_text()
    assert "| 1 | 1:0 | 2 x 4 x 4 |" in card and "4 images" in card and (tmp_path / "small.png").exists()
    assert "4 images of digits" in (shown := capsys.readouterr().out) and "KL of group 1:0" in shown
    assert json.loads(output.read_text())["n_images"] == 4
    target = tmp_path / "cool.safetensors"
    update([*common, "--temperature", "0.6", "--batches", "2", "--batch-size", "4", "--output", str(target)])
    assert load_generator("nvae", target).temperatures == (0.6,)
    for wrong in (["--temperature", "0"], ["--temperature", "0.6", "--batches", "0"]):
        with pytest.raises(UsageError):
            update([*common, *wrong, "--output", str(tmp_path / "x.safetensors")])
    with pytest.raises(UsageError, match="is not an NVAE"):
        evaluate(["--generator", "tiny-bigbigan", "--device", "cpu"])


def test_frechet_in_the_features_of_a_users_network(tmp_path, capsys):
    """An encoder's file and a classifier's on the same backbone give the same distance, that of their features."""
    from scripts.evaluate_nvae import main as evaluate

    torch.manual_seed(0)
    encoder = SimCLR(Architecture(depth=18, width=1, small_images=True, dim=2)).eval()
    backbone = encoder.backbone
    layer = torch.nn.Linear(backbone.feature_dim, 2)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    save_classifier(tmp_path / "classifier.safetensors", LinearClassifier(backbone, layer, ("a", "b"), 8))
    save_generator(tmp_path / "g.safetensors", small(), "nvae")
    common = ["--g_path", str(tmp_path / "g.safetensors"), "--device", "cpu", "--data_path", "digits"]
    common += ["--n_images", "4"]
    found = []
    for name in ("encoder", "classifier"):
        file, output = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json"
        evaluate([*common, "--features", str(file), "--output", str(output)])
        shown = capsys.readouterr().out
        assert f"{backbone.feature_dim} features of the " in shown and f"{name} {file}" in shown
        found.append(json.loads(output.read_text())["frechet_of_features"])
    assert found[0]["frechet"] == pytest.approx(found[1]["frechet"], rel=1e-4)
    assert found[0]["frechet"] > found[0]["floor_frechet"] > 0
    train, test = (load_source("digits", split, 8).images.expand(-1, 3, -1, -1) for split in ("train", "test"))
    n = found[0]["n_images"]
    assert n == min(len(train), len(test))
    order = torch.randperm(len(train), generator=runtime.stream(0, "quality floor", 0, 0))[:n]
    augment = Augment("none", 8)
    with torch.no_grad():
        real, floor = (backbone(augment(images.float() / 255)).double() for images in (test[:n], train[order]))
    assert found[0]["floor_frechet"] == pytest.approx(frechet_distance(real, floor), rel=1e-3)
    with pytest.raises(UsageError, match="--features absent.safetensors: no such file"):
        evaluate([*common, "--features", "absent.safetensors"])
