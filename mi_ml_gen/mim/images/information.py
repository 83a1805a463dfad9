<<<<<<< HEAD
"""Mutual information I(x; z) of images and latents under the encoder, between two bounds that hold in any dimension.

With N images and one draw z_i ~ q(z|x_i) of each, L_ij = log q(z_i|x_j) is known for all pairs, and

    lower = mean_i [ L_ii - log( mean_j e^L_ij ) ]                  at most log N
    upper = mean_i [ L_ii - log( mean over j != i of e^L_ij ) ]

bound I(x; z) from both sides in expectation (Poole et al., arXiv 1905.06922, section 2: bounds with a tractable
conditional). Nearest-neighbour estimators as the published max-norm KSG say nothing about binary images: all distances
of different images are 1.
=======
"""How much do latents tell about images? Bounds on the mutual information I(x; z) of the encoder's joint distribution
q(x) q(z|x), whose conditional density is known, so that no critic has to be learned.

    at most      E[log q(z|x) - log p(z)]                   the rate; more by KL(q(z), p(z))
    at least     E[log q(z|x) - log mean_j q(z|x_j)]        InfoNCE with the true density as its critic

Poole et al. (arXiv 1905.06922), sections 2.1 and 2.3. Both hold in any number of dimensions. The lower bound never
exceeds the logarithm of the number of images: no estimate from n images can show more (McAllester and Stratos, arXiv
1811.04251). The published estimate, KSG with the largest distance of any pixel, is 0 or 1 on binary images whatever
they are; `published_ksg` of `mim.evaluate` makes it.
>>>>>>> mimeval
"""

from __future__ import annotations

import math
<<<<<<< HEAD
from dataclasses import dataclass
=======
from typing import NamedTuple, Protocol
>>>>>>> mimeval

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
<<<<<<< HEAD
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
=======
from mi_ml_gen.information.estimator import N_BLOCKS, quantile
from mi_ml_gen.mim.images.base import Features, Latents
from mi_ml_gen.mim.images.likelihood import Measurable, top_density
from mi_ml_gen.probe.accuracy import Z_95

N_CANDIDATES = 1000
"""Images of the lower bound on all latents, for which every pair takes a pass of q(z1|x, z2)."""
PAIRS_AT_ONCE = 2**16
FEWEST = 2 * N_BLOCKS


class WithDensity(Measurable, Protocol):
    """A model whose encoder's density can be evaluated."""

    def log_q(self, seen: Features, z: Latents) -> Tensor: ...


class Limit(NamedTuple):
    """A bound in nats, with an interval of 95% over images."""

    nats: float
    low: float
    high: float
    n: int
    ceiling: float = math.inf
    """What it cannot exceed."""

    def __str__(self) -> str:
        most = "" if math.isinf(self.ceiling) else f", never more than {self.ceiling:.2f}"
        return f"{self.nats:.2f} nats (95%: {self.low:.2f} to {self.high:.2f}{most})"


class EncoderInformation(NamedTuple):
    """Bounds on what latents tell about images."""

    at_most: Limit
    """On I(x; z), by the rate."""
    at_least: Limit
    """On I(x; z), of the first N_CANDIDATES images."""
    top_at_least: Limit
    """On I(x; z2), of all images; of the only latent where there is one. I(x; z) is at least as large."""


@torch.no_grad()
def encoder_information(model: WithDensity, images: Tensor, seed: int = 0) -> EncoderInformation:
    """Bounds for images (n, C, H, W) on the model's device, of one draw z ~ q(z|x) each.

    Raises UsageError for fewer than FEWEST images.
    """
    n = len(images)
    if n < FEWEST:
        raise UsageError(f"{n} images are too few to bound an information by; there must be at least {FEWEST}")
    parts = [model.features(part) for part in images.split(256)]
    lower = [part.lower for part in parts if part.lower is not None]
    seen = Features(
        torch.cat([part.mean for part in parts]), torch.cat([part.log_var for part in parts]),
        torch.cat(lower) if lower else None,
    )  # fmt: skip
    drawn = model.q_z(seen, model.noise(n, runtime.stream(seed, "information draws", 0, 0, images.device)))
    prior = top_density(model)(drawn.z.top) + model.log_p_lower(drawn.z)
    rate = runtime.in_float64(drawn.log_q) - prior
    error = Z_95 * rate.std().item() / math.sqrt(n)
    top = _lower_bound(_top_scores(seen, drawn.z.top))
    if seen.lower is None:
        both = top
    else:
        some = slice(min(n, N_CANDIDATES))
        both = _lower_bound(_all_scores(model, _rows(seen, some), _rows_of(drawn.z, some)))
    nats = rate.mean().item()
    return EncoderInformation(Limit(nats, nats - error, nats + error, n), both, top)


def _lower_bound(scores: Tensor) -> Limit:
    """From log q(z_i|x_j) (n, n), float64. The interval comes from the spread over blocks of queries."""
    n = len(scores)
    gains = scores.diagonal() - scores.logsumexp(1) + math.log(n)
    blocks = torch.stack([block.mean() for block in gains.tensor_split(N_BLOCKS)])
    half = quantile(N_BLOCKS) * blocks.std().item() / math.sqrt(N_BLOCKS)
    nats = gains.mean().item()
    return Limit(nats, nats - half, min(nats + half, math.log(n)), n, math.log(n))


def _top_scores(seen: Features, z: Tensor) -> Tensor:
    """log q of each top latent (n, d) under each image's density, (n, n), by matrix products; constants left out."""
    mean, log_var, z = (runtime.in_float64(part) for part in (seen.mean, seen.log_var, z))
    precision = torch.exp(-log_var)
    constant = -0.5 * (log_var + mean.square() * precision).sum(1)
    return torch.addmm(constant, z.square(), precision.T, alpha=-0.5).addmm_(z, (mean * precision).T)


def _all_scores(model: WithDensity, seen: Features, z: Latents) -> Tensor:
    """log q(z_i|x_j) of all latents, (n, n), by a pass of q(z1|x, z2) for each pair."""
    n = len(z.z1)
    rows = []
    for own in torch.arange(n, device=z.z1.device).split(max(1, PAIRS_AT_ONCE // n)):
        index = torch.arange(n, device=own.device).repeat(len(own))
        log_q = model.log_q(_rows(seen, index), _rows_of(z, own.repeat_interleave(n)))
        rows.append(runtime.in_float64(log_q).view(len(own), n))
    return torch.cat(rows)


def _rows(seen: Features, rows: Tensor | slice) -> Features:
    return Features(seen.mean[rows], seen.log_var[rows], None if seen.lower is None else seen.lower[rows])


def _rows_of(z: Latents, rows: Tensor | slice) -> Latents:
    return Latents(z.z1[rows], None if z.z2 is None else z.z2[rows])


__all__ = ["EncoderInformation", "Limit", "encoder_information"]
>>>>>>> mimeval
