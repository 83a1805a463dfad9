"""Everything that only a GPU can tell, in one command of under ten minutes: `make bench-gpu`, or `bench/gpu.sh`.

    bench/gpu.sh                       all of it
    bench/gpu.sh --minutes 3           less of it: what time is left for is measured, and the rest is named
    bench/gpu.sh --device cuda:1       another card
    bench/gpu.sh --ways bf16 "bf16, CUDA graphs"      these ways alone, into the table of an earlier run on such a card

First the tests that need a GPU (tests/cuda). Then the steps of the real training loops at their published sizes and
batch 64, each in several ways: plain (float32, the generator as its authors compute it, see `plain`, and torch's own
operators alone), float32, tf32, bf16, and bf16 with CUDA graphs or torch.compile. A time is the median of single steps
between CUDA events, after a warm-up. Beside it stands the time that the step's FLOPs would take at 400 TFLOP/s, from
the counts of `bench.cuda_counts`.
Writes bench/results/gpu.json and bench/results/gpu.md.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench import navigator, stylegan2, timing, workloads
from mi_ml_gen.core import cli, kernels, runtime
from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.generators.base import MultiLatentGenerator

WARM_UP, MEASURED = 20, 50
"""Steps of a run that are not measured, and those that are."""
TFLOP_PER_S = 400
"""Well-sustained bf16 on an H100."""
TEST_LIMIT_S = 240
RESULT = timing.RESULTS / "gpu"

WAYS: dict[str, dict[str, Any]] = {
    "plain": dict(precision="fp32"),
    "fp32": dict(precision="fp32"),
    "tf32": dict(precision="tf32"),
    "bf16": dict(precision="bf16"),
    "bf16, CUDA graphs": dict(precision="bf16", cuda_graphs=True),
    "bf16, compiled": dict(precision="bf16", compile=True),
}
PLAN = ("bf16", "bf16, CUDA graphs", "plain", "tf32", "fp32", "bf16, compiled")
"""The order in which they are measured: what matters most comes first, what takes longest last."""
LONGEST_S = 6.0
"""Of the measured steps of one way, and twice as long as the warm-up may be; MEASURED // 5 are measured at least."""


def plain(name: str, device: torch.device) -> MultiLatentGenerator:
    """BigBiGAN with spectral norms and doubled maps in each call; StyleGAN2 with a kernel per sample."""
    if name == "bigbigan":
        return navigator.build(device, plain=True)
    with device:
        return stylegan2.with_grouped_kernels(workloads.GENERATORS[name]().freeze())  # type: ignore[arg-type, return-value]


def lean(name: str, device: torch.device) -> MultiLatentGenerator:
    """As `load_generator` gives it."""
    with device:
        return workloads.GENERATORS[name]().freeze().to(memory_format=torch.channels_last)


