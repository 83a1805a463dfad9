"""Closed forms for jointly Gaussian vectors: the truth that the critic's bound is held against. All in nats,
float64.

For (x, y) with covariance blocks S_x, S_y, S_xy (Cover and Thomas 2006, section 8.4):

    I(x; y) = 1/2 log( |S_x| |S_y| / |S| )
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.infonce import candidate_cross_entropy


class Samples(NamedTuple):
    """Draws of both sides, (n, d_x) and (n, d_y)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Gaussian:
    """Normal distribution with mean (d,) and covariance (d, d)."""

    mean: Tensor
    cov: Tensor

    def whiten(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, d), independent standard normals if x follows this distribution."""
        return torch.linalg.solve_triangular(_cholesky(self.cov), (x - self.mean).T, upper=False).T

    def log_prob(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return -0.5 * self.whiten(x).square().sum(1) + self.log_peak

    @property
    def log_peak(self) -> float:
        """Log density at the mean."""
        return -0.5 * (_log_det(self.cov) + len(self.mean) * math.log(2 * math.pi))


@dataclass(frozen=True)
class JointGaussian:
    """Distribution of (x, y): means (d_x,), (d_y,) and covariances (d_x, d_x), (d_y, d_y), (d_x, d_y), float64."""

    mean_x: Tensor
    mean_y: Tensor
    cov_x: Tensor
    cov_y: Tensor
    cov_xy: Tensor

    @property
    def x(self) -> Gaussian:
        return Gaussian(self.mean_x, self.cov_x)

    @property
    def y(self) -> Gaussian:
        return Gaussian(self.mean_y, self.cov_y)

    @property
    def both(self) -> Gaussian:
        cov = torch.cat([torch.cat([self.cov_x, self.cov_xy], 1), torch.cat([self.cov_xy.T, self.cov_y], 1)])
        return Gaussian(torch.cat([self.mean_x, self.mean_y]), cov)

    @property
    def swapped(self) -> JointGaussian:
        """The distribution of (y, x)."""
        return JointGaussian(self.mean_y, self.mean_x, self.cov_y, self.cov_x, self.cov_xy.T)

    @property
    def mutual_information(self) -> float:
        """I(x; y) in nats. Raises `UsageError` where x and y determine one another, so that it is
        infinite."""
        return 0.5 * (_log_det(self.cov_x) + _log_det(self.cov_y) - _log_det(self.both.cov))

    def log_ratio(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x, y) / (p(x) p(y)) of (n, d_x) and (n, d_y), shape (n,); its mean over pairs is I(x; y)."""
        x, y = x.double(), y.double()
        return self.both.log_prob(torch.cat([x, y], 1)) - self.x.log_prob(x) - self.y.log_prob(y)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Samples:
        noise = torch.randn(n, len(self.mean_x) + len(self.mean_y), generator=rng, dtype=torch.float64)
        drawn = self.both.mean + noise @ _cholesky(self.both.cov).T
        return Samples(drawn[:, : len(self.mean_x)], drawn[:, len(self.mean_x) :])

    def log_conditional(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y_j | x_i) of every combination: (n, d_x), (m, d_y) -> (n, m)."""
        gain = torch.linalg.solve(self.cov_x, self.cov_xy).T
        rest = Gaussian(torch.zeros_like(self.mean_y), self.cov_y - gain @ self.cov_xy)
        expected = rest.whiten((x - self.mean_x) @ gain.T)
        return rest.log_peak - 0.5 * torch.cdist(expected, rest.whiten(y - self.mean_y)).square()


def optimal_scores(joint: JointGaussian, x: Tensor, y: Tensor) -> Tensor:
    """Scores (2n, 2n) of the critic that knows the distribution, rows = queries, as `infonce_loss` orders the points.

    Among the candidates of a query stand draws of both marginals, so the score of candidate v for query x_i
    is log p(v | x_i) - log m(v) with m the mean of the two marginal densities (and the same for the queries
    y_i, with p(x | y)).  Where the marginals agree this is the log density ratio log p(u, v) / (p(u) p(v)).
    x and y must live in one space: `UsageError` if not.
    """
    if x.shape != y.shape:
        raise UsageError(f"x {tuple(x.shape)} and y {tuple(y.shape)}: candidates of both need one shape")
    points = torch.cat([x, y]).double()
    log_mixture = torch.logaddexp(joint.x.log_prob(points), joint.y.log_prob(points)) - math.log(2)
    forward = joint.log_conditional(points[: len(x)], points)
    backward = joint.swapped.log_conditional(points[len(x) :], points)
    return torch.cat([forward, backward]) - log_mixture


def optimal_bound(
    joint: JointGaussian, n_pairs: int, n_batches: int = 200, rng: torch.Generator | None = None
) -> MonteCarloMean:
    """What InfoNCE gives at 2 n_pairs - 1 candidates with the critic that knows the distribution, over `n_batches`
    batches.

    No training brings a critic reliably above it; it is below I(x; y) because the candidates are few, and
    above only through `marginal_divergence`.
    """
    ceiling_nats = math.log(2 * n_pairs - 1)
    draws = (joint.sample(n_pairs, rng) for _ in range(n_batches))
    losses = (candidate_cross_entropy(optimal_scores(joint, *pair)).item() for pair in draws)
    return MonteCarloMean.of(ceiling_nats - loss for loss in losses)


def marginal_divergence(joint: JointGaussian, n: int = 20_000, rng: torch.Generator | None = None) -> MonteCarloMean:
    """Jensen-Shannon divergence of the marginals of x and y (0 where they agree, at most log 2), by Monte
    Carlo.

    With many candidates, symmetric InfoNCE approaches I(x; y) plus this, because it also pays to tell which
    side a candidate comes from: mean over queries x_i of log p(y|x) / m(y) is I + KL(p_y || m), and the same
    for the y_i.
    """
    pair = joint.sample(n, rng)
    values = []
    for points, distribution, other in ((pair.x, joint.x, joint.y), (pair.y, joint.y, joint.x)):
        own = distribution.log_prob(points)
        values.append(own - torch.logaddexp(own, other.log_prob(points)) + math.log(2))
    return MonteCarloMean.of((0.5 * (values[0] + values[1])).tolist())


def _cholesky(cov: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(cov)
    if info.item() != 0:
        raise UsageError("a covariance is not positive definite: the distribution needs noise in every direction")
    return factor


def _log_det(cov: Tensor) -> float:
    return 2 * _cholesky(cov).diagonal().log().sum().item()
