"""How often KSG's 95% interval holds the truth: `python -m bench.ksg_coverage`, or with cases of your own:

    python -m bench.ksg_coverage --cases 1000,1,0.6 1000,5,0.8 --k 5 --repetitions 200

A case is n, d, rho: d independent pairs of normal numbers of correlation rho, of -d/2 log(1 - rho^2) nats. The table is
that of docs/ksg.md:

    truth, mean, std    the information; the estimate's mean and standard deviation over the repetitions
    claimed, error      standard error by the points' own terms, and by the interval, as root mean squares
    sampling, covered   share of the repetitions whose interval holds the truth, without and with its part for bias
    bias                the mean of that part
    warned              share of the repetitions whose verdict is a warning
    right               share of the estimates within 5% of the truth
    noise               standard deviation of the change from a tenth and from half of the pairs, over `std`
    time                what the interval adds, in times of the estimate alone
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

from mi_ml_gen.core.runtime import stream
from mi_ml_gen.information.closed_forms import normal_pairs_information
from mi_ml_gen.information.ksg import ksg_mutual_information
from mi_ml_gen.information.ksg_intervals import ksg_estimate, ksg_with_interval
from mi_ml_gen.information.tasks import normal_pairs
from mi_ml_gen.information.verdicts import is_right

CASES = (
    (500, 1, 0.5), (1000, 1, 0.0), (1000, 1, 0.6), (1000, 1, 0.9), (1000, 2, 0.5), (1000, 2, 0.8), (1000, 3, 0.3),
    (1000, 5, 0.8), (3000, 2, 0.6), (10_000, 1, 0.9),
)  # fmt: skip


def measure(n: int, dim: int, rho: float, k: int, repetitions: int) -> dict[str, Any]:
    each = normal_pairs_information(rho)
    task = normal_pairs([each] * dim)
    rows, alone_s, whole_s = [], 0.0, 0.0
    for i in range(repetitions):
        x, y = task.sample(n, stream(0, f"coverage {n} {dim} {rho}", i, 0))
        started = time.process_time()
        ksg_mutual_information(x, y, k, n_jobs=1)
        alone_s += time.process_time() - started
        started = time.process_time()
        found = ksg_with_interval(x, y, k, n_jobs=1, seed=i)
        whole_s += time.process_time() - started
        interval = found.interval
        assert interval is not None
        reach = min(found.nats - interval.low_nats, interval.high_nats - found.nats)  # of the side without bias
        rows.append(
            (
                found.nats, found.standard_error_nats, interval.standard_error_nats,
                abs(found.nats - task.nats) <= reach,
                interval.low_nats <= task.nats <= interval.high_nats,
                found.nats - interval.at_part.nats, found.nats - interval.at_half.nats, interval.bias_nats,
                ksg_estimate(found).verdict.is_warning, is_right(found.nats, task.nats),
            )
        )  # fmt: skip
    nats, claimed, error, sampling, covered, tenth, half, bias, warned, right = np.array(rows, dtype=float).T
    return {
        "n": n, "d": dim, "rho": rho, "k": k, "repetitions": repetitions, "truth": task.nats,
        "mean": nats.mean(), "std": nats.std(ddof=1), "claimed": math.sqrt((claimed**2).mean()),
        "error": math.sqrt((error**2).mean()), "sampling": sampling.mean(), "covered": covered.mean(),
        "bias": bias.mean(), "warned": warned.mean(), "right": right.mean(),
        "noise_tenth": tenth.std(ddof=1) / nats.std(ddof=1), "noise_half": half.std(ddof=1) / nats.std(ddof=1),
        "time": (whole_s - alone_s) / alone_s,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="N,D,RHO", help="default: those of docs/ksg.md")
    parser.add_argument("--k", type=int, nargs="+", default=[5])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    arguments = parser.parse_args(argv)
    cases = [(int(n), int(d), float(rho)) for n, d, rho in (case.split(",") for case in arguments.cases or ())]
    rows = []
    names = (
        "truth", "mean", "std", "claimed", "error", "sampling", "covered", "bias", "warned", "right", "noise_tenth",
        "noise_half", "time",
    )  # fmt: skip
    print("| n | d | rho | k |", " | ".join(names), "|")
    for case in cases or CASES:
        for k in arguments.k:
            row = measure(*case, k, arguments.repetitions)
            rows.append(row)
            shown = " | ".join(f"{row[key]:.3f}" for key in names)
            print(f"| {row['n']} | {row['d']} | {row['rho']} | {k} | {shown} |", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
