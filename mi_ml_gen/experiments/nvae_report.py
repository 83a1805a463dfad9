"""The figures of an NVAE on held-out images, printed, and its card: what `scripts/evaluate_nvae.py` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mi_ml_gen.core import files, runtime, weights
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.experiments.settings import NVAEEvaluationConfig
from mi_ml_gen.generators.gan.quality import frechet_distance, measure_quality, train_classifier
from mi_ml_gen.generators.nvae.card import nvae_card
from mi_ml_gen.generators.nvae.evaluation import NVAEQuality, evaluate_nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.nvae.training import stored_images
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.probe.classifier import ClassifierFiles, load_classifier
from mi_ml_gen.report.images import image_grid, save_png
from mi_ml_gen.views.augment import Augment

SHOWN_TEMPERATURES = (1.0, 0.7)
"""Of the samples in a card's picture."""
N_FRECHET = 10_000
"""The most images on each side of a Frechet distance."""
VALUES_AT_ONCE = 2**22
"""Numbers of noise that are decoded at a time, which bounds the memory; at most 250 images."""
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
    backbone = None if settings.features is None else load_backbone(settings.features, device)
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
    if backbone is not None:
        numbers["frechet_of_features"] = _frechet(generator, backbone, settings, device)
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


def load_backbone(path: str, device: torch.device) -> tuple[nn.Module, str]:
    """The backbone of a classifier's or an encoder's file or run folder, frozen, and what it is in words.

    Raises what `load_encoder` and `load_classifier` raise.
    """
    place = hub.local_path(path)
    own = place / ClassifierFiles.file if place.is_dir() else place
    is_own = own.suffix == ".safetensors" and own.is_file() and weights.is_own(own)
    if is_own and weights.read(own).kind == ClassifierFiles.name:
        classifier = load_classifier(own)
        backbone = classifier.backbone.to(device)
        return backbone, f"the backbone of the classifier {path} ({len(classifier.classes)} classes)"
    loaded = load_encoder(place, device)
    return loaded.backbone, f"the encoder {path} ({loaded.layout})"


@torch.no_grad()
def _frechet(
    generator: NVAE, backbone: tuple[nn.Module, str], settings: NVAEEvaluationConfig, device: torch.device
) -> dict:
    """Frechet distance of samples from test images in the features of the user's network, and its floor."""
    network, what = backbone
    network.eval()
    augment = Augment("none", generator.resolution).to(device)
    train, test = (stored_images(settings.data_path, generator.settings, split) for split in ("train", "test"))
    n = min(N_FRECHET, len(train), len(test))
    order = torch.randperm(len(train), generator=runtime.stream(settings.seed, "quality floor", 0, 0))[:n]

    rows = max(1, min(250, VALUES_AT_ONCE // generator.noise_dim))

    def features(images: Callable[[int, int], Tensor]) -> Tensor:
        """Of n images (m, 1 or 3, side, side) in [0, 1], in parts."""
        parts = (images(i, min(i + rows, n)).to(device).expand(-1, 3, -1, -1) for i in range(0, n, rows))
        return torch.cat([network(augment(part)).double().cpu() for part in parts])

    def generated(start: int, stop: int) -> Tensor:
        rng = runtime.stream(settings.seed, "quality", start, 0, device)
        z = TruncatedNormal().sample((stop - start, generator.noise_dim), rng)
        return generator.decode(generator.latents(z), rng)

    real = features(lambda start, stop: test[start:stop].float() / 255)
    floor = features(lambda start, stop: train[order[start:stop]].float() / 255)
    if n <= real.shape[1]:
        raise UsageError(
            f"--features: {n} images say too little about {real.shape[1]} features; a Frechet distance needs more "
            "images than features"
        )
    found = {
        "features": what,
        "n_features": real.shape[1],
        "n_images": n,
        "temperature": generator.temperature,
        "frechet": frechet_distance(real, features(generated)),
        "floor_frechet": frechet_distance(real, floor),
    }
    print(f"samples at temperature {generator.temperature:g}, in {real.shape[1]} features of {what}")
    print(
        f"  Frechet distance   {found['frechet']:.3f} (real training images: {found['floor_frechet']:.3f}; no interval)"
    )
    print(f"  {n:,} images on each side; fewer images give a larger distance")
    return found
