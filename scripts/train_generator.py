#!/usr/bin/env python3
"""Train one of the small generators that the package ships, on images of 32 px; measure it and write its card.

    python scripts/train_generator.py --family bigbigan
    python scripts/train_generator.py --family stylegan
    python scripts/train_generator.py --family stylegan --dataset emoji --data_path FOLDER --augment

The same command resumes an interrupted run. The run folder then holds generator.safetensors (load it with
--g_path), card.md, samples.png, quality.json, and the course of training.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.generators.gan.settings import RESOLUTION_PX, GanConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, GanConfig)
    about = "CPU threads (default: as many as this process may use)"
    parser.add_argument("--threads", type=int, metavar="N", help=about)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(GanConfig, arguments)
    settings.check()
    if cli.is_dry_run(arguments, settings):
        return
    cli.loading()
    import torch

    from mi_ml_gen.data.loading import load_source
    from mi_ml_gen.data.source import held
    from mi_ml_gen.data.splits import has_split
    from mi_ml_gen.generators.gan.card import describe_run
    from mi_ml_gen.generators.gan.training import train_generator

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    settings = settings.resolved()
    train = held(load_source(settings.reference, "train", RESOLUTION_PX))
    is_divided = has_split(settings.reference, "test")
    held_out = held(load_source(settings.reference, "test", RESOLUTION_PX)) if is_divided else None
    path = train_generator(settings, train.images)
    print(describe_run(path, settings, train, held_out))
    print(f"weights, card and samples: {path}")


if __name__ == "__main__":
    cli.run(main)
