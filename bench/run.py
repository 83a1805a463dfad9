"""All timings that a laptop can make, one after the other: what `make bench` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHES = (
    ["bench.sampling"],
    ["bench.draws"],
    ["bench.monte_carlo"],
    ["bench.navigator", "--batch", "4", "--chunks", "1_6"],
    ["bench.navigator", "--batch", "4", "--chunks", "5_6"],
    ["bench.stylegan2", "--batch", "8"],
    ["bench.nvae"],
    ["bench.nvae", "--training"],
    ["bench.augment"],
    ["bench.ksg"],
    ["bench.mim"],
    ["bench.mim_images"],
)

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    for bench in BENCHES:
        subprocess.run([sys.executable, "-m", *bench], cwd=root, check=True)
