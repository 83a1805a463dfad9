"""Is a row of Table 1 a measurement? Disjoint sets of seeds, run by different numbers of threads, are compared.

    python -m bench.agreement --generator linear-gaussian --chunks 0_1 1_2 --sets 8
    python -m bench.agreement --generator tiny-bigbigan --chunks 3_4 --sets 2 --train num_samples=6144

A set is one run of several walkers with a seed of its own; sets take turns in their numbers of threads. Sets are
compared in disjoint pairs, and a cell is one quantity of one pair on one range of chunks: delta, and the information
that remains by a fresh critic. It agrees where the two means differ by no more than their two 95% intervals over
walkers allow together. Runs stay in --out, so the same command goes on with an interrupted comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core import config
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.experiments import table1
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.image_critic import CriticSettings
from mi_ml_gen.navigator import folders
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.several import train_several
from mi_ml_gen.navigator.spread import WalkerMean

CRITIC = CriticSettings(width=16, max_steps=120, eval_pairs=1024, heldout_pairs=256)


def measure(
    generator: MultiLatentGenerator,
    settings: NavigatorConfig,
    path: Path,
    n_draws: int,
    critic: CriticSettings = CRITIC,
) -> dict[str, Any]:
    """One set: delta and remaining information over its walkers, with intervals; kept in the run folder."""
    kept = path / "agreement.json"
    if kept.exists():
        return json.loads(kept.read_text())
    started = time.process_time()
    train_several(settings, generator, path, progress=False)
    trained_s = time.process_time() - started
    one = next(found for found in folders.find_walkers(path.parent) if found.folder == path)
    rows = table1.estimate_rows(generator, [one], n_draws, settings.distribution, settings.seed)
    row = table1.with_remaining(generator, rows, critic, settings.distribution, seed=settings.seed)[0]
    assert row.spread is not None and row.remaining is not None and row.remaining.spread is not None
    found = {
        "chunks": settings.chunks,
        "seed": settings.seed,
        "threads": torch.get_num_threads(),
        "delta": dataclasses.asdict(row.spread),
        "remaining": dataclasses.asdict(row.remaining.spread),
        "verdict": str(row.remaining.together.verdict),
        "training": one.training,
        "samples": one.rows[-1]["samples"],
        "training_cpu_s": trained_s,
        "critic_cpu_s": time.process_time() - started - trained_s,
    }
    atomic_write(kept, json.dumps(found, indent=2).encode())
    return found


def compare(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of disjoint pairs of sets of the same chunks, in the order given."""
    cells = []
    for chunks in dict.fromkeys(one["chunks"] for one in found):
        sets = [one for one in found if one["chunks"] == chunks]
        for a, b in zip(sets[::2], sets[1::2], strict=False):
            for quantity in ("delta", "remaining"):
                means = WalkerMean(**a[quantity]), WalkerMean(**b[quantity])
                cells.append(
                    {"chunks": chunks, "quantity": quantity, "seeds": [a["seed"], b["seed"]],
                     "threads": [a["threads"], b["threads"]], "means": [one.mean for one in means],
                     "half_widths": [one.half_width for one in means], "agree": means[0].agrees_with(means[1])}
                )  # fmt: skip
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="linear-gaussian")
    parser.add_argument("--g_use", nargs="*", default=[], metavar="KEY=VALUE", help="options of the generator")
    parser.add_argument("--chunks", nargs="+", default=["0_1"])
    parser.add_argument("--walkers", type=int, default=4)
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--noise", type=float, default=0.5, help="observation noise of linear-gaussian")
    parser.add_argument("--n_draws", type=int, default=20_000)
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="settings of train_navigator.py")
    parser.add_argument("--critic", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the fresh critics")
    parser.add_argument("--out", type=Path, default=Path("agreement"))
    a = parser.parse_args()
    if a.generator == "linear-gaussian":
        generator: MultiLatentGenerator = LinearGaussian(noise=a.noise).freeze()
    else:
        generator = load_generator(a.generator, None, torch.device("cpu"), a.g_use)
    given = config.given(NavigatorConfig, a.train, "--train")
    critic = dataclasses.replace(CRITIC, **config.given(CriticSettings, a.critic, "--critic"))
    found = []
    for seed in range(1, a.sets + 1):  # all chunks of a set before the next one, so that few sets tell of all chunks
        torch.set_num_threads(a.threads[(seed - 1) % len(a.threads)])
        for chunks in a.chunks:
            own = (
                dict(generator=a.generator, g_use=a.g_use, chunks=chunks, walkers=a.walkers, seed=seed, device="cpu")
                | given
            )
            settings = config.load(NavigatorConfig, "navigator/small", own)
            folder = a.out / f"{a.generator}_{chunks}_seed{seed}"
            one = measure(generator, settings, folder, a.n_draws, critic)
            found.append(one)
            delta, left = WalkerMean(**one["delta"]), WalkerMean(**one["remaining"])
            print(
                f"seed {seed}, {one['threads']} threads, chunks {chunks}: delta {delta.mean:.3f} ({delta.low:.3f} to "
                f"{delta.high:.3f}), remaining {left.mean:.2f} ({left.low:.2f} to {left.high:.2f}) nats, "
                f"{one['verdict']}; training {one['training']} after {one['samples']:,} anchors; "
                f"{one['training_cpu_s']:.0f} + {one['critic_cpu_s']:.0f} s of CPU",
                flush=True,
            )
    cells = compare(found)
    n_agree = sum(cell["agree"] for cell in cells)
    atomic_write(a.out / "agreement.json", json.dumps({"sets": found, "cells": cells}, indent=2).encode())
    print(f"{n_agree} of {len(cells)} cells agree")


if __name__ == "__main__":
    main()
