"""The figures of an NVAE on held-out images, printed, and its card: what `scripts/evaluate_nvae.py` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core import files, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.encoders.features import load_features
from mi_ml_gen.experiments.settings import NVAEEvaluationConfig
from mi_ml_gen.features.base import FeatureNetwork
from mi_ml_gen.features.distances import fewest_images
from mi_ml_gen.generators.gan.quality import measure_quality, train_classifier
from mi_ml_gen.generators.nvae.card import nvae_card
from mi_ml_gen.generators.nvae.evaluation import NVAEQuality, evaluate_nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.nvae.training import stored_images
from mi_ml_gen.generators.quality import measure_in_features
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png

SHOWN_TEMPERATURES = (1.0, 0.7)
"""Of the samples in a card's picture."""
N_FRECHET = 10_000
"""The most images on each side of a Frechet distance."""
N_COLUMNS = 16
"""Images in a row of a card's picture."""


def load_nvae(name: str, g_path: str | None, device: torch.device, use: Any = ()) -> NVAE:
    """As `load_generator`. Raises UsageError for a generator that is no NVAE."""
    generator = load_generator(name, g_path, device, use)
    if not isinstance(generator, NVAE):
        raise UsageError(f"--generator {name}: is not an NVAE")
    return generator


def report(settings: NVAEEvaluationConfig, facts: Mapping[str, str]) -> None:
    """Measure the generator that the settings name; print what was found, and write what they ask for.

    facts: further rows of the card's first table.
    """
    device = runtime.resolve_device(settings.device)
    generator = load_nvae(settings.generator, settings.g_path, device, settings.g_use)
    network = None if settings.features is None else load_features(settings.features, device)
    images = stored_images(settings.data_path, generator.settings, "test")[: settings.n_images]
    quality = evaluate_nvae(
        generator, images, settings.importance_samples, settings.seed, progress=True, batch_size=settings.batch_size
    )
    numbers = quality.as_dict()
    print(f"{quality.n_images:,} images of {settings.data_path}, {quality.n_samples} importance samples each")
    print(f"  bits per dimension {quality.bits_per_dimension:.4f} +- {quality.bits_per_dimension_error:.4f}")
    print(f"  (ELBO)             {quality.bits_per_dimension_elbo:.4f}")
    print(f"  L2 reconstruction  {quality.l2:.5f} +- {quality.l2_error:.5f}")
    for group, nats in zip(generator.settings.groups, quality.kl_nats, strict=True):
        print(f"  KL of group {group}    {nats:8.2f} nats")
    if settings.frechet:
        numbers["samples"] = _samples(generator, settings.data_path, settings.seed, device)
    if network is not None:
        numbers["frechet_of_features"] = _distances(generator, network, settings)
    if settings.card is not None:
        _write_card(settings.card, generator, quality, numbers.get("samples"), settings, facts)
    if settings.output is not None:
        files.atomic_write(settings.output, (json.dumps(numbers, indent=2) + "\n").encode())


def _write_card(
    folder: Path,
    generator: NVAE,
    quality: NVAEQuality,
    samples: dict | None,
    settings: NVAEEvaluationConfig,
    facts: Mapping[str, str],
) -> None:
    """NAME.md and NAME.png: samples at two temperatures, then test images above their reconstructions."""
    device = next(generator.parameters()).device
    real = stored_images(settings.data_path, generator.settings, "test")[: 2 * N_COLUMNS].expand(-1, 3, -1, -1)
    n = min(N_COLUMNS, len(real))
    z = TruncatedNormal().sample((2 * n, generator.noise_dim), runtime.stream(settings.seed, "nvae card", 0, 0))
    before = generator.temperature
    images, labels = [], []
    with torch.no_grad():
        for temperature in SHOWN_TEMPERATURES:
            images.append(generator.use({"temperature": temperature}).decode(generator.latents(z.to(device))))
            labels += [f"t = {temperature:g}"] * 2
        generator.use({"temperature": before})
        for row in range(len(real) // n):
            part = real[row * n : (row + 1) * n].to(device) / 255
            images += [part, generator.reconstruct(part)]
            labels += ["test images", "reconstructed"]
    save_png(folder / f"{generator.name}.png", image_grid(torch.cat(images), n_columns=n, row_labels=labels))
    card = nvae_card(generator, quality, facts, f"the test images of {settings.data_path}", SHOWN_TEMPERATURES, samples)
    files.atomic_write(folder / f"{generator.name}.md", card.encode())
    print(f"card: {folder / generator.name}.md")


# --- Frechet distances


def _samples(generator: NVAE, data: str, seed: int, device: torch.device) -> dict:
    """Quality of samples in the features of a classifier trained on the training images."""
    grey = NVAEConfig((1, generator.resolution, generator.resolution), 1)
    train, test = (load_source(data, split, generator.resolution) for split in ("train", "test"))
    if train.labels is None or test.labels is None:
        raise UsageError(f"--frechet: {data} has no labels to train a classifier on; give --features")
    real, held_out = (stored_images(data, grey, split).float() / 255 for split in ("train", "test"))
    classifier = train_classifier(real, train.labels, seed, device)
    n = min(N_FRECHET, len(held_out))
    quality = measure_quality(generator, classifier, real, held_out, test.labels, seed, n, min(n, 5_000))
    print(f"samples at temperature {generator.temperature:g}, in 128 features of a small classifier, trained here on")
    print(f"the training images of {data} ({quality.classifier_accuracy:.1%} accurate); {n:,} images on each side")
    print(
        f"  Frechet distance   {quality.frechet:.3f} (real training images: {quality.floor_frechet:.3f}; no interval)"
    )
    print(f"  precision, recall  {quality.precision:.3f}, {quality.recall:.3f}")
    return quality.as_dict() | {"temperature": generator.temperature}


def _distances(generator: NVAE, network: FeatureNetwork, settings: NVAEEvaluationConfig) -> dict[str, Any]:
    """Distances of samples from test images in the features of a network, printed."""
    train, test = (
        HeldImages(settings.data_path, stored_images(settings.data_path, generator.settings, split))
        for split in ("train", "test")
    )
    found = measure_in_features(generator, network, train, test, N_FRECHET, settings.seed)
    if found.frechet is None or found.floor_frechet is None:
        raise UsageError(
            f"--features: {found.n} images say too little about {found.n_features} features; a Frechet distance needs "
            f"{fewest_images(found.n_features)}"
        )
    print(f"samples at temperature {generator.temperature:g}, in {found.n_features} features of {found.features}")
    print(f"  Frechet distance   {found.frechet.plain:.3f} (real training images: {found.floor_frechet.plain:.3f})")
    print(f"  without its bias   {found.frechet.corrected} (real: {found.floor_frechet.corrected})")
    print(f"  kernel distance    {found.kernel} (real: {found.floor_kernel})")
    print(f"  {found.n:,} images on each side; the Frechet distance is larger for fewer images")
    return found.as_dict() | {"temperature": generator.temperature}
