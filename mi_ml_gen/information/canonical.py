"""The canonical critic: a critic of pairs of images in closed form, for when many kinds of pairs must be measured.

Images are brought to their principal components (`Whitening`). For one kind of pairs (x, y), canonical correlation
analysis (Hotelling 1936) gives axes along which x and y are correlated by r_1 >= r_2 >= ..., and not otherwise. If the
components were jointly normal, the log density ratio of a pair with coordinates u and v would be, up to a constant,

    s(x, y) = sum_k  r_k / (1 - r_k^2) u_k v_k  -  r_k^2 / (2 (1 - r_k^2)) (u_k^2 + v_k^2)

This s, times a factor, is the critic. It has no training: two covariances and one decomposition. The correlations and
the factor are taken from pairs that the axes were not fitted to, since fitted axes flatter themselves. For pairs that
are jointly normal it is the best critic that there is. For others it is a critic like any other, and its bound holds,
but a network may find more (docs/map.md says how much).

The bound is InfoNCE with candidates of the other side (van den Oord et al. 2018, section 2.3): for N pairs that the
critic was not made from, s_ij = s(x_i, y_j), and both directions,

    I >= log N + mean_i s_ii - 1/2 mean_i log sum_j exp s_ij - 1/2 mean_i log sum_j exp s_ji

in expectation, for any critic and whatever the marginal distributions are. It holds for the images too: components
cannot contain more information than what they were computed from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean
from mi_ml_gen.information.estimator import jackknife_error, quantile
from mi_ml_gen.information.verdicts import judge

N_GROUPS = 16
"""Parts that the jackknife leaves out in turn."""
LEAST_STD = 1e-4
"""Principal components with less than this share of the first one's deviation are rounding, and are left out."""
FLOOR = 0.02
"""Share of the first component's deviation that is added to each before it is scaled: small ones stay small."""
RIDGE = 0.01
"""Share of the mean variance that is added to every variance before the axes are computed."""
FITTED_SHARE = 0.75
"""Share of the pairs that the axes are fitted to; the others give the correlations and the factor."""
FACTORS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The factors that are tried; 0, where nothing is known of the pairs, gives a bound of exactly 0."""
MOST_CORRELATION = 0.9999
FEWEST_PAIRS = 64
TUNED_ON = 1024
"""Pairs, at most, on which the factor is chosen."""


class Whitening(nn.Module):
    """Images (n, ...) to their principal components, each scaled to a deviation of about 1: (n, n_components).

    Fit to a sample of images by `Whitening.of`; the mean and the projection are buffers.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, n_values: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_values))
        self.register_buffer("projection", torch.zeros(n_values, n_components))

    @classmethod
    def of(cls, images: Tensor, most: int = 256) -> Whitening:
        """From images (n, ...), at most n - 1 and `most` components; fewer where the images have no more.

        Raises UsageError where all images are the same.
        """
        flat = images.flatten(1).double()
        centred = flat - flat.mean(0)
        gram = centred @ centred.T / (len(flat) - 1)  # (n, n): its vectors give the components of the pixels
        variance, vectors = torch.linalg.eigh(gram)
        std = variance.clamp(min=0).sqrt().flip(0)[:most]
        if not std[0] > 0:
            raise UsageError(f"{len(flat)} images: all are the same, so there is nothing to measure")
        n_components = max(1, int((std > LEAST_STD * std[0]).sum()))
        std, vectors = std[:n_components], vectors.flip(1)[:, :n_components]
        axes = centred.T @ vectors / (std * math.sqrt(len(flat) - 1))
        made = cls(flat.shape[1], n_components)
        made.mean.copy_(flat.mean(0))
        made.projection.copy_(axes / (std + FLOOR * std[0]))
        return made

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1).float() - self.mean) @ self.projection


