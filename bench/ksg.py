"""KSG-1 at n = 10,000: a Python call per point, as it is published, against whole arrays at once.

    python -m bench.ksg [--n 10000] [--repeats 3]
    python -m bench.ksg --methods 3 5 10 --n 10000          trees against all pairs

The plain way of 20 + 20 dimensions is timed on a part of its points, once per repeat, and scaled: each costs
the same.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma

from bench import timing
from mi_ml_gen.information.ksg import faster_method, ksg_mutual_information


def loop_terms(x: np.ndarray, y: np.ndarray, points: range, k: int = 5) -> list[float]:
    """The terms of some points, each found by itself: a slow twin of `ksg_mutual_information` with scale="none"."""
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


def correlated(n: int, dim: int, rho: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, dim))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((n, dim))


def against_a_call_per_point(n: int, repeats: int, device: str) -> None:
    """The published way counts in the units given, so both do here."""
    for dim, share in ((2, 1), (20, 10)):
        x, y = correlated(n, dim)
        tensors = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        part = range(0, n, share)
        estimate, apart = ksg_mutual_information(*tensors, scale="none").nats, ""
        if share == 1:  # of a part of the points the mean is another
            apart = f", apart by {abs(estimate - float(np.mean(loop_terms(x, y, part)))):.0e}"
        work: dict[str, Callable[[], object]] = {
            "a call per point": lambda x=x, y=y, part=part: loop_terms(x, y, part),  # type: ignore[misc]
            "ksg_mutual_information": lambda tensors=tensors: ksg_mutual_information(*tensors, scale="none"),  # type: ignore[misc]
            "the same, of ranks": lambda tensors=tensors: ksg_mutual_information(*tensors),  # type: ignore[misc]
        }
        seconds = timing.compare(work, repeats, clock=time.process_time)
        seconds["a call per point"] = [one * share for one in seconds["a call per point"]]
        what = f"KSG-1, n = {n:,}, {dim} + {dim} dimensions ({estimate:.4f} nats{apart})"
        timing.write(
            f"ksg_{dim}_{device}", what, seconds, "a call per point", device, n=n, unit="points",
            here="ksg_mutual_information", clock=time.process_time,
        )  # fmt: skip


def between_methods(n: int, dims: list[int], repeats: int) -> None:
    """Processor seconds of trees and of all pairs on one thread, for independent and for dependent sides."""
    torch.set_num_threads(1)
    print(f"\nKSG-1, n = {n:,}, processor seconds on {timing.machine()}")
    print("| d + d | trees, 0 | all pairs, 0 | trees, 0.8 | all pairs, 0.8 | chosen |")
    print("| ---: | ---: | ---: | ---: | ---: | --- |")
    for dim in dims:
        cells: list[str] = []
        for rho in (0.0, 0.8):
            x, y = correlated(n, dim, rho)
            work: dict[str, Callable[[], object]] = {
                method: lambda x=x, y=y, method=method: ksg_mutual_information(x, y, method=method, n_jobs=1)  # type: ignore[misc]
                for method in ("trees", "brute")
            }
            seconds = timing.compare(work, repeats, warm_up=0, clock=time.process_time)
            cells += [f"{statistics.median(seconds[method]):.2f}" for method in work]
        print(f"| {dim} + {dim} | {' | '.join(cells)} | {faster_method(n, dim, dim)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--device", default="cpu", help="device of the arrays; on a GPU the estimate looks at all pairs"
    )
    parser.add_argument(
        "--methods", type=int, nargs="+", metavar="D", help="compare trees with all pairs in D + D dimensions instead"
    )
    options = parser.parse_args()
    if options.methods:
        between_methods(options.n, options.methods, options.repeats)
    else:
        against_a_call_per_point(options.n, options.repeats, options.device)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s in all")
