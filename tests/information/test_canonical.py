"""The canonical critic: its inputs, its form against the truth, its bound against a slow twin, and its interval."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.canonical import (
    N_GROUPS,
    CanonicalCritic,
    Whitening,
    matching_bound,
    matching_estimate,
    matching_loss,
    measure,
)
from mi_ml_gen.information.estimate import Verdict


def pairs(
    n: int, correlations: list[float], rng: torch.Generator, gain: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal x and y (n, d), correlated number by number, then mixed; y is `gain` times as large."""
    r = torch.tensor(correlations)
    x = torch.randn(n, len(r), generator=rng)
    y = r * x + (1 - r.square()).sqrt() * torch.randn(n, len(r), generator=rng)
    mixing = torch.linalg.qr(torch.randn(len(r), len(r), generator=torch.Generator().manual_seed(5))).Q
    return x @ mixing, gain * (y @ mixing)


def truth(correlations: list[float]) -> float:
    return -0.5 * sum(math.log(1 - r**2) for r in correlations)


def optimal(n: int, correlation: float, rng: torch.Generator, dim: int = 1) -> torch.Tensor:
    """Log density ratios (n, n) of pairs of standard normals of this correlation in each of `dim` coordinates."""
    x, y = pairs(n, [correlation] * dim, rng)
    left = 1 - correlation**2
    squares = correlation**2 * (x.square().sum(1)[:, None] + y.square().sum(1))
    scores = (2 * correlation * (x @ y.T) - squares) / (2 * left) - dim * math.log(left) / 2
    return scores.double()


def test_whitening_gives_uncorrelated_components_and_leaves_out_rounding():
    rng = torch.Generator().manual_seed(0)
    images = (torch.randn(300, 4, generator=rng) @ torch.randn(4, 48, generator=rng)).view(300, 3, 4, 4)
    whitening = Whitening.of(images)
    inputs = whitening(images)
    assert inputs.shape == (300, 4)
    assert torch.allclose(inputs.mean(0), torch.zeros(4), atol=1e-4)
    cov = inputs.T @ inputs / 299
    assert torch.allclose(cov, cov.diagonal().diag(), atol=1e-3) and (cov.diagonal() > 0.8).all()
    assert Whitening.of(images, most=2)(images).shape == (300, 2)


@pytest.mark.parametrize(("exchangeable", "gain"), [(True, 1.0), (False, 1.0), (False, 3.0)])
@pytest.mark.parametrize("correlations", [[0.95, 0.8, 0.3, 0.0], [0.5, 0.2, 0.0, 0.0], [0.99, 0.98, 0.9, 0.7]])
def test_normal_pairs_give_the_truth(correlations, exchangeable, gain):
    """With unequal marginals, too: a positive that is three times as large adds nothing to the bound."""
    rng = torch.Generator().manual_seed(0)
    found = measure(*pairs(4096, correlations, rng, gain), *pairs(1024, correlations, rng, gain), exchangeable)
    true = truth(correlations)
    assert found.low_nats <= true and found.is_lower_bound
    assert found.nats == pytest.approx(true, abs=0.05 + 0.1 * true)


def test_independent_pairs_share_nothing():
    rng = torch.Generator().manual_seed(0)
    found = measure(*pairs(1024, [0.0] * 30, rng), *pairs(512, [0.0] * 30, rng))
    assert abs(found.nats) < 0.02 and found.low_nats <= 0 and found.verdict is Verdict.CONSISTENT


def test_the_bound_and_its_parts_are_those_of_a_slow_twin():
    n = 64
    scores = optimal(n, 0.9, torch.Generator().manual_seed(0)) + 3  # a constant changes nothing
    found = matching_bound(scores)
    assert found.nats == pytest.approx(math.log(n) - matching_loss(scores).item(), abs=1e-9)
    group = torch.arange(n) % N_GROUPS
    left_out = []
    for g in range(N_GROUPS):
        kept = scores[group != g][:, group != g]
        left_out.append(math.log(len(kept)) - matching_loss(kept).item())
    values = torch.tensor(left_out, dtype=torch.float64)
    error = math.sqrt((N_GROUPS - 1) ** 2 / N_GROUPS * values.var().item())
    assert found.standard_error_nats == pytest.approx(error, rel=1e-6)
    half = torch.arange(n) // N_GROUPS % 2 == 0
    halves = [math.log(32) - matching_loss(scores[part][:, part]).item() for part in (half, ~half)]
    assert found.half.nats == pytest.approx(sum(halves) / 2, abs=1e-9)


def test_the_standard_error_is_the_spread_over_repetitions_and_the_interval_holds_the_truth():
    true = truth([0.6])
    found = [matching_bound(optimal(512, 0.6, torch.Generator().manual_seed(i))) for i in range(200)]
    spread = torch.tensor([one.nats for one in found]).std().item()
    claimed = sum(one.standard_error_nats for one in found) / 200
    assert 0.85 < claimed / spread < 1.25
    estimates = [matching_estimate(one) for one in found]
    assert sum(one.low_nats <= true for one in estimates) >= 186
    assert sum(one.nats for one in estimates) / 200 == pytest.approx(true, abs=0.02)


def test_verdicts():
    saturated = matching_estimate(matching_bound(optimal(256, 0.99999, torch.Generator().manual_seed(0), dim=3)))
    assert saturated.verdict is Verdict.SATURATED and saturated.nats <= math.log(256) + 1e-9
    rng = torch.Generator().manual_seed(0)
    few = measure(*pairs(128, [0.95] + [0.5] * 20, rng), *pairs(512, [0.95] + [0.5] * 20, rng))
    assert few.verdict is Verdict.NOT_TRUSTED and "half as many pairs" in few.reason


def test_wrong_arguments_are_refused():
    with pytest.raises(UsageError, match="at least 32"):
        matching_bound(torch.zeros(31, 31))
    with pytest.raises(UsageError, match="all are the same"):
        Whitening.of(torch.ones(8, 3, 4, 4))
    with pytest.raises(UsageError, match="at least 64 pairs"):
        CanonicalCritic.of(torch.zeros(10, 3), torch.zeros(10, 3))
