"""Delta: how long a walker's perturbation is. Table 1 of the paper, by Monte Carlo.

delta is the Euclidean length of positive minus anchor on the perturbed chunks (section 4.1). Draws are streamed:
memory does not grow with their number, nothing leaves the device until the sums are read, and the result is the
same for a seed whatever the progress bar or the machine's load.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers.base import Pair, Walker

BATCH = 8192
"""Draws at a time. Part of what a seed means: another value gives other draws."""


@dataclass(frozen=True)
class DeltaEstimate:
    """Mean and standard deviation of delta over draws of the anchor."""

    mean: float
    std: float
    n_samples: int

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.std / math.sqrt(self.n_samples)


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
    law: TruncatedNormal | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> DeltaEstimate:
    """Delta of a walker over `n_samples` anchors (any number from 1) with noise of `law`.

    `law` is by default the paper's, a standard normal truncated at 2; generator and walker lie on `device`.
    Raises UsageError for a number below 1.
    """
    law = law or TruncatedNormal()

    def lengths(n: int, rng: torch.Generator) -> torch.Tensor:
        z = law.sample((n, generator.noise_dim), rng)
        if not walker.chunks:
            return z.new_zeros(n)
        squared = z.new_zeros(n)
        for chunks, moved in walker.moves(generator, z, rng):
            squared += generator.distance(z, moved, chunks).square()
        return squared.sqrt()

    return _monte_carlo(lengths, n_samples, seed, "delta", device, progress)


@torch.no_grad()
def independent_delta(
    generator: MultiLatentGenerator,
    chunks: Chunks,
    n_samples: int = 20_000,
    law: TruncatedNormal | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> DeltaEstimate:
    """The length between two independent draws on `chunks`: the scale that a delta is held against.

    A perturbation as long as this one has forgotten the anchor; one longer has left what the generator was
    trained on.
    """
    law = law or TruncatedNormal()

    def lengths(n: int, rng: torch.Generator) -> torch.Tensor:
        first, second = (law.sample((n, generator.noise_dim), rng) for _ in range(2))
        return generator.distance(first, second, chunks)

    return _monte_carlo(lengths, n_samples, seed, "independent delta", device, progress=False)


def _monte_carlo(
    lengths: Callable[[int, torch.Generator], torch.Tensor],
    n_samples: int,
    seed: int,
    name: str,
    device: torch.device | str,
    progress: bool,
) -> DeltaEstimate:
    """Mean and standard deviation of lengths(n, rng), from running sums in float64 on the device."""
    if n_samples < 1:
        raise UsageError(f"--n_samples {n_samples}: must be at least 1")
    # Sums are taken about the first batch's mean, so that squares do not swallow a small spread.
    total = squared = torch.zeros((), dtype=torch.float64, device=device)
    origin: torch.Tensor | None = None
    for i, start in enumerate(tqdm(range(0, n_samples, BATCH), desc=name, disable=not progress, leave=False)):
        batch = lengths(BATCH, runtime.stream(seed, name, i, 0, device))[: n_samples - start].double()
        if origin is None:
            origin = batch.mean()
        batch = batch - origin
        total, squared = total + batch.sum(), squared + batch.square().sum()
    assert origin is not None
    shift, mean_square = total.item() / n_samples, squared.item() / n_samples
    return DeltaEstimate(origin.item() + shift, math.sqrt(max(mean_square - shift**2, 0.0)), n_samples)
