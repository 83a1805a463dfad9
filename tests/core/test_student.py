"""Means over few units, against scipy's tests."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from mi_ml_gen.core.student import over_units, paired


def test_against_scipy():
    values = [0.3, 1.2, -0.4, 0.9]
    found, test = over_units(values), stats.ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(0.5) and found.p == pytest.approx(test.pvalue) and found.n == 4
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_few_and_equal_values():
    assert over_units([2.0]) == (2.0, -math.inf, math.inf, 1, 1.0)
    assert over_units([2.0, 2.0])[:3] == (2.0, 2.0, 2.0)
    assert over_units([0.0, 0.0]).p == 1 and over_units([2.0, 2.0]).p == 0


def test_pairs_are_those_of_the_units_that_both_have():
    values, reference = {0: 1.0, 1: 2.5, 2: 9.0}, {1: 2.0, 0: 0.8, 5: 4.0}
    found, test = paired(values, reference), stats.ttest_rel([1.0, 2.5], [0.8, 2.0])
    assert found.n == 2 and found.mean == pytest.approx(0.35) and found.p == pytest.approx(test.pvalue)
    assert paired(values, {7: 1.0}) is None
