"""Train one of the small generators that the package ships, on Fashion-MNIST; measure it and write its card.

    python scripts/train_generator.py --family bigbigan
    python scripts/train_generator.py --family stylegan

The same command resumes an interrupted run. The run folder then holds generator.safetensors (load it with
--g_path), card.md, samples.png, quality.json, and the course of training.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mi_ml_gen.core import cli, config, files, runs, runtime
from mi_ml_gen.data.idx import fashion_mnist
from mi_ml_gen.generators.gan.card import generator_card
from mi_ml_gen.generators.gan.quality import measure_quality, train_classifier
from mi_ml_gen.generators.gan.training import GanConfig, train_generator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, GanConfig)
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="CPU threads (default: all)")
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(GanConfig, arguments).resolved()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    train = fashion_mnist("train", settings.data_path)
    held_out = fashion_mnist("test", settings.data_path)
    path = train_generator(settings, train.images)

    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.family, path / "generator.safetensors", device)
    real, test = (F.pad(split.images, (2, 2, 2, 2))[:, None].float() / 255 for split in (train, held_out))
    classifier = train_classifier(real, train.labels, settings.seed, device)
    quality = measure_quality(generator, classifier, real, test, held_out.labels, settings.seed)

    z = TruncatedNormal().sample((80, generator.noise_dim), runtime.stream(settings.seed, "card", 0, 0, device))
    samples = image_grid(generator.decode(generator.latents(z)), n_columns=16)
    save_png(path / "samples.png", samples)
    rows = runs.read_metrics(path)  # none where the training had fewer steps than there are between lines
    card = generator_card(
        generator,
        family=settings.family,
        data=f"Fashion-MNIST, {len(train.images):,} training images, grey, padded to {generator.resolution} px",
        command=shlex.join(["python", "scripts/train_generator.py", *_command(settings)]),
        facts={
            "steps": f"{settings.steps:,} of {settings.batch_size} images, Adam",
            "seed": str(settings.seed),
            "time": f"{rows[-1]['elapsed_s'] / 60:.0f} minutes" if rows else "less than a minute",
            "machine": f"{_machine(device)}, torch {torch.__version__.split('+')[0]}",
            "licence": "MIT, as the package; the data's licence is MIT too",
        },
        quality=quality,
        classes=train.classes,
        picture="samples.png",
    )
    files.atomic_write(path / "card.md", card.encode())
    files.atomic_write(path / "quality.json", (json.dumps(quality.as_dict(), indent=2) + "\n").encode())
    print(card)
    print(f"weights, card and samples: {path}")


def _command(settings: GanConfig) -> list[str]:
    """The flags that differ from the family's defaults."""
    defaults = config.to_dict(GanConfig(family=settings.family).resolved())
    shown = {key: value for key, value in config.to_dict(settings).items() if key not in ("family", "save_folder")}
    changed = [part for key, value in shown.items() if value != defaults[key] for part in (f"--{key}", str(value))]
    return ["--family", settings.family, *changed]


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of a CPU ({platform.machine()})"


if __name__ == "__main__":
    cli.run(main)
