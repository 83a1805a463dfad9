"""Information between labels: entropies of counts, with the bias of small samples taken off and a bootstrap interval.

For labels a and b of n pairs, with K_a, K_b and K_ab the numbers of labels and of pairs of labels that occur, the
plug-in entropy H = - sum p log p is too small by about (K - 1) / 2n (Miller 1955; Madow 1948). So

    H(a)     = plug-in + (K_a - 1) / 2n
    I(a; b)  = H(a) + H(b) - H(a, b) = plug-in - (K_ab - K_a - K_b + 1) / 2n
    H(a | b) = H(a, b) - H(b)        = plug-in + (K_ab - K_b) / 2n

The interval is the basic bootstrap's (Davison and Hinkley 1997, section 5.2): pairs are drawn again with replacement,
and the spread of the plug-in value about its own mean is put around the estimate. Its centre is left out, because
drawing again adds the bias once more. tests/information/test_discrete.py measures how often it holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean, Verdict
from mi_ml_gen.information.verdicts import judge

N_BOOTSTRAP = 500
FEWEST_PAIRS_PER_CELL = 5.0
"""Pairs for each pair of labels that occurs, below which the correction of the bias is itself a guess."""


def entropy(labels: Tensor) -> float:
    """Of labels (n,), whole numbers from 0 on, in nats, with the correction of the header."""
    counts = torch.bincount(labels).double()
    return (_plug_in(counts) + (counts.count_nonzero() - 1) / (2 * counts.sum())).item()


def label_information(a: Tensor, b: Tensor, rng: torch.Generator | None = None) -> Estimate:
    """I(a; b) of labels (n,), whole numbers from 0 on. Raises UsageError for fewer than two pairs, and other shapes."""
    return _estimate(a, b, _information, "labels: information", rng)


def label_loss(a: Tensor, b: Tensor, rng: torch.Generator | None = None) -> Estimate:
    """H(a | b) of labels (n,): what b does not tell of a. Raises as `label_information`."""
    return _estimate(a, b, _conditional_entropy, "labels: conditional entropy", rng)


Quantity = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From tables of counts (..., n_a, n_b) to the plug-in value and what is added to it, both (...)."""


def _information(counts: Tensor) -> tuple[Tensor, Tensor]:
    n = counts.sum((-2, -1))
    of_a, of_b = counts.sum(-1), counts.sum(-2)
    value = _plug_in(of_a) + _plug_in(of_b) - _plug_in(counts.flatten(-2))
    occurring = counts.flatten(-2).count_nonzero(-1) - of_a.count_nonzero(-1) - of_b.count_nonzero(-1)
    return value, -(occurring + 1) / (2 * n)


def _conditional_entropy(counts: Tensor) -> tuple[Tensor, Tensor]:
    n, of_b = counts.sum((-2, -1)), counts.sum(-2)
    value = _plug_in(counts.flatten(-2)) - _plug_in(of_b)
    return value, (counts.flatten(-2).count_nonzero(-1) - of_b.count_nonzero(-1)) / (2 * n)


def _plug_in(counts: Tensor) -> Tensor:
    """Entropy in nats of counts (..., k): (...)."""
    n = counts.sum(-1, keepdim=True)
    return torch.special.entr(counts / n).sum(-1)


def _estimate(a: Tensor, b: Tensor, quantity: Quantity, name: str, rng: torch.Generator | None) -> Estimate:
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise UsageError(f"labels of shapes {tuple(a.shape)} and {tuple(b.shape)}: must both be (n,), n at least 2")
    n_a, n_b = int(a.max()) + 1, int(b.max()) + 1
    cells = (a * n_b + b).cpu()
    n = len(cells)

    def value_of(part: Tensor) -> float:
        value, correction = quantity(_table(part[None], n_a, n_b))
        return (value + correction).item()

    counts = _table(cells[None], n_a, n_b)
    plug_in, correction = quantity(counts)
    nats = (plug_in + correction).item()
    draws = torch.cat(
        [
            quantity(_table(cells[torch.randint(n, (50, n), generator=rng)], n_a, n_b))[0]
            for _ in range(N_BOOTSTRAP // 50)
        ]
    )
    deviations = draws - draws.mean()
    low, high = (nats - deviations.quantile(q).item() for q in (0.975, 0.025))
    halves = MonteCarloMean(
        (value_of(cells[: n // 2]) + value_of(cells[n // 2 :])) / 2, draws.std().item() / math.sqrt(2)
    )
    verdict, reason = judge(nats, low, high, at_half_n=halves, rate=1.0)
    n_cells = int(counts.count_nonzero())
    if n < FEWEST_PAIRS_PER_CELL * n_cells:
        verdict, reason = Verdict.NOT_TRUSTED, f"{n:,} pairs for {n_cells:,} pairs of labels are too few"
    assumes = "the pairs are independent, and every pair of labels that matters occurs among them"
    return Estimate(nats, low, high, n, name, assumes, verdict, reason, {"n_labels": n_a, "n_cells": n_cells})


def _table(cells: Tensor, n_a: int, n_b: int) -> Tensor:
    """Counts (m, n_a, n_b), float64, of m samples of cells (m, n)."""
    m = len(cells)
    offset = torch.arange(m)[:, None] * (n_a * n_b)
    return torch.bincount((cells + offset).flatten(), minlength=m * n_a * n_b).double().view(m, n_a, n_b)
