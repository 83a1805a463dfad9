"""Learned walkers: networks that displace the walk slice, trained by the navigator.

`NonlinearWalker` is the published one. Its size grows with the square of the walk slice, so long slices get one of two
others, whose sizes grow linearly. `learned_walker` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.base import Rng, Walker, _moved, chunks_of
from mi_ml_gen.walkers.registry import register_walker

MAX_PUBLISHED_PARAMETERS = 20_000_000
"""`learned_walker` takes the published form up to this many parameters: walk slices of up to 3,161 numbers."""
RANK = 256
"""Hidden units of a new `LowRankWalker`."""
CHANNELS = 64
"""Hidden channels of a new `ConvolutionalWalker`."""

_WIDE = 512
"""Layers with more inputs than this start with smaller weights, so that they, too, start near the identity."""
_VALUES_AT_ONCE = 2**24
"""Hidden values of a convolutional walker computed at a time where no gradient is needed: 64 MB in float32."""


def learned_walker(generator: MultiLatentGenerator, chunks: Chunks | str) -> LearnedWalker:
    """A new walker for chunks of a generator, on the generator's device.

    The published `NonlinearWalker` where that has at most MAX_PUBLISHED_PARAMETERS parameters. Beyond, a
    `ConvolutionalWalker` where the layout gives a chunk's shape, else a `LowRankWalker`.
    Raises UsageError for chunks that the generator does not have.
    """
    chunks = generator.chunks(str(Chunks.of(chunks)), "chunks")
    at = generator.walk_slice(chunks)
    width = at.stop - at.start
    latents = generator.layout.slice(chunks)
    parts = generator.layout.parts(chunks)
    walker: LearnedWalker
    if 2 * width * (width + 1) <= MAX_PUBLISHED_PARAMETERS:
        walker = NonlinearWalker(chunks, width)
    elif width == latents.stop - latents.start and any(len(part) == 3 for part in parts):
        walker = ConvolutionalWalker(chunks, parts)
    else:
        walker = LowRankWalker(chunks, width)
    return walker.to(device_of(generator))


class LearnedWalker(Walker):
    """z + displacement(z) on the walk slice.

    chunks: what it perturbs, Chunks or text such as "1_6". width: length of the generator's walk slice for them.
    """

    def __init__(self, chunks: Chunks | str, width: int):
        super().__init__()
        self.range = Chunks.of(chunks)
        self.width = _at_least_one("width", width)

    def displacement(self, z: torch.Tensor) -> torch.Tensor:
        """What is added to the walk slice z (n, width): (n, width)."""
        raise NotImplementedError

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        at = self.check_width(generator)
        yield self.range, _moved(z, at, self.displacement(z[:, at]))

    def check(self, generator: MultiLatentGenerator) -> None:
        super().check(generator)
        self.check_width(generator)

    def check_width(self, generator: MultiLatentGenerator) -> slice:
        """The generator's walk slice. Raises UsageError where it is not of this walker's width."""
        at = generator.walk_slice(self.range)
        if at.stop - at.start != self.width:
            raise UsageError(
                f"a walker of width {self.width} on chunks {self.range} does not fit {generator.name}, "
                f"whose walk slice there has {at.stop - at.start} numbers"
            )
        return at


@register_walker("nonlinear")
class NonlinearWalker(LearnedWalker):
    """The published walker: z + W2 relu(W1 z + b1) + b2 on the walk slice.

    chunks: what it perturbs, Chunks or text such as "1_6". width: length of the generator's walk slice for them.
    It starts near the identity, weights Normal(0, 0.01), biases Uniform(-0.001, 0.001).
    It has 2 width (width + 1) parameters; for long chunks see `learned_walker`.
    """

    def __init__(self, chunks: Chunks | str, width: int):
        super().__init__(chunks, width)
        self.walker = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for layer in self.walker:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.uniform_(layer.bias, -0.001, 0.001)

    @classmethod
    def on(cls, generator: MultiLatentGenerator, chunks: Chunks | str) -> NonlinearWalker:
        """A new walker of the width that the generator asks for, on the generator's device."""
        chunks = Chunks.of(chunks)
        at = generator.walk_slice(chunks)
        return cls(chunks, at.stop - at.start).to(device_of(generator))

    def displacement(self, z: torch.Tensor) -> torch.Tensor:
        return self.walker(z)

    def config(self) -> dict[str, Any]:
        return {"kind": "nonlinear", "chunks": str(self.range), "width": self.width}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NonlinearWalker:
        return cls(chunks_of(config), int(config["width"]))


