#!/usr/bin/env python3
"""Compare continuous sampling with stored images: seconds and energy of an epoch of the same small encoder.

    python scripts/benchmark_sampling.py --source generator --generator tiny-bigbigan --samples_per_epoch 4096
    python scripts/benchmark_sampling.py --g_path BigBiGAN_x1.pth --data_path datasets/generated --device cuda \\
        --source generator torch ffcv --batch_sizes 32 64 128 256 --num_epochs 20               (the paper's Figure 5)

Several calls with the same --out share one table (sampling.md) and one figure (images/sampling.png). Nothing is
measured twice, so the same command resumes after a stop.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.experiments.settings import BenchmarkConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, BenchmarkConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.experiments.sampling_benchmark import benchmark, sampling_table

    measurements = benchmark(settings)
    print(sampling_table(measurements, settings).to_terminal())
    print(f"run folder: {settings.save_folder}")


if __name__ == "__main__":
    cli.run(main)
