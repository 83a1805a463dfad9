"""Few pairs for the fresh critic: each serves one use, and what they share is found, or not, as it should be."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.image_critic import CriticSettings, measure_pairs
from mi_ml_gen.information.stored_pairs import MOST_PX, StoredPairs, n_pairs, uses


def numbered(n: int, first: int = 0, side: int = 8) -> StoredPairs:
    """Pair i is a step of height (first + i) / 1000 on the left half, and the same on both sides."""
    images = torch.zeros(n, 3, side, side)
    images[..., : side // 2] = (torch.arange(n) + first)[:, None, None, None] / 1000
    return StoredPairs(images, images.clone())


def numbers(images: torch.Tensor) -> list[int]:
    return (images.amax((1, 2, 3)) * 1000).round().int().tolist()


def test_each_pair_serves_one_use():
    train, test = numbered(50), numbered(20, first=100)
    drawn = uses(train, test)
    assert n_pairs(train, test) == {"heldout_pairs": 10, "eval_pairs": 20, "max_eval_pairs": 20}
    rng = runtime.stream(0, "x", 0, 0)
    seen = {use: numbers(drawn.of(use)(n, rng)[0]) for use, n in (("train 0", 90), ("held out", 10), ("evaluate", 20))}
    assert sorted(seen["evaluate"]) == list(range(100, 120)) and len(set(seen["held out"])) == 10
    assert len(set(seen["train 0"])) == 40 and not set(seen["train 0"]) & set(seen["held out"])
    assert set(seen["train 0"]) | set(seen["held out"]) == set(range(50))


def test_training_images_are_moved_apart_and_mirrored_alike():
    pairs = StoredPairs(*(torch.zeros(40, 3, 16, 16) for _ in range(2)))
    for images in pairs:
        images[:, :, 8, 3] = 1
    first, second = uses(pairs, pairs).train(200, runtime.stream(0, "y", 0, 0))
    places = [images[:, 0].flatten(1).argmax(1) for images in (first, second)]
    mirrored = [place % 16 > 8 for place in places]
    assert torch.equal(*mirrored) and 60 < int(mirrored[0].sum()) < 140
    rows = [place // 16 - 8 for place in places]
    assert all(set(row.tolist()) == set(range(-MOST_PX, MOST_PX + 1)) for row in rows) and not torch.equal(*rows)


def test_too_few_and_too_many_are_refused():
    with pytest.raises(UsageError, match="10 training and 20 test pairs are too few to measure"):
        uses(numbered(10), numbered(20))
    with pytest.raises(UsageError, match="600 test pairs: at most 512 can be measured; give a part of them"):
        uses(numbered(100), numbered(600))


def test_pairs_share_what_they_share():
    """One of eight brightnesses, the same on both sides: log 8 nats."""
    rng = torch.Generator().manual_seed(0)

    def some(n: int) -> StoredPairs:
        levels = torch.randint(8, (1, n), generator=rng).expand(2, -1)
        noise = 0.02 * torch.rand(2, n, 3, 8, 8, generator=rng)
        return StoredPairs(*(levels[:, :, None, None, None] / 8 + noise))

    train, test = some(400), some(200)
    settings = CriticSettings(width=4, points=16, batch_size=64, max_steps=80, reuse=1, **n_pairs(train, test))
    estimate = measure_pairs(uses(train, test), resolution=8, settings=settings).estimate
    assert estimate.n == 200 and 1.2 < estimate.nats < math.log(8) + 0.2
