"""Mutual information in closed form, in nats, for distributions beside the jointly Gaussian (gaussian.py).

Notation: x has d_x numbers and y has d_y, h is the differential entropy, psi the digamma function. Every formula is
I = h(x) + h(y) - h(x, y), worked out; tests compare it with numerical integration. An invertible map of x and another
of y leave the information as it is, and independent pairs side by side add theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import digamma, entr, gammaln, ndtr, ndtri

from mi_ml_gen.core.errors import UsageError


def normal_pairs_information(correlation: float, n_pairs: int = 1) -> float:
    """Independent pairs of normal numbers of one correlation: -n_pairs/2 log(1 - correlation^2)."""
    if not -1 < correlation < 1:
        raise UsageError(f"correlation {correlation}: must lie between -1 and 1, where the information is finite")
    return -0.5 * n_pairs * math.log1p(-(correlation**2))


def normal_pairs_correlation(nats: float, n_pairs: int = 1) -> float:
    """The correlation of independent pairs of normal numbers that hold this much information together."""
    return math.sqrt(-math.expm1(-2 * nats / n_pairs))


def equicorrelated_information(correlation: float, d_x: int, d_y: int) -> float:
    """Normal numbers of which every two have the same correlation, inside x, inside y and between them: the
    determinant of d of them is (1 - c)^(d - 1) (1 + (d - 1) c)."""

    def log_det(dim: int) -> float:
        return (dim - 1) * math.log1p(-correlation) + math.log1p((dim - 1) * correlation)

    if not -1 / (d_x + d_y - 1) < correlation < 1:
        raise UsageError(f"correlation {correlation} of {d_x + d_y} numbers: the covariance is not positive definite")
    return 0.5 * (log_det(d_x) + log_det(d_y) - log_det(d_x + d_y))


def student_excess(df: float, d_x: int, d_y: int) -> float:
    """What a multivariate Student t of `df` degrees of freedom holds beyond a normal vector of the same dispersion.

    The common scale ties x and y together even where the dispersion has no correlation. From the entropy of the
    d-dimensional t: h = 1/2 log|S| + log[ (pi df)^(d/2) Gamma(df/2) / Gamma((df + d)/2) ]
    + (df + d)/2 [ psi((df + d)/2) - psi(df/2) ].
    """
    if not (df > 0 and math.isfinite(df)):
        raise UsageError(f"degrees of freedom {df}: must be above 0 and finite")

    def part(dim: int) -> float:
        half = (df + dim) / 2
        return float(half * digamma(half) - gammaln(half))

    return part(d_x) + part(d_y) - part(d_x + d_y) - part(0)


def additive_uniform_information(half_width: float) -> float:
    """x uniform on [0, 1], y = x + u with u uniform on [-half_width, half_width].

    y has a trapezoid for a density, of entropy log(max(1, w)) + min(1, w) / (2 max(1, w)), w = 2 half_width; given x
    its entropy is log w.
    """
    if not (half_width > 0 and math.isfinite(half_width)):
        raise UsageError(f"half width {half_width}: must be above 0 and finite")
    width = 2 * half_width
    wide, narrow = max(1.0, width), min(1.0, width)
    return math.log(wide) + narrow / (2 * wide) - math.log(width)


def gamma_exponential_information(shape: float) -> float:
    """x of a Gamma distribution of this shape and rate 1, y exponential of rate x: psi(a) - log a + 1/a.

    y has the Lomax density a (1 + y)^(-a - 1), of entropy 1 + 1/a - log a; given x its entropy is 1 - log x.
    """
    if not (shape > 0 and math.isfinite(shape)):
        raise UsageError(f"shape {shape}: must be above 0 and finite")
    return float(digamma(shape + 1)) - math.log(shape)  # psi(a) + 1/a is psi(a + 1)


def separated_mixture_information(weights: Sequence[float], nats: Sequence[float]) -> float:
    """A mixture of pairs where x alone tells the component, and so does y: H(weights) + sum of weight x information.

    So it is where components lie apart on both sides, and where one has a density and another sits on points.
    Raises UsageError for weights that are no probabilities.
    """
    if len(weights) != len(nats) or min(weights) <= 0 or not math.isclose(sum(weights), 1, abs_tol=1e-9):
        raise UsageError(f"weights {list(weights)}: must be one for each component, above 0, with a sum of 1")
    return sum(weight * (inner - math.log(weight)) for weight, inner in zip(weights, nats, strict=True))


def symmetric_bits_information(agreement: float) -> float:
    """Two fair bits that are equal with this probability: log 2 - H(agreement)."""
    if not 0 <= agreement <= 1:
        raise UsageError(f"agreement {agreement}: must lie within 0 and 1")
    return math.log(2) + sum(share * math.log(share) for share in (agreement, 1 - agreement) if share > 0)


def binned_normal_information(correlation: float, n_bins: int) -> float:
    """Two normal numbers of this correlation, one of them known by its bin alone, of `n_bins` equally likely ones:
    log n_bins less the mean entropy of the bin given the other number, by one integral."""
    if not -1 <= correlation <= 1 or n_bins < 1:
        raise UsageError(f"correlation {correlation} and {n_bins} bins: must lie within -1 and 1, and be at least 1")
    size = abs(correlation)
    rest = math.sqrt(max(1 - size**2, 0.0))
    if size == 0 or n_bins == 1:
        return 0.0
    if rest == 0:
        return math.log(n_bins)
    edges = ndtri(np.arange(n_bins + 1) / n_bins)
    # Gauss-Legendre between knots, close where the entropy changes fast: a few `rest` about each edge.
    near = np.array([0.0, 1, 2, 3, 5, 8]) * rest / size
    knots = np.concatenate(
        [(edges[1:-1, None] / size + sign * near).ravel() for sign in (-1, 1)] + [np.linspace(-9, 9, 37)]
    )
    knots = np.unique(np.clip(knots, -9, 9))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half, middle = np.diff(knots) / 2, (knots[1:] + knots[:-1]) / 2
    t = (middle[:, None] + half[:, None] * nodes).ravel()
    weight = (half[:, None] * weights).ravel() * np.exp(-0.5 * t**2) / math.sqrt(2 * math.pi)
    above = ndtr((size * t[:, None] - edges) / rest)  # that the other number lies above each edge
    return float(math.log(n_bins) - weight @ entr(above[:, :-1] - above[:, 1:]).sum(1))


def solve(information: Callable[[float], float], nats: float, least: float, most: float) -> float:
    """Where the monotone `information` takes the value `nats`, by bisection; least, most: where it is least and most.

    Raises UsageError where the value is not between the two.
    """

    def above(value: float) -> bool:
        try:
            return information(value) > nats
        except UsageError:  # not positive definite in float64: as good as infinite
            return True

    if not math.isfinite(nats) or above(least) or not above(most):
        raise UsageError(f"{nats} nats: out of reach with these settings")
    for _ in range(60):
        middle = 0.5 * (least + most)
        least, most = (least, middle) if above(middle) else (middle, most)
    return least
