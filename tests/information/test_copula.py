"""Gaussian coordinates, the closed form without its bias, and the tests of Gaussian pairs."""

import math

import pytest
import torch

from mi_ml_gen.information import copula
from mi_ml_gen.information.estimate import Verdict
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.tasks import make_task


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_smooth_scores_are_increasing_and_normal():
    points = torch.randn(3000, 3, generator=rng(), dtype=torch.float64)
    points = torch.cat([points, points[:, :1].exp(), points[:, :1] ** 3], 1)
    scores = copula.smooth_scores(points)
    for before, after in zip(points.T, scores.T, strict=True):
        assert (after[before.argsort()].diff() > 0).all()
        assert abs(after.mean()) < 0.02 and abs(after.std() - 1) < 0.03
        assert abs((after**4).mean() - 3) < 0.3


def test_smooth_scores_keep_what_ranks_lose():
    """At 10 nats the noise is below the distance of neighbours, so ranks hardly show it."""
    task = make_task("normal", 10.0, 1)
    estimate = estimate_information(*task.sample(10_000, rng()), "gaussian")
    assert abs(estimate.nats - 10) < 0.5


@pytest.mark.parametrize("column", [torch.zeros(500), torch.arange(500) // 250])
def test_constant_and_discrete_coordinates_are_taken(column):
    x = torch.stack([column.double(), torch.randn(500, generator=rng(), dtype=torch.float64)], 1)
    pairs = copula.canonical(x, torch.randn(500, 1, generator=rng(1), dtype=torch.float64))
    assert pairs.is_discrete
    assert all(side.isfinite().all() for side in (pairs.x, pairs.y, pairs.correlations))


def test_canonical_coordinates_have_unit_covariance_and_their_correlations():
    x, y = make_task("normal-dense", 1.0, 3).sample(2000, rng())
    pairs = copula.canonical(torch.cat([x, x @ torch.ones(3, 1).double()], 1), y[:, :2])
    n = len(x)
    for side in (pairs.x, pairs.y, pairs.residual):
        assert torch.allclose(side.T @ side / n, torch.eye(side.shape[1]).double(), atol=1e-8)
    assert torch.allclose(pairs.x.T @ pairs.residual / n, torch.zeros(()).double(), atol=1e-8)
    expected = torch.zeros(pairs.x.shape[1], 2).double()
    expected[:2, :2] = pairs.correlations.diag()
    assert torch.allclose(pairs.x.T @ pairs.y / n, expected, atol=1e-8)


def test_the_closed_form_has_no_bias_for_few_pairs():
    """200 draws of 60 pairs of 4 + 3 numbers: the biased form is off by tens of standard errors."""
    task = make_task("normal", 0.7, 3)
    extra = torch.randn(200, 60, 1, generator=rng(5), dtype=torch.float64)
    values, biased = [], []
    for i in range(200):
        x, y = task.sample(60, rng(i))
        pairs = copula.Canonical(*_linear(torch.cat([x, extra[i]], 1), y), False)
        part = copula.gaussian_part(pairs)
        values.append(part.nats)
        biased.append(part.terms.mean().item())
    values, biased = torch.tensor(values), torch.tensor(biased)
    error = values.std() / math.sqrt(200)
    assert abs(values.mean() - 0.7) < 3 * error
    assert abs(biased.mean() - 0.7) > 6 * error


def _linear(x, y):
    white_x, white_y = copula._whitened(x), copula._whitened(y)
    left, correlations, right = torch.linalg.svd(white_x.T @ white_y / len(x))
    return white_x @ left, white_y @ right.T, correlations


def test_truth_lies_in_the_interval_as_often_as_it_says():
    """1 + 1 and 3 + 3 normal numbers, 400 pairs, 120 draws in all; 95% is 114, and 2.6 deviations are 6."""
    inside = 0
    for dim, nats in ((1, 1.0), (3, 1.5)):
        task = make_task("normal", nats, dim)
        for i in range(60):
            estimate = estimate_information(*task.sample(400, rng(1000 + i)), "gaussian")
            inside += estimate.low_nats <= nats <= estimate.high_nats
    assert 108 <= inside <= 119, inside


@pytest.mark.parametrize("name", ["uniform", "half-cube", "wiggly", "bimodal"])
def test_monotone_maps_of_coordinates_change_little(name):
    estimate = estimate_information(*make_task(name, 2.0, 2).sample(5000, rng()), "gaussian")
    assert abs(estimate.nats - 2.0) < 0.1


@pytest.mark.parametrize(("name", "nats", "dim"), [("spiral", 2.0, 2), ("student", 1.0, 3), ("clusters", 2.0, 1)])
def test_what_is_not_gaussian_is_not_trusted(name, nats, dim):
    estimate = estimate_information(*make_task(name, nats, dim).sample(5000, rng()), "gaussian")
    assert estimate.verdict is Verdict.NOT_TRUSTED


def test_equal_sides_and_discrete_sides_are_not_trusted():
    x = torch.randn(500, 1, generator=rng(), dtype=torch.float64)
    assert "determine one another" in estimate_information(x, x, "gaussian").reason
    assert "repeated" in estimate_information((x * 2).round(), x, "gaussian").reason


def test_curves_that_are_too_coarse_change_with_the_number_of_pairs():
    """At 6 nats 700 pairs give curves that are too coarse for a cube: no moment shows what is lost."""
    x, y = make_task("normal", 6.0, 1).sample(700, rng())
    estimate = estimate_information(x**3 + 0.2 * x, y.sinh(), "gaussian")
    assert estimate.nats < 5 and "half as many pairs" in estimate.reason
    estimate = estimate_information(x, y, "gaussian")
    assert estimate.nats > 5.7 and "half as many pairs" not in estimate.reason
    few = estimate_information(*make_task("normal", 1.0, 12).sample(24, rng()), "gaussian")
    assert "24 pairs are too few for 24 numbers" in few.reason and "infinite" not in few.reason
    assert few.verdict is Verdict.NOT_TRUSTED and few.details["at_half_n_nats"] is None
