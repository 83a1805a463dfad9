#!/usr/bin/env python3
"""Measure an NVAE on held-out images: reconstruction error, bits per dimension, KL divergence of each group.

    python scripts/evaluate_nvae.py --generator tiny-nvae --data fashion-mnist --importance-samples 10
    python scripts/evaluate_nvae.py --g_path last.pt --data torchvision:CIFAR10:data

With --frechet, a small classifier is trained on the labelled training images, and the Frechet distance of samples is
measured in its features. That number compares generators with one another, not with published distances, which use
the features of another network. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.generators.known import check_generator_settings


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--generator", default="nvae", metavar="NAME", help="an NVAE by its name (default: nvae)")
    parser.add_argument("--g_path", metavar="PATH", help="its weights, where they are not bundled")
    parser.add_argument("--g_use", nargs="+", default=[], metavar="KEY=VALUE", help="how it is used (temperature=0.7)")
    parser.add_argument("--data", default="fashion-mnist", metavar="REF", help="images (default: fashion-mnist)")
    parser.add_argument("--n-images", type=int, metavar="N", help="number of test images (default: all)")
    parser.add_argument("--importance-samples", type=int, default=1, metavar="K", help="samples for each image")
    parser.add_argument("--frechet", action="store_true", help="also measure samples in a small classifier's features")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--card", metavar="FOLDER", help="also write a model card and its picture")
    parser.add_argument(
        "--fact", nargs=2, action="append", default=[], metavar=("NAME", "TEXT"), help="row of the card"
    )
    parser.add_argument("--output", metavar="FILE.json", help="also write the numbers to a file")
    arguments = parser.parse_args(argv)
    if arguments.importance_samples < 1 or (arguments.n_images is not None and arguments.n_images < 1):
        raise UsageError("--importance-samples and --n-images: must be at least 1")
    check_generator_settings(arguments.generator, arguments.g_path, arguments.g_use)
    check_data_path("--data", arguments.data)
    cli.loading()
    from mi_ml_gen.generators.nvae.report import report

    report(arguments)


if __name__ == "__main__":
    cli.run(main)
