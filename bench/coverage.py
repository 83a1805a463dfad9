"""How often an estimator's 95% interval holds the truth: `python -m bench.coverage`, or with cases of your own:

    python -m bench.coverage --estimator ksg --cases 1000,1,0.6 1000,5,0.8 --repetitions 200
    python -m bench.coverage --estimator doe --cases 500,1,0.6 --out coverage.json

A case is n, d, rho: d independent pairs of normal numbers of correlation rho, of -d/2 log(1 - rho^2) nats. Every
repetition draws new pairs and gives the estimator a seed of its own. The table is that of docs/information.md:

    truth, mean, std    the information; the estimate's mean and standard deviation over the repetitions
    error               standard error that the estimator states, as a root mean square, where it states one
    low, high           share of the repetitions whose interval begins at or below the truth, and ends at or above it
    covered             share of the repetitions whose interval holds the truth
    warned              share of the repetitions whose verdict is a warning
    covered_trusted     share of those without a warning whose interval holds the truth
    right               share of the estimates within 5% of the truth, or 0.05 nats of a truth of 0
    noise_half          standard deviation of the change from half as many pairs, over `std`
    noise_tenth         the same from a tenth
    time                processor time of an estimate in seconds

Intervals are 95%. With 200 repetitions a share of 95% is itself uncertain by 3 percentage points (95% interval).
An interrupted command goes on with what --out holds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.core.runtime import stream
from mi_ml_gen.information import estimate_information
from mi_ml_gen.information.closed_forms import normal_pairs_information
from mi_ml_gen.information.tasks import normal_pairs
from mi_ml_gen.information.verdicts import is_right

CASES = (
    (1000, 1, 0.0), (1000, 1, 0.6), (1000, 1, 0.9), (1000, 2, 0.0), (1000, 2, 0.5), (1000, 2, 0.8), (1000, 5, 0.5),
    (3000, 2, 0.6),
)  # fmt: skip
COLUMNS = ("truth", "mean", "std", "error", "low", "high", "covered", "warned", "covered_trusted", "right",
           "noise_half", "noise_tenth", "time")  # fmt: skip


def repetition(estimator: str, n: int, dim: int, rho: float, i: int) -> dict[str, Any]:
    """One estimate of new pairs, and what the table needs of it."""
    task = normal_pairs([normal_pairs_information(rho)] * dim)
    x, y = task.sample(n, stream(0, f"coverage {n} {dim} {rho}", i, 0))
    started = time.process_time()
    found = estimate_information(x, y, estimator, seed=i)
    return {
        "truth": task.nats, "nats": found.nats, "low": found.low_nats, "high": found.high_nats,
        "error": found.details.get("standard_error_nats"), "half": found.details.get("at_half_n_nats"),
        "tenth": found.details.get("at_tenth_n_nats"), "warned": found.verdict.is_warning,
        "time": time.process_time() - started,
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The line of the table for the repetitions of one case."""
    truth = rows[0]["truth"]
    nats = np.array([row["nats"] for row in rows])
    std = nats.std(ddof=1) if len(rows) > 1 else math.nan
    low = np.array([row["low"] <= truth for row in rows])
    high = np.array([row["high"] >= truth for row in rows])
    trusted = np.array([not row["warned"] for row in rows])

    def noise(name: str) -> float | None:
        given = np.array([row[name] for row in rows if row[name] is not None])
        return (nats - given).std(ddof=1) / std if len(given) == len(rows) > 1 else None

    errors = [row["error"] for row in rows if row["error"] is not None]
    return {
        "truth": truth, "mean": nats.mean(), "std": std,
        "error": math.sqrt(np.square(errors).mean()) if errors else None,
        "low": low.mean(), "high": high.mean(), "covered": (low & high).mean(), "warned": 1 - trusted.mean(),
        "covered_trusted": (low & high)[trusted].mean() if trusted.any() else None,
        "right": np.mean([is_right(value, truth) for value in nats]),
        "noise_half": noise("half"), "noise_tenth": noise("tenth"), "time": np.mean([row["time"] for row in rows]),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", default="ksg")
    parser.add_argument("--cases", nargs="+", metavar="N,D,RHO", help="default: those of docs/information.md")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="the repetitions as JSON; those that it holds are not done again")
    a = parser.parse_args(argv)
    cases = [(int(n), int(d), float(rho)) for n, d, rho in (case.split(",") for case in a.cases or ())] or CASES
    done: dict[str, list[dict[str, Any]]] = {}
    if a.out and a.out.exists():
        done = json.loads(a.out.read_text())
    print("| estimator | n | d | rho | repetitions |", " | ".join(COLUMNS), "|")
    for n, dim, rho in cases:
        rows = done.setdefault(f"{a.estimator} {n} {dim} {rho}", [])
        for i in range(len(rows), a.repetitions):
            rows.append(repetition(a.estimator, n, dim, rho, i))
            if a.out and (i % 10 == 9 or i == a.repetitions - 1):
                atomic_write(a.out, json.dumps(done).encode())
        line = summary(rows[: a.repetitions])
        shown = " | ".join("–" if line[key] is None else f"{line[key]:.3f}" for key in COLUMNS)
        print(f"| {a.estimator} | {n} | {dim} | {rho} | {len(rows)} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
