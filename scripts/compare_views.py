#!/usr/bin/env python3
"""Which views make the better encoder: real, generated, randomly or learnedly perturbed? One table.

    python scripts/compare_views.py                          (tiny-bigbigan against Fashion-MNIST, on a CPU)
    python scripts/compare_views.py --num_samples 60000 --seeds 0 --out short
    python scripts/compare_views.py --width 64 --num_samples 3000000 --device cuda --precision bf16 --out large

Trains a walker per chunk where none are given, a SimCLR encoder for every row and seed, and probes each on real
images. comparison.md, .csv, .json and .png grow with every encoder. The same command goes on after a stop; more --seeds
or --rows add to what is there.
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