@dataclass(frozen=True)
class CanonicalCritic:
    """See the module's header; made by `CanonicalCritic.of`."""

    mean_x: Tensor
    mean_y: Tensor
    axes_x: Tensor
    """(n_inputs, n_axes)"""
    axes_y: Tensor
    correlations: Tensor
    """(n_axes,), those that are told from chance; there may be none, and then every score is 0."""
    factor: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, exchangeable: bool = False) -> CanonicalCritic:
        """From pairs of inputs x and y (n, n_inputs), in any order of the pairs.

        exchangeable: whether (y, x) is distributed as (x, y) is; then both sides share their axes, and each pair counts
        twice. Raises UsageError for fewer than FEWEST_PAIRS pairs.
        """
        n = len(x)
        if x.shape != y.shape or n < FEWEST_PAIRS:
            raise UsageError(f"inputs of shapes {tuple(x.shape)} and {tuple(y.shape)}: give at least {FEWEST_PAIRS} "
                             "pairs of equal length")  # fmt: skip
        # Which pairs the axes are fitted to follows a fixed pattern, so that neighbours from one draw are split evenly.
        place = torch.arange(n, device=x.device) * FITTED_SHARE % 1.0
        fitted = place < FITTED_SHARE
        fit = (x[fitted].double(), y[fitted].double())
        rest = (x[~fitted].double(), y[~fitted].double())
        if exchangeable:
            fit = (torch.cat(fit), torch.cat(fit[::-1]))
        mean_x, mean_y = (side.mean(0) for side in fit)
        a, b = fit[0] - mean_x, fit[1] - mean_y
        roots = [_root(side.T @ side / len(side)) for side in (a, b)]
        coupled = roots[0].T @ (a.T @ b / len(a)) @ roots[1]
        if exchangeable:
            values, left = torch.linalg.eigh(0.5 * (coupled + coupled.T))
            right = left * values.sign()
        else:
            left, _, right_t = torch.linalg.svd(coupled, full_matrices=False)
            right = right_t.T
        axes = [root @ vectors for root, vectors in zip(roots, (left, right), strict=True)]

        # --- Correlations on the other pairs
        u, v = (rest[0] - mean_x) @ axes[0], (rest[1] - mean_y) @ axes[1]
        scale_u, scale_v = (side.square().mean(0).sqrt().clamp(min=1e-12) for side in (u, v))
        if exchangeable:
            scale_u = scale_v = (0.5 * (scale_u.square() + scale_v.square())).sqrt()
        correlations = (u * v).mean(0) / (scale_u * scale_v)
        kept = correlations > 2 / math.sqrt(len(u))
        critic = cls(
            mean_x.float(),
            mean_y.float(),
            (axes[0] / scale_u)[:, kept].float(),
            (axes[1] / scale_v)[:, kept].float(),
            correlations[kept].clamp(max=MOST_CORRELATION).float(),
            1.0,
        )

        # --- The factor
        scores = critic.scores(rest[0][:TUNED_ON].float(), rest[1][:TUNED_ON].float())
        return dataclasses.replace(critic, factor=best_factor(scores))

    def to(self, device: torch.device) -> CanonicalCritic:
        """The same critic on another device."""
        return CanonicalCritic(
            self.mean_x.to(device),
            self.mean_y.to(device),
            self.axes_x.to(device),
            self.axes_y.to(device),
            self.correlations.to(device),
            self.factor,
        )

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores (n, m) of all pairs of inputs x (n, n_inputs) and y (m, n_inputs)."""
        u, v = (x - self.mean_x) @ self.axes_x, (y - self.mean_y) @ self.axes_y
        r = self.correlations
        weight = r / (1 - r.square())
        side = 0.5 * r * weight
        return self.factor * ((u * weight) @ v.T - (u.square() @ side)[:, None] - v.square() @ side)


def _root(cov: Tensor) -> Tensor:
    """W with W.T cov W = 1, for a covariance with a ridge."""
    ridge = RIDGE * cov.diagonal().mean() + 1e-12
    factor = torch.linalg.cholesky(cov + ridge * torch.eye(len(cov), dtype=cov.dtype, device=cov.device))
    eye = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).T


def best_factor(scores: Tensor) -> float:
    """Of FACTORS, the one by which scores (n, n) of independent pairs lose least; 0 where even then they are not told
    from nothing."""
    factor = min(FACTORS, key=lambda one: matching_loss(one * scores).item())
    if len(scores) >= 2 * N_GROUPS:
        found = matching_bound(factor * scores)
        if found.nats <= 2 * found.standard_error_nats:
            return 0.0
    return factor


def matching_loss(scores: Tensor) -> Tensor:
    """Cross-entropy in nats (scalar) of finding each one's partner, in both directions: scores (n, n), partners on the
    diagonal. log n minus it is the bound of the module's header."""
    partner = torch.arange(len(scores), device=scores.device)
    return 0.5 * (functional.cross_entropy(scores, partner) + functional.cross_entropy(scores.T, partner))


@dataclass(frozen=True)
class MatchingBound:
    """The bound on held-out pairs, with what its interval and its verdict need."""

    nats: float
    standard_error_nats: float
    half: MonteCarloMean
    """The same with half as many candidates, and the standard error of the difference."""
    ceiling_nats: float
    n: int