def time_steps(work: str, way: str, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step, and the most memory that was in use."""
    name, train = workloads.PUBLISHED[work]
    torch.manual_seed(0)
    gc.collect()  # what earlier runs have left in cycles
    torch.cuda.empty_cache()
    generator = (plain if way == "plain" else lean)(name, device)
    torch.cuda.reset_peak_memory_stats(device)
    events: list[torch.cuda.Event] = []
    began_s = [0.0, 0.0]  # the warm-up, and the measured steps

    def after(step: int) -> None:
        now_s = time.monotonic()
        if step == 1:
            began_s[0] = now_s
        if step < 3 or (step < WARM_UP and now_s - began_s[0] < LONGEST_S / 2):
            return
        if not events:
            began_s[1] = now_s
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        if len(events) > (MEASURED if now_s - began_s[1] < LONGEST_S else MEASURED // 5):
            raise workloads.Enough

    is_plain = mock.patch.object(kernels, "usable", lambda *_, **__: False) if way == "plain" else nullcontext()
    with is_plain:
        workloads.run_steps(
            lambda path: train(path, generator, device=str(device), **WAYS[way]), WARM_UP + MEASURED, after
        )
    torch.cuda.synchronize(device)
    ms = [first.elapsed_time(second) for first, second in itertools.pairwise(events)]
    quarters = statistics.quantiles(ms, n=4)
    return {
        "ms": statistics.median(ms),
        "quartiles_ms": [quarters[0], quarters[2]],
        "steps": len(ms),
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30,
    }


def measured(
    device: torch.device,
    ends_at_s: float,
    time_one: Callable[..., dict[str, Any]] = time_steps,
    ways: Collection[str] = PLAN,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each work in each way, the slow compiled ones last; what there is no time or memory for says so."""
    plan = [(work, way) for way in PLAN if way in ways for work in workloads.PUBLISHED]
    for work, way in plan:
        if time.monotonic() > ends_at_s:
            yield work, way, {"not_measured": "the time was up"}
            continue
        try:
            yield work, way, time_one(work, way, device)
        except torch.OutOfMemoryError:
            yield work, way, {"not_measured": "out of memory"}
        except Exception as error:  # what fails must not cost the figures of the others; main ends with it
            traceback.print_exc()
            yield work, way, {"not_measured": f"failed: {error or type(error).__name__}"}


def run_tests() -> dict[str, Any]:
    """The tests of tests/cuda, in a process of their own."""
    side_by_side = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *side_by_side, "tests/cuda"]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, cwd=root, text=True, stdout=subprocess.PIPE, timeout=TEST_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"passed": False, "says": f"not done after {TEST_LIMIT_S} s"}
    if done.returncode:
        print(done.stdout)
    return {"passed": done.returncode == 0, "says": done.stdout.strip().rpartition("\n")[2].strip("= ")}


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    rows = [row for ways in result["steps"].values() for row in ways.values() if "ms" in row]
    at = sorted({f"{row['date']}, commit {row['commit']}" for row in rows})
    lines = [
        f"# Training steps at batch 64 on {result['machine']}", "",
        f"Measured: {'; '.join(at)}. Tests on this GPU: {result['tests']['says']}.", "",
        f"Each time is the median of {MEASURED} steps after {WARM_UP} (fewer where they take over {LONGEST_S:.0f} s), "
        "with its quartiles, and the most memory in use, the steps before them included. "
        f"`floor` is the time of the counted FLOPs at {TFLOP_PER_S} TFLOP/s, as a share of the measured time.", "",
        "| work | way | ms | quartiles | times faster than plain | floor | peak GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for work, ways in result["steps"].items():
        for way, row in sorted(ways.items(), key=lambda item: list(WAYS).index(item[0])):
            if "ms" not in row:
                lines.append(f"| {work} | {way} | {row['not_measured']} | | | | |")
                continue
            ratio = f"{ways['plain']['ms'] / row['ms']:.2f}" if "ms" in ways.get("plain", {}) else ""
            floor = f"{row['floor_ms'] / row['ms']:.2f}" if "floor_ms" in row else ""
            low, high = row["quartiles_ms"]
            lines.append(
                f"| {work} | {way} | {row['ms']:.1f} | {low:.1f} to {high:.1f} | {ratio} | {floor} | "
                f"{row['peak_gib']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def floors() -> dict[str, float]:
    """Milliseconds of each work's counted FLOPs at TFLOP_PER_S; nothing where they were not counted."""
    path = timing.RESULTS / "cuda_counts.json"
    counted = json.loads(path.read_text())["per_step"] if path.exists() else {}
    return {work: counted[f"{work}, bf16"]["gflop"] / TFLOP_PER_S for work in workloads.PUBLISHED
            if f"{work}, bf16" in counted}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:N")
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop measuring")
    parser.add_argument("--ways", nargs="+", choices=PLAN, default=PLAN, help="ways to measure (default: all)")
    parser.add_argument("--no_tests", action="store_true", help="leave the tests out")
    options = parser.parse_args(argv)
    ends_at_s = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available() or not options.device.startswith("cuda"):
        raise EnvironmentFault(f"--device {options.device}: no CUDA GPU to measure; on the CPU there is `make bench`")
    device = runtime.resolve_device(options.device)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], text=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = {
        "machine": timing.machine(device),
        "date": time.strftime("%Y-%m-%d"),
        "commit": git.stdout.strip() or "unknown",
        "warm_up_steps": WARM_UP,
        "measured_steps": MEASURED,
        "tests": {"passed": None, "says": "left out"} if options.no_tests else run_tests(),
        "steps": {work: {} for work in workloads.PUBLISHED},
    }
    floor_ms = floors()
    earlier = json.loads(RESULT.with_suffix(".json").read_text()) if RESULT.with_suffix(".json").exists() else {}
    if len(options.ways) < len(PLAN) and earlier.get("machine") == result["machine"]:
        result["steps"] = earlier["steps"]
        result["tests"] = earlier["tests"] if options.no_tests else result["tests"]
    for work, way, row in measured(device, ends_at_s, ways=options.ways):
        row |= {"date": result["date"], "commit": result["commit"]}
        if "ms" in row and work in floor_ms:
            row["floor_ms"] = floor_ms[work]
        if "ms" in row or way not in result["steps"][work]:
            result["steps"][work][way] = row
        print(f"{work}, {way}: {row}", flush=True)
        atomic_write(RESULT.with_suffix(".json"), (json.dumps(result, indent=2) + "\n").encode())
        atomic_write(RESULT.with_suffix(".md"), markdown(result).encode())
    print(markdown(result))
    failed = [f"{work}, {way}" for work, ways in result["steps"].items() for way, row in ways.items()
              if row.get("not_measured", "").startswith("failed")]  # fmt: skip
    if failed:
        raise EnvironmentFault(f"not measured, because of errors (above): {'; '.join(failed)}")
    if result["tests"]["passed"] is False:
        raise EnvironmentFault(f"the tests on this GPU: {result['tests']['says']}")


if __name__ == "__main__":
    cli.run(main)
