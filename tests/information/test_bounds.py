"""The bounds on scores, against slow twins, closed forms and the best critic."""

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import bounds
from mi_ml_gen.information.ensembles import N_MEMBERS, Course
from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.estimator import jackknife_error
from mi_ml_gen.information.gaussian import JointGaussian
from mi_ml_gen.information.tasks import make_task


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scores_of_best_critic(nats, n, seed=0):
    rho = math.sqrt(1 - math.exp(-2 * nats))
    one, cross = torch.eye(1).double(), torch.full((1, 1), rho).double()
    joint = JointGaussian(torch.zeros(1).double(), torch.zeros(1).double(), one, one, cross)
    x, y = joint.sample(n, rng(seed))
    return joint.log_conditional(x, y) - joint.y.log_prob(y)


def test_values_are_those_of_slow_loops():
    scores = torch.randn(2, 5, 5, generator=rng(), dtype=torch.float64)
    infonce, dv, nwj, smile, js = [], [], [], [], []
    for s in scores:
        apart = [s[i, j].item() for i in range(5) for j in range(5) if i != j]
        pairs = [s[i, i].item() for i in range(5)]
        mean = sum(pairs) / 5
        infonce.append(sum(math.log(5 * math.exp(s[i, i]) / sum(map(math.exp, s[i]))) for i in range(5)) / 5)
        dv.append(mean - math.log(sum(map(math.exp, apart)) / 20))
        nwj.append(mean - sum(math.exp(f - 1) for f in apart) / 20)
        smile.append(mean - math.log(sum(math.exp(min(max(f, -0.5), 0.5)) for f in apart) / 20))
        js.append(-sum(math.log1p(math.exp(-f)) for f in pairs) / 5 - sum(math.log1p(math.exp(f)) for f in apart) / 20)
    for value, expected in (
        (bounds.infonce_value(scores), infonce),
        (bounds.dv_value(scores), dv),
        (bounds.nwj_value(scores), nwj),
        (bounds.smile_value(scores, 0.5), smile),
        (bounds.jensen_shannon_value(scores), js),
    ):
        assert torch.allclose(value, torch.tensor(expected).double(), atol=1e-10)


def test_the_best_critic_gives_the_information():
    scores = scores_of_best_critic(1.0, 1500)
    assert abs(bounds.dv_value(scores) - 1) < 0.1
    assert abs(bounds.nwj_value(scores + 1) - 1) < 0.1
    assert abs(bounds.smile_value(scores, 20.0) - 1) < 0.1
    assert abs(bounds.infonce_value(scores) - 1) < 0.1


def test_infonce_never_passes_the_log_of_its_candidates():
    assert bounds.infonce_value(100 * torch.eye(64)) <= math.log(64)
    assert bounds.infonce_value(scores_of_best_critic(8.0, 64)) <= math.log(64)


def test_clipping_raises_smile():
    scores = scores_of_best_critic(6.0, 500)
    assert bounds.smile_value(scores, 1.0) > bounds.smile_value(scores, 5.0) > bounds.dv_value(scores) - 1e-9


@pytest.mark.parametrize("n", [2, 3, 7])
def test_off_diagonal_leaves_out_the_pairs(n):
    scores = torch.arange(n * n).view(n, n)
    expected = torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(scores)])
    assert torch.equal(bounds.off_diagonal(scores), expected)
    assert torch.equal(bounds.off_diagonal(scores[None])[0], expected)


def test_effective_draws_are_all_where_scores_are_equal_and_few_where_one_decides():
    assert bounds.effective_draws(torch.zeros(50, 50)) == pytest.approx(50)
    scores = torch.zeros(50, 50)
    scores[3, 7] = 50.0
    assert bounds.effective_draws(scores) == pytest.approx(1)


def test_the_gradient_of_dv_divides_by_the_running_mean():
    """Belghazi et al. 2018, equation 12, with the mean of a former batch in the denominator."""
    estimator = bounds.DonskerVaradhan()
    state = {}
    first = torch.randn(1, 6, 6, generator=rng(), dtype=torch.float64)
    estimator.objective(first, state)
    scores = torch.randn(1, 6, 6, generator=rng(1), dtype=torch.float64, requires_grad=True)
    estimator.objective(scores, state).sum().backward()
    means = [bounds.off_diagonal(s.detach()).exp().mean() for s in (first, scores)]
    running = 0.99 * means[0] + 0.01 * means[1]
    expected = torch.eye(6).double() / 6 - (1 - torch.eye(6).double()) * scores.detach()[0].exp() / 30 / running
    assert torch.allclose(scores.grad[0], expected, atol=1e-10)


