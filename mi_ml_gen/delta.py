"""Delta: how long a walker's perturbation is. Table 1 of the paper, by Monte Carlo.

delta is the Euclidean length of positive minus anchor on the perturbed chunks (section 4.1). Draws are streamed:
memory does not grow with their number nor with the length of the latents, and nothing leaves the device until the
sums are read.

Draws come in blocks, and block i of a seed has a random stream of its own. How many draws a block has is fixed by the
length of the generator's noise (`block_rows`), so a seed means the same draws on every machine, however the
arithmetic on them is cut up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import NonFiniteError, UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, NoiseDistribution, TruncatedNormal
from mi_ml_gen.walkers.base import Pair, Walker

BATCH = 8192
"""Draws in a block, where the noise is no longer than BLOCK_VALUES / BATCH = 1024 numbers."""
BLOCK_VALUES = 2**23
"""The most numbers of noise in a block: 32 MB in float32."""
INDEPENDENT_DRAWS = 20_000
"""Pairs of draws of `independent_delta`, unless told otherwise and unless the noise is long."""


def block_rows(noise_dim: int) -> int:
    """Draws in a block: BATCH, or for long noise the largest power of two with at most BLOCK_VALUES numbers.

    It is part of what a seed means: another number of draws in a block gives other draws.
    """
    return min(BATCH, 2 ** max(0, (BLOCK_VALUES // noise_dim).bit_length() - 1))


def quick_draws(generator: MultiLatentGenerator) -> int:
    """Draws that fix a mean length well: INDEPENDENT_DRAWS, or down to 1,000 where the noise has over 838 numbers.

    The longer a random vector is, the less its length varies, relative to its mean.
    """
    return min(INDEPENDENT_DRAWS, max(1000, 2**24 // generator.noise_dim))


@dataclass(frozen=True)
class DeltaEstimate:
    """Mean and standard deviation of delta over draws of the anchor."""

    mean: float
    std: float
    n_samples: int
    n_anchors: int | None = None
    """Different anchors that there are, where they are real images; None: every draw is new."""

    @property
    def standard_error(self) -> float:
        """Of the mean; with real anchors, as a mean over all images such as these."""
        return self.std * math.sqrt(1 / self.n_samples + (1 / self.n_anchors if self.n_anchors else 0))


def pair_delta(generator: MultiLatentGenerator, pair: Pair, chunks: tuple[Chunks, ...]) -> torch.Tensor:
    """Length (n,) of each pair's perturbation over all the given ranges of chunks together."""
    squared = torch.zeros(len(pair.anchor), device=pair.anchor.device)
    for part in chunks:
        at = generator.layout.slice(part)
        squared = squared + (pair.positive[:, at] - pair.anchor[:, at]).float().square().sum(dim=1)
    return squared.sqrt()


@torch.no_grad()
def estimate_delta(
    generator: MultiLatentGenerator,
    walker: Walker,
    n_samples: int = 500_000,
    distribution: NoiseDistribution | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
    *,
    law: TruncatedNormal | None = None,
) -> DeltaEstimate:
    """Delta of a walker over `n_samples` anchors (any number from 1) with noise of `distribution`.

    `distribution` is by default the paper's, a standard normal truncated at 2 (`law` is its former name). Generator
    and walker are on `device`. Raises UsageError for a number below 1.
    """
    drawn = distribution or law or TruncatedNormal()

    def lengths(n: int, rng: torch.Generator) -> torch.Tensor:
        z = drawn.sample((n, generator.noise_dim), rng)
        if not walker.chunks:
            return z.new_zeros(n)
        squared = z.new_zeros(n)
        for chunks, moved in walker.moves(generator, z, rng):
            squared += generator.distance(z, moved, chunks).square()
        return squared.sqrt()

    found = _monte_carlo(lengths, generator, n_samples, seed, "delta", device, progress)
    return replace(found, n_anchors=drawn.n_distinct)


@torch.no_grad()
def independent_delta(
    generator: MultiLatentGenerator,
    chunks: Chunks | str,
    n_samples: int | None = None,
    distribution: NoiseDistribution | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    law: TruncatedNormal | None = None,
) -> DeltaEstimate:
    """The length between two independent draws on `chunks`: the scale that a delta is held against.

    A perturbation as long as this one has forgotten the anchor; one longer has left what the generator was
    trained on. `n_samples` is by default that of `quick_draws`, the other arguments are those of `estimate_delta`.
    """
    drawn = distribution or law or TruncatedNormal()
    chunks = Chunks.of(chunks)
    n_samples = quick_draws(generator) if n_samples is None else n_samples

    def lengths(n: int, rng: torch.Generator) -> torch.Tensor:
        first, second = (drawn.sample((n, generator.noise_dim), rng) for _ in range(2))
        return generator.distance(first, second, chunks)

    found = _monte_carlo(lengths, generator, n_samples, seed, "independent delta", device, progress=False)
    return replace(found, n_anchors=drawn.n_distinct)


def _monte_carlo(
    lengths: Callable[[int, torch.Generator], torch.Tensor],
    generator: MultiLatentGenerator,
    n_samples: int,
    seed: int,
    name: str,
    device: torch.device | str,
    progress: bool,
) -> DeltaEstimate:
    """Mean and standard deviation of lengths(n, rng), from running sums in float64."""
    if n_samples < 1:
        raise UsageError(f"--n_samples {n_samples}: must be at least 1")
    rows = block_rows(generator.noise_dim)
    # Sums are taken about the first block's mean, so that squares do not swallow a small spread.
    total = squared = runtime.in_float64(torch.zeros((), device=device))
    origin: torch.Tensor | None = None
    for i, start in enumerate(Bar(range(0, n_samples, rows), desc=name, disable=not progress, leave=False)):
        batch = runtime.in_float64(lengths(rows, runtime.stream(seed, name, i, 0, device))[: n_samples - start])
        if origin is None:
            origin = batch.mean()
        batch = batch - origin
        total, squared = total + batch.sum(), squared + batch.square().sum()
    assert origin is not None
    shift, mean_square = total.item() / n_samples, squared.item() / n_samples
    if not math.isfinite(origin.item() + shift + mean_square):
        raise NonFiniteError(f"{name} is nan or infinite; the noise or the walker's weights are too large")
    return DeltaEstimate(origin.item() + shift, math.sqrt(max(mean_square - shift**2, 0.0)), n_samples)
