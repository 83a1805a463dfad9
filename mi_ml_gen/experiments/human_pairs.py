"""What pairs that people made have in common, beside pairs that walkers make: nats by the same critic.

People's pairs are the same emoji drawn by two houses (`data/emoji.py`). Everything that can be equal is: the size of
the images, the number of pairs to train on, to stop by and to measure, and the critic. So the rows can be compared,
while each is a lower bound that more pairs would raise.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mi_ml_gen.core import config, loop, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.emoji import EmojiPairs, with_option
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.experiments.settings import HumanPairsConfig
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.image_critic import CriticSettings, measure_pairs
from mi_ml_gen.information.stored_pairs import MOST_MEASURED, StoredPairs, n_pairs, uses
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.navigator.spread import over_walkers
from mi_ml_gen.report.tables import Table
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.base import Walker


def human_pairs(reference: str, size: int) -> dict[str, tuple[StoredPairs, StoredPairs]]:
    """Training and test pairs of every two houses of an "emoji-pairs" reference, by their names.

    Without another word in the reference, skin tones are left out: five pictures of one hand are not five pairs.
    """
    if reference.partition(":")[0] != "emoji-pairs":
        raise UsageError(f"--data_path {reference}: must be emoji-pairs, or emoji-pairs:FOLDER")
    reference = with_option(reference, "skin_tones", "none")
    sources = [load_source(reference, split, size) for split in ("train", "test")]
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
    """n pairs of a walker, (n, 3, resolution, resolution) each, on the CPU."""
    sides: list[list[torch.Tensor]] = [[], []]
    for start in range(0, n, 256):
        rng = runtime.stream(seed, f"human pairs: walker {use}", start, 0, device_of(generator))
        z = TruncatedNormal().sample((min(256, n - start), generator.noise_dim), rng)
        pair = walker(generator, z, rng)
        for side, latents in zip(sides, pair, strict=True):
            side.append(generator.decode(latents, rng).cpu())
    return StoredPairs(torch.cat(sides[0]), torch.cat(sides[1]))


Parts = tuple[StoredPairs, StoredPairs]
"""Training and test pairs."""


def compare_pairs(settings: HumanPairsConfig, progress: bool = True) -> list[Row]:
    """The nats of each kind of pairs, over seeds; also written to table.md, .csv ... and pairs.json in settings.out.

    The same settings resume an interrupted run. Raises UsageError where the data are not there, for a walker that does
    not fit the generator, and for a folder of other settings; Preempted when a signal asked to stop.
    """
    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    walkers = {
        text: budget.walker_by(text, generator, TruncatedNormal(), 0, device, "--walkers") for text in settings.walkers
    }
    people = human_pairs(settings.data_path, generator.resolution)
    n_train, n_test = (min(len(part.first) for part in parts) for parts in zip(*people.values(), strict=True))
    n_test = min(n_test, MOST_MEASURED)

    def of_people(parts: Parts, seed: int) -> Parts:
        return parts[0].part(slice(n_train)), parts[1].part(slice(n_test))

    def of_walker(walker: Walker, seed: int) -> Parts:
        train, test = (
            walker_pairs(generator, walker, n, seed, use) for n, use in ((n_train, "train"), (n_test, "test"))
        )
        return train, test

    kinds: dict[str, Callable[[int], Parts]] = {}
    for name, parts in people.items():
        kinds[name] = partial(of_people, parts)
    for text, walker in walkers.items():
        kinds[f"{generator.name}, {text}"] = partial(of_walker, walker)
    cells = [(seed, name) for seed in settings.seeds for name in kinds]
    uses(*kinds[cells[0][1]](settings.seeds[0]))  # too few pairs are refused before anything is written
    described = config.to_dict(settings) | fingerprint_record(settings.out, generator)
    with loop.Session.open(settings.out, described, **config.resuming(HumanPairsConfig)) as session:
        session.resume()
        for step in session.steps(len(cells), unit="measurement", title="pairs", progress=progress):
            seed, name = cells[step]
            estimate = _measured(*kinds[name](seed), generator.resolution, settings, seed, device, progress)
            session.log(pairs=name, seed=seed, n_train=n_train, estimate=estimate.to_json())
            session.show(pairs=name)
            session.end_of_step(save=True)
        found = rows_of(session.rows)
        to_table(found, n_train, n_test).write(session.run.path, "table")
        content = {"n_train": n_train, "n_test": n_test, "pairs": [row.to_json() for row in found]}
        session.run.write_json("pairs.json", content)
    return found


def _measured(
    train: StoredPairs,
    test: StoredPairs,
    resolution: int,
    settings: HumanPairsConfig,
    seed: int,
    device: torch.device,
    progress: bool,
) -> Estimate:
    critic = CriticSettings(
        width=settings.critic_width,
        max_steps=settings.max_steps,
        reuse=1,
        batch_size=settings.batch_size,
        **n_pairs(train, test),
    )
    found = measure_pairs(
        uses(train, test, seed=seed),
        resolution=resolution,
        settings=critic,
        seed=seed,
        device=device,
        progress=progress,
    )
    return found.estimate


@dataclass(frozen=True)
class Row:
    """One kind of pairs, measured once with each seed."""

    pairs: str
    seeds: tuple[int, ...]
    each: tuple[Mapping[str, Any], ...]
    """`Estimate.to_json` of each seed."""

    @property
    def nats(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(one["nats"] for one in self.each)

    @property
    def interval(self) -> tuple[float, float | None]:
        """95%: of the mean over seeds, with what the choice of the measured pairs adds; of one seed the lower end of
        the measurement, and None."""
        errors = [one["details"]["standard_error_nats"] for one in self.each]
        mean = over_walkers([one["nats"] for one in self.each], errors)
        return (self.each[0]["interval_nats"][0], None) if mean is None else (mean.low, mean.high)

    @property
    def verdict(self) -> str:
        """Of all seeds; where they differ, each with its number."""
        counts = Counter(one["verdict"] for one in self.each)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{verdict} ({n} of {len(self.each)})" for verdict, n in counts.most_common())

    def to_json(self) -> dict[str, Any]:
        seeds = [{"seed": seed} | dict(one) for seed, one in zip(self.seeds, self.each, strict=True)]
        interval = list(self.interval)
        return {
            "pairs": self.pairs,
            "nats": self.nats,
            "interval_nats": interval,
            "verdict": self.verdict,
            "seeds": seeds,
        }

    def __str__(self) -> str:
        return f"{self.pairs}: {self.nats:.2f} nats ({_shown(self.interval)}): {self.verdict}"


def _shown(interval: tuple[float, float | None]) -> str:
    low, high = interval
    return f"at least {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}"


def rows_of(metrics: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of the table, from the rows of metrics."""
    names = dict.fromkeys(row["pairs"] for row in metrics)
    of_name = {name: [row for row in metrics if row["pairs"] == name] for name in names}
    return [
        Row(name, tuple(row["seed"] for row in rows), tuple(row["estimate"] for row in rows))
        for name, rows in of_name.items()
    ]


def to_table(found: Sequence[Row], n_train: int, n_test: int) -> Table:
    n_seeds = len(found[0].seeds)
    interval = (
        f"The mean and its 95% interval over {n_seeds} seeds, each with new weights of the critic, other pairs to stop "
        "by and new pairs of the walkers; people's pairs are the same emoji for each."
        if n_seeds > 1
        else "The interval is one-sided, at 95%, for one seed."
    )
    caption = (
        f"Lower bounds in nats by a critic of its own for each row, trained on {n_train:,} pairs (a fifth of them "
        f"decides when to stop) and measured on {n_test:,} others, which can show at most {math.log(n_test):.2f} nats. "
        f"{interval}"
    )
    rows = [(row.pairs, row.nats, _shown(row.interval), row.verdict) for row in found]
    return Table(["pairs", "nats", "interval", "verdict"], rows, caption, {"nats": ".2f"})
