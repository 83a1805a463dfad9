"""The map of a generator against a critic that is trained from scratch for each question: cost and numbers.

    python -m bench.map                                                # tiny-bigbigan, a few questions of its map
    python -m bench.map --generator tiny-bigbigan --questions 0_1:shared 1_2:carried --steps 300 --seeds 0
    python -m bench.map --folder kept                                  # an interrupted run goes on from what is kept

Three ways: the map with canonical critics, the map with one network for all questions (`--critic network`), and a
network from scratch for each. All decode the images that they need, and all give a bound on pairs that they were not
made from, with the same number of candidates. The clock counts the processors' seconds. A map is charged for all of its
questions, and the result is the cost of a question in each way. Other seeds give other images, weights and pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench import timing
from mi_ml_gen.core import optimizers, runtime
from mi_ml_gen.experiments.generator_map import map_generator
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.canonical import matching_bound, matching_estimate, matching_loss
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.latents import Chunks, TruncatedNormal

N_EVAL = 1024
BATCH = 128
CRITICS: tuple[Literal["canonical", "network"], ...] = ("canonical", "network")
QUESTIONS = ("0_1:shared", "1_2:carried")


@torch.no_grad()
def pairs(generator: MultiLatentGenerator, question: str, n: int, name: str, step: int, seed: int) -> Tensor:
    """Images, and the same with the range redrawn (shared) or all else (carried): (2 n, 3, H, W)."""
    chunks, _, what = question.partition(":")
    rng = runtime.stream(seed, f"bench: {name} {question}", step, 0)
    a, b = (TruncatedNormal().sample((n, generator.noise_dim), rng) for _ in range(2))
    anchor, other = generator.latents(a), generator.moved_latents(a, b)
    redrawn = torch.zeros(generator.layout.dim, dtype=torch.bool)
    redrawn[generator.layout.slice(Chunks.of(chunks))] = True
    positive = torch.where(redrawn if what == "shared" else ~redrawn, other, anchor)
    return torch.cat([generator.decode(anchor, rng), generator.decode(positive, rng)])


def from_scratch(generator: MultiLatentGenerator, question: str, n_steps: int, seed: int) -> dict[str, Any]:
    """The bound of a narrow ResNet-18 after `n_steps` fresh batches."""
    torch.manual_seed(seed)
    critic = Critic(generator.resolution, width=8, zero_init_residual=True)
    log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
    optimizer = optimizers.Adam([*critic.parameters(), log_scale], lr=2e-3)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, 20 * (step + 1) / n_steps) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        u, v = critic(2 * pairs(generator, question, BATCH, "train", step, seed) - 1).chunk(2)
        loss = matching_loss(log_scale.exp() * (u @ v.T))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    critic.eval()
    with torch.no_grad():
        parts = [critic(2 * pairs(generator, question, BATCH, "eval", i, seed) - 1).chunk(2)
                 for i in range(N_EVAL // BATCH)]  # fmt: skip
        u, v = (torch.cat(side) for side in zip(*parts, strict=True))
        return matching_estimate(matching_bound(log_scale.exp() * (u @ v.T)), estimator="from scratch").to_json()


def mapped(
    generator: MultiLatentGenerator, name: str, critic: Literal["canonical", "network"], seed: int
) -> dict[str, Any]:
    """The estimates of a map, by question, and how many questions it answered."""
    with tempfile.TemporaryDirectory() as folder:
        settings = MapConfig(
            generator=name, save_folder=Path(folder), device="cpu", n_eval=N_EVAL, seed=seed, critic=critic
        )
        content = map_generator(settings, generator, progress=False).content
    cells = {f"{cell['chunks']}:{what}": cell[what] for cell in content["ranges"] for what in ("shared", "carried")}
    return {"cells": cells, "n_questions": sum(cell is not None for cell in cells.values())}


def timed(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, and its "seconds" of the processors; kept at `path`, and read where it is there."""
    if not path.exists():
        started = time.process_time()
        found = work()
        found["seconds"] = time.process_time() - started
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return dict(json.loads(path.read_text()))


def in_words(estimates: Sequence[dict[str, Any]]) -> str:
    """The numbers of several seeds, each with the lower end of its interval."""
    return ", ".join(f"{one['nats']:.2f} (at least {one['interval_nats'][0]:.2f})" for one in estimates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="tiny-bigbigan")
    parser.add_argument("--questions", nargs="+", default=QUESTIONS, help="those that are also done from scratch")
    parser.add_argument("--steps", nargs="+", type=int, default=[200], help="steps of the critics from scratch")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, help="where to keep what is measured (default: nowhere)")
    options = parser.parse_args()
    runtime.set_precision("fp32")
    generator = load_generator(options.generator)
    with tempfile.TemporaryDirectory() as nowhere:
        compare(generator, options, options.folder or Path(nowhere))


def compare(generator: MultiLatentGenerator, options: argparse.Namespace, folder: Path) -> None:
    """Measure in every way, print, and write the results."""
    seconds: dict[str, float] = {}
    numbers: dict[str, dict[str, list[dict[str, Any]]]] = {question: {} for question in options.questions}
    for critic in CRITICS:
        maps = [
            timed(
                folder / f"{options.generator}_{critic}_{seed}.json",
                partial(mapped, generator, options.generator, critic, seed),
            )
            for seed in options.seeds
        ]
        way = f"a map, {critic}"
        seconds[f"{way}, per question"] = statistics.fmean(one["seconds"] / one["n_questions"] for one in maps)
        for question in options.questions:
            numbers[question][way] = [one["cells"][question] for one in maps]
    for n_steps in options.steps:
        way, costs = f"a critic of {n_steps} steps for each", []
        for question in options.questions:
            found = [
                timed(
                    folder / f"{options.generator}_{question.replace(':', '_')}_{n_steps}_{seed}.json",
                    partial(from_scratch, generator, question, n_steps, seed),
                )
                for seed in options.seeds
            ]
            numbers[question][way] = found
            costs += [one["seconds"] for one in found]
        seconds[way] = statistics.fmean(costs)
    for question, ways in numbers.items():
        print(question)
        for way, estimates in ways.items():
            print(f"  {way:34s} {in_words(estimates)} nats")
    plain = f"a critic of {options.steps[0]} steps for each"
    timing.write(
        f"map_{options.generator}", f"the map of {options.generator}, seconds per question", seconds, plain,
        here="a map, network, per question", unit="question", clock=time.process_time,
    )  # fmt: skip
    kept = {
        question: {
            way: [{key: one[key] for key in ("nats", "interval_nats", "verdict", "estimator")} for one in estimates]
            for way, estimates in ways.items()
        }
        for question, ways in numbers.items()
    }
    path = timing.RESULTS / f"map_{options.generator}_nats.json"
    path.write_text(json.dumps({"seeds": options.seeds, "n_pairs": N_EVAL, "questions": kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
