#!/usr/bin/env python3
"""Compare MIM with the VAE over a range of widths and seeds, as published: one command for each section.

    python scripts/sweep_mim.py expressiveness              # toy4, hidden units 5 to 500
    python scripts/sweep_mim.py entropy                     # the same, with entropy added to VAE and taken from MIM
    python scripts/sweep_mim.py bottleneck                  # 20-D mixture, latent dimensions 2 to 20
    python scripts/sweep_mim.py bottleneck-pca              # PCA of Fashion-MNIST, latent dimensions 2 to 20
    python scripts/sweep_mim.py expressiveness --seeds 3 --quick

The same command resumes an interrupted sweep. The sweep's folder then holds figure.png (mutual information, NLL,
reconstruction error and KNN accuracy, with a band of one standard error over seeds), table.csv (and .md, .tex, .json),
runs.csv, and for toy4 models.png, which shows what the models of one seed have learned.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.mim.sweep_settings import SECTIONS, SweepConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("name", metavar="SECTION", nargs="?", help=f"comparison to run: {', '.join(SECTIONS)}")
    config.add_arguments(parser, SweepConfig)
    about = "train nothing; draw figures and tables of what is there"
    parser.add_argument("--report-only", action="store_true", help=about)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    arguments.section = arguments.section or arguments.name
    settings = config.from_arguments(SweepConfig, arguments)
    if cli.is_dry_run(arguments, settings):
        return
    cli.loading()
    from mi_ml_gen.mim import sweep

    if not arguments.report_only:
        for result in sweep.run_sweep(settings):
            print(result.line, flush=True)
    print(sweep.sweep_table(sweep.read_rows(settings), settings).to_terminal())
    print("written: " + ", ".join(map(str, sweep.write_report(settings))))


if __name__ == "__main__":
    cli.run(main)
