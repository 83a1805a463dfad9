"""Truncated normals, 500,000 x 120: SciPy's truncnorm.rvs against the inverse CDF in torch."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy import stats

from bench import timing
from mi_ml_gen.latents import TruncatedNormal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    shape = (options.n, 120)
    distribution, rng = TruncatedNormal(), torch.Generator().manual_seed(0)
    ways = {
        "scipy.stats.truncnorm.rvs, cast to float32": lambda: stats.truncnorm.rvs(
            -2, 2, size=shape, random_state=np.random.RandomState(0)
        ).astype(np.float32),
        "TruncatedNormal.sample_reference": lambda: distribution.sample_reference(shape, 0),
        "TruncatedNormal.sample": lambda: distribution.sample(shape, rng),
    }
    seconds = timing.compare(ways, options.repeats, clock=time.process_time)
    what = f"{options.n:,} x 120 truncated normals"
    timing.write("sampling", what, seconds, next(iter(ways)), n=options.n, unit="draws", clock=time.process_time)


if __name__ == "__main__":
    main()
