"""KSG's intervals: what they are made of, what they do with bias, and the verdict. Coverage: bench/coverage.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.runtime import stream
from mi_ml_gen.information import estimate_information
from mi_ml_gen.information.estimate import Verdict
from mi_ml_gen.information.ksg import ksg_mutual_information
from mi_ml_gen.information.ksg_intervals import VARIANCE_GROWTH, bias_rate, ksg_with_interval
from mi_ml_gen.information.tasks import make_task


def _pairs(nats, dim, n, seed=0):
    return make_task("normal", nats, dim).sample(n, torch.Generator().manual_seed(seed))


def test_the_estimate_is_as_without_an_interval():
    x, y = _pairs(0.5, 1, 400)
    plain, found = ksg_mutual_information(x, y), ksg_with_interval(x, y)
    assert plain.interval is None and found.interval is not None
    for name in ("nats", "standard_error_nats", "n", "k", "variant", "n_coincident", "n_tied", "scale"):
        assert getattr(found, name) == getattr(plain, name)
    assert ksg_with_interval(x, y) == found and ksg_with_interval(x, y, seed=1).interval != found.interval
    assert ksg_with_interval(x.numpy(), y.numpy()[:, 0]) == found


def test_its_standard_error_is_that_of_random_halves_written_out():
    x, y = _pairs(0.5, 1, 403)
    found = ksg_with_interval(x, y, n_halvings=3).interval
    of_halves = []
    for i in range(3):
        order = torch.randperm(403, generator=stream(0, "ksg parts", i, 0))
        of_halves.append([ksg_mutual_information(x[rows], y[rows]).nats for rows in (order[:201], order[201:402])])
    differences = np.diff(of_halves, axis=1)
    variance_of_half = np.mean(differences**2) / 2
    growth = 2**VARIANCE_GROWTH
    assert found.standard_error_nats == pytest.approx(math.sqrt(growth * variance_of_half / 2), abs=1e-12)
    assert found.at_half.nats == pytest.approx(np.mean(of_halves), abs=1e-12)
    of_tenths = []
    for i in (3, 4):
        order = torch.randperm(403, generator=stream(0, "ksg parts", i, 0))
        of_tenths += [ksg_mutual_information(x[rows], y[rows]).nats for rows in order[:400].view(10, 40)]
    assert found.n_parts == 10 and found.at_part.nats == pytest.approx(np.mean(of_tenths), abs=1e-12)


@pytest.mark.parametrize("nats", [0.0, 0.3])
def test_the_truth_is_inside_about_as_often_as_stated(nats):
    """40 repetitions: of them 33 or fewer would be covered once in 1,000 times at 95%."""
    task = make_task("normal", nats, 1)
    covered, errors, values = 0, [], []
    for seed in range(40):
        found = ksg_with_interval(*task.sample(300, torch.Generator().manual_seed(seed)), seed=seed, n_jobs=1)
        covered += found.interval.low_nats <= task.nats <= found.interval.high_nats
        errors.append(found.interval.standard_error_nats)
        values.append(found.nats)
    assert covered >= 34
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values, ddof=1), rel=0.4)


def test_bias_is_seen_reached_for_and_warned_of():
    x, y = _pairs(2.5, 5, 800)
    found = ksg_with_interval(x, y)
    assert found.nats < 2.0  # far below the truth
    interval = found.interval
    assert interval.low_nats < found.nats < 2.5 < interval.high_nats
    assert interval.bias_nats > 0.3 and interval.at_part.nats < interval.at_half.nats < found.nats
    estimate = estimate_information(x, y, "ksg")
    assert estimate.verdict is Verdict.NOT_TRUSTED and "half as many pairs" in estimate.reason
    assert (estimate.nats, estimate.low_nats, estimate.n) == (found.nats, interval.low_nats, 800)


def test_where_nothing_is_wrong_the_verdict_is_consistent():
    x, y = _pairs(0.5, 1, 2000)
    estimate = estimate_information(x, y, "ksg")
    assert estimate.verdict is Verdict.CONSISTENT and estimate.estimator == "ksg"
    assert estimate.low_nats < 0.5 < estimate.high_nats and estimate.to_json()["details"]["k"] == 5


def test_rates():
    one, many = torch.zeros(5), torch.zeros(5, 8)
    assert bias_rate(one, one) == bias_rate(one, many[:, :2]) == 0.5 and bias_rate(one, many) == 1 / 8


def test_few_pairs_have_fewer_parts_and_too_few_are_refused():
    x, y = _pairs(0.5, 1, 40)
    assert ksg_with_interval(x, y).interval.n_parts == 2
    with pytest.raises(UsageError, match="39 pairs: an interval with k 5 needs at least 40"):
        ksg_with_interval(x[:39], y[:39])


def test_copied_pairs_are_warned_of_once(caplog):
    x, y = _pairs(0.5, 1, 200)
    ksg_with_interval(x.repeat(2, 1), y.repeat(2, 1))
    assert len([record for record in caplog.records if "exact copies" in record.message]) == 1
