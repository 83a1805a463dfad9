"""The figures of an NVAE on held-out images, printed, and its card: what `scripts/evaluate_nvae.py` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mi_ml_gen.core import files, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.generators.gan.quality import measure_quality, train_classifier
from mi_ml_gen.generators.nvae.card import nvae_card
from mi_ml_gen.generators.nvae.evaluation import NVAEQuality, evaluate_nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.nvae.training import stored_images
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, pair_grid, save_png


def report(arguments: Any) -> None:
    """Measure the generator that the flags of the script name; print what was found, and write what they ask for."""
    device = runtime.resolve_device(arguments.device)
    generator = load_generator(arguments.generator, arguments.g_path, device, arguments.g_use)
    if not isinstance(generator, NVAE):
        raise UsageError(f"--generator {arguments.generator}: is not an NVAE")
    images = stored_images(arguments.data, generator.settings, "test")[: arguments.n_images]
    quality = evaluate_nvae(generator, images, arguments.importance_samples, arguments.seed, progress=True)
    numbers = quality.as_dict()
    print(f"{quality.n_images:,} images of {arguments.data}, {quality.n_samples} importance samples each")
    print(f"  bits per dimension {quality.bits_per_dimension:.4f} +- {quality.bits_per_dimension_error:.4f}")
    print(f"  (ELBO)             {quality.bits_per_dimension_elbo:.4f}")
    print(f"  L2 reconstruction  {quality.l2:.5f} +- {quality.l2_error:.5f}")
    for group, nats in zip(generator.settings.groups, quality.kl_nats, strict=True):
        print(f"  KL of group {group}    {nats:8.2f} nats")
    if arguments.frechet:
        numbers["samples"] = _samples(generator, arguments.data, arguments.seed, device)
    if arguments.card:
        _write_card(Path(arguments.card), generator, quality, numbers.get("samples"), arguments)
    if arguments.output:
        files.atomic_write(arguments.output, (json.dumps(numbers, indent=2) + "\n").encode())


def _write_card(folder: Path, generator: NVAE, quality: NVAEQuality, samples: dict | None, arguments: Any) -> None:
    """NAME.md and NAME.png: samples in the upper half, test images and their reconstructions in the lower one."""
    rng = runtime.stream(arguments.seed, "nvae card", 0, 0)
    device = next(generator.parameters()).device
    z = TruncatedNormal().sample((48, generator.noise_dim), rng).to(device)
    shown = image_grid(generator.decode(generator.latents(z)), n_columns=16)
    images = stored_images(arguments.data, generator.settings, "test")[:32].expand(-1, 3, -1, -1).to(device) / 255
    pairs = pair_grid(images, generator.reconstruct(images), n_columns=16)
    gap = np.full((16, shown.shape[1], 3), 255, np.uint8)
    save_png(folder / f"{generator.name}.png", np.concatenate([shown, gap, pairs]))
    data = f"the test images of {arguments.data}"
    card = nvae_card(generator, quality, dict(arguments.fact), data, samples)
    files.atomic_write(folder / f"{generator.name}.md", card.encode())
    print(f"card: {folder / generator.name}.md")


def _samples(generator: NVAE, data: str, seed: int, device: torch.device) -> dict:
    """Quality of samples in the features of a classifier trained on the training images."""
    grey = NVAEConfig((1, generator.resolution, generator.resolution), 1)
    train, test = (load_source(data, split, generator.resolution) for split in ("train", "test"))
    if train.labels is None or test.labels is None:
        raise UsageError(f"--frechet: {data} has no labels to train a classifier on")
    real, held_out = (stored_images(data, grey, split).float() / 255 for split in ("train", "test"))
    classifier = train_classifier(real, train.labels, seed, device)
    n = min(10_000, len(held_out))
    quality = measure_quality(generator, classifier, real, held_out, test.labels, seed, n, min(n, 5_000))
    print(f"  Frechet distance   {quality.frechet:.3f} (real images: {quality.floor_frechet:.3f})")
    print(f"  precision, recall  {quality.precision:.3f}, {quality.recall:.3f}")
    return quality.as_dict()
