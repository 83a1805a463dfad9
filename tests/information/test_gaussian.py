"""Closed forms against other closed forms, numerical truth and slow twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.gaussian import JointGaussian, marginal_divergence, optimal_bound, optimal_scores
from mi_ml_gen.information.infonce import candidate_cross_entropy


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _independent_pairs(correlation, dim):
    """`dim` pairs of standard normals, each of this correlation."""
    eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    return JointGaussian(zero, zero, eye, eye, correlation * eye)


def _any_joint(dim_x=3, dim_y=2):
    root = torch.randn(dim_x + dim_y, dim_x + dim_y + 2, generator=_rng(1), dtype=torch.float64)
    cov, mean = root @ root.T, torch.randn(dim_x + dim_y, generator=_rng(2), dtype=torch.float64)
    return JointGaussian(mean[:dim_x], mean[dim_x:], cov[:dim_x, :dim_x], cov[dim_x:, dim_x:], cov[:dim_x, dim_x:])


@pytest.mark.parametrize(("correlation", "dim"), [(0.0, 1), (0.5, 1), (-0.9, 4), (0.99, 2)])
def test_information_of_independent_pairs(correlation, dim):
    expected = -0.5 * dim * math.log(1 - correlation**2)
    assert _independent_pairs(correlation, dim).mutual_information == pytest.approx(expected, abs=1e-12)


def test_information_is_symmetric_and_blind_to_invertible_maps():
    joint = _any_joint()
    turn = torch.randn(3, 3, generator=_rng(3), dtype=torch.float64)
    moved = JointGaussian(joint.mean_x, joint.mean_y, turn @ joint.cov_x @ turn.T, joint.cov_y, turn @ joint.cov_xy)
    assert joint.mutual_information > 0.01
    assert joint.swapped.mutual_information == pytest.approx(joint.mutual_information, rel=1e-12)
    assert moved.mutual_information == pytest.approx(joint.mutual_information, rel=1e-9)


def test_log_ratio_equals_the_difference_of_log_densities():
    joint = _any_joint()
    x, y = joint.sample(50, _rng())
    both = torch.cat([x, y], 1)
    expected = (
        MultivariateNormal(joint.both.mean, joint.both.cov).log_prob(both)
        - MultivariateNormal(joint.mean_x, joint.cov_x).log_prob(x)
        - MultivariateNormal(joint.mean_y, joint.cov_y).log_prob(y)
    )
    torch.testing.assert_close(joint.log_ratio(x, y), expected)


def test_mean_log_ratio_is_the_information():
    joint = _any_joint()
    estimate = MonteCarloMean.of(joint.log_ratio(*joint.sample(50_000, _rng())).tolist())
    assert abs(estimate.nats - joint.mutual_information) < 4 * estimate.standard_error_nats


def test_samples_follow_the_law():
    joint = _any_joint()
    drawn = torch.cat(joint.sample(200_000, _rng()), 1)
    torch.testing.assert_close(drawn.T.cov(), joint.both.cov, rtol=0.03, atol=0.05)
    torch.testing.assert_close(drawn.mean(0), joint.both.mean, rtol=0, atol=0.04)


def test_conditional_density_is_joint_over_marginal():
    joint = _any_joint()
    x, y = joint.sample(6, _rng())
    every = [joint.both.log_prob(torch.cat([x[i].expand(6, 3), y], 1)) - joint.x.log_prob(x)[i] for i in range(6)]
    torch.testing.assert_close(joint.log_conditional(x, y), torch.stack(every))


def test_optimal_scores_are_the_log_ratio_where_marginals_agree():
    joint = _independent_pairs(0.7, 3)
    x, y = joint.sample(5, _rng())
    points = torch.cat([x, y])
    expected = torch.stack([joint.log_ratio(point.expand(10, 3), points) for point in points])
    torch.testing.assert_close(optimal_scores(joint, x, y), expected)


@pytest.mark.parametrize(("n_pairs", "expected"), [(64, 3.4), (256, 3.7)])
def test_optimal_bound_at_four_nats(n_pairs, expected):
    joint = _independent_pairs(math.sqrt(1 - math.exp(-2 * 4 / 12)), 12)
    assert joint.mutual_information == pytest.approx(4)
    estimate = optimal_bound(joint, n_pairs, 60, _rng())
    assert estimate.nats == pytest.approx(expected, abs=0.08)
    assert estimate.standard_error_nats < 0.04


def test_no_other_critic_beats_the_optimal_one():
    joint = _independent_pairs(0.8, 4)
    mistaken = [_independent_pairs(0.6, 4), _independent_pairs(0.9, 4)]
    losses = torch.zeros(3)
    for seed in range(40):
        pair = joint.sample(32, _rng(seed))
        for i, law in enumerate([joint, *mistaken]):
            losses[i] += candidate_cross_entropy(optimal_scores(law, *pair))
    assert losses[0] < losses[1] and losses[0] < losses[2]


def test_unequal_marginals_lift_the_bound_by_their_divergence():
    eye, zero = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    joint = JointGaussian(zero, zero, eye, 4 * eye, 0.8 * eye)
    divergence = marginal_divergence(joint, 20_000, _rng())
    assert 0.1 < divergence.nats < math.log(2)
    bound = optimal_bound(joint, 512, 20, _rng())
    assert bound.nats > joint.mutual_information + 3 * bound.standard_error_nats
    assert bound.nats == pytest.approx(joint.mutual_information + divergence.nats, abs=0.04)


def test_equal_marginals_do_not_diverge_and_far_ones_reach_log_two():
    assert marginal_divergence(_independent_pairs(0.5, 3), 100, _rng()).nats == pytest.approx(0, abs=1e-12)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    far = JointGaussian(zero, zero + 40, eye, eye, 0.5 * eye)
    assert marginal_divergence(far, 100, _rng()).nats == pytest.approx(math.log(2))


def test_refuses_infinite_information_and_other_spaces():
    with pytest.raises(UsageError, match="positive definite"):
        _ = _independent_pairs(1.0, 2).mutual_information
    with pytest.raises(UsageError, match="one shape"):
        joint = _any_joint()
        optimal_scores(joint, *joint.sample(4, _rng()))
