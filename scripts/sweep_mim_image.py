#!/usr/bin/env python3
"""Compare VAE, A-MIM and S-MIM on images, as published: a loop over data sets, models, priors and seeds.

    python scripts/sweep_mim_image.py                                  # Fashion-MNIST, convolutional and autoregressive
    python scripts/sweep_mim_image.py --models vae vae-smim --n_likelihood 100 \\
        --set epochs=20 warmup=5 n_train=5000 n_test=1000 number_components=50
    python scripts/sweep_mim_image.py --device cuda --precision bf16 --workers 12 --train_seconds 200

The same command resumes an interrupted sweep. The sweep's folder then has table.csv (and .md, .tex, .json),
differences.csv (with two seeds or more), and the page index.html. A run that fails leaves the others alone; the exit
code is then 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mi_ml_gen.core import cells, cli
from mi_ml_gen.mim.images.sweep_settings import ImageSweepConfig


def main(argv: Sequence[str] | None = None) -> int:
    begun = cli.begin(argv, __doc__, ImageSweepConfig, cli.add_report_only)
    if begun is None:
        return 0
    settings, arguments = begun
    from mi_ml_gen.mim.images import sweep

    failed = 0 if arguments.report_only else cells.print_lines(sweep.run_sweep(settings))
    if failed and not sweep.read_results(settings):
        return 1  # the lines above say why, and there is nothing to write
    written = sweep.write_report(settings, cli.command("sweep_mim_image", *(sys.argv[1:] if argv is None else argv)))
    print(sweep.sweep_table(sweep.read_results(settings)).to_terminal())
    print("written: " + ", ".join(map(str, written)))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
