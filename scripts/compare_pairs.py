#!/usr/bin/env python3
"""What pairs that people made have in common, beside pairs of walkers: nats by critics of the same kind.

    python scripts/compare_pairs.py --data_path emoji-pairs:FOLDER --walkers 0_2=1 walker_runs/0_tiny-emoji_2_4_none

People's pairs are the same emoji drawn by two houses; FOLDER is where the npm packages were unpacked (docs/data.md).
Walkers are run folders, files, or noise. Every kind of pairs has as many to train on and to measure. Writes table.md,
.tex, .csv, .json and pairs.json into --out. The same command resumes an interrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.experiments.settings import HumanPairsConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, HumanPairsConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.experiments.human_pairs import compare_pairs

    for row in compare_pairs(settings):
        print(row)
    print(f"written: {settings.out / 'table.md'}, {settings.out / 'pairs.json'}")


if __name__ == "__main__":
    cli.run(main)
