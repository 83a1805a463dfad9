"""The card of a trained diffusion model: what it is, how it was made, how good it is. Markdown, beside its weights."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from mi_ml_gen.core import config, files, runs, runtime, weights
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.data.splits import has_split
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
NOT_SHOWN = ("family", "save_folder", "run_name", "device", "save_every", "state_interval_s", "quality_images")
"""Settings that change nothing in the weights, and are left out of the command that a card shows."""


def train_and_describe(settings: DiffusionTrainConfig) -> tuple[str, Path]:
    """Train a network on the images that the settings name, and describe it; its card, and its run folder.

    Of several processes the first describes it, and the others get "": they do not wait for the measurement.
    """
    train = stored_images(settings)
    is_measured = settings.quality_images and train.labels is not None and has_split(settings.data, "test")
    test = stored_images(settings, "test") if is_measured else None
    path = train_diffusion(settings, train.images)
    if not runtime.is_main():
        return "", path
    return describe_run(path, settings, train, test), path


def describe_run(path: Path, settings: DiffusionTrainConfig, train: HeldImages, test: HeldImages | None) -> str:
    """Write card.md and samples.png into a run folder, and with test images, labelled, quality.json; the card."""
    device = runtime.resolve_device(settings.device)
    generator = load_generator("diffusion", path / "generator.safetensors", device)
    assert isinstance(generator, Diffusion)
    save_samples(path / "samples.png", generator, settings.seed)
    n_steps = int(weights.read(path / "generator.safetensors").about["steps"])
    rows = runs.read_metrics(path, whole=True)  # none where the training had fewer steps than there are between rows
    elapsed_s = rows[-1]["elapsed_s"] if rows else 0.0
    settings = replace(settings, steps=n_steps)
    facts = {
        "objective": OBJECTIVES[settings.objective],
        "sampler": f"{generator.how.steps} steps, eta {generator.how.eta:g}, noise times {generator.how.scale:g}",
        "steps": f"{n_steps:,} of {settings.batch_size} images, Adam; weights averaged with a half-life of "
        f"{settings.ema_halflife:,.0f} images",
        "seed": str(settings.seed),
        "time": _time(elapsed_s),
        "machine": machine(device),
        "licence": "MIT, as the package" + ("; the data's licence is MIT too" if _is_fashion(settings) else ""),
    }
    data = f"{train.name}, {len(train.images):,} training images, {settings.colours}, {generator.resolution} px"
    quality, others = None, []
    if test is not None:
        measure = _measure(settings, train, test, device)
        quality = measure(generator, TruncatedNormal())
        others = _others(generator, measure) if settings.compare_samplers else []
        found = quality.as_dict() | {"samplers": [other._asdict() for other in others]}
        files.write_json(path / "quality.json", found)
    card = generator_card(
        generator, family="diffusion", data=data, command=_command(settings), facts=facts, quality=quality,
        classes=train.classes, picture="samples.png",
    )  # fmt: skip
    card += samplers_table(others)
    files.atomic_write(path / "card.md", card.encode())
    return card


def save_samples(path: Path, generator: Diffusion, seed: int) -> None:
    """The picture of a card: samples in rows of 16, of noise truncated at 2."""
    device = next(generator.parameters()).device
    z = TruncatedNormal().sample((N_SHOWN, generator.noise_dim), runtime.stream(seed, "card", 0, 0, device))
    with torch.no_grad():
        save_png(path, image_grid(generator.decode(generator.latents(z)), n_columns=16))


Measure = Callable[[Diffusion, TruncatedNormal], Quality]


def _measure(settings: DiffusionTrainConfig, train: HeldImages, test: HeldImages, device: torch.device) -> Measure:
    """A measure of quality, for which a classifier of the training images is trained once."""

    assert train.labels is not None and test.labels is not None
    real, held_out, labels = train.images.float() / 255, test.images.float() / 255, test.labels
    classifier = train_classifier(real, train.labels, settings.seed, device)

    def measure(generator: Diffusion, distribution: TruncatedNormal) -> Quality:
        n = settings.quality_images
        return measure_quality(
            generator, classifier, real, held_out, labels, settings.seed, n=n, distribution=distribution
        )

    return measure


class Sampler(NamedTuple):
    """The quality of a generator with a sampler of its own."""

    steps: int
    scale: float
    truncation: float
    frechet: float
    precision: float
    recall: float


def _others(generator: Diffusion, measure: Measure) -> list[Sampler]:
    """The quality with fewer and more steps, and with noise of another variance; the generator stays as it is."""
    how = generator.how
    tried = [(n, how.scale, 2.0) for n in (5, 10, 20, 50)] + [(how.steps, 1.0, truncation) for truncation in (2.0, 6.0)]
    found = []
    for steps, scale, truncation in dict.fromkeys(tried):
        generator.use({"steps": steps, "block": 1, "scale": scale})
        quality = measure(generator, TruncatedNormal(truncation=truncation))
        found.append(Sampler(steps, scale, truncation, quality.frechet, quality.precision, quality.recall))
    generator.use({"steps": how.steps, "block": how.block, "scale": how.scale})
    return found


def samplers_table(samplers: Sequence[Sampler]) -> str:
    """The part of a card that compares samplers; "" where none were."""
    if not samplers:
        return ""
    rows = [
        f"| {one.steps} | {one.scale:g} | {one.truncation:g} | {one.frechet:.3f} | {one.precision:.3f} "
        f"| {one.recall:.3f} |"
        for one in samplers
    ]
    lines = [
        "The same with other samplers. The noise is truncated at so many standard deviations, and multiplied by the "
        "factor (`--g_use steps=... scale=...`).",
        "",
        "| steps | factor | truncated at | Fréchet distance | precision | recall |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    return "\n".join(["", *lines, ""])


def _time(elapsed_s: float) -> str:
    return f"{elapsed_s / 60:.0f} minutes" if elapsed_s >= 90 else f"{elapsed_s:.0f} seconds"


def _is_fashion(settings: DiffusionTrainConfig) -> bool:
    return settings.data.removeprefix("builtin:").partition(":")[0] == "fashion-mnist"


def _command(settings: DiffusionTrainConfig) -> str:
    """The command with the flags that differ from the defaults; where the data lie is left to the reader."""
    defaults = config.to_dict(DiffusionTrainConfig())
    shown = {key: value for key, value in config.to_dict(settings).items() if key not in NOT_SHOWN}
    shown["data"] = "fashion-mnist" if _is_fashion(settings) else settings.data
    flags = {"data": "data_path", "save_every": "save_freq"}
    words = ["python", "scripts/train_generator.py", "--family", "diffusion"]
    for key, value in shown.items():
        if value == defaults[key]:
            continue
        values = [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
        words += [f"--{flags.get(key, key)}", *values]
    return shlex.join(words)
