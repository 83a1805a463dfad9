#!/usr/bin/env python3
"""Probe a frozen encoder: train a linear classifier, nearest neighbours and ridge regression on its features.

    python scripts/train_classifier.py --encoder_path encoder_runs/mine --data_path fashion-mnist
    python scripts/train_classifier.py --encoder_path last.ckpt --data_path datasets/StanfordCars/ffcv \\
        --config classifier_lsun --dataset StanfordCars --run_name mine --seed 0             (the paper's protocol)

--config names a bundled configuration (classifier, classifier_imagenet, classifier_lsun) or a YAML file. The run
folder, classifier_runs/LinCls-DATASET-NAME, holds the accuracies with their intervals, the accuracy of each class, the
confusion figure, the classifier, and the features. The same command resumes an interrupted run, and so does
--resume_from with its folder and the same settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config, tracking
from mi_ml_gen.probe.settings import ProbeConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, ProbeConfig)
    parser.add_argument("--conf", help=argparse.SUPPRESS)  # the published spelling of --config
    parser.add_argument("--resume_from", type=Path, metavar="FOLDER", help="resume the run in this folder")
    tracking.add_flags(parser)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    arguments.config = config.named("classifiers", arguments.conf, arguments.config)
    settings = config.from_arguments(ProbeConfig, arguments)
    settings.check()
    path = arguments.resume_from or settings.folder
    if cli.is_dry_run(arguments, settings):
        return
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.data.splits import load_splits
    from mi_ml_gen.encoders.loading import load_encoder
    from mi_ml_gen.probe.accuracy import accuracy_table
    from mi_ml_gen.probe.training import train_probe

    runtime.resolve_device(settings.device)
    assert settings.encoder_path is not None and settings.data_path is not None  # by settings.check
    encoder = load_encoder(settings.encoder_path)
    size = settings.image_size or encoder.about.get("image_size")
    splits = load_splits(
        settings.data_path, size, settings.seed, settings.hold_out,
        framing=settings.framing, loader=settings.loader, skip_bad=settings.skip_bad,
    )  # fmt: skip
    try:
        with tracking.tracker(arguments.logging, path, config.to_dict(settings), arguments.wandb_id) as on_row:
            result = train_probe(settings, encoder.backbone, splits, path, on_row=on_row)
        if runtime.is_main():
            print(f"encoder: {encoder}")
            which = f"Accuracy on the {result.split} images, framed as {settings.framing}"
            which += f"; sgd: {result.layer}" if result.layer else ""
            print(accuracy_table(result.evaluations, which).to_terminal())
            print(f"run folder: {result.path}")
    finally:
        runtime.teardown()


if __name__ == "__main__":
    cli.run(main)
