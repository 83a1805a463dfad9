"""KSG-1 at n = 10,000: a Python call per point, as it is published, against whole arrays at once.

    python -m bench.ksg [--n 10000] [--repeats 3]

The plain way of 20 + 20 dimensions is timed on a part of its points, once per repeat, and scaled: each costs
the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma

from bench import timing
from mi_ml_gen.information.ksg import ksg_mutual_information


def loop_terms(x: np.ndarray, y: np.ndarray, points: range, k: int = 5) -> list[float]:
    """The terms of some points, each found by itself: the slow twin of `ksg_mutual_information`."""
    joint = np.concatenate([x, y], axis=1)
    trees = cKDTree(joint), cKDTree(x), cKDTree(y)
    terms = []
    for i in points:
        radius = trees[0].query(joint[i], k + 1, p=np.inf)[0][k]
        near = [
            len(tree.query_ball_point(side[i], np.nextafter(radius, 0), p=np.inf))
            for tree, side in zip(trees[1:], (x, y), strict=True)
        ]
        terms.append(digamma(k) + digamma(len(x)) - digamma(near[0]) - digamma(near[1]))
    return terms


def correlated(n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, dim))
    return x, 0.8 * x + 0.6 * rng.standard_normal((n, dim))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the arrays: all pairs are looked at on a GPU")
    options = parser.parse_args()
    for dim, share in ((2, 1), (20, 10)):
        x, y = correlated(options.n, dim)
        tensors = torch.from_numpy(x).to(options.device), torch.from_numpy(y).to(options.device)
        part = range(0, options.n, share)
        estimate, apart = ksg_mutual_information(*tensors).nats, ""
        if share == 1:  # of a part of the points the mean is another
            apart = f", apart by {abs(estimate - float(np.mean(loop_terms(x, y, part)))):.0e}"
        work: dict[str, Callable[[], object]] = {
            "a call per point": lambda x=x, y=y, part=part: loop_terms(x, y, part),  # type: ignore[misc]
            "ksg_mutual_information": lambda tensors=tensors: ksg_mutual_information(*tensors),  # type: ignore[misc]
        }
        seconds = timing.compare(work, options.repeats)
        seconds["a call per point"] *= share
        what = f"KSG-1, n = {options.n:,}, {dim} + {dim} dimensions ({estimate:.4f} nats{apart})"
        timing.write(f"ksg_{dim}_{options.device}", what, seconds, "a call per point", options.device)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s in all")
