"""Mutual information from samples by distances to nearest neighbours (Kraskov, Stoegbauer, Grassberger 2004).

For pairs (x_i, y_i), with eps_i the distance from pair i to its k-th neighbour in the joint space and n_x(i),
n_y(i) the numbers of points near x_i and near y_i alone:

    ksg1     I = psi(k) + psi(n) - mean[ psi(n_x) + psi(n_y) ]        equation 8 of Kraskov et al.; distances
             are the larger of both sides' maximum norms, counts are of points nearer than eps_i, itself included
    revised  I = psi(k) + log n + v(d_x) + v(d_y) - v(d_x + d_y) - mean[ log n_x + log n_y ]
             Gao, Oh, Viswanath 2018 (their bias-improved form); distances in the norm q, counts of the other
             points no farther than eps_i, v(d) the log volume of the unit ball of q

All in nats. An estimate may be below zero: it is not clipped. In few dimensions k-d trees answer; above
TREE_DIMENSIONS, where they do no better than looking at all pairs, and on a GPU, all pairs are looked at. Both
ways give the same numbers: "nearer than eps" is "no farther than the next smaller float", at every scale.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.neighbour_counts import count_within

logger = logging.getLogger(__name__)

Variant = Literal["ksg1", "revised"]
Method = Literal["auto", "trees", "brute"]

TREE_DIMENSIONS = 8
"""Of x and y together; above it trees are slower than all pairs."""
_PAIRS_AT_ONCE = 2**22  # distances held at a time: 32 MiB for each of three tables


@dataclass(frozen=True)
class KsgEstimate:
    """An estimate of I(x; y).

    nats: may be negative. standard_error_nats: the spread of the points' own terms over the square root of
    their number, so of the sampling noise; it says nothing of the bias, which is downwards where the information
    is high for n points in so many dimensions. n, k, variant: how it was made. n_coincident: points with k or
    more exact copies, whose neighbourhood has no size (see `ksg_mutual_information`).
    """

    nats: float
    standard_error_nats: float
    n: int
    k: int
    variant: Variant
    n_coincident: int = 0


def ksg_mutual_information(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    k: int = 5,
    variant: Variant = "ksg1",
    *,
    norm: float = math.inf,
    method: Method = "auto",
    n_jobs: int = -1,
) -> KsgEstimate:
    """Estimate I(x; y) in nats from n pairs: x (n, d_x) or (n,), y (n, d_y) or (n,).

    k: which neighbour; more lowers the noise and raises the bias. norm: q of the revised variant, 1 or more
    (ksg1 has the maximum norm). method: "trees", "brute" (on the device of x), or "auto", which is trees up to
    TREE_DIMENSIONS dimensions on the CPU. n_jobs: threads of the trees, -1 for all. Computed in float64.

    Few copies of a point do no harm. A point with k or more exact copies has no neighbourhood of positive size:
    it is taken as an atom of a law that is discrete there, and its term is psi(m) + psi(n) - psi(m_x) - psi(m_y)
    with the numbers of points equal to it, itself included, in both and in each (Gao et al. 2017). A warning
    says how many there are.

    Raises UsageError for k below 1 or not below n, for values that are not finite, and for other shapes.
    """
    if variant not in get_args(Variant):
        raise UsageError(f"variant {variant!r}: must be one of {', '.join(get_args(Variant))}")
    if method not in get_args(Method):
        raise UsageError(f"method {method!r}: must be one of {', '.join(get_args(Method))}")
    if not norm >= 1 or (variant == "ksg1" and norm != math.inf):
        raise UsageError(f"norm {norm}: must be at least 1, and infinite for ksg1")
    a, b = _points(x, "x"), _points(y, "y")
    n = len(a)
    if len(b) != n:
        raise UsageError(f"x holds {n} points and y {len(b)}: they must come in pairs")
    if not 1 <= k < n:
        raise UsageError(f"k {k}: must be at least 1 and below the number of pairs, {n}")

    if method == "auto":
        few = a.shape[1] + b.shape[1] <= TREE_DIMENSIONS
        method = "trees" if few and a.device.type == "cpu" else "brute"
    strict = variant == "ksg1"
    if method == "trees":
        found = _by_trees(a.cpu().numpy(), b.cpu().numpy(), k, norm, strict, n_jobs)
    else:
        found = _by_brute_force(a, b.to(a.device), k, norm, strict)

    if variant == "ksg1":
        terms = digamma(k) + digamma(n) - digamma(found.n_x) - digamma(found.n_y)
    else:
        volumes = [log_ball_volume(d, norm) for d in (a.shape[1], b.shape[1], a.shape[1] + b.shape[1])]
        others_x, others_y = np.maximum(found.n_x - 1, 1), np.maximum(found.n_y - 1, 1)  # 0 at no point but an atom
        constant = digamma(k) + math.log(n) + volumes[0] + volumes[1] - volumes[2]
        terms = constant - np.log(others_x) - np.log(others_y)
    atoms = found.radius == 0
    if n_coincident := int(atoms.sum()):
        logger.warning("KSG: %d of %d points have %d or more exact copies; taken as atoms", n_coincident, n, k)
        copies = _copies(a.cpu().numpy(), b.cpu().numpy())[:, atoms]
        terms[atoms] = digamma(copies[0]) + digamma(n) - digamma(copies[1]) - digamma(copies[2])
    spread = terms.std(ddof=1) if n > 1 else 0.0
    return KsgEstimate(float(terms.mean()), float(spread / math.sqrt(n)), n, k, variant, n_coincident)


def log_ball_volume(dim: int, norm: float) -> float:
    """Log volume of the unit ball of a norm q in `dim` dimensions: dim log(2 Gamma(1 + 1/q)) - log Gamma(1 + dim/q),
    which is dim log 2 for the maximum norm."""
    if norm == math.inf:
        return dim * math.log(2)
    return float(dim * (math.log(2) + gammaln(1 + 1 / norm)) - gammaln(1 + dim / norm))


class _Neighbours(NamedTuple):
    """For every point (n,): distance to its k-th neighbour, and points near it on each side, itself included."""

    radius: np.ndarray
    n_x: np.ndarray
    n_y: np.ndarray


def _by_trees(x: np.ndarray, y: np.ndarray, k: int, norm: float, strict: bool, n_jobs: int) -> _Neighbours:
    joint = np.concatenate([x, y], axis=1)
    radius = cKDTree(joint).query(joint, [k + 1], p=norm, workers=n_jobs)[0][:, 0]  # the point itself comes first
    reach = _reach(radius, strict)
    return _Neighbours(radius, *(_near_by_trees(side, reach, norm, n_jobs) for side in (x, y)))


def _near_by_trees(points: np.ndarray, reach: np.ndarray, norm: float, n_jobs: int) -> np.ndarray:
    if norm == math.inf and points.shape[1] <= 2:
        return count_within(points, reach)
    # Neighbourhoods in one space hold many points: larger leaves than the usual 16 save an eighth.
    tree = cKDTree(points, leafsize=32)
    return tree.query_ball_point(points, reach, p=norm, workers=n_jobs, return_length=True)


def _by_brute_force(x: Tensor, y: Tensor, k: int, norm: float, strict: bool) -> _Neighbours:
    rows = max(1, _PAIRS_AT_ONCE // len(x))
    parts: list[_Neighbours] = []
    for some_x, some_y in zip(x.split(rows), y.split(rows), strict=True):
        far_x, far_y = _distances(some_x, x, norm), _distances(some_y, y, norm)  # (rows, n)
        if norm == math.inf:
            far = torch.maximum(far_x, far_y)
        else:
            far = (far_x**norm + far_y**norm) ** (1 / norm)
        radius = far.topk(k + 1, dim=1, largest=False).values[:, k].cpu().numpy()
        reach = torch.from_numpy(_reach(radius, strict)).to(x.device)[:, None]
        parts.append(_Neighbours(radius, _count(far_x <= reach), _count(far_y <= reach)))
    return _Neighbours(*map(np.concatenate, zip(*parts, strict=True)))


def _reach(radius: np.ndarray, strict: bool) -> np.ndarray:
    """The distance up to which a point counts. Strictly nearer than the k-th neighbour, or as near; rounding of
    roots must not lose that neighbour in the second case."""
    return np.nextafter(radius, 0.0 if strict else math.inf)


def _distances(some: Tensor, all_points: Tensor, norm: float) -> Tensor:
    # Not by matrix products: they lose the digits that tell near points apart.
    return torch.cdist(some, all_points, p=norm, compute_mode="donot_use_mm_for_euclid_dist")


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


def _points(values: Any, name: str) -> Tensor:
    """(n, d) in float64, on the device of `values` where that has float64."""
    points = torch.as_tensor(values).detach()
    points = (points.cpu() if points.device.type == "mps" else points).double()
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] < 1:
        raise UsageError(f"{name} of shape {tuple(points.shape)}: must be (n, d) or (n,)")
    if not points.isfinite().all():
        raise UsageError(f"{name} holds values that are not finite")
    return points + 0.0  # -0 and 0 are one place
