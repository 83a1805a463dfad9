"""Tests of joint normality: their parts against slow twins, their chances, and departures of known size."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermeval

from mi_ml_gen.information import copula, normality
from mi_ml_gen.information.closed_forms import student_excess
from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.information.tasks import make_task, normal_pairs, student


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def polynomials(points, degree):
    """Products of Hermite polynomials of this degree in all, of norm 1: (n, number of them)."""
    columns = []
    for powers in itertools.product(range(degree + 1), repeat=points.shape[1]):
        if sum(powers) == degree:
            factors = [
                hermeval(points[:, i].numpy(), [0] * power + [1]) / math.sqrt(math.factorial(power))
                for i, power in enumerate(powers)
            ]
            columns.append(np.prod(factors, axis=0))
    return torch.from_numpy(np.stack(columns, axis=1))


@pytest.mark.parametrize("dim", [1, 3])
def test_kernels_are_sums_over_polynomials(dim):
    u, v = normal(7, dim), normal(5, dim, seed=1)
    for degree, kernel in enumerate(normality.hermite_kernels(u, v, 4)):
        of_u, of_v = polynomials(u, degree), polynomials(v, degree)
        assert of_u.shape[1] == normality._n_polynomials(dim, degree)
        assert torch.allclose(kernel, of_u @ of_v.T, atol=1e-9)


def test_sums_in_blocks_are_those_of_polynomials():
    x, z, y = normal(300, 2), normal(300, 3, seed=1), normal(300, 3, seed=2)
    sums = normality._Sums.of(x, z, y)
    means = polynomials(y, 3).sum(0).square().sum() - polynomials(y, 3).square().sum()
    assert sums.own("y", 3) == pytest.approx((0.5 * means / (300 * 299)).item(), abs=1e-10)
    one, other = (made - made.mean(0) for made in (polynomials(x, 2), polynomials(z, 1)))
    value, _, _ = sums._permuted(2, 1)
    assert value == pytest.approx((one.T @ other / 300).square().sum().item(), abs=1e-10)


def test_chance_is_that_of_permutations():
    x, z = normal(40, 2) ** 3, normal(40, 2, seed=1).exp()  # far from normal: permutations are right all the same
    _, mean, variance = normality._Sums.of(x, z, z)._permuted(2, 2)
    one, other = (made - made.mean(0) for made in (polynomials(x, 2), polynomials(z, 2)))
    order = [torch.randperm(40, generator=rng(seed)) for seed in range(4000)]
    values = torch.stack([(one.T @ other[rows] / 40).square().sum() for rows in order])
    assert mean == pytest.approx(values.mean().item(), abs=4 * values.std().item() / math.sqrt(4000))
    assert variance == pytest.approx(values.var().item(), rel=0.4)


def test_normal_pairs_depart_from_normality_as_seldom_as_it_says():
    """60 draws with 9 tests each: one in 30,000 passes 4 standard deviations, and one in 740 passes 3."""
    beyond = 0
    for seed, (nats, dim, n) in enumerate([(0.0, 1, 300), (1.0, 1, 300), (1.0, 2, 500), (3.0, 4, 400)] * 15):
        pairs = copula.canonical(*make_task("normal", nats, dim).sample(n, rng(seed)))
        found = normality.departures(pairs)
        beyond += sum(one.deviations > 3 for one in found)
        assert max(one.deviations for one in found) < normality.REJECTED, (nats, dim, n, found)
        assert normality.not_normal(pairs, nats) == []
    assert beyond <= 4


def test_lengths_see_a_turn_in_many_dimensions():
    """A turn of one plane by an angle that grows with the length, in 25 + 25 dimensions: no correlation shows it."""
    x = normal(6000, 25)
    angle = x.square().sum(1) / 25
    noise = normal(6000, 25, seed=1)
    y = x.clone()
    y[:, 0] = angle.cos() * x[:, 0] - angle.sin() * x[:, 1]
    y[:, 1] = angle.sin() * x[:, 0] + angle.cos() * x[:, 1]
    pairs = copula.canonical(x, y + noise)
    nats, deviations = normality.with_lengths(pairs.x, pairs.residual)
    assert nats > 0.02 and deviations > 8
    shuffled = pairs.residual[torch.randperm(6000, generator=rng(2))]
    assert abs(normality.with_lengths(pairs.x, shuffled)[1]) < 3


def test_length_polynomials_are_some_of_those_of_their_degree():
    """u_k |u|^2 and |u|^2 lie in the span of the polynomials of degree 3 and 2, and have norm 1."""
    points = normal(20_000, 2)
    made = normality._length_polynomials(points)
    together = torch.cat(list(made.values()), 1)
    assert torch.allclose(together.T @ together / 20_000, torch.eye(5).double(), atol=0.1)
    for degree in (2, 3):
        basis = polynomials(points, degree)
        basis = basis - basis.mean(0)
        fitted = basis @ torch.linalg.lstsq(basis, made[degree]).solution
        assert torch.allclose(fitted, made[degree], atol=1e-8)


@pytest.mark.parametrize("bend", [0.1, 0.3])
def test_the_size_of_a_small_departure(bend):
    """z = bend h_2(x) + e shares about bend^2 / 2 nats with x, all of them in one polynomial of degree 3."""
    x, noise = normal(4000, 2), normal(4000, 2, seed=1)
    z = noise + bend * (x.square() - 1) / math.sqrt(2)
    pairs = copula.canonical(x, z)
    cross, deviations = normality._Sums.of(pairs.x, pairs.residual, pairs.y).cross(3)
    # Two correlations of about `bend` that vary by 1 / sqrt(n), so half their squares by this; three times as much.
    assert cross == pytest.approx(bend**2 / (1 + bend**2), abs=3 * bend * math.sqrt(2 / 4000))
    assert deviations > 4
    assert bool(normality.not_normal(pairs, 0.0)) is (bend == 0.3)  # 0.01 nats do not count, 0.09 do


@pytest.mark.parametrize(
    ("name", "nats", "dim", "n"),
    [("spiral", 1.0, 5, 2000), ("tangled", 1.0, 5, 500), ("student", 1.0, 3, 1000), ("additive-uniform", 2.0, 5, 2000)],
)
def test_what_correlations_miss_is_seen(name, nats, dim, n):
    pairs = copula.canonical(*make_task(name, nats, dim).sample(n, rng()))
    (found,) = normality.not_normal(pairs, copula.gaussian_part(pairs).nats)
    assert found.verdict is Verdict.NOT_TRUSTED
    assert "not jointly normal" in found.reason and "standard deviations" in found.reason


def test_sides_without_correlation_may_have_any_distribution():
    x, y = make_task("tangled", 0.0, 4).sample(2000, rng())
    pairs = copula.canonical(x, y)
    assert max(abs(normality._Sums.of(pairs.x, pairs.residual, pairs.y).own("x", degree)) for degree in (3, 4)) > 0.1
    assert normality.not_normal(pairs, 0.0) == []


@pytest.mark.parametrize(("nats", "dim"), [(0.3, 1), (2.0, 2), (5.0, 1)])
def test_what_is_missing_completes_the_closed_form(nats, dim):
    """Student t with 2 degrees of freedom, 0.1 to 0.4 nats above the closed form of its correlations."""
    task = student(normal_pairs([nats / dim] * dim), 2, "t2")
    pairs = copula.canonical(*task.sample(3000, rng()))
    part = copula.gaussian_part(pairs)
    lacks = normality.missing(pairs)
    assert task.nats - part.nats > 0.09
    assert lacks.nats > 2.5 * lacks.standard_error_nats > 0.025
    error = math.hypot(lacks.standard_error_nats, copula.standard_error(part))
    assert part.nats + lacks.nats == pytest.approx(task.nats, abs=2.5 * error)


def test_nothing_is_missing_of_normal_pairs_and_all_of_a_ring():
    lacks = normality.missing(copula.canonical(*make_task("normal", 2.0, 2).sample(2000, rng())))
    assert abs(lacks.nats) < 2 * lacks.standard_error_nats < 0.12
    angle = 2 * math.pi * torch.rand(2000, 1, generator=rng(), dtype=torch.float64)
    pairs = copula.canonical(angle.cos() + 0.1 * normal(2000, 1), angle.sin() + 0.1 * normal(2000, 1, seed=1))
    assert copula.gaussian_part(pairs).nats < 0.05 < 0.8 < normality.missing(pairs).nats


def test_a_departure_that_changes_the_information_little_is_no_finding():
    """Student t with 3 degrees of freedom at 6 nats: the closed form lacks 4%. At 0.5 nats as much would count."""
    task = student(normal_pairs([6.0 - student_excess(3, 1, 1)]), 3, "t3")
    pairs = copula.canonical(*task.sample(1500, rng()))
    nats = copula.gaussian_part(pairs).nats
    assert any(one.deviations > 8 and one.nats > 1 for one in normality.departures(pairs))
    assert nats == pytest.approx(6, rel=0.05)
    assert normality.not_normal(pairs, nats) == []
    assert "not jointly normal" in normality.not_normal(pairs, 0.5)[0].reason


def test_neighbours_are_not_asked_in_many_dimensions(monkeypatch):
    pairs = copula.canonical(*make_task("student", 4.0, 5).sample(1000, rng()))
    monkeypatch.setattr(normality, "missing", lambda pairs: MonteCarloMean(0.0, 0.0))  # must not be asked
    assert normality.not_normal(pairs, copula.gaussian_part(pairs).nats)


def test_turning_the_coordinates_changes_nothing():
    x, y = make_task("additive-uniform", 2.0, 4).sample(1000, rng())
    pairs = copula.canonical(x, y)
    turn = torch.linalg.qr(normal(4, 4, seed=3))[0]
    turned = pairs._replace(x=pairs.x @ turn, correlations=torch.zeros(4).double(), y=pairs.residual @ turn)
    straight = pairs._replace(correlations=torch.zeros(4).double(), y=pairs.residual)
    for degree in (3, 4):
        one, other = (normality._Sums.of(p.x, p.residual, p.y).cross(degree) for p in (straight, turned))
        assert one == pytest.approx(other, rel=1e-6)
