"""What pairs that people made have in common, beside pairs that walkers make: nats by the same critic.

People's pairs are the same emoji drawn by two houses (`data/emoji.py`). Everything that can be equal is: the size of
the images, the number of pairs to train on, to stop by and to measure, and the critic. So the rows can be compared,
while each is a lower bound that more pairs would raise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mi_ml_gen.core import files, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.emoji import EmojiPairs
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.experiments.settings import HumanPairsConfig
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.image_critic import CriticSettings, Uses, measure_pairs
from mi_ml_gen.information.stored_pairs import MOST_MEASURED, StoredPairs, n_pairs, uses
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.tables import Table
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.spec import walker_from


def human_pairs(reference: str, size: int) -> dict[str, tuple[StoredPairs, StoredPairs]]:
    """Training and test pairs of every two houses of an "emoji-pairs" reference, by their names."""
    sources = [load_source(reference, split, size) for split in ("train", "test")]
    if not all(isinstance(source, EmojiPairs) for source in sources):
        raise UsageError(f"--data_path {reference}: must be emoji-pairs, or emoji-pairs:FOLDER")
    found = {}
    houses = sources[0].houses  # type: ignore[attr-defined]
    for one, other in itertools.combinations(range(len(houses)), 2):
        parts = []
        for source in sources:
            assert isinstance(source, EmojiPairs)
            images = source.images[source.n_drawn == len(houses)].float() / 255  # those that all houses have drawn
            parts.append(StoredPairs(images[:, one], images[:, other]))
        found[f"emoji by {houses[one]} and {houses[other]}"] = (parts[0], parts[1])
    return found


@torch.no_grad()
def walker_pairs(generator: MultiLatentGenerator, walker: Walker, n: int, seed: int, use: str) -> StoredPairs:
    """n pairs of a walker, (n, 3, resolution, resolution) each."""
    sides: list[list[torch.Tensor]] = [[], []]
    for start in range(0, n, 256):
        rng = runtime.stream(seed, f"human pairs: walker {use}", start, 0)
        z = TruncatedNormal().sample((min(256, n - start), generator.noise_dim), rng)
        pair = walker(generator, z, rng)
        for side, latents in zip(sides, pair, strict=True):
            side.append(generator.decode(latents, rng))
    return StoredPairs(torch.cat(sides[0]), torch.cat(sides[1]))


def compare_pairs(settings: HumanPairsConfig, progress: bool = True) -> dict[str, Estimate]:
    """The nats of each kind of pairs, by its name; also written to table.md, .csv ... and pairs.json in settings.out.

    Raises UsageError where the data are not there, and for a walker that does not fit the generator.
    """
    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.generator, settings.g_path, None, settings.g_use)
    people = human_pairs(settings.data_path, generator.resolution)
    n_train, n_test = (min(len(part.first) for part in parts) for parts in zip(*people.values(), strict=True))
    n_test = min(n_test, MOST_MEASURED)
    kinds: dict[str, tuple[StoredPairs, StoredPairs]] = {
        name: (train.part(slice(n_train)), test.part(slice(n_test))) for name, (train, test) in people.items()
    }
    for text in settings.walkers:
        walker = walker_from(text, generator, None, "--walkers")
        train, test = (
            walker_pairs(generator, walker, n, settings.seed, use) for n, use in ((n_train, "train"), (n_test, "test"))
        )
        kinds[f"{generator.name}, {text}"] = train, test
    found = {}
    for name, (train, test) in kinds.items():
        critic = replace(
            CriticSettings(
                width=settings.critic_width, max_steps=settings.max_steps, reuse=1, batch_size=settings.batch_size
            ),
            **n_pairs(train, test),
        )
        draws: Uses = uses(train, test, seed=settings.seed)
        measured = measure_pairs(
            draws,
            resolution=generator.resolution,
            settings=critic,
            seed=settings.seed,
            device=device,
            progress=progress,
        )
        found[name] = measured.estimate
        write(found, n_train, n_test, settings.out)
    return found


def to_table(found: Mapping[str, Estimate], n_train: int, n_test: int) -> Table:
    rows = [(name, one.nats, one.low_nats, one.verdict.value, one.reason) for name, one in found.items()]
    caption = (
        f"Lower bounds in nats by a critic of its own for each row, trained on {n_train:,} pairs (a fifth of them "
        f"decides when to stop) and measured on {n_test:,} others; the interval is one-sided, at 95%."
    )
    return Table(["pairs", "nats", "at least", "verdict", "reason"], rows, caption, {"nats": ".2f", "at least": ".2f"})


def write(found: Mapping[str, Estimate], n_train: int, n_test: int, folder: Path) -> None:
    table = to_table(found, n_train, n_test)
    table.write(folder, "table")
    content = {"n_train": n_train, "n_test": n_test, "pairs": {name: one.to_json() for name, one in found.items()}}
    files.write_json(folder / "pairs.json", content)
