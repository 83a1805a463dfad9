"""How much do latents tell about images? Bounds on the mutual information I(x; z) of the encoder's joint distribution
q(x) q(z|x), in any number of dimensions. Its conditional density is known, so no critic has to be learned.

With N images, one draw z_i ~ q(z|x_i) of each, and L_ij = log q(z_i|x_j),

    lower = mean_i [ L_ii - log( mean_j e^L_ij ) ]                       at most log N
    upper = mean_i [ L_ii - log( mean over j != i of e^L_ij ) ]
    rate  = mean_i [ L_ii - log p(z_i) ]                                 above I(x; z) by KL(q(z), p(z))

bound I(x; z) in expectation (Poole et al., arXiv 1905.06922, section 2). No lower bound from N images can show much
more than log N (McAllester and Stratos, arXiv 1811.04251). The published estimate, KSG with the largest distance of any
pixel, says nothing about binary images, all of whose distances are 1; `mim.evaluate.published_ksg` makes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images.base import Features, Latents
from mi_ml_gen.mim.images.likelihood import Measurable, top_density
from mi_ml_gen.report.tables import Estimate

N_CANDIDATES = 1000
"""Images whose pairs are compared in all latents: each pair takes a pass of q(z1|x, z2)."""
ENCODED_AT_ONCE = 256
ROWS_AT_ONCE = 8192
"""Pairs (z, x) whose densities are computed at a time by passes of q(z1|x, z2)."""
PAIRS_AT_ONCE = 2**22
"""Pairs whose densities are computed at a time by matrix products: a table of all test images would take gigabytes."""


class WithDensity(Measurable, Protocol):
    """A model whose encoder's density can be evaluated."""

    def log_q(self, seen: Features, z: Latents) -> Tensor: ...


@dataclass(frozen=True)
class InformationBounds:
    """In nats, each with its standard error over images; the images that are compared with count as given."""

    lower: Estimate
    """Of I(x; z), from the first N_CANDIDATES images."""
    upper: Estimate
    """Of I(x; z), from the same images."""
    rate: Estimate
    """An upper bound, too, from all images."""
    top_lower: Estimate
    """Of I(x; z2), from all images, z2 being the only latent where there is one: I(x; z) is at least as large."""
    n: int
    """Images of `lower` and `upper`."""
    n_top: int
    """Images of `top_lower` and `rate`."""

    @property
    def at_most(self) -> Estimate:
        """The smaller one of the upper bounds."""
        return min(self.upper, self.rate, key=lambda bound: bound.value)

    @property
    def ceiling(self) -> float:
        """The most that `lower` can be."""
        return math.log(self.n)

    @property
    def top_ceiling(self) -> float:
        """The most that `top_lower` can be."""
        return math.log(self.n_top)


@torch.no_grad()
def information_bounds(
    model: WithDensity, images: Tensor, seed: int = 0, n_candidates: int = N_CANDIDATES
) -> InformationBounds:
    """Bounds of I(x; z) from images (n, C, H, W) on the model's device. Raises UsageError for fewer than two."""
    n_top = len(images)
    if n_top < 2:
        raise UsageError(f"mutual information of {n_top} images: there must be at least two")
    parts = [model.features(part) for part in images.split(ENCODED_AT_ONCE)]
    lower = [part.lower for part in parts if part.lower is not None]
    seen = Features(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.log_var for part in parts]),
        torch.cat(lower) if lower else None,
    )
    drawn = model.q_z(seen, model.noise(n_top, runtime.stream(seed, "information draws", 0, 0, images.device)))
    prior = top_density(model)(drawn.z.top) + model.log_p_lower(drawn.z)
    some = slice(min(n_top, n_candidates))
    if seen.lower is None:
        table = top_log_q(seen.rows(some), drawn.z.top[some])
    else:
        table = pairwise_log_q(model, seen.rows(some), drawn.z.rows(some))
    n = len(table)
    own = table.diagonal()
    without = table.clone().fill_diagonal_(-math.inf)
    return InformationBounds(
        lower=_over_images(own - torch.logsumexp(table, 1) + math.log(n)),
        upper=_over_images(own - torch.logsumexp(without, 1) + math.log(n - 1)),
        rate=_over_images(runtime.in_float64(drawn.log_q) - prior),
        top_lower=_over_images(top_ratios(seen, drawn.z.top)),
        n=n,
        n_top=n_top,
    )


def top_ratios(seen: Features, z: Tensor) -> Tensor:
    """log q(z_i|x_i) - log( mean_j q(z_i|x_j) ) of the top latents (n, d) alone, float64 (n,)."""
    n = len(z)
    at_once = max(1, PAIRS_AT_ONCE // n)
    parts = []
    for start in range(0, n, at_once):
        table = top_log_q(seen, z[start : start + at_once])
        parts.append(table.diagonal(start) - torch.logsumexp(table, 1))
    return torch.cat(parts) + math.log(n)


def top_log_q(seen: Features, z: Tensor) -> Tensor:
    """log q of each top latent (k, d) under the density of each of n images, float64 (k, n), by matrix products;
    without constants."""
    mean, log_var, z = (runtime.in_float64(part) for part in (seen.mean, seen.log_var, z))
    precision = torch.exp(-log_var)
    constant = -0.5 * (log_var + mean.square() * precision).sum(1)
    return torch.addmm(constant, z.square(), precision.T, alpha=-0.5).addmm_(z, (mean * precision).T)


def pairwise_log_q(model: WithDensity, seen: Features, z: Latents) -> Tensor:
    """log q(z_i|x_j) of all latents, float64 (n, n), by a pass of q(z1|x, z2) for each pair."""
    n = len(seen.mean)
    at_once = max(1, ROWS_AT_ONCE // n)
    lines = []
    for start in range(0, n, at_once):
        own = z.rows(slice(start, start + at_once))
        k = len(own.z1)
        everyone = torch.arange(n, device=own.z1.device).repeat(k)
        log_q = model.log_q(seen.rows(everyone), own.repeat(n))
        lines.append(runtime.in_float64(log_q).reshape(k, n))
    return torch.cat(lines)


def _over_images(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


__all__ = ["InformationBounds", "information_bounds", "pairwise_log_q", "top_log_q", "top_ratios"]
