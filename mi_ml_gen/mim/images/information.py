"""How much do latents tell about images? Bounds on the mutual information I(x; z) of the encoder's joint distribution
q(x) q(z|x), whose conditional density is known, so that no critic has to be learned.

    at most      E[log q(z|x) - log p(z)]                   the rate; more by KL(q(z), p(z))
    at least     E[log q(z|x) - log mean_j q(z|x_j)]        InfoNCE with the true density as its critic

Poole et al. (arXiv 1905.06922), sections 2.1 and 2.3. Both hold in any number of dimensions. The lower bound never
exceeds the logarithm of the number of images: no estimate from n images can show more (McAllester and Stratos, arXiv
1811.04251). The published estimate, KSG with the largest distance of any pixel, is 0 or 1 on binary images whatever
they are; `published_ksg` of `mim.evaluate` makes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
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
