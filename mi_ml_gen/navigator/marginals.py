"""Do a walker's positives look like anchors? What a discriminator sees of their images, for the verdict on a bound
whose candidates come from both sides (docs/information.md, unequal marginals)."""

from __future__ import annotations

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.data.resampling import resize
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.information.canonical import Whitening
from mi_ml_gen.information.divergence import divergence
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.latents import NoiseDistribution
from mi_ml_gen.walkers.base import Walker

FEWEST, MOST = 512, 4096
"""Anchors, and as many positives of other draws, that are compared."""
SHARE = 6
"""A run compares at most a sixth as many as it was trained on, so that the comparison costs much less."""
AT_ONCE = 64
SIZE_PX = 32
COMPONENTS = 64


def n_compared(n_trained: int) -> int | None:
    """Anchors that a run of this length compares with positives; None where that would be too few to tell."""
    n = min(MOST, n_trained // SHARE)
    return n if n >= FEWEST else None


@torch.no_grad()
def marginal_divergence(
    generator: MultiLatentGenerator, walker: Walker, noise: NoiseDistribution, n: int, seed: int = 0
) -> MonteCarloMean:
    """A lower bound on the Jensen-Shannon divergence of the images of anchors and of positives, in nats.

    n: images of each; no positive belongs to one of the anchors. They are compared at 32 px, by 64 principal
    components, so what differs in finer detail is not seen.
    """
    device = device_of(generator)

    def images(which: str) -> Tensor:
        parts = []
        for first in range(0, n, AT_ONCE):
            rng = runtime.stream(seed, f"marginals: {which}", first, 0, device)
            z = noise.sample((min(AT_ONCE, n - first), generator.noise_dim), rng)
            pair = walker(generator, z, rng)
            decoded = generator.decode(pair.anchor if which == "anchors" else pair.positive, rng)
            if generator.resolution > SIZE_PX:
                decoded = resize(decoded, SIZE_PX, "antialias")
            parts.append(decoded.float().cpu())
        return torch.cat(parts)

    anchors, positives = images("anchors"), images("positives")
    some = torch.cat([anchors[: n // 8], positives[: n // 8]])
    whitening = Whitening.of(some, COMPONENTS)
    with torch.enable_grad():
        return divergence(whitening(anchors), whitening(positives), seed)
