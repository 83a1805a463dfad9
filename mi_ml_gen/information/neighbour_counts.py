"""How many points lie in a box about each point, in one or two dimensions, for all points at once.

A box of the maximum norm is an interval of ranks on each axis. In one dimension its ends are its count. In two, a
wavelet matrix over the ranks (Claude, Navarro, Ordonez 2015) counts the points in a rectangle in log2 n steps, each a
look-up for all rectangles together: a third of a k-d tree's time for 10,000 points, a fifth for 100,000.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Ranks(NamedTuple):
    """Half-open intervals [low, high) of places among sorted values, each (n,)."""

    low: np.ndarray
    high: np.ndarray


def count_within(points: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """For each of points (n, d), d 1 or 2, how many have no coordinate farther from its own than reach (n,); itself
    included. Distances are rounded differences, as a loop over all pairs has them, so the count is that of the loop.
    """
    assert points.ndim == 2 and points.shape[1] in (1, 2) and len(points) == len(reach) > 0
    columns = intervals(points[:, 0], reach)
    if points.shape[1] == 1:
        return columns.high - columns.low
    rows = intervals(points[:, 1], reach)
    row_rank = np.empty(len(points), dtype=np.int64)
    row_rank[np.argsort(points[:, 1], kind="stable")] = np.arange(len(points))
    return rectangle_counts(row_rank[np.argsort(points[:, 0], kind="stable")], columns, rows)


def intervals(values: np.ndarray, reach: np.ndarray) -> Ranks:
    """For each of values (n,), the places of those within reach (n,) of it, among all values in order."""
    unique, first = np.unique(np.sort(values), return_index=True)
    place = np.append(first, len(values))  # of each unique value's first copy
    last = len(unique) - 1
    low = np.searchsorted(unique, values - reach, "left")
    high = np.searchsorted(unique, values + reach, "right")
    # values - reach is rounded once and may fall on the wrong side of a value or two.
    while (step := (low > 0) & (values - unique[low - 1] <= reach)).any():
        low = low - step
    while (step := values - unique[np.minimum(low, last)] > reach).any():
        low = low + step
    while (step := (high <= last) & (unique[np.minimum(high, last)] - values <= reach)).any():
        high = high + step
    while (step := unique[high - 1] - values > reach).any():
        high = high - step
    return Ranks(place[low], place[high])


def rectangle_counts(sequence: np.ndarray, columns: Ranks, rows: Ranks) -> np.ndarray:
    """How many places of columns hold one of rows: sequence (n,) is a permutation of 0 to n - 1, the columns are
    intervals of its places and the rows of its values. (m,) for m rectangles."""
    n = len(sequence)
    stop = np.concatenate([columns.low, columns.low, columns.high, columns.high])
    bound = np.concatenate([rows.low, rows.high, rows.low, rows.high])
    start, total = np.zeros_like(stop), np.zeros_like(stop)
    # total becomes the number of the first `stop` places whose value is below `bound`, from the highest bit down:
    # [start, stop) are those that agree with `bound` in the bits so far, in an order sorted by these bits.
    for bit in reversed(range(n.bit_length())):
        is_one = sequence >> bit & 1
        zeros = np.concatenate([[0], np.cumsum(1 - is_one)])  # of the places before each
        zeros_start, zeros_stop = zeros[start], zeros[stop]
        above = (bound >> bit & 1).astype(bool)
        total += np.where(above, zeros_stop - zeros_start, 0)
        start = np.where(above, zeros[-1] + start - zeros_start, zeros_start)
        stop = np.where(above, zeros[-1] + stop - zeros_stop, zeros_stop)
        sequence = np.concatenate([sequence[is_one == 0], sequence[is_one == 1]])
    corners = total.reshape(4, -1)
    return corners[3] - corners[2] - corners[1] + corners[0]
