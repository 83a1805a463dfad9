"""Mutual information I(x; z) of images and latents under the encoder, between two bounds that hold in any dimension.

With N images and one draw z_i ~ q(z|x_i) of each, L_ij = log q(z_i|x_j) is known for all pairs, and

    lower = mean_i [ L_ii - log( mean_j e^L_ij ) ]                  at most log N
    upper = mean_i [ L_ii - log( mean over j != i of e^L_ij ) ]

bound I(x; z) from both sides in expectation (Poole et al., arXiv 1905.06922, section 2: bounds with a tractable
conditional). Nearest-neighbour estimators as the published max-norm KSG say nothing about binary images: all distances
of different images are 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images.base import Features, ImageModel, Latents
from mi_ml_gen.report.tables import Estimate

ROWS_AT_ONCE = 8192
"""Pairs (z, x) whose densities are computed at a time."""


@dataclass(frozen=True)
class InformationBounds:
    """In nats, each with its standard error over images."""

    lower: Estimate
    upper: Estimate
    n: int

    @property
    def ceiling(self) -> float:
        """The most that the lower bound can be."""
        return math.log(self.n)


@torch.no_grad()
def information_bounds(model: ImageModel, x: Tensor, seed: int = 0) -> InformationBounds:
    """Bounds of I(x; z), z all latents together, from images (n, C, H, W). Raises UsageError for fewer than two."""
    n = len(x)
    if n < 2:
        raise UsageError(f"mutual information of {n} images: there must be at least two")
    seen = model.features(x)
    drawn = model.q_z(seen, model.noise(n, runtime.stream(seed, "information draws", 0, 0, x.device)))
    table = runtime.in_float64(pairwise_log_q(model, seen, drawn.z))
    own = table.diagonal()
    lower = own - torch.logsumexp(table, 1) + math.log(n)
    without = table.clone().fill_diagonal_(-math.inf)
    upper = own - torch.logsumexp(without, 1) + math.log(n - 1)
    return InformationBounds(_over_images(lower), _over_images(upper), n)


def pairwise_log_q(model: ImageModel, seen: Features, z: Latents) -> Tensor:
    """log q(z_i|x_j), (n, n)."""
    n = len(seen.mean)
    at_once = max(1, ROWS_AT_ONCE // n)
    lines = []
    for start in range(0, n, at_once):
        own = z.rows(slice(start, start + at_once))
        k = len(own.z1)
        everyone = torch.arange(n, device=own.z1.device).repeat(k)
        lines.append(model.log_q(seen.rows(everyone), own.repeat(n)).reshape(k, n))
    return torch.cat(lines)


def _over_images(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


__all__ = ["InformationBounds", "information_bounds", "pairwise_log_q"]
