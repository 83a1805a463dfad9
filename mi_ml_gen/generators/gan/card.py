"""The card of a trained generator: what it is, how it was made, how good it is. Markdown, beside its weights."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path

import torch

from mi_ml_gen.core import config, files, runs, runtime
from mi_ml_gen.data.emoji import licences as emoji_licences
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages, held
from mi_ml_gen.data.splits import has_split
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.gan.quality import Quality, measure_quality, train_classifier
from mi_ml_gen.generators.gan.settings import RESOLUTION_PX, GanConfig
from mi_ml_gen.generators.gan.training import train_generator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png

LEAST_CLASSIFIER_IMAGES = 60_000
"""Images that the classifier of the quality is trained on; a small data set is seen more often."""
DATA = {
    "fashion-mnist": (
        "Fashion-MNIST, {n:,} training images, grey, padded to {side} px",
        "the data's licence is MIT too",
    ),
    "emoji": (
        "emoji on a background of one colour, {n:,} training images in colour, {side} px ({reference})",
        "the pictures are {licences}",
    ),
}
"""Of data sets by name: what they are, and their licences."""


def train_and_describe(settings: GanConfig) -> tuple[str, Path]:
    """Train a generator, and describe it; its card, and its run folder."""
    settings = settings.resolved()
    train = held(load_source(settings.reference, "train", RESOLUTION_PX))
    is_divided = has_split(settings.reference, "test")
    held_out = held(load_source(settings.reference, "test", RESOLUTION_PX)) if is_divided else None
    path = train_generator(settings, train.images)
    return describe_run(path, settings, train, held_out), path


def describe_run(path: Path, settings: GanConfig, train: HeldImages, held_out: HeldImages | None) -> str:
    """Measure a trained generator, and write card.md, quality.json and samples.png into its run folder; the card.

    settings: resolved. train, held_out: the images, of the generator's resolution. Where there are no labels or no
    held-out images, there is no quality either, and the card says so.
    """
    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.family, path / "generator.safetensors", device)
    quality = None
    if held_out is not None and train.labels is not None and held_out.labels is not None:
        real, test = (split.images.float() / 255 for split in (train, held_out))
        epochs = max(4, LEAST_CLASSIFIER_IMAGES // train.n_images)
        classifier = train_classifier(real, train.labels, settings.seed, device, epochs)
        quality = measure_quality(generator, classifier, real, test, held_out.labels, settings.seed)
        files.write_json(path / "quality.json", quality.as_dict())

    z = TruncatedNormal().sample((80, generator.noise_dim), runtime.stream(settings.seed, "card", 0, 0, device))
    save_png(path / "samples.png", image_grid(generator.decode(generator.latents(z)), n_columns=16))
    rows = runs.read_metrics(path, whole=True)  # none where the training had fewer steps than there are between rows
    unknown = "{reference}, {n:,} training images, {side} px", "the data's licence is not known here"
    data, licence = DATA.get(settings.dataset.partition(":")[0], unknown)
    card = generator_card(
        generator,
        family=settings.family,
        data=data.format(n=train.n_images, side=generator.resolution, reference=settings.dataset),
        command=shlex.join(["python", "scripts/train_generator.py", *_command(settings)]),
        facts={
            "steps": f"{settings.steps:,} of {settings.batch_size} images, Adam",
            "seed": str(settings.seed),
            "time": f"{rows[-1]['elapsed_s'] / 60:.0f} minutes" if rows else "less than a minute",
            "machine": machine(device),
            "licence": f"MIT, as the package; {licence.format(licences=emoji_licences(settings.dataset))}",
        },
        quality=quality,
        classes=train.classes,
        picture="samples.png",
    )
    files.atomic_write(path / "card.md", card.encode())
    return card


def _command(settings: GanConfig) -> list[str]:
    """The flags that differ from the family's defaults."""
    defaults = config.to_dict(GanConfig(family=settings.family).resolved())
    shown = {
        key: value
        for key, value in config.to_dict(settings).items()
        if key not in ("family", "save_folder", "data_path")
    }
    changed = []
    for key, value in shown.items():
        if value != defaults.get(key, getattr(GanConfig(), key)):
            changed += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return ["--family", settings.family, *changed]


def machine(device: torch.device) -> str:
    """The device and the version of torch, for a card."""
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    else:
        what = f"{torch.get_num_threads()} thread(s) of a CPU ({platform.machine()})"
    return f"{what}, torch {torch.__version__.split('+')[0]}"


def generator_card(
    generator: MultiLatentGenerator,
    *,
    family: str,
    data: str,
    command: str,
    facts: dict[str, str],
    quality: Quality | None,
    classes: tuple[str, ...],
    picture: str,
) -> str:
    """Markdown text; `facts` are further rows of the first table (steps, seeds, time, machine ...). quality: None
    where it was not measured."""
    sizes = ", ".join(map(str, generator.layout.sizes))
    n_parameters = sum(parameter.numel() for parameter in generator.parameters())
    about = {
        "network": f"{family}, {n_parameters:,} parameters, {generator.resolution} px",
        "latents": f"{generator.layout.n_chunks} chunks ({sizes} numbers)",
        "data": data,
        "command": f"`{command}`",
        **facts,
    }
    lines = [
        f"# {generator.name}",
        "",
        f"![samples]({picture})",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in about.items()),
        "",
        "## Quality",
        "",
        *(["Not measured."] if quality is None else _quality_lines(quality, classes)),
        "",
    ]
    return "\n".join(lines)


def _quality_lines(q: Quality, classes: tuple[str, ...]) -> list[str]:
    """The card's section on quality."""
    measured = [
        ("Fréchet distance (lower is better)", q.frechet, q.floor_frechet, q.n),
        ("precision", q.precision, q.floor_precision, q.n_neighbours),
        ("recall", q.recall, q.floor_recall, q.n_neighbours),
        ("classifier's mean confidence", q.confidence, q.floor_confidence, q.n),
    ]

    def percent(shares: tuple[float, ...]) -> str:
        return " | ".join(f"{100 * share:.1f}%" for share in shares)

    return [
        "In the 128 features of a small classifier trained on the same training images "
        f"({100 * q.classifier_accuracy:.1f}% accurate on the {q.n:,} held-out test images); noise is a standard "
        "normal truncated at 2. The floor is what as many real training images get against the held-out ones.",
        "",
        "| measure | generated | floor (real) | n |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {value:.3f} | {floor:.3f} | {n:,} |" for name, value, floor, n in measured),
        "",
        "Share of each class, as the classifier sees them:",
        "",
        "| images | " + " | ".join(classes) + " |",
        "| --- | " + " | ".join("---:" for _ in classes) + " |",
        f"| generated | {percent(q.class_shares)} |",
        f"| held-out | {percent(q.real_shares)} |",
    ]
