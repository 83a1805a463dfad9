"""Our estimators beside those of the package `benchmark-mi`, on its 40 tasks and the same 10,000 pairs each.

    pip install benchmark-mi "equinox>=0.11.8"                        # in an environment of its own
    python bench/bmi_tasks.py theirs --out bmi                       # there: draws pairs, runs its KSG (k = 10) and CCA
    python -m bench.bmi_tasks ours --out bmi --estimators doe ksg     # here: the same pairs
    python -m bench.bmi_tasks table --out bmi

`ours` also checks that the true values of `bmi_tasks` are those of the package. An interrupted command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

N_PAIRS = 10_000


def kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def theirs(out: Path) -> None:
    """Pairs as TASK.npz, true values and estimates as theirs.json."""
    import bmi
    from bmi.benchmark import BENCHMARK_TASKS

    out.mkdir(parents=True, exist_ok=True)
    found = kept(out / "theirs.json")
    for name, task in BENCHMARK_TASKS.items():
        if name in found:
            continue
        x, y = (np.asarray(side) for side in task.sample(N_PAIRS, seed=0))
        np.savez(out / f"{name}.npz", x=x, y=y)
        found[name] = {
            "truth": float(task.mutual_information),
            "bmi KSG": float(bmi.estimators.KSGEnsembleFirstEstimator(neighborhoods=(10,)).estimate(x, y)),
            "bmi CCA": float(bmi.estimators.CCAMutualInformationEstimator().estimate(x, y)),
        }
        (out / "theirs.json").write_text(json.dumps(found, indent=1))
        print(name, found[name], flush=True)


def ours(out: Path, estimators: list[str]) -> None:
    """Estimates with their verdicts as ours.json."""
    from mi_ml_gen.information import estimate_information
    from mi_ml_gen.information.tasks import bmi_tasks

    truths = {name: row["truth"] for name, row in kept(out / "theirs.json").items()}
    for task in bmi_tasks():
        assert abs(task.nats - truths[task.name]) < 1e-5, (task.name, task.nats, truths[task.name])
    found = kept(out / "ours.json")
    for name in truths:
        pairs = np.load(out / f"{name}.npz")
        for estimator in estimators:
            if f"{name} {estimator}" in found:
                continue
            started = time.process_time()
            estimate = estimate_information(pairs["x"], pairs["y"], estimator)
            found[f"{name} {estimator}"] = estimate.to_json() | {"cpu_s": time.process_time() - started}
            (out / "ours.json").write_text(json.dumps(found, indent=1))
            print(f"{name} (true {truths[name]:.2f}), {estimator}: {estimate}", flush=True)


def table(out: Path) -> None:
    """A row for each task, and the mean absolute errors."""
    rows, mine = kept(out / "theirs.json"), kept(out / "ours.json")
    names = [name for name in next(iter(rows.values())) if name != "truth"]
    estimators = sorted({key.split()[-1] for key in mine})
    print("| task | truth |", " | ".join(names + [f"`{name}`" for name in estimators]), "|")
    print("| --- |", " | ".join(["---:"] * (1 + len(names) + len(estimators))), "|")
    errors: dict[str, list[float]] = {name: [] for name in names + estimators}
    for task, row in rows.items():
        cells = [f"{row[name]:.2f}" for name in names]
        for name in names:
            errors[name].append(abs(row[name] - row["truth"]))
        for name in estimators:
            if (one := mine.get(f"{task} {name}")) is None:
                cells.append("–")
                continue
            errors[name].append(abs(one["nats"] - row["truth"]))
            cells.append(f"{one['nats']:.2f}" + ("" if one["verdict"] == "consistent" else " (warned)"))
        print(f"| {task} | {row['truth']:.2f} |", " | ".join(cells), "|")
    means = [f"{np.mean(values):.3f}" for values in errors.values()]
    print("| mean absolute error | |", " | ".join(means), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("theirs", "ours", "table"))
    parser.add_argument("--out", type=Path, default=Path("bmi"))
    parser.add_argument("--estimators", nargs="+", default=["doe", "ksg"])
    a = parser.parse_args()
    if a.what == "ours":
        ours(a.out, a.estimators)
    else:
        {"theirs": theirs, "table": table}[a.what](a.out)


if __name__ == "__main__":
    main()
