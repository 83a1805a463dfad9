#!/usr/bin/env python3
"""Train an encoder (SimCLR, SimSiam, BYOL) on views of generated or stored images.

    python scripts/train_encoder.py --config small/chunks_random --seed 0
    python scripts/train_encoder.py --encoder simsiam --config simsiam_bigbigan/encoder_imagenet_chunks_learned --seed 0
    torchrun --nproc_per_node 8 scripts/train_encoder.py --encoder simsiam \\
        --config simsiam_bigbigan/encoder_imagenet_baseline_real --data_path datasets/imagenet/ffcv --seed 0

--config names a bundled configuration of an encoder, or a YAML file. Every setting is also a flag. The run
folder holds the settings, metrics, curves, grids of views, and the encoder (encoder.safetensors). The same command
resumes an interrupted run, and so does --resume_from with its folder.

--dry-run checks the settings. For generators and images that do not come with the package, it also counts what the run
costs: FLOPs, memory, and hours on 1, 8 and 64 GPUs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config, tracking
from mi_ml_gen.encoders.settings import EncoderConfig, named_configuration, resumed_settings


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, EncoderConfig)
    parser.add_argument("--conf", help=argparse.SUPPRESS)  # the published spelling of --config
    parser.add_argument("--resume_from", type=Path, metavar="FOLDER", help="resume the run in this folder")
    tracking.add_flags(parser)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    arguments.config = named_configuration(arguments.conf, arguments.config)
    if arguments.resume_from is not None:
        settings = resumed_settings(arguments.resume_from, vars(arguments))
    else:
        settings = config.from_arguments(EncoderConfig, arguments)
    settings.check()
    path = arguments.resume_from or settings.folder
    if arguments.dry_run and (found := settings.known_inputs()) is None:
        cli.loading()
        from mi_ml_gen.encoders.costs import cost_lines
        from mi_ml_gen.encoders.training import check_inputs

        found = check_inputs(settings) + cost_lines(settings)
    if cli.is_dry_run(arguments, settings, (found or ()) if arguments.dry_run else ()):
        return
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.encoders.training import train_encoder

    try:
        with tracking.tracker(arguments.logging, path, config.to_dict(settings), arguments.wandb_id) as on_row:
            result = train_encoder(settings, path=path, on_row=on_row)
        if runtime.is_main():
            knn = "" if result.knn_accuracy is None else f", kNN accuracy {result.knn_accuracy:.1%}"
            print(f"trained on {result.samples:,} samples{knn}")
            print(f"run folder: {result.path}")
    finally:
        runtime.teardown()


if __name__ == "__main__":
    cli.run(main)
