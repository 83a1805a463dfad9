#!/usr/bin/env python3
"""Compare VAE, MIM, cMIM and InfoNCE + MIM with SimCLR, SimSiam and BYOL on images.

    python scripts/compare_mim_image.py                                         # Fashion-MNIST, three seeds of each
    python scripts/compare_mim_image.py --epochs 3 --seeds 1 --workers 4        # a quick look, four trainings at a time
    python scripts/compare_mim_image.py --methods cmim simclr --report-only     # table and page of what is there

All methods train the same encoder on the same images for the same number of steps. The same command resumes an
interrupted comparison, and you can add seeds and methods. The folder then has table.* (linear probe, kNN, NMI, bits per
dimension), embeddings.* (from the encoder and from the decoder), cells.csv and one page, index.html.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mi_ml_gen.core import cells, cli
from mi_ml_gen.experiments.mim_image_settings import MimComparisonConfig


def main(argv: Sequence[str] | None = None) -> int:
    begun = cli.begin(argv, __doc__, MimComparisonConfig, cli.add_report_only)
    if begun is None:
        return 0
    settings, arguments = begun
    from mi_ml_gen.experiments import mim_image_report as report
    from mi_ml_gen.experiments.mim_image_comparison import run_comparison

    failed = 0 if arguments.report_only else cells.print_lines(run_comparison(settings))
    if failed and not report.read_cells(settings):
        return 1  # the lines above say why, and there is nothing to write
    words = sys.argv[1:] if argv is None else argv
    written = report.write_report(settings, cli.command("compare_mim_image", *words))
    print(report.main_table(report.read_cells(settings), settings).to_terminal())
    print("written: " + ", ".join(map(str, written)))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
