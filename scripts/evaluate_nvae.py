#!/usr/bin/env python3
"""Measure an NVAE on held-out images: reconstruction error, bits per dimension, KL divergence of each group.

    python scripts/evaluate_nvae.py --generator tiny-nvae --data_path fashion-mnist --importance_samples 10
    python scripts/evaluate_nvae.py --g_path last.pt --data_path torchvision:CIFAR10:data --features encoder_runs/mine

The Frechet distance of samples is measured with --features in the features of an encoder or a linear classifier of
yours, and with --frechet in those of a small classifier that is trained on the labelled training images. The output
says which. These numbers compare generators with one another, not with published distances, which use the features of
another network. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import NVAEEvaluationConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NVAEEvaluationConfig)
    parser.add_argument(
        "--fact", nargs=2, action="append", default=[], metavar=("NAME", "TEXT"), help="row of the card"
    )
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(NVAEEvaluationConfig, arguments)
    settings.check()
    cli.loading()
    from mi_ml_gen.experiments.nvae_report import report

    report(settings, dict(arguments.fact))


if __name__ == "__main__":
    cli.run(main)
