"""InfoNCE in its symmetric, supervised-contrastive form, and the bound on mutual information that it gives.

For B pairs there are 2B points.  Each point in turn is the query; the other 2B - 1 are its candidates, one of
which is its partner.  With unit vectors v and temperature T, the cross-entropy of finding the partner is

    CE = - 1/(2B) sum_i log( exp(v_i . v_p(i) / T) / sum_{j != i} exp(v_i . v_j / T) )

and the reference's loss is CE * T / base_temperature (Khosla et al. 2020, equation 2, with one class per
pair). Then log(2B - 1) - CE bounds the mutual information I from below (van den Oord et al. 2018, section
2.3).

Two cautions, both measured in docs/information.md:

- The bound never exceeds log(2B - 1), so it says little once it comes near: see `Bound.saturated`.
- Points of both sides stand among the candidates.  When anchors and positives follow different marginal distributions,
  a critic that tells the two apart rejects half of the candidates for free, and the bound then approaches I
  plus the Jensen-Shannon divergence of the two marginals (at most log 2 nats) instead of I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError

SATURATION_MARGIN_NATS = math.log(2.0)
"""Nearer to the ceiling than this, the critic finds the partner with geometric mean probability above 1/2."""


@dataclass(frozen=True)
class Bound:
    """Lower bound on a mutual information, in nats.

    `ceiling_nats` is the most that this number of candidates can show.  `saturated` says that the bound lies
    within `SATURATION_MARGIN_NATS` of it: then more candidates, not more training, would raise it.
    """

    nats: float
    ceiling_nats: float
    saturated: bool


def infonce_loss(features: Tensor, temperature: float = 0.1, base_temperature: float = 0.07) -> Tensor:
    """Supervised-contrastive loss (scalar) of pairs `features` (n, 2, d), each vector of unit length.

    `features[i, 0]` and `features[i, 1]` are anchor and positive of pair i.  Computed in float32 (float64 for
    float64 features) whatever autocast says.  One pair alone gives loss 0 and gradient 0: its only candidate
    is its partner. For negatives of all processes, call it on the gathered features (gathered with
    gradients): every process then holds the loss of the whole batch.  Raises `UsageError` on another shape or
    a temperature not above 0.
    """
    if features.ndim != 3 or features.shape[0] < 1 or features.shape[1] != 2:
        raise UsageError(f"features of shape {tuple(features.shape)}: must be (n >= 1, 2, d)")
    _check_temperatures(temperature, base_temperature)
    with torch.autocast(features.device.type, enabled=False):
        points = features.transpose(0, 1).flatten(0, 1)  # (2n, d): all anchors, then all positives
        points = points.float() if points.dtype.itemsize < 4 else points
        return candidate_cross_entropy(points @ points.T / temperature) * (temperature / base_temperature)


def candidate_cross_entropy(scores: Tensor) -> Tensor:
    """Cross-entropy in nats (scalar) of finding each point's partner from `scores` (2n, 2n), row = query.

    The partner of point i is i + n (mod 2n); the diagonal is left out of the candidates.
    """
    n_points = scores.shape[0]
    index = torch.arange(n_points, device=scores.device)
    scores = scores.masked_fill(index[:, None] == index, -math.inf)
    return functional.cross_entropy(scores, index.roll(n_points // 2))


def cross_side_cross_entropy(scores: Tensor) -> Tensor:
    """Cross-entropy in nats (scalar) of finding partners where candidates are those of the other side alone.

    scores (n, n): row i holds anchor i against all positives, its partner on the diagonal. The mean of both directions:
    anchors as queries, positives as queries. log(n) minus it bounds the information from below whatever the marginal
    distributions of the two sides are.
    """
    partner = torch.arange(len(scores), device=scores.device)
    return 0.5 * (functional.cross_entropy(scores, partner) + functional.cross_entropy(scores.T, partner))


def infonce_bound(
    loss: Tensor | float, n_pairs: int, temperature: float = 0.1, base_temperature: float = 0.07
) -> Bound:
    """Bound in nats that `infonce_loss` over `n_pairs` pairs gives: log(2 n_pairs - 1) - cross-entropy.

    Temperatures are those of the loss; `n_pairs` counts the pairs of all processes when negatives are global.
    A tensor is read to the host, so call it where you log, not at every step.  Negative when the critic is
    worse than chance; NaN for a NaN loss.
    """
    if n_pairs < 1:
        raise UsageError(f"number of pairs {n_pairs}: must be at least 1")
    _check_temperatures(temperature, base_temperature)
    ceiling_nats = math.log(2 * n_pairs - 1)
    loss = float(loss.detach() if isinstance(loss, Tensor) else loss)
    cross_entropy = loss if math.isnan(loss) else max(loss, 0.0) * base_temperature / temperature
    return Bound(ceiling_nats - cross_entropy, ceiling_nats, saturated=cross_entropy < SATURATION_MARGIN_NATS)


def _check_temperatures(temperature: float, base_temperature: float) -> None:
    if not (temperature > 0 and base_temperature > 0):
        raise UsageError(f"temperatures {temperature} and {base_temperature}: must be above 0")
