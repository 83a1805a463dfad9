"""Whether pairs in canonical coordinates are jointly normal, and about how much information is at stake if not.

The closed form of `copula.gaussian_part` is exact for jointly normal x and y. In general, with z the residual of y
after its regression on x, and J the Kullback-Leibler distance from a normal distribution of the same covariance,

    I(x; y) = closed form + I(x; z) + J(z) - J(y),        J(x, z) = J(x) + J(z) + I(x; z)

All of these are expanded in Hermite polynomials h_a of the coordinates, orthonormal under the normal distribution. To
leading order J is 1/2 sum_a (E h_a)^2 over the polynomials of degree 3 and up (Edgeworth's series; Comon 1994, section
3), and I(x; z) is the part of the sum that has factors of both. Such a sum over all polynomials of a degree needs no
polynomials: their products at two points are the coefficients of Mehler's kernel,

    sum_a t^|a| h_a(u) h_a(v) = (1 - t^2)^(-d/2) exp( (t u.v - t^2 (|u|^2 + |v|^2) / 2) / (1 - t^2) )

so a sum of squared means is a mean of these coefficients over pairs of points. It does not depend on how coordinates
are turned, and it adds up what many polynomials show a little of each. What it would be by chance is known: under
independence of x and z from all permutations, in closed form (Kazi-Aoual et al. 1995), under normality from the number
of polynomials. Two scalar tests beside it see what few polynomials show: Mardia's kurtosis, and the largest of simple
correlations between x and z.

Departures need not be missing information: their parts may cancel, and where tails are heavy the leading order is far
too large. So where a departure is seen, `missing` measures I(x; z) + J(z) - J(y) itself in few dimensions, by distances
to neighbours. Linear dependence is taken out before, so that the density varies less within a neighbourhood than it
does for x and y, and the two entropies have about the same bias. An estimate that lacks less than a tolerance is not
warned of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from scipy.stats import chi2, norm
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.information.copula import Canonical, gaussian_part, standard_error
from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.information.ksg import ksg_mutual_information
from mi_ml_gen.information.verdicts import Finding, tolerance

REJECTED = 4.0
"""Standard normal deviations from which on a departure is no chance: several are tested at once."""
MOST_POINTS = 4000
"""Points of the sums over pairs of points: their square is the work."""
MOST_NATS = 1.0
"""Beyond it the leading order says no more than that there is much."""
MEASURED_DIMS = 8
"""Of x and y together, up to which `missing` is asked: in 4 + 4 it was tried; in 5 + 5 it misses most of a spiral."""
_NEIGHBOURS, _HALVINGS = 10, 4
_ROWS_AT_ONCE = 128
_CROSS = {3: ((1, 2), (2, 1)), 4: ((1, 3), (2, 2), (3, 1))}
"""Degrees in x and in z of the polynomials of each degree that have factors of both."""


class Departure(NamedTuple):
    """Something that jointly normal pairs would not show."""

    what: str
    """In plain English, as a clause."""
    nats: float
    """About how much information it stands for."""
    deviations: float
    """Standard normal deviations of something as unlikely by chance."""


def departures(pairs: Canonical) -> list[Departure]:
    """All that is tested, whether it is seen or not."""
    x, z, y = pairs.x, pairs.residual, pairs.y
    n, d = len(x), x.shape[1] + z.shape[1]
    part = gaussian_part(pairs)
    is_correlated = part.nats > 2 * standard_error(part)
    found = []
    for what, deviations in (
        ("the lengths of pairs vary otherwise than normal ones", abs(kurtosis(torch.cat([x, z], 1)))),
        ("a coordinate of x tells the size of one of what correlations leave of y", dependence_left(pairs)),
    ):
        found.append(Departure(what, max(deviations, 0.0) ** 2 / (2 * n), deviations))
    nats, deviations = with_lengths(x, z)
    found.append(Departure("the length of one of them tells something of the other", nats, deviations))
    sums = _Sums.of(x[:MOST_POINTS], z[:MOST_POINTS], y[:MOST_POINTS])
    for degree, name in ((3, "third"), (4, "fourth")):
        cross, cross_deviations = sums.cross(degree)
        found.append(Departure(f"{name} moments tie x to what correlations leave of y", cross, cross_deviations))
        of_x, of_y, of_z = (sums.own(side, degree) for side in "xyz")
        error = math.hypot(sums.own_error("z", degree), sums.own_error("y", degree))
        # Both have the same bias of few points, which the difference does not have.
        found.append(
            Departure(f"{name} moments of y change when x is known", abs(of_z - of_y), abs(of_z - of_y) / error)
        )
        if not is_correlated or (degree == 4 and d * (d + 1) / 2 > len(sums) / 4):
            # Sides without correlation may have any distribution. And where the covariance is uncertain, fourth moments
            # of points that it made white are biased.
            continue
        total = of_x + of_z + cross
        n_all = _n_polynomials(d, degree)
        deviations = _deviations(total * 2 * len(sums) + n_all, n_all)
        found.append(Departure(f"{name} moments of x and y are not those of normal pairs", total, deviations))
    return found


def not_normal(pairs: Canonical, nats: float) -> list[Finding]:
    """What speaks against an estimate that takes the pairs as jointly normal: the least likely of the departures
    that chance does not explain and that stand for more than half of a tolerance. None where `missing` says that they
    change the information by less than a tolerance, with half a standard error. Where it says nothing, a departure must
    stand for a whole tolerance."""
    can_measure = pairs.x.shape[1] + pairs.y.shape[1] <= MEASURED_DIMS
    share = 0.5 if can_measure else 1.0
    seen = [one for one in departures(pairs) if one.deviations > REJECTED and one.nats > share * tolerance(nats)]
    if not seen:
        return []
    lacks = missing(pairs) if can_measure else None
    if lacks is not None and abs(lacks.nats) + lacks.standard_error_nats / 2 <= tolerance(nats):
        return []
    most = max(seen, key=lambda one: one.deviations)
    about = f"about {most.nats:.2f} nats" if most.nats < MOST_NATS else f"more than {MOST_NATS:g} nat"
    return [
        Finding(
            Verdict.NOT_TRUSTED,
            f"the pairs are not jointly normal, and nothing was learned from that: {most.what} ({about}, "
            f"{most.deviations:.0f} standard deviations)",
        )
    ]


def missing(pairs: Canonical) -> MonteCarloMean | None:
    """What the closed form lacks, I(x; z) + J(z) - J(y), in nats and with its standard error, from `MOST_POINTS` pairs.
    Bias draws it to 0, and beyond `MEASURED_DIMS` dimensions in all it says nothing. None for too few pairs."""
    x, z, y = (points[:MOST_POINTS] for points in (pairs.x, pairs.residual, pairs.y))
    if len(x) < 8 * _NEIGHBOURS:
        return None

    def of(rows: Tensor) -> float:
        tied = ksg_mutual_information(x[rows], z[rows], _NEIGHBOURS, scale="none", warn=False).nats
        return tied + _entropy(y[rows]) - _entropy(z[rows])

    # Estimates from disjoint halves are independent, with twice the variance of the whole (ksg_intervals.py).
    orders = [torch.randperm(len(x), generator=runtime.stream(0, "missing", i, 0)) for i in range(_HALVINGS)]
    halves = torch.tensor([[of(rows) for rows in order.tensor_split(2)] for order in orders], dtype=torch.float64)
    return MonteCarloMean(of(torch.arange(len(x))), math.sqrt(halves.var(1).mean().item() / 2))


def _entropy(points: Tensor) -> float:
    """Differential entropy of points (n, d) by the distance to the k-th neighbour in the maximum norm (Kozachenko and
    Leonenko 1987; equation 20 of Kraskov et al. 2004)."""
    n, d = points.shape
    values = points.numpy()
    far = cKDTree(values).query(values, _NEIGHBOURS + 1, p=math.inf)[0][:, -1]
    return float(digamma(n) - digamma(_NEIGHBOURS) + d * np.log(2 * np.maximum(far, 1e-300)).mean())


# --- scalar tests ---------------------------------------------------------------------------------------------


def kurtosis(points: Tensor) -> float:
    """How many standard deviations the kurtosis of points (n, d), of covariance 1, is from a Gaussian's (Mardia 1970):
    mean |p|**4 against d (d + 2) (n - 1) / (n + 1), with variance 8 d (d + 2) / n."""
    n, d = points.shape
    found = points.square().sum(1).square().mean().item()
    return (found - d * (d + 2) * (n - 1) / (n + 1)) / math.sqrt(8 * d * (d + 2) / n)


def dependence_left(pairs: Canonical) -> float:
    """How many standard deviations the dependence that is left between x and the residual of y has, at most, over
    independence. It looks at the squares and magnitudes of single coordinates and of both lengths; the largest of m
    correlations is compared with what the largest of m independent ones would be."""
    n = len(pairs.x)

    def features(points: Tensor) -> Tensor:
        made = torch.cat([points, points.square(), points.square().sum(1, keepdim=True).sqrt()], 1)
        made = made - made.mean(0)
        return made / made.square().mean(0).sqrt().clamp_min(1e-12)

    correlations = features(pairs.x).T @ features(pairs.residual) / n
    largest = correlations.abs().max().item() * math.sqrt(n)
    return largest - math.sqrt(2 * math.log(correlations.numel()))


def with_lengths(x: Tensor, z: Tensor) -> tuple[float, float]:
    """As `_Sums.cross` of degrees 3 and 4 together, by the polynomials u_k, |u|^2 and u_k |u|^2 alone.

    Turns of all coordinates leave these among themselves. They are so few that all points can be used, and that they
    show a dependence on lengths in many dimensions, where the sum over all polynomials drowns in their number.
    """
    n = len(x)
    sides = [_length_polynomials(side) for side in (x, z)]
    parts = []
    for a, b in itertools.chain(*_CROSS.values()):
        one, other = sides[0][a], sides[1][b]
        value = (one.T @ other).square().sum().item() / n**2
        parts.append((value, *_permutation_moments(_traces(one), _traces(other), n)))
    return _beyond_chance(parts)


def _traces(features: Tensor) -> _Traces:
    """Of the kernel matrix F F^T of features F (n, m) of mean 0."""
    squares = features.square()
    return _Traces(
        squares.sum().item(), (features.T @ features).square().sum().item(), squares.sum(1).square().sum().item()
    )


def _length_polynomials(points: Tensor) -> dict[int, Tensor]:
    """u_k, |u|^2 and u_k |u|^2 of points (n, d) by their degree: (n, d), (n, 1) and (n, d), of mean 0, and of
    variance 1 where the points are standard normal."""
    d = points.shape[1]
    squared = points.square().sum(1, keepdim=True)
    made = {
        1: points,
        2: (squared - d) / math.sqrt(2 * d),
        3: points * (squared - d - 2) / math.sqrt(2 * (d + 2)),
    }
    return {degree: values - values.mean(0) for degree, values in made.items()}


# --- sums over all polynomials of a degree --------------------------------------------------------------------


def hermite_kernels(u: Tensor, v: Tensor, most: int) -> list[Tensor]:
    """sum over |a| = k of h_a(u_i) h_a(v_j), for k from 0 to `most`: (n, d), (m, d) -> (n, m) each.

    By the recurrence of the coefficients of an exponential, k K_k = sum_j j c_j K_(k-j), with c_j those of the
    logarithm of Mehler's kernel: u.v for odd j, and d / j - (|u|^2 + |v|^2) / 2 for even j.
    """
    dots = u @ v.T
    even = -0.5 * (u.square().sum(1)[:, None] + v.square().sum(1))
    kernels = [torch.ones_like(dots)]
    for k in range(1, most + 1):
        total = torch.zeros_like(dots)
        for j in range(1, k + 1):
            if j % 2:
                total.addcmul_(dots, kernels[k - j], value=j)
            else:
                total.addcmul_(even, kernels[k - j], value=j).add_(kernels[k - j], alpha=u.shape[1])
        kernels.append(total.div_(k))
    return kernels


def _n_polynomials(d: int, degree: int) -> int:
    return math.comb(d + degree - 1, degree)


def _deviations(value: float, freedom: float) -> float:
    """Normal deviations of what is as unlikely as a chi-squared of so many degrees of freedom above `value`."""
    log_share = float(chi2.logsf(max(value, 0.0), freedom))
    return float(norm.isf(math.exp(log_share))) if log_share > -700 else 37.0


class _Traces(NamedTuple):
    """Of a centred kernel matrix: its trace, the sum of its squares, and that of its diagonal's."""

    trace: float
    squares: float
    diagonal: float


