"""Walkers that add random noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers.base import PublishedSeed, Rng, Walker, _moved, chunks_of
from mi_ml_gen.walkers.registry import register_walker


class Law(Protocol):
    """A law that random perturbations are drawn from."""

    def sample(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> torch.Tensor: ...


class OccasionalNormal(NamedTuple):
    """With probability 1/2 a normal truncated at 2 whose std is uniform between low and high, else nothing.

    Here the coin and the std are drawn for each sample; the published code drew one of each for a whole batch.
    """

    low: float
    high: float

    def sample(
        self, shape: Sequence[int], generator: torch.Generator | None = None, device: Any = None
    ) -> torch.Tensor:
        noise = TruncatedNormal().sample(shape, generator, device)
        coin, std = torch.rand(2, shape[0], 1, generator=generator, device=noise.device)
        return noise * torch.where(coin < 0.5, self.low + (self.high - self.low) * std, torch.zeros_like(std))

    def toss(self, coins: np.random.Generator) -> TruncatedNormal:
        """The law that the published code draws for a whole batch, std 0 where the coin says so."""
        return TruncatedNormal(0.0, coins.uniform(self.low, self.high) if coins.binomial(1, 0.5) else 0.0, 2.0)


def _published_noise(law: Law, shape: Sequence[int], seed: int, coins: np.random.Generator) -> torch.Tensor:
    tossed = law.toss(coins) if isinstance(law, OccasionalNormal) else law
    assert isinstance(tossed, TruncatedNormal)
    return tossed.sample_reference(shape, seed)


@register_walker("random")
class RandomWalker(Walker):
    """Adds noise of a law, usually a `TruncatedNormal`, to the walk slice."""

    def __init__(self, chunks: Chunks, law: Law):
        super().__init__()
        self.range = chunks
        self.law = law

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        at = generator.walk_slice(self.range)
        shape = (len(z), at.stop - at.start)
        if isinstance(rng, PublishedSeed):
            noise = _published_noise(self.law, shape, rng.seed, np.random.default_rng(rng.seed)).to(z)
        else:
            noise = self.law.sample(shape, rng, z.device).to(z.dtype)
        yield self.range, _moved(z, at, noise)

    def config(self) -> dict[str, Any]:
        law = self.law
        numbers = [law.low, law.high] if isinstance(law, OccasionalNormal) else [law.mean, law.std, law.truncation]  # type: ignore[attr-defined]
        return {"kind": "random", "chunks": str(self.range), "law": numbers}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RandomWalker:
        return cls(chunks_of(config), law_from(config["law"]))


def law_from(numbers: Sequence[float]) -> Law:
    """[mean, std, truncation] or [low, high]. Raises UsageError for anything else."""
    if len(numbers) == 2:
        return OccasionalNormal(*map(float, numbers))
    if len(numbers) == 3:
        return TruncatedNormal(*map(float, numbers))
    raise UsageError(f"perturbation {list(numbers)}: give [mean, std, truncation] or [low, high]")
