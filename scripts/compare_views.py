#!/usr/bin/env python3
"""Compare encoders trained on real images, on generated ones, and on generated ones that a walker perturbs.

    python scripts/compare_views.py                          (tiny-bigbigan against Fashion-MNIST, on a CPU)
    python scripts/compare_views.py --num_samples 60000 --seeds 0 --out short
    python scripts/compare_views.py --width 64 --num_samples 3000000 --device cuda --precision bf16 --out large

Trains a SimCLR encoder for every row and seed, and probes it on real images. Also trains a walker for each chunk if
you give none. Each encoder adds to comparison.md, .csv, .json and .png. The same command resumes after a stop, and you
can add --seeds and --rows later.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import ComparisonConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, ComparisonConfig)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(ComparisonConfig, arguments)
    settings.check()
    if cli.is_dry_run(arguments, settings):
        return
    cli.loading()
    from mi_ml_gen.experiments.view_comparison import compare, comparison_table

    cells = compare(settings)
    print(comparison_table(cells, settings).to_terminal())
    print(f"folder: {settings.save_folder}")


if __name__ == "__main__":
    cli.run(main)
