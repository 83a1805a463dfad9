"""What a training of one walker and a training of several need before their networks: the generator, the views, and
what the run folder records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mi_ml_gen import delta
from mi_ml_gen.core import config, optimizers, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.anchors import anchor_distribution
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import Chunks, NoiseDistribution
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.views.records import view_record
from mi_ml_gen.walkers.origins import origin

OF_SEVERAL = ("walkers", "keep_going")
"""Settings that only several walkers know. A run of one does not record them, so its record stays what it was."""


@dataclass(frozen=True)
class Setup:
    """A run before its first step."""

    settings: NavigatorConfig
    device: torch.device
    generator: MultiLatentGenerator
    chunks: Chunks
    distribution: NoiseDistribution
    """Of the anchors' noise."""
    augment: Augment
    pairs_per_step: int
    """Over all processes."""
    n_steps: int
    independent: delta.DeltaEstimate
    """Delta of independent draws, which the course of training is held against."""
    path: Path
    """The run folder."""
    recorded: dict[str, Any]
    """What a resumed run must have in common with the one that was interrupted."""
    trained_on: dict[str, Any]
    """What the file of a walker says about its training."""

    def optimizer(self, module: nn.Module, lr: float) -> optimizers.Adam:
        """Adam over the parameters of the walkers, or of the critics."""
        settings = self.settings
        return optimizers.Adam(
            module.parameters(),
            lr=lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=self.device.type == "cuda",
        )


def prepare(settings: NavigatorConfig, generator: MultiLatentGenerator | None, path: str | Path | None) -> Setup:
    """Set up the device, the generator (loaded if None, and moved to the device) and the views; then seed torch for the
    initial weights.

    Raises what `load_generator` raises, and UsageError for settings that do not fit the generator.
    """
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    runtime.set_precision(settings.precision)
    if generator is None:
        generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    generator = generator.to(device)
    generator.hold(settings.precision)
    chunks = generator.chunks(settings.chunks)
    distribution = anchor_distribution(settings, generator)
    augment = views_of(settings, generator).to(device)
    pairs_per_step = settings.batch_size * runtime.world_size()
    independent = delta.independent_delta(
        generator, chunks, distribution=distribution, seed=settings.seed, device=device
    )
    path = Path(path) if path is not None else settings.folder
    recorded = config.to_dict(settings) | {"n_processes": runtime.world_size()}
    if settings.walkers == 1:
        recorded = {name: value for name, value in recorded.items() if name not in OF_SEVERAL}
    recorded |= view_record(path, settings.policy, flag=None) | fingerprint_record(path, generator)
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    return Setup(
        settings,
        device,
        generator,
        chunks,
        distribution,
        augment,
        pairs_per_step,
        n_steps=max(1, settings.num_samples // pairs_per_step),
        independent=independent,
        path=path,
        recorded=recorded,
        trained_on=dict(generator=settings.generator, seed=settings.seed, **origin(generator, distribution)),
    )


def views_of(settings: NavigatorConfig, generator: MultiLatentGenerator) -> Augment:
    """The augmentation of a run. Raises UsageError where `image_size` is not the generator's."""
    if settings.img_size not in (None, generator.resolution):
        raise UsageError(
            f"--image_size {settings.img_size}: {generator.name} decodes to {generator.resolution} px; omit the flag"
        )
    return Augment(settings.policy, generator.resolution)
