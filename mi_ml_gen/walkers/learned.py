"""The learned walker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.base import Rng, Walker, _moved, chunks_of
from mi_ml_gen.walkers.registry import register_walker


@register_walker("nonlinear")
class NonlinearWalker(Walker):
    """The learned walker: z + W2 relu(W1 z + b1) + b2 on the walk slice.

    chunks: what it perturbs. width: length of the generator's walk slice for them.
    It starts near the identity, weights Normal(0, 0.01), biases Uniform(-0.001, 0.001).
    """

    def __init__(self, chunks: Chunks, width: int):
        super().__init__()
        self.range = chunks
        self.width = width
        self.walker = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for layer in self.walker:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.uniform_(layer.bias, -0.001, 0.001)

    @classmethod
    def on(cls, generator: MultiLatentGenerator, chunks: Chunks) -> NonlinearWalker:
        """A new walker of the width that the generator asks for, on the generator's device."""
        at = generator.walk_slice(chunks)
        parameter = next(generator.parameters(), torch.empty(0))
        return cls(chunks, at.stop - at.start).to(parameter.device)

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        at = self.check_width(generator)
        yield self.range, _moved(z, at, self.walker(z[:, at]))

    def check_width(self, generator: MultiLatentGenerator) -> slice:
        """The generator's walk slice. Raises UsageError where it is not of this walker's width."""
        at = generator.walk_slice(self.range)
        if at.stop - at.start != self.width:
            raise UsageError(
                f"a walker of width {self.width} on chunks {self.range} does not fit {generator.name}, "
                f"whose walk slice there has {at.stop - at.start} numbers"
            )
        return at

    def config(self) -> dict[str, Any]:
        return {"kind": "nonlinear", "chunks": str(self.range), "width": self.width}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NonlinearWalker:
        return cls(chunks_of(config), int(config["width"]))
