"""Side-by-side timing: the same work done in several ways, in one process, in turns, as ratios to the plain way."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def compare(
    ways: dict[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a busy moment of the machine falls on all of them.

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
    return {name: statistics.median(times) for name, times in seconds.items()}


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


def write(name: str, what: str, seconds: dict[str, float], plain: str, device: torch.device | str = "cpu") -> None:
    """Print the result and keep it in bench/results/NAME.json."""
    ratios = {way: seconds[plain] / value for way, value in seconds.items()}
    print(f"\n{what}\n  on {machine(device)}")
    for way, value in seconds.items():
        print(f"  {way:44s} {value:9.3f} s   {ratios[way]:6.2f} x")
    RESULTS.mkdir(exist_ok=True)
    result = {
        "what": what,
        "machine": machine(device),
        "seconds": seconds,
        "times_faster_than_plain": ratios,
        "plain": plain,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
