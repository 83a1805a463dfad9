#!/usr/bin/env python3
"""Train a Mutual Information Machine (MIM), a VAE or an auto-encoder on toy and low-dimensional data.

    python scripts/train_mim.py --dataset toy4 --z-dim 2 --mid-dim 50 --min-logvar 6 --seed 1 --batch-size 128 \\
        --epochs 200 --warmup-steps 3 --mim-loss --mim-samp
    python scripts/train_mim.py --dataset toyVAE --mid-dim 50 --min-logvar 6 --epochs 49 --warmup-steps 25 \\
        --vis-progress
    python scripts/train_mim.py --dataset toy4 --mid-dim 50 --min-logvar 6 --epochs 200 --warmup-steps 3 --seeds 10

The run folder holds the settings, metrics, the best model and its results.csv. The same command resumes an interrupted
run.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.mim.settings import MimConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, MimConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.mim.evaluate import MEANINGS
    from mi_ml_gen.mim.training import train_seeds

    for record in train_seeds(settings, show=True):
        assert record.statistics is not None
        print(f"seed {record.seed}: {record.reason}; the model of epoch {record.best_epoch}, in {record.path}")
        for name, value in record.statistics.as_dict().items():
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            print(f"  {name:14s} {shown:>10s}  {MEANINGS[name]}")


if __name__ == "__main__":
    cli.run(main)
