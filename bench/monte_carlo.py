"""Delta of one BigBiGAN walker over 500,000 draws: the plain way (SciPy, float64, copies) against the streamed one."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy import stats

from bench import timing
from mi_ml_gen.delta import estimate_delta
from mi_ml_gen.generators.registry import load_latent_space
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.learned import NonlinearWalker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    n = options.n
    torch.manual_seed(0)
    generator = load_latent_space("bigbigan")
    walker = NonlinearWalker(Chunks(5, 6), 20)

    @torch.no_grad()
    def plain() -> tuple[float, float]:
        """In a hundred parts: draw by SciPy, move, take lengths in numpy, keep them all, then mean and deviation."""
        lengths = []
        for part in range(100):
            draw = stats.truncnorm.rvs(-2, 2, size=(n // 100, 120), random_state=np.random.RandomState(part))
            anchor = torch.from_numpy(draw.astype(np.float32))
            positive = walker(generator, anchor).positive.numpy()
            lengths.append(np.linalg.norm(positive[:, 100:] - anchor.numpy()[:, 100:], axis=1))
        whole = np.concatenate(lengths)
        return whole.mean(), whole.std()

    ways = {
        "plain: scipy draws, all lengths kept": plain,
        "estimate_delta": lambda: estimate_delta(generator, walker, n),
    }
    seconds = timing.compare(ways, options.repeats, clock=time.process_time)
    what = f"delta of one BigBiGAN walker (chunk 5), {n:,} draws"
    timing.write("monte_carlo", what, seconds, next(iter(ways)), n=n, unit="draws", clock=time.process_time)


if __name__ == "__main__":
    main()
