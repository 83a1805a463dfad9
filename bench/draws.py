"""What it costs to draw on the host: the numbers of a step, which are the same on every device (core/runtime.py).

    python -m bench.draws

On a GPU the host draws while the device works on what it was given before, so these times are lost only where they are
longer than the step. Writes bench/results/draws_cpu.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import timing
from mi_ml_gen.core import runtime
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.views.augment import Augment

NVAE_CIFAR10 = 30 * 20 * 16 * 16
"""Numbers of noise of an image in the published CIFAR-10 network: 30 groups of 20 channels at 16 px."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.batch
    augment, layers = Augment("simclr", 128), StyleGAN2Config().resolutions

    def with_stream(draw: Callable[[torch.Generator], Any]) -> Callable[[], Any]:
        return lambda: draw(runtime.stream(0, "bench", 0, 0))

    ways = {
        "a stream": with_stream(lambda rng: None),
        f"z of BigBiGAN, {n} x 120": with_stream(lambda rng: TruncatedNormal().sample((n, 120), rng)),
        f"z of StyleGAN2, {n} x 512": with_stream(lambda rng: TruncatedNormal().sample((n, 512), rng)),
        f"parameters of T_x, {n} images": with_stream(lambda rng: augment.draw(n, rng, "cpu")),
        f"noise of a published NVAE, {n} x {NVAE_CIFAR10:,}": with_stream(
            lambda rng: runtime.normal((n, NVAE_CIFAR10), rng)
        ),
        f"random noise maps of StyleGAN2-512, {n} images": with_stream(
            lambda rng: [
                runtime.normal((n, 1, side, side), rng) for side in layers for _ in range(2 if side > 4 else 1)
            ]
        ),
    }
    seconds = timing.compare(ways, options.repeats, clock=time.process_time)
    timing.write("draws_cpu", f"draws of a step on the host, batch {n}, one thread", seconds, "a stream")


if __name__ == "__main__":
    main()
