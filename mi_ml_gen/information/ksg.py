"""Mutual information from samples by distances to nearest neighbours (Kraskov, Stoegbauer, Grassberger 2004).

For pairs (x_i, y_i), with eps_i the distance from pair i to its k-th neighbour in the joint space, and n(i), n_x(i),
n_y(i) the numbers of points nearer than eps_i in the joint space, to x_i and to y_i alone, each point itself included:

    ksg1     I = psi(n_pairs) + mean[ psi(n) - psi(n_x) - psi(n_y) ]      equation 8 of Kraskov et al.; distances are
             the larger of the maximum norms of both sides. Without equal distances n(i) = k, as they write it.
    revised  I = psi(k) + log n_pairs + v(d_x) + v(d_y) - v(d_x + d_y) - mean[ log n_x + log n_y ]
             Gao, Oh, Viswanath 2018 (their bias-improved form); distances in the norm q, counts of the other
             points no farther than eps_i, v(d) the log volume of the unit ball of q

All in nats. An estimate may be below zero: it is not clipped.

Scale. Mutual information does not change when a coordinate is replaced by a monotone function of itself, but distances
do. By default each coordinate of x and y is replaced by its normal scores: the value of rank r among n becomes the
standard normal quantile at (r - 1/2) / n, and equal values share their mean rank. The estimate is then the same for
every choice of unit, origin or logarithm, coordinate by coordinate, and outliers do not matter.

Equal distances. On a grid several points lie at distance eps_i exactly, and fewer than k - 1 others lie nearer. If
the estimate still counts k points there, independent data get up to 1.3 nats. Here n(i) is counted, in the same open
ball as n_x(i) and n_y(i). Seen from outside inwards this is the first ball that holds at most k points, and finding it
needs no look at the points inside, so the choice of the ball does not bias its counts. A point with k or more exact
copies has eps_i = 0; its counts are of the points equal to it (Gao, Kannan, Oh, Viswanath 2017, for mixtures of
discrete and continuous distributions).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.neighbour_counts import count_within

logger = logging.getLogger(__name__)

Variant = Literal["ksg1", "revised"]
Scale = Literal["ranks", "none"]
Method = Literal["auto", "trees", "brute"]

TREES_FROM = 2000
"""Points from which trees are faster in 3 + 3 dimensions; ten times as many for each five dimensions more."""
_PAIRS_AT_ONCE = 2**19  # distances held at a time on the CPU: 4 MiB for each of four tables, near the processor's cache
_PAIRS_AT_ONCE_GPU = 2**24  # 128 MiB for each table
_ROWS_AT_ONCE = 4096  # queries given to a tree at a time, so that a bar can move
_WORTH_A_WARNING = 0.01  # share of the points
_DISCRETE = 0.1  # share of repeated values from which a coordinate has no density


@dataclass(frozen=True)
class KsgInterval:
    """A 95% interval of an estimate, from the same estimate of parts of the pairs (`ksg_intervals.py`)."""

    low_nats: float
    high_nats: float
    standard_error_nats: float
    """Noise of sampling, from the differences of disjoint halves of the pairs."""
    reach_nats: float
    """Half the width of the interval for the noise of sampling alone."""
    bias_nats: float
    """What more pairs would add, as far as smaller parts of the pairs show it; 0 where they show nothing beyond their
    noise. The interval reaches to the estimate with this added."""
    n_parts: int
    """10, or fewer where the pairs are few."""
    rate: float
    """The bias is taken to fall as n to the power -rate."""
    at_part: MonteCarloMean
    """The mean estimate from parts alone, and the standard error of its difference from the estimate."""
    at_half: MonteCarloMean
    """The same from half of the pairs."""


@dataclass(frozen=True)
class KsgEstimate:
    """An estimate of I(x; y).

    nats: may be negative. standard_error_nats: the standard deviation of the points' own terms over the square root
    of their number. It covers the noise of sampling alone. Terms of neighbouring points depend on one another, so it is
    itself a rough figure (docs/ksg.md has measurements), and it says nothing of the bias, which is downwards where the
    information is high for n points in so many dimensions, and can be many times larger.
    n, k, variant, scale: how the estimate was made. n_coincident: points with k or more exact copies. n_tied: other
    points with fewer than k - 1 others strictly nearer than their k-th neighbour. interval: an honest one, where
    `ksg_with_interval` made the estimate.
    """

    nats: float
    standard_error_nats: float
    n: int
    k: int
    variant: Variant
    n_coincident: int = 0
    n_tied: int = 0
    scale: Scale = "ranks"
    interval: KsgInterval | None = None


def ksg_mutual_information(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    k: int = 5,
    variant: Variant = "ksg1",
    *,
    norm: float = math.inf,
    scale: Scale = "ranks",
    method: Method = "auto",
    n_jobs: int = -1,
    progress: bool = False,
    warn: bool = True,
) -> KsgEstimate:
    """Estimate I(x; y) in nats from n pairs: x (n, d_x) or (n,), y (n, d_y) or (n,).

    k: which neighbour; more lowers the noise and raises the bias. norm: q of the revised variant, 1 or more (ksg1 has
    the maximum norm). scale: "ranks" makes the estimate independent of the scale of each coordinate and treats equal
    distances as the module's header says. "none" takes distances in the units given and counts k points in every
    neighbourhood, as published MIM numbers were made; use it for data without ties whose units are comparable.
    method: "trees" (on the CPU), "brute" (all pairs, on the device of x), or "auto", the faster one as measured for n
    and the dimensions; both give the same numbers. n_jobs: threads of the trees, -1 for all. progress: show a bar.
    Computed in float64; memory grows with n, not with its square.

    A warning (none with warn=False) tells when pairs look copied by mistake and, under scale="none", when many
    neighbourhoods have equal distances. Points with k or more exact copies are taken as atoms of a discrete
    distribution; the estimate counts them in n_coincident.

    Raises UsageError for k below 1 or not below n, for values that are not finite real numbers, for other shapes, and
    for a finite norm with discrete data, whose volumes it cannot know.
    """
    for name, value, choices in (("variant", variant, Variant), ("scale", scale, Scale), ("method", method, Method)):
        if value not in get_args(choices):
            raise UsageError(f"{name} {value!r}: must be one of {', '.join(get_args(choices))}")
    if not norm >= 1 or (variant == "ksg1" and norm != math.inf):
        raise UsageError(f"norm {norm}: must be at least 1, and infinite for ksg1")
    a, b = _points(x, "x"), _points(y, "y")
    n = len(a)
    if len(b) != n:
        raise UsageError(f"x holds {n} points and y {len(b)}: they must come in pairs")
    if not 1 <= k < n:
        raise UsageError(f"k {k}: must be at least 1 and below the number of pairs, {n}")
    if scale == "ranks":
        if norm != math.inf:
            _refuse_discrete(a, b, norm)
        a, b = normal_scores(a), normal_scores(b)

    if method == "auto":
        method = faster_method(n, a.shape[1], b.shape[1], on_cpu=a.device.type == "cpu")
    search = _Search(k, norm, closed=variant == "revised", published=scale == "none", progress=progress)
    if method == "trees":
        found = _by_trees(a.cpu().numpy(), b.cpu().numpy(), search, n_jobs)
    else:
        found = _by_brute_force(a, b.to(a.device), search)

    n_inside = k if scale == "none" else np.maximum(found.n_nearer, 1)
    terms = digamma(n_inside) + digamma(n) - digamma(found.n_x) - digamma(found.n_y)
    if variant == "revised":
        others_x, others_y = np.maximum(found.n_x - 1, 1), np.maximum(found.n_y - 1, 1)  # 0 at no point but an atom
        closed = digamma(k) + math.log(n) - np.log(others_x) - np.log(others_y)
        d_x, d_y = a.shape[1], b.shape[1]
        volumes = log_ball_volume(d_x, norm) + log_ball_volume(d_y, norm) - log_ball_volume(d_x + d_y, norm)
        terms = np.where(found.is_closed, closed, terms) + volumes
    atoms = found.radius == 0
    n_coincident, n_tied = int(atoms.sum()), int((~atoms & (found.n_nearer < k)).sum())
    if found.has_copy.any():
        copies = _copies(a.cpu().numpy(), b.cpu().numpy())
        terms[atoms] = (digamma(copies[0]) + digamma(n) - digamma(copies[1]) - digamma(copies[2]))[atoms]
        if warn:
            _warn_of_copied_pairs(copies)
    if warn and scale == "none" and n_tied > _WORTH_A_WARNING * n:
        logger.warning(
            "KSG: %d of %d points have several neighbours at the same distance, which raises the estimate: "
            'use scale="ranks" for values on a grid',
            *(n_tied, n),
        )
    error = float(terms.std(ddof=1) / math.sqrt(n))
    return KsgEstimate(float(terms.mean()), error, n, k, variant, n_coincident, n_tied, scale)


def normal_scores(points: Tensor) -> Tensor:
    """Each coordinate of points (n, d) by itself: the standard normal quantile of its rank, in float64. Equal values
    share their mean rank."""
    columns = points.T.contiguous()
    in_order = columns.sort(dim=1).values
    low, high = (torch.searchsorted(in_order, columns, right=right) for right in (False, True))
    n = len(points)
    above_median = (low + high - n).double()  # twice the mean rank, less that of the median
    lower_half = torch.special.ndtri((n - above_median.abs()) / (2 * n))  # so both halves are exact mirror images
    return (-above_median.sign() * lower_half).T.contiguous()


def faster_method(n: int, d_x: int, d_y: int, *, on_cpu: bool = True) -> Method:
    """The method that takes less time. All pairs cost n squared whatever the dimensions; balls hold more of a tree's
    leaves with each dimension. The line between them is fitted to the measurements in docs/information.md."""
    least = TREES_FROM * 10 ** ((d_x + d_y - 6) / 5)
    return "trees" if on_cpu and n >= least else "brute"


def log_ball_volume(dim: int, norm: float) -> float:
    """Log volume of the unit ball of a norm q in `dim` dimensions: dim log(2 Gamma(1 + 1/q)) - log Gamma(1 + dim/q),
    which is dim log 2 for the maximum norm."""
    if norm == math.inf:
        return dim * math.log(2)
    return float(dim * (math.log(2) + gammaln(1 + 1 / norm)) - gammaln(1 + dim / norm))


@dataclass(frozen=True)
class _Search:
    """What is looked for. closed: where no distances tie, points as far as the k-th neighbour count too. published:
    ties are not looked for."""

    k: int
    norm: float
    closed: bool
    published: bool
    progress: bool

    def n_nearest(self, n: int) -> int:
        """How many distances each point needs, its own 0 included. Where the k-th neighbour may count, the one after it
        shows a tie."""
        return min(self.k + 1 + (self.closed and not self.published), n)


class _Found:
    """What a method finds, for every point (n,).

    radius: distance to the k-th neighbour. n_nearer: points strictly nearer, itself included. is_closed: whether
    points as far as that neighbour count too. has_copy: whether it has an exact copy. n_x, n_y: points that count on
    each side, itself included. All arrays stand before the search: small ones that are kept, made between large ones
    that are freed, leave holes in memory that grow with the square of n.
    """

    def __init__(self, n: int, search: _Search) -> None:
        self.search = search
        self.radius = np.zeros(n)
        self.reach = np.zeros(n)
        self.n_nearer, self.n_x, self.n_y = np.zeros((3, n), dtype=np.int64)
        self.is_closed, self.has_copy = np.zeros((2, n), dtype=bool)

    def put(self, rows: slice, nearest: np.ndarray) -> np.ndarray:
        """From the nearest distances (m, n_nearest) of some points, in order, their own 0 first. Returns the distances
        (m,) up to which points count: "nearer than" is "no farther than the next smaller float", at every scale. Where
        the k-th neighbour counts and its distance is a rounded root, the next larger float makes sure of it."""
        k, search = self.search.k, self.search
        radius = nearest[:, k]
        n_nearer = np.count_nonzero(nearest < radius[:, None], axis=1)
        is_closed = np.full(len(radius), search.closed)
        if search.closed and not search.published:
            tied_outwards = (nearest[:, k + 1 :] == radius[:, None]).any(axis=1)
            is_closed &= (n_nearer == k) & ~tied_outwards
        self.radius[rows], self.n_nearer[rows], self.is_closed[rows] = radius, n_nearer, is_closed
        self.has_copy[rows] = nearest[:, 1] == 0
        self.reach[rows] = np.nextafter(
            radius, np.where(is_closed, math.inf if search.norm < math.inf else radius, 0.0)
        )
        return self.reach[rows]


def _by_trees(x: np.ndarray, y: np.ndarray, search: _Search, n_jobs: int) -> _Found:
    found = _Found(len(x), search)
    joint = np.concatenate([x, y], axis=1)
    which = range(1, search.n_nearest(len(x)) + 1)
    tree = cKDTree(joint)
    with Bar(total=3 * len(x), desc="KSG", unit=" queries", disable=not search.progress) as bar:
        for rows in _blocks(len(x), _ROWS_AT_ONCE):
            nearest = tree.query(joint[rows], which, p=search.norm, workers=n_jobs)[0]
            bar.update(len(found.put(rows, nearest)))
        del tree
        for points, near in ((x, found.n_x), (y, found.n_y)):
            _count_by_trees(points, found.reach, search.norm, n_jobs, near, bar)
    return found


def _count_by_trees(
    points: np.ndarray, reach: np.ndarray, norm: float, n_jobs: int, near: np.ndarray, bar: Bar
) -> None:
    """Fill near (n,)."""
    if norm == math.inf and points.shape[1] <= 2:
        near[:] = count_within(points, reach)
        bar.update(len(points))
        return
    # Balls in one space hold many points: larger leaves than the usual 16 save an eighth.
    tree = cKDTree(points, leafsize=32)
    for rows in _blocks(len(points), _ROWS_AT_ONCE):
        near[rows] = tree.query_ball_point(points[rows], reach[rows], p=norm, workers=n_jobs, return_length=True)
        bar.update(len(near[rows]))


def _by_brute_force(x: Tensor, y: Tensor, search: _Search) -> _Found:
    n, norm = len(x), search.norm
    found = _Found(n, search)
    on_cpu = x.device.type == "cpu"
    n_rows = min(n, max(1, (_PAIRS_AT_ONCE if on_cpu else _PAIRS_AT_ONCE_GPU) // n))
    tables = x.new_empty(4, n_rows, n)
    is_near = torch.empty(n_rows, n, dtype=torch.bool, device=x.device)
    columns_x, columns_y = x.T.contiguous(), y.T.contiguous()
    with Bar(total=n, desc="KSG", unit=" points", disable=not search.progress) as bar:
        for rows in _blocks(n, n_rows):
            far_x, far_y, far, spare = tables[:, : rows.stop - rows.start]  # (rows, n) each
            _distances(columns_x, rows, norm, far_x, spare)
            _distances(columns_y, rows, norm, far_y, spare)
            if norm == math.inf:
                torch.maximum(far_x, far_y, out=far)
            else:
                torch.add(far_x**norm, far_y**norm, out=far).pow_(1 / norm)
            nearest = far.topk(search.n_nearest(n), dim=1, largest=False).values
            reach = torch.from_numpy(found.put(rows, nearest.cpu().numpy())).to(x.device)[:, None]
            for far_side, near in ((far_x, found.n_x), (far_y, found.n_y)):
                near[rows] = _count(torch.le(far_side, reach, out=is_near[: len(far_side)]))
            bar.update(len(far))
    return found


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _distances(columns: Tensor, rows: slice, norm: float, far: Tensor, spare: Tensor) -> None:
    """Fill far (rows, n) with the distances from some points to all, of columns (d, n), rounded as the trees round."""
    if norm != math.inf or columns.device.type != "cpu":
        # Not by matrix products: they lose the digits that tell near points apart.
        far.copy_(torch.cdist(columns.T[rows], columns.T, p=norm, compute_mode="donot_use_mm_for_euclid_dist"))
        return
    # A pass for each coordinate takes two thirds of the time of `cdist`.
    far.zero_()
    for column in columns:
        torch.sub(column[rows, None], column, out=spare).abs_()
        torch.maximum(far, spare, out=far)


def _count(near: Tensor) -> np.ndarray:
    if near.device.type == "cpu":
        return np.count_nonzero(near.numpy(), axis=1)  # four times as fast as torch's sum of bools
    return near.sum(1).cpu().numpy()


def _copies(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many points equal each one in both, in x and in y, itself included: (3, n)."""

    def multiplicity(points: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
        return counts[place.reshape(-1)]

    return np.stack([multiplicity(points) for points in (np.concatenate([x, y], axis=1), x, y)])


def _warn_of_copied_pairs(copies: np.ndarray) -> None:
    n = copies.shape[1]
    # In discrete data the values of a repeated pair are found in other pairs too.
    n_rows = int(((copies[0] > 1) & (copies[0] == copies[1]) & (copies[0] == copies[2])).sum())
    if n_rows > _WORTH_A_WARNING * n:
        logger.warning(
            "KSG: %d of %d pairs are exact copies of others, and their x and y occur in no different pair; "
            "pairs copied by mistake raise the estimate: remove them",
            *(n_rows, n),
        )


def _refuse_discrete(x: Tensor, y: Tensor, norm: float) -> None:
    for name, side in (("x", x), ("y", y)):
        for i, column in enumerate(side.T):
            counts = column.unique(return_counts=True)[1]
            repeated = int(counts[counts > 1].sum())
            if repeated > _DISCRETE * len(side):
                raise UsageError(
                    f"column {i} of {name}: {repeated} of {len(side)} values are repeated; norm {norm} needs values "
                    "that have a density: use norm inf for values on a grid"
                )


def _points(values: Any, name: str) -> Tensor:
    """(n, d) in float64, on the device of `values` where that has float64."""
    try:
        points = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: must be an array of numbers ({error})") from error
    if points.is_complex():
        raise UsageError(f"{name} holds complex numbers: give real and imaginary parts as two columns")
    points = (points.cpu() if points.device.type == "mps" else points).double()
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] < 1:
        raise UsageError(f"{name} of shape {tuple(points.shape)}: must be (n, d) or (n,)")
    if n_bad := int((~points.isfinite()).sum()):
        raise UsageError(f"{name} holds {n_bad} values that are not finite (nan or infinite): remove those pairs")
    return points + 0.0  # -0 and 0 are one place
