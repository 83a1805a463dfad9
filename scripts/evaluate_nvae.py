#!/usr/bin/env python3
"""Measure an NVAE on held-out images: reconstruction error, bits per dimension, KL divergence of each group.

    python scripts/evaluate_nvae.py --generator tiny-nvae --data_path fashion-mnist --importance_samples 10
    python scripts/evaluate_nvae.py --g_path last.pt --data_path torchvision:CIFAR10:data --features encoder_runs/mine

--features measures the Frechet distance of samples in the features of your encoder or linear classifier. --frechet
trains a small classifier on the labelled training images, and uses its features. The output says which were used. You
can compare these distances with one another, but not with published ones, which use another network. Nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import NVAEEvaluationConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NVAEEvaluationConfig)
    parser.add_argument(
        "--fact", nargs=2, action="append", default=[], metavar=("NAME", "TEXT"), help="add a row to the card"
    )
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(NVAEEvaluationConfig, arguments)
    settings.check()
    cli.loading()
    from mi_ml_gen.experiments.nvae_report import report

    report(settings, dict(arguments.fact))


if __name__ == "__main__":
    cli.run(main)
