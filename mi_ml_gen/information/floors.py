"""Numbers that an estimate should not fall below: cheap estimates that err downwards, or of something smaller.

- The Gaussian copula with the same correlations shares least of all pairs whose sides are each normal.
- KSG errs downwards where the information is high for so many dimensions and pairs, and hardly upwards
  (docs/information.md).
- A function of x and one of y share at most what x and y do (data processing: Cover and Thomas 2006, section 2.8).
  Functions with one number each are easy to measure: the lengths of x and of y in canonical coordinates, which tell of
  a common scale, as heavy tails have it.
- Where the coordinates of x are independent of one another, I(x; y) >= sum_i I(x_i; y) >= sum_i I(x_i; y_p(i)) for
  every pairing p. So pairs of single coordinates are measured, each in one plane, and added up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mi_ml_gen.information.copula import Canonical, GaussianPart, standard_error
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.ksg import ksg_mutual_information, normal_scores

KSG_SPREAD = 1.7
"""By how much the points' own spread can be too small for continuous data: docs/information.md, table of kinds."""
MOST_PAIRS, MOST_DIMS = 20_000, 10
"""Of KSG in all coordinates here: beyond, it costs more than it tells."""
INDEPENDENT = 4.0
"""Standard deviations up to which coordinates count as independent."""
FEWEST_PAIRS = 100
"""For single coordinates, half of which are for choosing them."""
MOST_COORDINATES, MOST_ADDED = 500, 100
"""Of a side, for single coordinates to be looked at, and of pairs of them to be measured: work that is bounded."""


def gaussian_floor(pairs: Canonical, part: GaussianPart) -> dict[str, MonteCarloMean]:
    """By what finds it. Empty for repeated values, which no map makes normal, and for too few pairs."""
    if pairs.is_discrete or not math.isfinite(part.nats):
        return {}
    return {"the correlations alone": MonteCarloMean(part.nats, standard_error(part))}


def one_number_floors(x: Tensor, y: Tensor, pairs: Canonical) -> dict[str, MonteCarloMean]:
    """From single numbers of each side; empty for repeated values, and where each side is one number anyway."""
    x, y = x[:MOST_PAIRS], y[:MOST_PAIRS]
    if pairs.is_discrete or x.shape[1] == y.shape[1] == 1 or len(x) < FEWEST_PAIRS:
        return {}
    lengths = [side[:MOST_PAIRS].square().sum(1) for side in (pairs.x, pairs.y)]
    found = {"the lengths of x and of y alone": _ksg(*lengths)}
    if (added := coordinate_floor(x, y)) is not None:
        found["single coordinates, added up,"] = added
    return found


def floors(x: Tensor, y: Tensor, pairs: Canonical, part: GaussianPart) -> dict[str, MonteCarloMean]:
    """Every floor of pairs x (n, d_x), y (n, d_y), by what finds it."""
    found = gaussian_floor(pairs, part) | one_number_floors(x, y, pairs)
    if x.shape[1] + y.shape[1] <= MOST_DIMS:
        found["nearest neighbours"] = _ksg(x[:MOST_PAIRS], y[:MOST_PAIRS])
    return found


def coordinate_floor(x: Tensor, y: Tensor) -> MonteCarloMean | None:
    """sum_i I(x_i; y_p(i)) over coordinates of x (n, d_x) and y (n, d_y) that visibly depend on each other.

    Every other pair of (x, y) chooses p, and the others give the estimates, so that the choice does not flatter them.
    None where neither the coordinates of x nor those of y are independent of one another, where none depends, or where
    there are more than MOST_COORDINATES.
    """
    if max(x.shape[1], y.shape[1]) > MOST_COORDINATES:
        return None
    features = [_features(side) for side in (x, y)]
    if all(_dependence(of_side) > INDEPENDENT for of_side in features):
        return None
    half, rest = slice(None, None, 2), slice(1, None, 2)
    n, (d_x, d_y) = len(x[half]), (x.shape[1], y.shape[1])
    found = (features[0][half].T @ features[1][half] / n).abs().view(2, d_x, 2, d_y).amax((0, 2))
    # The largest of all 4 d_x d_y correlations by chance, and two more in the squared deviations.
    least = math.sqrt((2 * math.log(4 * d_x * d_y) + 4) / n)
    estimates: list[MonteCarloMean] = []
    while found.max() > least and len(estimates) < MOST_ADDED:
        i, j = divmod(int(found.argmax()), d_y)
        estimates.append(_ksg(x[rest, i], y[rest, j]))
        found[i], found[:, j] = 0.0, 0.0
    if not estimates:
        return None
    return MonteCarloMean(
        math.fsum(one.nats for one in estimates), math.hypot(*(one.standard_error_nats for one in estimates))
    )


def _ksg(x: Tensor, y: Tensor) -> MonteCarloMean:
    found = ksg_mutual_information(x, y, n_jobs=1, warn=False)
    return MonteCarloMean(found.nats, KSG_SPREAD * found.standard_error_nats)


def _features(points: Tensor) -> Tensor:
    """Normal scores of each coordinate and their squares, (n, 2 d), of mean 0 and variance 1."""
    scores = normal_scores(points)
    made = torch.cat([scores, scores.square()], 1)
    made = made - made.mean(0)
    return made / made.square().mean(0).sqrt().clamp_min(1e-12)


def _dependence(features: Tensor) -> float:
    """How many standard deviations the squared correlations of features (n, 2 d) of different coordinates are above
    those of independent ones."""
    n, d = len(features), features.shape[1] // 2
    if d == 1:
        return 0.0
    different = ~torch.eye(d, dtype=torch.bool).repeat(2, 2)
    squares = (features.T @ features / n).square()[different]
    # Each is 1/n times a chi-squared of one degree of freedom, and stands there twice.
    return (squares.sum().item() - len(squares) / n) * n / (2 * math.sqrt(len(squares)))
