"""Information between labels, against closed forms and over many repetitions."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.discrete import entropy, label_information, label_loss
from mi_ml_gen.information.estimate import Verdict


def channel(n: int, k: int, keep: float, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform labels of k kinds, and copies that are drawn anew with probability 1 - keep."""
    a = torch.randint(k, (n,), generator=rng)
    fresh = torch.randint(k, (n,), generator=rng)
    return a, torch.where(torch.rand(n, generator=rng) < keep, a, fresh)


def truth(k: int, keep: float) -> float:
    """I(a; b) = log k - H(b | a) of such a channel."""
    same, other = keep + (1 - keep) / k, (1 - keep) / k
    return math.log(k) + same * math.log(same) + ((k - 1) * other * math.log(other) if other else 0.0)


def test_equal_labels_share_their_entropy():
    a = torch.arange(10).repeat(100)
    kept, lost = label_information(a, a), label_loss(a, a)
    assert kept.nats == pytest.approx(math.log(10) + 9 / 2000, abs=1e-9) and lost.nats == pytest.approx(0, abs=1e-9)
    assert entropy(a) == pytest.approx(kept.nats) and kept.n == 1000


def test_what_is_kept_and_what_is_lost_add_up_to_the_entropy():
    a, b = channel(2000, 6, 0.5, torch.Generator().manual_seed(0))
    assert label_information(a, b).nats + label_loss(a, b).nats == pytest.approx(entropy(a), abs=1e-9)


def test_the_jackknife_is_that_of_a_slow_twin():
    a, b = channel(40, 3, 0.6, torch.Generator().manual_seed(0))

    def plug_in(a: torch.Tensor, b: torch.Tensor) -> float:
        table = torch.bincount(3 * a + b, minlength=9).view(3, 3).double() / len(a)
        independent = table.sum(1, keepdim=True) * table.sum(0)
        return torch.where(table > 0, table * (table / independent).log(), 0.0).sum().item()

    kept = torch.arange(40)
    left_out = torch.tensor([plug_in(a[kept != i], b[kept != i]) for i in range(40)], dtype=torch.float64)
    found = label_information(a, b)
    n_cells = len((3 * a + b).unique())
    assert found.nats == pytest.approx(plug_in(a, b) - (n_cells - 3 - 3 + 1) / 80, abs=1e-9)
    error = math.sqrt(39 / 40 * (left_out - left_out.mean()).square().sum().item())
    assert found.high_nats - found.nats == pytest.approx(1.96 * error, abs=1e-9)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.8])
def test_the_interval_holds_the_truth(keep):
    """In 92% of 200 repetitions, n = 1,000, 8 labels; in 90% where most pairs of labels occur about 3 times.

    The plug-in value alone would be off by 49 / 2000 nats.
    """
    k, hits, values = 8, [0, 0], []
    for i in range(200):
        rng = torch.Generator().manual_seed(i)
        a, b = channel(1000, k, keep, rng)
        kept, lost = label_information(a, b), label_loss(a, b)
        values.append(kept.nats)
        hits[0] += kept.low_nats <= truth(k, keep) <= kept.high_nats
        hits[1] += lost.low_nats <= math.log(k) - truth(k, keep) <= lost.high_nats
    assert sum(values) / 200 == pytest.approx(truth(k, keep), abs=0.005)
    assert all(hit >= (180 if keep == 0.8 else 184) for hit in hits), hits


def test_too_few_pairs_are_said():
    a, b = channel(100, 20, 0.2, torch.Generator().manual_seed(0))
    assert label_information(a, b).verdict is Verdict.NOT_TRUSTED
    with pytest.raises(UsageError, match="labels of shapes"):
        label_information(a, b[:50])
