"""Anchors and several positives of each, as pictures: what T_z makes of an image.

The configurations are the paper's. With `seeds: published` the latents are those that the reference draws from the same
seeds. Its anchors of batch b use seed s + b and its i-th positives seed s + b + i, so that positives share their noise
with the anchors and positives of the batches that follow; by default every draw here has a stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core import config, runtime
from mi_ml_gen.core.files import atomic_write, write_json
from mi_ml_gen.experiments.generated_dataset import encode, to_bytes
from mi_ml_gen.experiments.settings import ViewGenerationConfig
from mi_ml_gen.generators.anchors import encoded_images
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import NoiseDistribution, TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.base import PublishedSeed, Rng, Walker
from mi_ml_gen.walkers.origins import warn_of_differences


class Variants(NamedTuple):
    """Latents of a batch: anchors, then the first positive of each, the second ...; (n, layout.dim) each."""

    first: int
    """Number of the first anchor."""
    latents: tuple[Tensor, ...]


def generate_views(settings: ViewGenerationConfig, folder: Path, device: torch.device | None = None) -> list[Path]:
    """Write idx=I_var=V.png (V 0 the anchor, then its positives) and grid.png, a row per anchor; gives the paths, that
    of the grid last.

    Raises UsageError for settings that do not fit the generator, and as `load_generator` and `walker_from`.
    """
    config.validate(settings)
    settings.check_anchors()
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    noise = _distribution(settings, generator)
    walker = budget.walker_by(
        settings.Tz, generator, noise, settings.starting_seed, device, folder=folder, whole_nats=settings.budget
    )
    warn_of_differences(walker, generator, noise)
    paths, rows = [], []
    if solved := budget.solved(walker):
        paths.append(write_json(folder / budget.RECORD, solved))
    for batch in draw_variants(settings, generator, walker, device):
        with torch.no_grad():
            rng = runtime.stream(settings.starting_seed, "view generation: decode", batch.first, 0, device or "cpu")
            decoded = (generator.decode(latents, rng) for latents in batch.latents)
            images = [to_bytes(one, truncated=settings.seeds == "published").cpu().numpy() for one in decoded]
        for row, variants in enumerate(zip(*images, strict=True)):
            rows.append(np.stack(variants))
            for i, pixels in enumerate(variants):
                paths.append(folder / f"idx={batch.first + row}_var={i}.png")
                atomic_write(paths[-1], encode(pixels, "png"))
    everything = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
    columns = ["anchor", *(f"positive {i}" for i in range(1, 1 + settings.augmentations))]
    grid = image_grid(
        everything, n_columns=len(columns), row_labels=[f"idx={i}" for i in range(len(rows))], column_labels=columns
    )
    paths.append(save_png(folder / "grid.png", grid))
    return paths


@torch.no_grad()
def draw_variants(
    settings: ViewGenerationConfig, generator: MultiLatentGenerator, walker: Walker, device: torch.device | None = None
) -> Iterator[Variants]:
    """The latents of each batch. Whole batches are drawn, as in the reference, and cut where n_images ends."""
    distribution = _distribution(settings, generator)
    for b, first in enumerate(range(0, settings.n_images, settings.batch_size)):
        shape = (settings.batch_size, generator.noise_dim)
        if settings.seeds == "published":
            assert isinstance(distribution, TruncatedNormal)
            z = distribution.sample_reference(shape, settings.starting_seed + b).to(device)
        else:
            z = distribution.sample(shape, _stream(settings, "anchors", b, device))
        latents = [generator.latents(z)]
        latents += [walker(generator, z, _rng(settings, b, i, device)).positive for i in range(settings.augmentations)]
        n = min(settings.batch_size, settings.n_images - first)
        yield Variants(first, tuple(variant[:n] for variant in latents))


def _distribution(settings: ViewGenerationConfig, generator: MultiLatentGenerator) -> NoiseDistribution:
    if settings.anchors == "real":
        assert settings.anchors_data is not None
        return encoded_images(generator, settings.anchors_data)
    return TruncatedNormal(*settings.anchor_params)


def _rng(settings: ViewGenerationConfig, b: int, i: int, device: torch.device | None) -> Rng:
    """Of the i-th positives of batch b, counted from 0."""
    if settings.seeds == "published":
        return PublishedSeed(settings.starting_seed + b + i + 1)
    return _stream(settings, f"positives {i}", b, device)


def _stream(settings: ViewGenerationConfig, name: str, b: int, device: torch.device | None = None) -> torch.Generator:
    return runtime.stream(settings.starting_seed, f"view generation: {name}", b, 0, device or "cpu")