@pytest.mark.parametrize("kind", ["separable", "joint"])
def test_critics_score_every_x_against_every_y_member_by_member(kind):
    critic = bounds.CRITICS[kind](2, 3, 16, rng())
    x, y = torch.randn(N_MEMBERS, 4, 2, generator=rng(1)), torch.randn(N_MEMBERS, 5, 3, generator=rng(2))
    scores = critic(x, y)
    assert scores.shape == (N_MEMBERS, 4, 5)
    one = critic(x[:, 2:3], y[:, 3:4])
    assert torch.allclose(one[:, 0, 0], scores[:, 2, 3], atol=1e-5)
    x[0] = 0  # changes member 0 alone
    assert torch.equal(critic(x, y)[1:], scores[1:])


@pytest.mark.parametrize("name", ["infonce", "dv", "nwj", "smile"])
def test_each_bound_finds_what_two_normal_numbers_share(name):
    pairs = make_task("normal", 1.0, 2).sample(2000, rng())
    estimate = estimate_information(*pairs, name, n_steps=160, hidden=32, batch_size=64)
    assert 0.75 < estimate.nats < 1.1
    assert estimate.is_lower_bound == (name != "smile")
    assert estimate.low_nats < estimate.nats
    assert estimate.low_nats < 1.0
    assert estimate.to_json()["verdict"]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(400, generator=rng(), dtype=torch.float64)
    blocks = torch.arange(400) % 20
    left_out = torch.stack([values[blocks != k].mean() for k in range(20)])
    assert jackknife_error(left_out) == pytest.approx(1 / 20, rel=0.5)
    means = torch.stack([values[blocks == k].mean() for k in range(20)])
    assert jackknife_error(left_out) == pytest.approx(means.std().item() / math.sqrt(20), rel=1e-9)


def result(*strengths, train_gap=0.0, floor=None):
    """Of InfoNCE with the best critic of 1.2 nats, whose scores each member weakens by a factor, on 200 pairs."""
    best = scores_of_best_critic(1.2, 200)
    scores = torch.stack([factor * best for factor in strengths])
    nats = bounds.infonce_value(scores)[:2].mean().item()
    least = {} if floor is None else {"neighbours": MonteCarloMean(nats + floor, 0.01)}
    return bounds.InfoNCE()._result(scores, nats + train_gap, Course(), least)


def test_a_change_with_the_number_of_pairs_counts_unless_seeds_explain_it():
    assert result(1.0, 1.0, 0.9).verdict is Verdict.CONSISTENT
    assert "half as many pairs give" in result(1.0, 1.0, 0.5).reason
    assert "half as many pairs give" not in result(1.0, 0.55, 0.5).reason


def test_the_noise_of_held_out_pairs_is_that_of_what_they_are_compared_with():
    error = result(1.0, 1.0, 1.0).details["standard_error_nats"]
    assert 0.04 < error < 0.08
    assert result(1.0, 1.0, 1.0, train_gap=2.5 * error, floor=1.8 * error).verdict is Verdict.CONSISTENT
    assert "training pairs" in result(1.0, 1.0, 1.0, train_gap=6 * error).reason
    assert "neighbours give" in result(1.0, 1.0, 1.0, floor=3 * error).reason


def test_too_much_information_saturates_infonce():
    pairs = make_task("normal", 9.0, 2).sample(2000, rng())
    estimate = estimate_information(*pairs, "infonce", n_steps=200, hidden=32)
    assert estimate.nats < math.log(500)
    assert estimate.verdict.is_warning, estimate


def test_clipped_scores_are_not_trusted():
    found = bounds.Smile(tau=1.0).own_findings(scores_of_best_critic(4.0, 300), 4.0)
    assert found[0].verdict is Verdict.NOT_TRUSTED
    assert bounds.Smile(tau=20.0).own_findings(scores_of_best_critic(1.0, 300), 1.0) == []


def test_options_are_checked():
    with pytest.raises(UsageError, match="critic 'conv': must be one of separable, joint"):
        bounds.InfoNCE(critic="conv")
    with pytest.raises(UsageError, match="batch_size 1: must be at least 4"):
        bounds.InfoNCE(batch_size=1)
