"""Navigator pairs per second, beside a competing load: torch's default threads against core/threads.py's choice.

    python bench/threads.py                           no load, and as many busy processes as this machine has processors
    python bench/threads.py --busy 0 6 --seconds 10   six busy processes, as on a crowded machine

Each measurement is a process of its own that trains the walker of tiny-bigbigan's chunk 0 for a fixed time. "default"
is what torch does by itself: a thread for each processor, which spins while it waits. "chosen" is what the scripts set:
as many threads as the process may use, which wait asleep. "one" is a single thread. The ways take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mi_ml_gen.core import threads

ROOT = Path(__file__).parents[1]
WAYS = ("default", "chosen", "one")

STEPS = """
import sys, time, torch
from mi_ml_gen.core import optimizers
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.infonce import infonce_loss
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.walkers.learned import NonlinearWalker

batch, seconds = 64, float(sys.argv[1])
generator = load_generator("tiny-bigbigan")
walker = NonlinearWalker.on(generator, generator.chunks("0_1"))
critic = Critic(generator.resolution, width=24)
optimizer = optimizers.Adam([*walker.parameters(), *critic.parameters()], lr=1e-4)

def step():
    z = TruncatedNormal().sample((batch, generator.noise_dim))
    pair = walker(generator, z)
    images = torch.cat([generator.decode(pair.anchor), generator.decode(pair.positive)])
    loss = infonce_loss(torch.stack(critic(images).chunk(2), dim=1), 0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

step()
started, n = time.perf_counter(), 0
while time.perf_counter() - started < seconds:
    step()
    n += batch
print(n / (time.perf_counter() - started))
"""


def environment(way: str) -> dict[str, str]:
    """The variables of a process that runs the steps; what the caller had set for threads is left out."""
    found = {name: text for name, text in os.environ.items() if name not in (*threads.NUMBERS, *threads.WAITING)}
    found.pop(threads.CHOICE, None)
    found["PYTHONPATH"] = str(ROOT)
    if way == "chosen":
        threads.prepare(found)
    elif way == "one":
        found["OMP_NUM_THREADS"] = "1"
    return found


def pairs_per_second(way: str, seconds: float) -> float:
    command = [sys.executable, "-c", STEPS, str(seconds)]
    done = subprocess.run(command, env=environment(way), capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, threads.available()], help="competing processes")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way, of which the median is shown")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "threads.json")
    arguments = parser.parse_args()
    rows = []
    print(f"{'busy processes':>14}  " + "  ".join(f"{way:>8}" for way in WAYS) + "  pairs per second")
    for n_busy in arguments.busy:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            time.sleep(0.5)
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(arguments.repeats):
                for way in WAYS:
                    found[way].append(pairs_per_second(way, arguments.seconds))
        finally:
            for process in busy:
                process.kill()
        medians = {way: statistics.median(values) for way, values in found.items()}
        print(f"{n_busy:>14}  " + "  ".join(f"{medians[way]:8.1f}" for way in WAYS), flush=True)
        rows.append({"busy_processes": n_busy, "processors": threads.available(), **medians})
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
