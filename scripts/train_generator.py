#!/usr/bin/env python3
"""Train a small generator on images of 32 px, as those that come with the package; measure it and write its card.

    python scripts/train_generator.py --family bigbigan
    python scripts/train_generator.py --family stylegan
    python scripts/train_generator.py --family stylegan --dataset emoji --data_path FOLDER --augment
    python scripts/train_generator.py --family diffusion --objective flow
    torchrun --nproc_per_node 2 scripts/train_generator.py --family diffusion

Each family has its own settings: --family diffusion --help shows those of diffusion. The same command resumes an
interrupted run. At the end, the run folder holds generator.safetensors (load it with --g_path), card.md, samples.png,
quality.json, and the metrics of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.trainers import chosen


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    trainer = chosen(argv)
    config.add_arguments(parser, trainer.settings)
    about = "CPU threads (default: as many as this process may use)"
    parser.add_argument("--threads", type=int, metavar="N", help=about)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    settings: Any = config.from_arguments(trainer.settings, arguments)
    settings.check()
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads {arguments.threads}: must be at least 1")
    if cli.is_dry_run(arguments, settings):
        return
    cli.loading()
    import torch

    from mi_ml_gen.core import runtime

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        card, path = trainer.run(settings)
    finally:
        runtime.teardown()
    if card:
        print(card)
        print(f"weights, card and samples: {path}")


if __name__ == "__main__":
    cli.run(main)
