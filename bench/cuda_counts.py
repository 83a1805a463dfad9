"""What a training step asks of a CUDA device, counted without one: the table of docs/speed.md.

python -m bench.cuda_counts                      every workload, and bench/results/cuda_counts.json
python -m bench.cuda_counts --only bf16          those whose names hold the text; nothing is written
python -m bench.cuda_counts --operators 20       with the operators that move most
"""

from __future__ import annotations

import argparse
import itertools
import json

import torch

from bench import timing, workloads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--operators", type=int, default=0, metavar="N")
    options = parser.parse_args()
    print(f"per step at batch 64, counted on fake tensors, torch {torch.__version__}\n")
    print("| work | launches | GB | peak GiB | GFLOP | host waits |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    found = {}
    for work, precision in itertools.product(workloads.PUBLISHED, workloads.PRECISIONS):
        name = f"{work}, {precision}"
        if options.only not in name:
            continue
        counts = workloads.count(work, precision)
        row = found[name] = counts.as_dict()
        print(
            f"| {name} | {row['launches']:,} | {row['traffic_gb']:.1f} | {row['peak_gib']:.2f} | {row['gflop']:,.0f} "
            f"| {row['waits']} |",
            flush=True,
        )
        for operator, n_bytes in counts.traffic_by_operator.most_common(options.operators):
            print(f"    {operator:44s} {counts.by_operator[operator]:6d} launches {n_bytes / 1e9:9.2f} GB")
        for what, n in (counts.waits + counts.float64).items():
            print(f"    {what}: {n}")
    if not options.only:
        text = json.dumps({"torch": torch.__version__, "batch": 64, "per_step": found}, indent=2)
        (timing.RESULTS / "cuda_counts.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
