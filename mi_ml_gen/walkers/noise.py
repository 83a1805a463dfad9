"""Walkers that add random noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers.base import PublishedSeed, Rng, Walker, _moved, chunks_of
from mi_ml_gen.walkers.registry import register_walker


class Distribution(Protocol):
    """What random perturbations are drawn from."""

    def sample(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        """Draw values of a shape (n, width)."""
        ...


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
        coin, std = runtime.uniform((2, shape[0], 1), generator, noise.device)
        return noise * torch.where(coin < 0.5, self.low + (self.high - self.low) * std, torch.zeros_like(std))

    def toss(self, coins: np.random.Generator) -> TruncatedNormal:
        """What the published code draws from for a whole batch, std 0 where the coin says so."""
        return TruncatedNormal(0.0, coins.uniform(self.low, self.high) if coins.binomial(1, 0.5) else 0.0, 2.0)


def _published_noise(
    distribution: Distribution, shape: Sequence[int], seed: int, coins: np.random.Generator
) -> torch.Tensor:
    tossed = distribution.toss(coins) if isinstance(distribution, OccasionalNormal) else distribution
    assert isinstance(tossed, TruncatedNormal)
    return tossed.sample_reference(shape, seed)


@register_walker("random")
class RandomWalker(Walker):
    """Adds fresh noise to the walk slice, independent for each sample.

        RandomWalker("1_6", 0.5)                        # normal noise of standard deviation 0.5, truncated at 2 of them
        RandomWalker("1_6", [0, 0.5, 2])                # the same: mean, standard deviation, truncation
        RandomWalker(Chunks(1, 6), TruncatedNormal(0, 0.5, 2))

    chunks: what it perturbs, Chunks or text. distribution: a TruncatedNormal, an OccasionalNormal, anything with their
    `sample`, or what `distribution_from` takes.
    Raises UsageError for anything else.
    """

    def __init__(
        self,
        chunks: Chunks | str,
        distribution: Distribution | Sequence[float] | float | None = None,
        *,
        law: Distribution | None = None,
    ):
        super().__init__()
        self.range = Chunks.of(chunks)
        given = law if distribution is None else distribution  # `law` is what the argument used to be called
        if given is None:
            raise UsageError(f"RandomWalker on chunks {self.range}: give its noise, TruncatedNormal(0, 0.5, 2) or 0.5")
        self.distribution = distribution_from(given)

    @property
    def law(self) -> Distribution:
        """`distribution`, by its former name."""
        return self.distribution

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        at = generator.walk_slice(self.range)
        shape = (len(z), at.stop - at.start)
        if isinstance(rng, PublishedSeed):
            noise = _published_noise(self.distribution, shape, rng.seed, np.random.default_rng(rng.seed)).to(z)
        else:
            noise = runtime.drawn(lambda place: self.distribution.sample(shape, rng, place), rng, z.device).to(z.dtype)
        yield self.range, _moved(z, at, noise)

    def config(self) -> dict[str, Any]:
        """As Walker's; "law" is the file format's word for the numbers of the distribution."""
        drawn = self.distribution
        if isinstance(drawn, OccasionalNormal):
            numbers = [drawn.low, drawn.high]
        elif isinstance(drawn, TruncatedNormal):
            numbers = [drawn.mean, drawn.std, drawn.truncation]
        else:
            raise UsageError(f"RandomWalker of {type(drawn).__name__}: only truncated normal noise can be saved")
        return {"kind": "random", "chunks": str(self.range), "law": numbers}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RandomWalker:
        return cls(chunks_of(config), config["law"])


def distribution_from(noise: Distribution | Sequence[float] | float) -> Distribution:
    """std, [mean, std, truncation] or [low, high] (see OccasionalNormal) as a distribution; one stays as it is.

    A std alone means mean 0 and truncation 2. Raises UsageError for anything else.
    """
    if hasattr(noise, "sample"):
        return noise
    if isinstance(noise, int | float):
        return TruncatedNormal(0.0, float(noise), 2.0)
    try:
        values = [float(number) for number in noise]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        values = []
    if len(values) == 2:
        return OccasionalNormal(*values)
    if len(values) == 3:
        return TruncatedNormal(*values)
    raise UsageError(f"noise {noise!r}: give std, [mean, std, truncation] or [low, high]")
