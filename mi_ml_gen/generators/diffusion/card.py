"""The card of a trained diffusion model: what it is, how it was made, how good it is. Markdown, beside its weights."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import torch
from torch import Tensor

from mi_ml_gen.core import config, files, runs, runtime
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.generators.diffusion.training import stored_images, train_diffusion
from mi_ml_gen.generators.gan.card import generator_card, machine
from mi_ml_gen.generators.gan.quality import Quality, measure_quality, train_classifier
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png

OBJECTIVES = {
    "v": "predicts the velocity, cosine schedule",
    "epsilon": "predicts the noise, cosine schedule",
    "flow": "flow matching on straight lines",
}
"""For people."""
N_SHOWN = 80


def train_and_describe(settings: DiffusionTrainConfig) -> tuple[str, Path]:
    """Train a network on the images that the settings name, and describe it; its card, and its run folder."""
    train = stored_images(settings)
    test = stored_images(settings, "test") if settings.quality_images and train.labels is not None else None
    path = train_diffusion(settings, train.images)
    return describe_run(path, settings, train, test), path


def describe_run(path: Path, settings: DiffusionTrainConfig, train: HeldImages, test: HeldImages | None) -> str:
    """Write card.md and samples.png into a run folder, and with test images, labelled, quality.json; the card."""
    device = runtime.resolve_device(settings.device)
    generator = load_generator("diffusion", path / "generator.safetensors", device)
    assert isinstance(generator, Diffusion)
    save_samples(path / "samples.png", generator, settings.seed)
    n_steps, elapsed_s = _course(path, settings)
    facts = {
        "objective": OBJECTIVES[settings.objective],
        "sampler": f"{generator.how.steps} steps, eta {generator.how.eta:g}, noise times {generator.how.scale:g}",
        "steps": f"{n_steps:,} of {settings.batch_size} images, Adam; weights averaged with a half-life of "
        f"{settings.ema_halflife:,.0f} images",
        "seed": str(settings.seed),
        "time": f"{elapsed_s / 60:.0f} minutes" if elapsed_s >= 90 else f"{elapsed_s:.0f} seconds",
        "machine": machine(device),
        "licence": "MIT, as the package" + ("; the data's licence is MIT too" if _is_fashion(settings) else ""),
    }
    data = f"{train.name}, {len(train.images):,} training images, {settings.colours}, {generator.resolution} px"
    quality = None if test is None else _quality(generator, settings, train, test, device)
    if quality is not None:
        files.atomic_write(path / "quality.json", (json.dumps(quality.as_dict(), indent=2) + "\n").encode())
    card = generator_card(
        generator, family="diffusion", data=data, command=_command(settings), facts=facts, quality=quality,
        classes=train.classes, picture="samples.png",
    )  # fmt: skip
    files.atomic_write(path / "card.md", card.encode())
    return card


def save_samples(path: Path, generator: Diffusion, seed: int) -> None:
    """The picture of a card: samples in rows of 16, of noise truncated at 2."""
    device = next(generator.parameters()).device
    z = TruncatedNormal().sample((N_SHOWN, generator.noise_dim), runtime.stream(seed, "card", 0, 0, device))
    with torch.no_grad():
        save_png(path, image_grid(generator.decode(generator.latents(z)), n_columns=16))


def _quality(
    generator: Diffusion, settings: DiffusionTrainConfig, train: HeldImages, test: HeldImages, device: torch.device
) -> Quality:
    def grey(images: Tensor) -> Tensor:
        return images.float().mean(1, keepdim=True) / 255

    assert train.labels is not None and test.labels is not None
    real, held_out = grey(train.images), grey(test.images)
    classifier = train_classifier(real, train.labels, settings.seed, device)
    return measure_quality(
        generator, classifier, real, held_out, test.labels, settings.seed, n=settings.quality_images
    )  # fmt: skip


def _course(path: Path, settings: DiffusionTrainConfig) -> tuple[int, float]:
    """Steps that were taken, and the seconds that they took, as far as rows of metrics say."""
    rows = runs.read_metrics(path)
    if not rows:
        return settings.steps, math.nan
    return max(settings.steps, rows[-1]["step"]), rows[-1]["elapsed_s"]


def _is_fashion(settings: DiffusionTrainConfig) -> bool:
    return settings.data.removeprefix("builtin:").partition(":")[0] == "fashion-mnist"


def _command(settings: DiffusionTrainConfig) -> str:
    """The command with the flags that differ from the defaults; where the data lie is left to the reader."""
    defaults = config.to_dict(DiffusionTrainConfig())
    shown = {
        key: value for key, value in config.to_dict(settings).items() if key not in ("family", "save_folder", "device")
    }
    shown["data"] = "fashion-mnist" if _is_fashion(settings) else settings.data
    flags = {"data": "data_path", "save_every": "save_freq"}
    words = ["python", "scripts/train_generator.py", "--family", "diffusion"]
    for key, value in shown.items():
        if value == defaults[key]:
            continue
        values = [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
        words += [f"--{flags.get(key, key)}", *values]
    return shlex.join(words)
