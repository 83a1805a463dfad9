"""The map of a generator against a critic that is trained from scratch for each range: cost and numbers.

    python -m bench.map                                     # tiny-bigbigan, a few of its ranges
    python -m bench.map --generator tiny-bigbigan --ranges 0_1 1_2 --steps 300

Both decode the images that they need, and both give a bound on pairs that they were not made from, with the same number
of candidates. The clock counts the processors' seconds. The map is charged for all of its ranges, and the result is
the cost of a range in each way.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import timing
from mi_ml_gen.core import optimizers, runtime
from mi_ml_gen.experiments.generator_map import map_generator
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.canonical import matching_bound, matching_loss
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.latents import Chunks, TruncatedNormal

N_EVAL = 1024
BATCH = 128


@torch.no_grad()
def pairs(generator: MultiLatentGenerator, chunks: Chunks, n: int, name: str, step: int) -> Tensor:
    """Images and the same with the range redrawn: (2 n, 3, H, W)."""
    rng = runtime.stream(0, f"bench: {name} {chunks}", step, 0)
    a, b = (TruncatedNormal().sample((n, generator.noise_dim), rng) for _ in range(2))
    anchor, positive = generator.latents(a), generator.latents(a)
    at = generator.layout.slice(chunks)
    positive = torch.cat([positive[:, : at.start], generator.moved_latents(a, b)[:, at], positive[:, at.stop :]], 1)
    return torch.cat([generator.decode(anchor, rng), generator.decode(positive, rng)])


def from_scratch(generator: MultiLatentGenerator, chunks: Chunks, n_steps: int) -> tuple[float, float]:
    """The bound in nats of a narrow ResNet-18 after `n_steps` fresh batches, and its standard error."""
    torch.manual_seed(0)
    critic = Critic(generator.resolution, width=8, zero_init_residual=True)
    log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
    optimizer = optimizers.Adam([*critic.parameters(), log_scale], lr=2e-3)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, 20 * (step + 1) / n_steps) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        u, v = critic(2 * pairs(generator, chunks, BATCH, "train", step) - 1).chunk(2)
        loss = matching_loss(log_scale.exp() * (u @ v.T))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    critic.eval()
    with torch.no_grad():
        parts = [critic(2 * pairs(generator, chunks, BATCH, "eval", i) - 1).chunk(2) for i in range(N_EVAL // BATCH)]
        u, v = (torch.cat(side) for side in zip(*parts, strict=True))
        found = matching_bound(log_scale.exp() * (u @ v.T))
    return found.nats, found.standard_error_nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="tiny-bigbigan")
    parser.add_argument("--ranges", nargs="+", default=["0_1", "1_2"], help="those that are also done from scratch")
    parser.add_argument("--steps", type=int, default=200, help="steps of each critic from scratch")
    options = parser.parse_args()
    generator = load_generator(options.generator)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = MapConfig(generator=options.generator, save_folder=Path(folder), device="cpu", n_eval=N_EVAL)
        started = time.process_time()
        content = map_generator(settings, generator, progress=False).content
        n_questions = sum(cell[name] is not None for cell in content["ranges"] for name in ("shared", "carried"))
        seconds["the map, per question"] = (time.process_time() - started) / n_questions
    started = time.process_time()
    scratch = {text: from_scratch(generator, Chunks.of(text), options.steps) for text in options.ranges}
    seconds[f"a critic of {options.steps} steps for each"] = (time.process_time() - started) / len(scratch)
    plain = next(name for name in seconds if name.startswith("a critic"))
    for cell in content["ranges"]:
        if cell["chunks"] in scratch:
            nats, error = scratch[cell["chunks"]]
            found = cell["shared"]
            print(f"{cell['chunks']}: map {found['nats']:.2f} (at least {found['interval_nats'][0]:.2f}), "
                  f"from scratch {nats:.2f} +- {error:.2f} nats")  # fmt: skip
    timing.write(f"map_{options.generator}", f"the map of {options.generator}, seconds per question", seconds, plain)


if __name__ == "__main__":
    main()