def _permutation_moments(one: _Traces, other: _Traces, n: int) -> tuple[float, float]:
    """Mean and variance over all permutations of the points of the other side, of the sum of products of two centred
    kernel matrices over n^2: a sum of squared means (Kazi-Aoual et al. 1995)."""
    mean = one.trace * other.trace / (n - 1)
    by_squares = [(n - 1) * side.squares - side.trace**2 for side in (one, other)]
    by_diagonal = [n * (n + 1) * side.diagonal - (n - 1) * (side.trace**2 + 2 * side.squares) for side in (one, other)]
    variance = 2 * by_squares[0] * by_squares[1] / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance += by_diagonal[0] * by_diagonal[1] / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return mean / n**2, max(variance, 0.0) / n**4


def _beyond_chance(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Sums of squared means, each with its mean and variance by chance: what all of them have more than by chance, in
    nats, and its deviations. By chance they are distributed about as a chi-squared times a factor."""
    value, mean, variance = (math.fsum(part[i] for part in parts) for i in range(3))
    if not variance > 0:
        return 0.0, 0.0
    factor = variance / (2 * mean)
    return 0.5 * (value - mean), _deviations(value / factor, mean / factor)


class _Sums:
    """Sums over pairs of points of the kernels of x (n, d_x), z (n, d_z) and y (n, d_y), in blocks of rows."""

    def __init__(self, n: int, dims: dict[str, int]) -> None:
        self.n, self.dims = n, dims
        self.rows = {(side, k): torch.zeros(n, dtype=torch.float64) for side in dims for k in range(1, 5)}
        self.diagonal = {key: torch.zeros(n, dtype=torch.float64) for key in self.rows}
        self.squares = dict.fromkeys(self.rows, 0.0)
        self.products = {pair: 0.0 for pairs in _CROSS.values() for pair in pairs}

    def __len__(self) -> int:
        return self.n

    @classmethod
    def of(cls, x: Tensor, z: Tensor, y: Tensor) -> _Sums:
        points = {"x": x, "z": z, "y": y}
        sums = cls(len(x), {side: values.shape[1] for side, values in points.items()})
        for start in range(0, len(x), _ROWS_AT_ONCE):
            rows = torch.arange(start, min(start + _ROWS_AT_ONCE, len(x)))
            kernels = {side: hermite_kernels(values[rows], values, 4) for side, values in points.items()}
            for (side, k), of_rows in sums.rows.items():
                kernel = kernels[side][k]
                of_rows[rows] = kernel.sum(1)
                sums.diagonal[side, k][rows] = kernel[torch.arange(len(rows)), rows]
                if side != "y" and k < 4:
                    sums.squares[side, k] += torch.linalg.vector_norm(kernel).item() ** 2
            for a, b in sums.products:
                sums.products[a, b] += torch.dot(kernels["x"][a].flatten(), kernels["z"][b].flatten()).item()
        return sums

    def own(self, side: str, degree: int) -> float:
        """J of one side by polynomials of one degree, in nats, without the bias of few points."""
        total = (self.rows[side, degree].sum() - self.diagonal[side, degree].sum()).item()
        return 0.5 * total / (self.n * (self.n - 1))

    def own_error(self, side: str, degree: int) -> float:
        """Its standard deviation for normal points."""
        return math.sqrt(2 * _n_polynomials(self.dims[side], degree)) / (2 * self.n)

    def cross(self, degree: int) -> tuple[float, float]:
        """I(x; z) by polynomials of one degree, in nats, and its deviations from independence."""
        return _beyond_chance([self._permuted(a, b) for a, b in _CROSS[degree]])

    def _permuted(self, a: int, b: int) -> tuple[float, float, float]:
        """Sum of squared means of the products of polynomials of degree a of x and b of z, centred; its mean and its
        variance over all permutations of z (Kazi-Aoual et al. 1995)."""
        n = self.n
        rows_x, rows_z = self.rows["x", a], self.rows["z", b]
        value = self.products[a, b] - 2 / n * torch.dot(rows_x, rows_z) + rows_x.sum() * rows_z.sum() / n**2
        mean, variance = _permutation_moments(self._centred("x", a), self._centred("z", b), n)
        return value.item() / n**2, mean, variance

    def _centred(self, side: str, degree: int) -> _Traces:
        rows, n = self.rows[side, degree], self.n
        total = rows.sum().item()
        diagonal = self.diagonal[side, degree] - 2 / n * rows + total / n**2
        squares = self.squares[side, degree] - 2 / n * rows.square().sum().item() + total**2 / n**2
        return _Traces(diagonal.sum().item(), squares, diagonal.square().sum().item())
