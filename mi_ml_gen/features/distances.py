"""How far apart two sets of images are, in the features of a network: Frechet and kernel distance, with intervals.

The intervals come from ten groups of images, of which each is an independent sample. Both are Student's 95% intervals
over these ten units:

    kernel distance    its unbiased estimate in each group by itself; their mean (Zaremba et al., 2013, "B-test")
    Frechet distance   the usual number falls with the number of images, roughly as 1/n. The jackknife that leaves out
                       one group at a time gives an interval, and takes that bias away (Quenouille, 1956; to the same
                       end Chong & Forsyth, 2020, extrapolate over several n)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.student import over_units

N_GROUPS = 10
N_NEAREST = 3
"""Neighbours that the balls of precision and recall reach to."""


class Distance(NamedTuple):
    """A distance with the ends of its 95% interval. An estimate without bias may be below 0 where two sets agree."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} (95%: {self.low:.4g} to {self.high:.4g})"


def over_groups(values: Sequence[float]) -> Distance:
    """The mean of independent values, with Student's 95% interval."""
    return Distance(*over_units(values)[:3])


# --- the Frechet distance -----------------------------------------------------------------------------------


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features (n, d) and (m, d) (Heusel et al., 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)); the trace of the root is the sum of roots of A B's eigenvalues.
    """
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root_a = _symmetric_root(cov_a)
    trace_root = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_root
    return distance.item()


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


class Frechet(NamedTuple):
    """The Frechet distance of two sets."""

    plain: float
    """The usual number, which is too large by an amount that falls with the number of images."""
    corrected: Distance
    """Without that bias to first order, and with an interval."""


def frechet(a: Tensor, b: Tensor, n_groups: int = N_GROUPS) -> Frechet:
    """Of features (n, d) each, float64, in random order. Raises UsageError for too few images: even without one group
    there must be more images than features, since covariances of fewer have no full rank."""
    n, d = min(len(a), len(b)), a.shape[1]
    if (n_least := fewest_images(d, n_groups)) > n:
        raise UsageError(
            f"{n} images say too little about {d} features; a Frechet distance with an interval needs {n_least}"
        )
    plain = frechet_distance(a[:n], b[:n])
    group = torch.arange(n) % n_groups
    without = [frechet_distance(a[:n][group != i], b[:n][group != i]) for i in range(n_groups)]
    return Frechet(plain, over_groups([n_groups * plain - (n_groups - 1) * value for value in without]))


def fewest_images(d: int, n_groups: int = N_GROUPS) -> int:
    """The images of each set that `frechet` needs in d dimensions."""
    return math.ceil((d + 2) * n_groups / (n_groups - 1))


# --- the kernel distance ------------------------------------------------------------------------------------


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d) under the kernel (x y / d + 1)^3.

    This is KID (Binkowski et al., 2018, section 4.2 and equation 4); it has no bias at any number of images.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n, m = len(a), len(b)
    of_a, of_b = kernel(a, a), kernel(b, b)
    within = (of_a.sum() - of_a.trace()) / (n * (n - 1)) + (of_b.sum() - of_b.trace()) / (m * (m - 1))
    return (within - 2 * kernel(a, b).mean()).item()


def kernel(a: Tensor, b: Tensor, n_groups: int = N_GROUPS) -> Distance:
    """The kernel distance of features (n, d) each, in random order: the mean over groups, and its interval.

    Raises UsageError for fewer than two images in a group.
    """
    n = min(len(a), len(b))
    if n < 2 * n_groups:
        raise UsageError(f"{n} images are too few for a kernel distance with an interval; it needs {2 * n_groups}")
    parts = zip(a[:n].tensor_split(n_groups), b[:n].tensor_split(n_groups), strict=True)
    return over_groups([kernel_distance(one, other) for one, other in parts])


# --- precision and recall -----------------------------------------------------------------------------------


def precision_recall(real: Tensor, fake: Tensor, k: int = N_NEAREST) -> tuple[float, float]:
    """Share of fakes within the real images' manifold, and of real ones within the fakes' (Kynkaanniemi et al., 2019).

    A set's manifold is the union of balls around its features (n, d), each reaching to its k-th neighbour.
    """

    def covered(points: Tensor, manifold: Tensor) -> float:
        radii = torch.cat([torch.cdist(part, manifold).kthvalue(k + 1, dim=1).values for part in manifold.split(1000)])
        inside = [(torch.cdist(part, manifold) <= radii).any(dim=1) for part in points.split(1000)]
        return runtime.in_float64(torch.cat(inside)).mean().item()

    return covered(fake, real), covered(real, fake)
