"""Which views make the better encoder: real, generated, randomly or learnedly perturbed? One table.

    python scripts/compare_views.py                          (tiny-bigbigan against Fashion-MNIST, on a CPU)
    python scripts/compare_views.py --samples 60000 --seeds 0 --save_folder short
    python scripts/compare_views.py --width 64 --samples 3000000 --device cuda --precision bf16 --save_folder large

Trains a walker per chunk where none are given, a SimCLR encoder for every row and seed, and probes each on real
images. comparison.md, .csv, .json and .png grow with every encoder. The same command goes on after a stop; more --seeds
or --rows add to what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.view_comparison import ComparisonConfig, compare, to_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, ComparisonConfig)
    parser.add_argument("--dry-run", action="store_true", help="check and print the settings, then stop")
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(ComparisonConfig, arguments)
    if arguments.dry_run:
        print(config.to_yaml(settings), end="")
        return
    cells = compare(settings)
    print(to_table(cells, settings).to_terminal())
    print(f"folder: {settings.save_folder}")


if __name__ == "__main__":
    cli.run(main)
