"""Several walkers, each on its own chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.base import PublishedSeed, Rng, Walker, _moved
from mi_ml_gen.walkers.noise import RandomWalker, _published_noise
from mi_ml_gen.walkers.registry import build_walker, register_walker


@register_walker("grouped")
class GroupedWalker(Walker):
    """Several walkers, each on its own chunks; every one starts from the anchor's noise.

    With a `PublishedSeed` random groups take their columns from one draw of the whole noise, as the published code
    does. (That code also reads the length of a chunk off its last group; groups must end at the last chunk to agree.)
    """

    def __init__(self, walkers: Sequence[Walker]):
        super().__init__()
        self.walkers = nn.ModuleList(walkers)
        self.members = tuple(walkers)  # the same, with their type
        taken = self.chunks
        for i, chunks in enumerate(taken):
            if any(chunks.overlaps(other) for other in taken[:i]):
                raise UsageError(f"groups {', '.join(map(str, taken))}: {chunks} overlaps another group")

    @classmethod
    def from_groups(cls, groups: Mapping[str, Walker | Sequence[float] | float | None], n_chunks: int) -> GroupedWalker:
        """From "start_stop" -> a walker, std, [mean, std, truncation], [low, high] (see OccasionalNormal), or None."""
        walkers: list[Walker] = []
        for text, group in groups.items():
            chunks = Chunks.parse(text, n_chunks, flag="group")
            if group is None:
                continue
            if isinstance(group, Walker):
                if group.chunks != (chunks,):
                    found = ", ".join(map(str, group.chunks))
                    raise UsageError(f"group {text}: its walker was trained on chunks {found}")
                walkers.append(group)
            else:
                walkers.append(RandomWalker(chunks, group))
        return cls(walkers)

    def check(self, generator: MultiLatentGenerator) -> None:
        for walker in self.members:
            walker.check(generator)

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return tuple(chunks for walker in self.members for chunks in walker.chunks)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        coins = np.random.default_rng(rng.seed) if isinstance(rng, PublishedSeed) else None
        for walker in self.members:
            if isinstance(rng, PublishedSeed) and coins is not None and isinstance(walker, RandomWalker):
                at = generator.walk_slice(walker.range)
                noise = _published_noise(walker.distribution, z.shape, rng.seed, coins).to(z)[:, at]
                yield walker.range, _moved(z, at, noise)
            else:
                yield from walker.moves(generator, z, rng)

    def config(self) -> dict[str, Any]:
        return {"kind": "grouped", "walkers": [walker.config() for walker in self.members]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GroupedWalker:
        return cls([build_walker(inner) for inner in config["walkers"]])
