"""A walker whose perturbation is made longer or shorter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.base import Rng, Walker
from mi_ml_gen.walkers.registry import build_walker, register_walker


@register_walker("scaled")
class ScaledWalker(Walker):
    """Moves the noise in the direction of another walker, `factor` times as far: z + factor * (its z' - z).

    The latents follow from the moved noise as always. So in StyleGAN2, whose latents are not the noise, they stay
    styles that the mapping network makes. Raises UsageError for a factor that is negative or not finite.
    """

    def __init__(self, walker: Walker, factor: float):
        super().__init__()
        if not 0 <= factor < math.inf:
            raise UsageError(f"factor {factor:g} of a scaled walker: must be a number of at least 0")
        self.walker, self.factor = walker, float(factor)

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return self.walker.chunks

    def check(self, generator: MultiLatentGenerator) -> None:
        self.walker.check(generator)

    def moves(self, generator: MultiLatentGenerator, z: Tensor, rng: Rng) -> Iterator[tuple[Chunks, Tensor]]:
        for chunks, moved in self.walker.moves(generator, z, rng):
            yield chunks, torch.lerp(z, moved, self.factor)

    def config(self) -> dict[str, Any]:
        return {"kind": "scaled", "walker": self.walker.config(), "factor": self.factor}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ScaledWalker:
        return cls(build_walker(config["walker"]), float(config["factor"]))
