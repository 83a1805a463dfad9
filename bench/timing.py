"""Side-by-side timing: the same work done in several ways, in one process, in turns, as ratios to the plain way.

The floor of a piece of work is the time that its FLOPs take at the rate at which this machine multiplies large matrices
in float32, measured in the same process, with the same threads and the same clock. Work without matrix products and
convolutions has none.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(os.environ.get("BENCH_RESULTS", Path(__file__).parent / "results"))
"""`bench.run` gathers the results of a folder of its own."""
MATRIX = 1024
"""Side of the square matrices that a machine's rate is measured with."""


def compare(
    ways: dict[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each repeat of each way; they take turns, so that a busy moment of the machine falls on all of them.

    clock: time.process_time counts the processors' seconds, all threads together, which bears a busy machine better.
    """
    for _ in range(warm_up):
        for work in ways.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            started = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    return seconds


def times_faster(plain: Sequence[float], here: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios of what was measured in the same turn."""
    ratios = sorted(one / other for one, other in zip(plain, here, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def machine(device: torch.device | str = "cpu") -> str:
    """The machine in words, for the head of a result."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{torch.get_num_threads()} threads of {model}, torch {torch.__version__}"


def gflop_of(work: Callable[[], Any]) -> float:
    """GFLOP of matrix products, convolutions and attention in one call, 2 for each multiply and add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def gflop_per_s(clock: Callable[[], float] = time.perf_counter, repeats: int = 5) -> float:
    """What this machine reaches in products of large float32 matrices, per second of the clock: the median."""
    a, b = torch.rand(2, MATRIX, MATRIX)
    seconds = statistics.median(compare({"product": lambda: a @ b}, repeats, warm_up=2, clock=clock)["product"])
    return 2 * MATRIX**3 / 1e9 / seconds


def write(
    name: str, what: str, seconds: Mapping[str, float | list[float]], plain: str, device: torch.device | str = "cpu", *,
    n: int = 1, unit: str = "calls", here: str | None = None, gflop: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:  # fmt: skip
    """Print the result and keep it in RESULTS/NAME.json.

    seconds: of each way, those of each repeat, in the same order, or of one measurement alone.
    n, unit: what is done in so many seconds, 64 "images" for example. here: the package's way, by default the last one.
    gflop: of the package's way, for the floor; None or 0 where it has none. clock: that of the seconds.
    """
    turns = {way: found if isinstance(found, list) else [found] for way, found in seconds.items()}
    ratios = {way: times_faster(turns[plain], found) for way, found in turns.items()}
    print(f"\n{what}\n  on {machine(device)}, the medians of {len(turns[plain])}")
    for way, found in turns.items():
        median, low, high = ratios[way]
        print(f"  {way:44s} {statistics.median(found):9.3f} s   {median:6.2f} x ({low:.2f} to {high:.2f})")
    RESULTS.mkdir(exist_ok=True)
    has_floor = bool(gflop) and torch.device(device).type == "cpu"
    result = {
        "what": what,
        "machine": machine(device),
        "clock": "processor" if clock is time.process_time else "wall",
        "n": n,
        "unit": unit,
        "seconds": {way: statistics.median(found) for way, found in turns.items()},
        "turns": turns,
        "times_faster_than_plain": ratios,
        "plain": plain,
        "here": here or list(seconds)[-1],
        "gflop": gflop or None,
        "gflop_per_s": gflop_per_s(clock) if has_floor else None,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
