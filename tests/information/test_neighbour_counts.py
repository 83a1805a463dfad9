"""Counts in boxes against all pairs, above all where ties and rounding bite."""

from __future__ import annotations

import numpy as np
import pytest

from mi_ml_gen.information.neighbour_counts import Ranks, count_within, rectangle_counts


def slow_counts(points: np.ndarray, reach: np.ndarray) -> np.ndarray:
    far = np.abs(points[:, None] - points[None]).max(-1)
    return (far <= reach[:, None]).sum(1)


def kinds(n: int, dim: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    points = rng.standard_normal((n, dim))
    return {
        "normal": points,
        "far away": points + 1e15,  # neighbours are a few floats apart
        "grid": points.round(),
        "coins": (points > 0).astype(float),
        "one place": np.zeros((n, dim)),
        "tiny": points * 1e-300,
        "huge": points * 1e300,
        "tenths": points.round(1),
    }


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 257])
@pytest.mark.parametrize("kind", list(kinds(1, 1)))
def test_counts_are_those_of_all_pairs(kind, n, dim):
    points = kinds(n, dim)[kind]
    far = np.abs(points[:, None] - points[None]).max(-1)
    for k in {0, n // 3, n - 1}:
        radius = np.sort(far, axis=1)[:, k]  # a neighbour lies on the very edge
        for reach in (radius, np.nextafter(radius, 0), np.nextafter(radius, np.inf)):
            np.testing.assert_array_equal(count_within(points, reach), slow_counts(points, reach))


def test_rectangles():
    sequence = np.random.default_rng(0).permutation(37)
    low, size = np.random.default_rng(1).integers(0, 38, (2, 2, 200))
    high = np.minimum(low + size, 37)
    found = rectangle_counts(sequence, Ranks(low[0], np.maximum(high[0], low[0])), Ranks(low[1], high[1]))
    for i in range(200):
        part = sequence[low[0, i] : high[0, i]]
        assert found[i] == ((part >= low[1, i]) & (part < high[1, i])).sum()
