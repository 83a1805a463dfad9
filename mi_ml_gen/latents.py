"""Latent variables as chunks of one flat vector, and the distribution that they are drawn from.

Every generator maps a flat latent vector, cut into chunks, to an image. `LatentLayout` says where each chunk
lies, `Chunks` names a range of them the way the command line does ("1_6": first included, last excluded), and
`TruncatedNormal` draws the noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mi_ml_gen.core.errors import UsageError

if TYPE_CHECKING:
    import torch  # imported where noise is drawn: command lines are checked without it

MOST_NOISE = 1e19
"""The largest noise: squares of larger numbers do not fit into float32."""
UNTRUNCATED_STD = 6.0
"""Standard deviations that a draw in float32 never leaves, see `TruncatedNormal.sample`."""


@dataclass(frozen=True)
class Chunks:
    """The half-open range of chunks start, start + 1, ..., stop - 1."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise UsageError(f"chunks {self}: 0 <= start < stop must hold")

    @classmethod
    def of(cls, chunks: Chunks | str) -> Chunks:
        """Chunks as they are, or read from "start_stop" text: what functions that take chunks accept.

        Raises UsageError for anything else. Whether a generator has these chunks is for `parse` to say.
        """
        if isinstance(chunks, Chunks):
            return chunks
        match = re.fullmatch(r"\s*(\d+)_(\d+)\s*", chunks, re.ASCII) if isinstance(chunks, str) else None
        if match is None:
            raise UsageError(f'chunks {chunks!r}: give Chunks(1, 6) or the text "1_6" (first included, last excluded)')
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def parse(cls, text: str, n_chunks: int, name: str = "the generator", flag: str = "--chunks") -> Chunks:
        """Read "start_stop", for example "1_6" for the last five of six chunks.

        `name` is the generator that error messages speak of, `flag` the option that the text came from.
        Raises UsageError for anything but two whole numbers with 0 <= start < stop <= n_chunks.
        """
        has = f"{name} has chunks 0_{n_chunks}, which means 0 to {n_chunks - 1}"
        match = re.fullmatch(r"\s*(-?\d+)_(-?\d+)\s*", str(text), re.ASCII)
        if match is None:
            raise UsageError(
                f"{flag} {text}: write START_STOP, the first chunk included, the last excluded, "
                f"such as 0_1 for chunk 0; {has}"
            )
        start, stop = int(match[1]), int(match[2])
        if start < 0:
            raise UsageError(f"{flag} {text}: start must be at least 0; {has}")
        if start >= stop:
            raise UsageError(f"{flag} {text}: start must be below stop; {has}")
        if stop > n_chunks:
            raise UsageError(f"{flag} {text}: stop must be at most {n_chunks}; {has}")
        return cls(start, stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}_{self.stop}"

    def overlaps(self, other: Chunks) -> bool:
        return self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class LatentLayout:
    """Sizes of the chunks of a flat latent vector, in order.

    shapes: for each chunk (channels, height, width) where it is a feature map, flattened in that order, or None
    where it is a plain vector; without `shapes` all are plain vectors.
    Raises UsageError for sizes below 1, and for shapes that do not match them.
    """

    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, int, int] | None, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise UsageError(f"chunk sizes {list(self.sizes)}: at least one chunk, each of at least one number")
        shapes: list[Any] = [None] * len(self.sizes) if self.shapes is None else list(self.shapes)
        if len(shapes) != len(self.sizes):
            raise UsageError(f"shapes of chunks: {len(shapes)} shapes for {len(self.sizes)} chunks; give one for each")
        for i, (size, shape) in enumerate(zip(self.sizes, shapes, strict=True)):
            if shape is None:
                continue
            shapes[i] = tuple(int(side) for side in shape)
            if len(shapes[i]) != 3 or min(shapes[i]) < 1 or math.prod(shapes[i]) != size:
                raise UsageError(
                    f"shape {shape} of chunk {i}: must be (channels, height, width) with a product of {size}, "
                    "the chunk's size, or None"
                )
        object.__setattr__(self, "shapes", tuple(shapes) if any(shapes) else None)

    @classmethod
    def of_shapes(cls, shapes: Sequence[tuple[int, int, int]]) -> LatentLayout:
        """A layout of feature maps alone, from their shapes (channels, height, width)."""
        return cls(tuple(math.prod(shape) for shape in shapes), tuple(shapes))

    @property
    def dim(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @property
    def n_chunks(self) -> int:
        return len(self.sizes)

    @property
    def all(self) -> Chunks:
        """Every chunk, as one range."""
        return Chunks(0, self.n_chunks)

    def slice(self, chunks: Chunks) -> slice:
        """Where `chunks` lie in the flat vector. Raises UsageError beyond the last chunk."""
        if chunks.stop > self.n_chunks:
            raise UsageError(f"chunks {chunks}: stop must be at most {self.n_chunks}")
        edges = [0, *accumulate(self.sizes)]
        return slice(edges[chunks.start], edges[chunks.stop])

    def parts(self, chunks: Chunks) -> list[tuple[int, ...]]:
        """The shape of each of `chunks`: (channels, height, width), or (size,) for a plain vector."""
        self.slice(chunks)  # refuses chunks beyond the last one
        shapes = self.shapes or (None,) * self.n_chunks
        return [shapes[i] or (self.sizes[i],) for i in range(chunks.start, chunks.stop)]


class NoiseDistribution(Protocol):
    """What the noise of anchors is drawn from: `TruncatedNormal`, or encoded images (`generators.anchors`)."""

    @property
    def n_distinct(self) -> int | None:
        """Number of different draws that there are; None: every draw is new."""
        ...

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """Noise of a shape, in float32."""
        ...

    def record(self) -> dict[str, Any]:
        """Plain values that say, in run folders and walkers' files, what it is."""
        ...


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal(mean, std) conditioned on lying within mean +- truncation * std (truncation may be infinite)."""

    mean: float = 0.0
    std: float = 1.0
    truncation: float = 2.0

    n_distinct: ClassVar[None] = None
    """Every draw is new."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise UsageError(f"mean {self.mean}: must be a finite number")
        if not (math.isfinite(self.std) and self.std >= 0):
            raise UsageError(f"std {self.std}: must be a finite number of at least 0")
        if not self.truncation > 0:
            raise UsageError(f"truncation {self.truncation}: must be above 0 (in units of std)")
        if (reach := abs(self.mean) + min(self.truncation, UNTRUNCATED_STD) * self.std) > MOST_NOISE:
            raise UsageError(
                f"mean {self.mean:g}, std {self.std:g}, truncation {self.truncation:g}: noise of up to {reach:.1e}; "
                f"squares of numbers beyond {MOST_NOISE:.0e} do not fit into float32"
            )

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """Draw float32 values of the given shape, by inverse CDF; see `runtime.drawn` for generator and device.

        With V uniform on (-erf(t / sqrt 2), erf(t / sqrt 2)), sqrt(2) * erfinv(V) is a standard normal truncated
        at +-t. In float32 the tails of an untruncated normal end near +-5.4 std.
        """
        from mi_ml_gen.core import runtime

        return runtime.drawn(lambda place: self._sample(shape, generator, place), generator, device)

    def _sample(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
        import torch

        edge = min(math.erf(self.truncation / math.sqrt(2)), 1 - 2.0**-24)  # erfinv(1) is infinite
        draw = torch.empty(*shape, device=device).uniform_(-edge, edge, generator=generator)
        draw = draw.erfinv_().mul_(self.std * math.sqrt(2)).add_(self.mean)
        if math.isinf(self.truncation):
            return draw
        bound = self.truncation * self.std  # rounding of erf and erfinv could step over it by one float
        return draw.clamp_(self.mean - bound, self.mean + bound)

    def record(self) -> dict[str, Any]:
        """What run folders and walkers' files say of it."""
        return {"mean": float(self.mean), "std": float(self.std), "truncation": float(self.truncation)}

    def sample_reference(self, shape: Sequence[int], seed: int) -> torch.Tensor:
        """Draw on the CPU exactly what SciPy (>= 1.10) gives for this distribution and seed, as float32:

            truncnorm.rvs(-truncation, truncation, loc=mean, scale=std, size=shape, random_state=RandomState(seed))

        Published images come back from their seeds through it; everything else uses `sample`.
        """
        import numpy as np
        import torch
        from scipy import special

        uniform = np.random.RandomState(seed).uniform(size=tuple(shape))
        low, high = special.ndtr(-self.truncation), special.ndtr(self.truncation)
        draw = self.mean + self.std * special.ndtri(low + uniform * (high - low))
        return torch.from_numpy(np.asarray(draw, dtype=np.float32))
