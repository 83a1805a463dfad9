"""How far two samples can be told apart: the Jensen-Shannon divergence of their distributions, from below.

A discriminator is trained on part of both samples. For any discriminator with logit l, log 2 less its binary
cross-entropy on other draws is at most the divergence in expectation, and equals it for the true log density ratio
(Goodfellow et al. 2014, section 4.1). The logit is that of two normal distributions, which sees means and covariances,
times a factor that starts at 1, plus a small network that starts at 0. The state of least loss on validation draws is
kept.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import optimizers
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.estimate import MonteCarloMean

HIDDEN = 128
LR = 2e-3
WEIGHT_DECAY = 1e-3
STEPS, LOOK_EVERY, PATIENCE = 300, 10, 5
"""Full-batch steps at most, steps between two looks at the validation draws, and looks without a gain that end it."""
SHRINKAGE = 0.02
"""Share of the pooled covariance in that of each sample, so that few draws do not make it singular."""
FEWEST = 32
"""Draws of each sample, at least."""


class _Discriminator(nn.Module):
    """Logit of y against x."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        pooled = torch.cat([x - x.mean(0), y - y.mean(0)])
        together = pooled.T @ pooled / len(pooled)
        for name, sample in (("x", x), ("y", y)):
            covariance = (1 - SHRINKAGE) * torch.cov(sample.T, correction=0).view_as(together) + SHRINKAGE * together
            covariance.diagonal().add_(1e-6 * together.diagonal().mean() + 1e-12)
            self.register_buffer(f"mean_{name}", sample.mean(0))
            self.register_buffer(f"factor_{name}", torch.linalg.cholesky(covariance))
        self.factor = nn.Parameter(x.new_ones(()))
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), last)

    def _log_density(self, points: Tensor, name: str) -> Tensor:
        mean, factor = getattr(self, f"mean_{name}"), getattr(self, f"factor_{name}")
        standard = torch.linalg.solve_triangular(factor, (points - mean).T, upper=False)
        return -0.5 * standard.square().sum(0) - factor.diagonal().log().sum()

    def forward(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            normal = self._log_density(points, "y") - self._log_density(points, "x")
        return self.factor * normal + self.network(points)[:, 0]


def _losses(discriminator: _Discriminator, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of each draw."""
    return functional.softplus(discriminator(x)), functional.softplus(-discriminator(y))


def divergence(x: Tensor, y: Tensor, seed: int = 0) -> MonteCarloMean:
    """A lower bound on the Jensen-Shannon divergence of the distributions of x and y, in nats (0 to log 2).

    x, y (n, d): independent draws of each, and of one another. A half trains the discriminator, an eighth chooses its
    state, and the rest measures. Numbers below 0 are given as 0. The standard error is over the draws that measure.
    Raises UsageError for fewer than FEWEST draws.
    """
    if min(len(x), len(y)) < FEWEST:
        raise UsageError(f"a divergence of {min(len(x), len(y))} draws: must be at least {FEWEST}")
    x, y = x.float(), y.float()
    both = torch.cat([x, y])
    mean, std = both.mean(0), both.std(0)
    x, y = ((sample - mean)[:, std > 0] / std[std > 0] for sample in (x, y))
    if x.shape[1] == 0:
        return MonteCarloMean(0.0, 0.0)  # all draws are the same

    def parts(sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n_train, n_chosen = len(sample) // 2, len(sample) // 8
        return sample[:n_train], sample[n_train : n_train + n_chosen], sample[n_train + n_chosen :]

    (train_x, chosen_x, held_x), (train_y, chosen_y, held_y) = parts(x), parts(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = _Discriminator(train_x, train_y)
    optimizer = optimizers.Adam(discriminator.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def validation() -> float:
        with torch.no_grad():
            return torch.cat(_losses(discriminator, chosen_x, chosen_y)).mean().item()

    best, state, waited = validation(), copy.deepcopy(discriminator.state_dict()), 0
    if not best < math.log(2):  # worse than no answer at all: start from that
        with torch.no_grad():
            discriminator.factor.zero_()
        best, state = validation(), copy.deepcopy(discriminator.state_dict())
    for step in range(1, STEPS + 1):
        optimizer.zero_grad(set_to_none=True)
        loss_x, loss_y = _losses(discriminator, train_x, train_y)
        (loss_x.mean() + loss_y.mean()).backward()
        optimizer.step()
        if step % LOOK_EVERY == 0:
            now, waited = validation(), waited + 1
            if now < best:
                best, state, waited = now, copy.deepcopy(discriminator.state_dict()), 0
            if waited == PATIENCE:
                break
    discriminator.load_state_dict(state)
    with torch.no_grad():
        losses = _losses(discriminator, held_x, held_y)
    nats = math.log(2) - 0.5 * sum(one.mean().item() for one in losses)
    error = 0.5 * math.sqrt(sum(one.var().item() / len(one) for one in losses))
    return MonteCarloMean(max(0.0, nats), error)