def matching_bound(scores: Tensor) -> MatchingBound:
    """The bound of the module's header from scores (n, n) of independent pairs that the critic was not trained on.

    Its standard error is the jackknife's, N_GROUPS groups of pairs left out in turn, as queries and as candidates: the
    terms of two queries depend on each other through the candidates that they share. Raises UsageError for fewer than
    2 N_GROUPS pairs.
    """
    n = len(scores)
    if n < 2 * N_GROUPS:
        raise UsageError(f"{n} pairs: a bound with an interval needs at least {2 * N_GROUPS}")
    scores = scores.double()
    group = torch.arange(n, device=scores.device) % N_GROUPS
    in_half = torch.arange(n, device=scores.device) // N_GROUPS % 2 == 0
    parts = torch.zeros(n, N_GROUPS, dtype=torch.float64, device=scores.device)
    parts[torch.arange(n, device=scores.device), group] = 1

    terms = torch.zeros(n, N_GROUPS + 2, dtype=torch.float64, device=scores.device)
    for direction in (scores, scores.T):
        most = direction.amax(1, keepdim=True)
        weight = (direction - most).exp()  # (query, candidate)
        by_group = weight @ parts
        total = by_group.sum(1, keepdim=True)
        own_half = torch.where(in_half[:, None] == in_half, weight, 0.0).sum(1, keepdim=True)
        sums = torch.cat([(total - by_group).clamp(min=1e-300), total, own_half.clamp(min=1e-300)], dim=1)
        sizes = torch.tensor([n - int((group == g).sum()) for g in range(N_GROUPS)] + [n], device=scores.device)
        half_size = torch.where(in_half, in_half.sum(), n - in_half.sum())
        log_n = torch.cat([sizes.double().log().expand(n, -1), half_size.double().log()[:, None]], dim=1)
        terms += 0.5 * (log_n + direction.diagonal()[:, None] - most - sums.log())
    whole, half = terms[:, N_GROUPS], terms[:, N_GROUPS + 1]
    left_out = torch.stack([terms[group != g, g].mean() for g in range(N_GROUPS)])
    rise = torch.stack([(whole - half)[group == g].mean() for g in range(N_GROUPS)])
    return MatchingBound(
        whole.mean().item(),
        jackknife_error(left_out),
        MonteCarloMean(half.mean().item(), rise.std().item() / math.sqrt(N_GROUPS)),
        math.log(n),
        n,
    )


def matching_estimate(
    bound: MatchingBound,
    with_half_the_pairs: MatchingBound | None = None,
    *,
    estimator: str = "canonical critic",
    curve_nats: Sequence[float] = (),
    floors: Mapping[str, MonteCarloMean] | None = None,
) -> Estimate:
    """The bound as an estimate with a one-sided 95% interval and a verdict.

    with_half_the_pairs: the bound, on the same pairs, of the critic that was made from half as many. estimator: which
    critic it was. curve_nats: its bounds in the course of its training, at equal distances. floors: of other critics on
    the same pairs, by name.
    """
    low = bound.nats - quantile(N_GROUPS, one_sided=True) * bound.standard_error_nats
    half = with_half_the_pairs
    verdict, reason = judge(
        bound.nats,
        low,
        math.inf,
        ceiling_nats=bound.ceiling_nats,
        with_half_candidates=bound.half,
        at_half_n=None if half is None else MonteCarloMean(half.nats, bound.standard_error_nats / 2),
        curve_nats=curve_nats,
        floors=floors,
    )
    details: dict[str, Any] = {"ceiling_nats": bound.ceiling_nats, "half_the_candidates_nats": bound.half.nats}
    if half is not None:
        details["half_the_pairs_nats"] = half.nats
    assumes = "the pairs are independent, and the critic was made from others"
    if curve_nats:
        details["course_nats"] = list(curve_nats)
    return Estimate(bound.nats, low, math.inf, bound.n, estimator, assumes, verdict, reason, details)


def measure(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, exchangeable: bool = False) -> Estimate:
    """A critic of the pairs (x, y), and its bound on the independent pairs (held_x, held_y); inputs (n, n_inputs)."""
    half = slice(None, None, 2)
    bounds = [
        matching_bound(CanonicalCritic.of(a, b, exchangeable).scores(held_x, held_y))
        for a, b in ((x, y), (x[half], y[half]))
        if len(a) >= FEWEST_PAIRS
    ]
    return matching_estimate(*bounds)