@register_walker("low_rank")
class LowRankWalker(LearnedWalker):
    """The published walker with few hidden units: z + W2 relu(W1 z + b1) + b2, W1 (rank, width), W2 (width, rank).

    Its (2 rank + 1) width + rank parameters grow linearly with the walk slice.
    """

    def __init__(self, chunks: Chunks | str, width: int, rank: int = RANK):
        super().__init__(chunks, width)
        self.rank = _at_least_one("rank", rank)
        self.walker = nn.Sequential(nn.Linear(width, rank), nn.ReLU(), nn.Linear(rank, width))
        _start_near_identity(self)

    def displacement(self, z: torch.Tensor) -> torch.Tensor:
        return self.walker(z)

    def config(self) -> dict[str, Any]:
        return {"kind": "low_rank", "chunks": str(self.range), "width": self.width, "rank": self.rank}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LowRankWalker:
        return cls(chunks_of(config), int(config["width"]), int(config["rank"]))


@register_walker("convolutional")
class ConvolutionalWalker(LearnedWalker):
    """Small residual convolutional networks, for chunks that are feature maps.

    parts: the shape of each chunk, (channels, height, width), or (size,) for a plain vector.
    Consecutive chunks of equal height and width (the groups of one scale of an NVAE) go through one network together,
    as channels, so that what is done to one may depend on the others. A plain vector has a low-rank network of its
    own. Convolutions treat all places alike, so a learned offset is added at each place. Parameters grow linearly with
    the chunks: one number for each of theirs, and 9 x 2 x `channels` for each of their channels.
    """

    def __init__(self, chunks: Chunks | str, parts: Sequence[Sequence[int]], channels: int = CHANNELS):
        parts = [tuple(_at_least_one("size of a part", side) for side in part) for part in parts]
        if any(len(part) not in (1, 3) for part in parts) or len(parts) != len(Chunks.of(chunks)):
            raise UsageError(f"parts {parts} of chunks {chunks}: give (channels, height, width) or (size,) for each")
        super().__init__(chunks, sum(map(math.prod, parts)))
        self.parts = parts
        self.channels = _at_least_one("channels", channels)
        self.networks = nn.ModuleList()
        for side, together in groupby(parts, key=lambda part: part[1:]):
            if not side:
                self.networks.extend(_LowRank(size) for (size,) in together)
            else:
                self.networks.append(_Maps(sum(part[0] for part in together), side[0], side[1], channels))
        _start_near_identity(self)

    def displacement(self, z: torch.Tensor) -> torch.Tensor:
        sizes = [network.size for network in self.networks]
        inputs = z.split(sizes, dim=1)  # type: ignore[arg-type]
        return torch.cat([network(part) for network, part in zip(self.networks, inputs, strict=True)], dim=1)

    def config(self) -> dict[str, Any]:
        shapes = [list(part) for part in self.parts]
        return {"kind": "convolutional", "chunks": str(self.range), "parts": shapes, "channels": self.channels}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ConvolutionalWalker:
        return cls(chunks_of(config), config["parts"], int(config["channels"]))


class _LowRank(nn.Sequential):
    """(n, size) -> (n, size)."""

    def __init__(self, size: int):
        super().__init__(nn.Linear(size, min(RANK, size)), nn.ReLU(), nn.Linear(min(RANK, size), size))
        self.size = size


class _Maps(nn.Module):
    """Flat feature maps (n, maps * height * width) -> the same shape: two residual blocks between two convolutions."""

    def __init__(self, maps: int, height: int, width: int, channels: int):
        super().__init__()
        self.shape = (maps, height, width)
        self.size = maps * height * width
        self.channels = channels
        self.enter = nn.Conv2d(maps, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(2)
        )  # fmt: skip
        self.leave = nn.Conv2d(channels, maps, 3, padding=1)
        self.offset = nn.Parameter(torch.empty(self.shape).uniform_(-0.001, 0.001))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return self._displacement(z)
        per_row = max(self.channels, self.shape[0]) * self.shape[1] * self.shape[2]
        rows = max(1, _VALUES_AT_ONCE // per_row)
        return torch.cat([self._displacement(part) for part in z.split(rows)])

    def _displacement(self, z: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(z.unflatten(1, self.shape))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return (self.leave(functional.relu(hidden)) + self.offset).flatten(1)


def _start_near_identity(network: nn.Module) -> None:
    """Weights Normal(0, 0.01) and biases Uniform(-0.001, 0.001), as published; the weights of layers with more than
    _WIDE inputs are smaller, so that their outputs are no larger than those of _WIDE inputs."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            n_inputs = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=0.01 * min(1.0, math.sqrt(_WIDE / n_inputs)))
            assert layer.bias is not None
            nn.init.uniform_(layer.bias, -0.001, 0.001)


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} {value!r} of a walker: must be a whole number of at least 1")
    return value
