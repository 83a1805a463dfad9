"""Pairs of images of which there are only so many, for the fresh critic: those that people made, or as many of a
walker.

A critic that has seen a pair knows it by heart. So every pair serves one use: training, the decision when to stop, or
the measurement. The bound on pairs that were not trained on is valid however few there are, but few training pairs
teach the critic less, and N pairs show at most log N nats. Numbers of sets of equal size can be compared, others not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.image_critic import Draw, Uses

MOST_PX = 2
"""Pixels that training images are moved by at most."""
MOST_MEASURED = 512
"""Pairs that the critic looks at in one part, which may hold each pair once only."""


class StoredPairs(NamedTuple):
    """Images of both sides, (n, 3, H, W) in [0, 1]; row i of one is the partner of row i of the other."""

    first: Tensor
    second: Tensor

    def part(self, chosen: slice | Tensor) -> StoredPairs:
        return StoredPairs(self.first[chosen], self.second[chosen])


def uses(train: StoredPairs, test: StoredPairs, share_held_out: float = 0.2, seed: int = 0) -> Uses:
    """Stored pairs for `measure_pairs`: a share of the training pairs decides when to stop, and the test pairs are
    measured.

    Training images are moved by up to MOST_PX, each side by itself, and mirrored, both sides alike, so that few pairs
    last longer. Give settings whose heldout_pairs and eval_pairs are `Uses`' numbers: see `n_pairs`.
    Raises UsageError for more than MOST_MEASURED pairs to measure, and for too few.
    """
    n_held_out = min(MOST_MEASURED, round(share_held_out * len(train.first)))
    if min(n_held_out, len(train.first) - n_held_out, len(test.first)) < 4:
        raise UsageError(f"{len(train.first)} training and {len(test.first)} test pairs are too few to measure")
    if len(test.first) > MOST_MEASURED:
        raise UsageError(f"{len(test.first)} test pairs: at most {MOST_MEASURED} can be measured; give a part of them")
    order = torch.randperm(len(train.first), generator=runtime.stream(seed, "stored pairs held out", 0, 0))
    held_out, rest = train.part(order[:n_held_out]), train.part(order[n_held_out:])
    return Uses(_moved(rest), _each_once(held_out), _each_once(test))


def n_pairs(train: StoredPairs, test: StoredPairs, share_held_out: float = 0.2) -> dict[str, int]:
    """The settings of the critic that these pairs need: heldout_pairs, eval_pairs and max_eval_pairs."""
    n_held_out = min(MOST_MEASURED, round(share_held_out * len(train.first)))
    return {"heldout_pairs": n_held_out, "eval_pairs": len(test.first), "max_eval_pairs": len(test.first)}


def _each_once(pairs: StoredPairs) -> Draw:
    def draw(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        assert n <= len(pairs.first), f"{n} of {len(pairs.first)} pairs"
        place = runtime.wanted_on(rng)
        return pairs.first[:n].to(place), pairs.second[:n].to(place)

    return draw


def _moved(pairs: StoredPairs) -> Draw:
    def draw(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        place, n_there = runtime.wanted_on(rng), len(pairs.first)
        chosen = torch.cat([torch.randperm(n_there, generator=rng) for _ in range(-(-n // n_there))])[:n]
        mirrored = (torch.rand(n, generator=rng) < 0.5)[:, None, None, None]
        sides = []
        for images in pairs:
            taken = images[chosen]
            taken = torch.where(mirrored, taken.flip(3), taken)
            padded = F.pad(taken, [MOST_PX] * 4, mode="replicate")
            side = images.shape[-1]
            shifts = torch.randint(2 * MOST_PX + 1, (n, 2), generator=rng)
            axis = torch.arange(side)
            rows, columns = (shifts[:, i, None] + axis for i in range(2))  # (n, side)
            index = torch.arange(n)[:, None, None]
            moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
            sides.append(moved.permute(0, 3, 1, 2).contiguous().to(place))
        return sides[0], sides[1]

    return draw


__all__ = ["StoredPairs", "n_pairs", "uses"]
