"""Truncated normals, 500,000 x 120: SciPy's truncnorm.rvs against the inverse CDF in torch."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from bench import timing
from mi_ml_gen.latents import TruncatedNormal

SHAPE = (500_000, 120)


def main() -> None:
    distribution, rng = TruncatedNormal(), torch.Generator().manual_seed(0)
    ways = {
        "scipy.stats.truncnorm.rvs, cast to float32": lambda: stats.truncnorm.rvs(
            -2, 2, size=SHAPE, random_state=np.random.RandomState(0)
        ).astype(np.float32),
        "TruncatedNormal.sample_reference": lambda: distribution.sample_reference(SHAPE, 0),
        "TruncatedNormal.sample": lambda: distribution.sample(SHAPE, rng),
    }
    seconds = timing.compare(ways, repeats=3, warm_up=1)
    timing.write("sampling", "500,000 x 120 truncated normals", seconds, plain=next(iter(ways)))


if __name__ == "__main__":
    main()
