"""Distances between sets of features, against closed forms and slow twins; their intervals against known values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.features import distances
from mi_ml_gen.features.distances import frechet_distance, kernel_distance, precision_recall


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """(n, d) float64 whose sample mean is 0 and whose sample covariance is the identity."""
    x = torch.randn(n, d, dtype=torch.float64, generator=rng(seed))
    x = x - x.mean(dim=0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


# --- Frechet distance


def test_frechet_distance_of_axis_aligned_gaussians():
    """|m - n|^2 + sum (s - t)^2, for means m, n and standard deviations s, t."""
    m, n = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    s, t = torch.tensor([1.0, 2.0, 0.1]).double(), torch.tensor([1.5, 0.3, 4.0]).double()
    found = frechet_distance(white(50, 3) * s + m, white(70, 3, seed=1) * t + n)
    assert found == pytest.approx(((m - n).square() + (s - t).square()).sum().item(), rel=1e-9)


def test_frechet_distance_equals_the_matrix_root_of_scipy():
    """Covariances that do not commute."""
    a = white(60, 5) @ torch.randn(5, 5, dtype=torch.float64, generator=rng(2))
    b = white(80, 5, seed=1) @ torch.randn(5, 5, dtype=torch.float64, generator=rng(3)) + 1
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    assert np.abs(cov_a @ cov_b - cov_b @ cov_a).max() > 0.1
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = np.square(a.mean(0).numpy() - b.mean(0).numpy()).sum()
    expected = shift + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_equal_sets_is_zero_and_of_a_shift_its_square():
    x = torch.randn(40, 4, dtype=torch.float64, generator=rng())
    shift = torch.tensor([3.0, 0.0, -4.0, 0.0], dtype=torch.float64)
    assert abs(frechet_distance(x, x)) < 1e-12
    assert frechet_distance(x, x[torch.randperm(40, generator=rng())] + shift) == pytest.approx(25)


def test_frechet_distance_of_features_that_are_constant():
    """A generator stuck on one image: a singular covariance, and a distance all the same."""
    x = white(50, 3)
    assert frechet_distance(x, torch.zeros(20, 3, dtype=torch.float64)) == pytest.approx(3)


# --- precision and recall


def covered_twin(points: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    """Share of points within some ball around a point of the manifold that reaches to its k-th neighbour."""
    inside = 0
    for point in points:
        for center in manifold:
            reach = sorted((center - other).norm().item() for other in manifold)[k]  # [0] is the center itself
            if (point - center).norm().item() <= reach:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_their_slow_twin(k):
    real = torch.randn(40, 2, dtype=torch.float64, generator=rng())
    fake = torch.randn(30, 2, dtype=torch.float64, generator=rng(1)) * 0.7 + 1
    precision, recall = precision_recall(real, fake, k)
    assert precision == pytest.approx(covered_twin(fake, real, k))
    assert recall == pytest.approx(covered_twin(real, fake, k))
    assert 0 < precision < 1 and 0 < recall < 1 and precision != recall


def test_precision_and_recall_of_equal_disjoint_and_partial_sets():
    x = torch.randn(50, 3, dtype=torch.float64, generator=rng())
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    two_modes = torch.cat([x, x + 100])
    assert precision_recall(two_modes, x) == (1, 0.5)  # one of two modes: all good, half of it
    assert precision_recall(x, two_modes) == (0.5, 1)


def test_precision_and_recall_do_not_depend_on_the_parts_that_they_are_computed_in():
    real, fake = torch.randn(2500, 2, generator=rng()), torch.randn(1200, 2, generator=rng(1))
    whole = precision_recall(real, fake)
    balls = torch.cdist(real, real).kthvalue(4, dim=1).values
    assert whole[0] == pytest.approx((torch.cdist(fake, real) <= balls).any(dim=1).double().mean().item(), abs=2e-3)


# --- the kernel distance


def test_kernel_distance_equals_its_slow_twin():
    a = torch.randn(7, 3, dtype=torch.float64, generator=rng())
    b = torch.randn(5, 3, dtype=torch.float64, generator=rng(1)) + 0.5

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    def pairs(x):
        return [k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]

    across = [k(x, y) for x in a for y in b]
    expected = np.mean(pairs(a)) + np.mean(pairs(b)) - 2 * np.mean(across)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(b, a) == pytest.approx(expected, rel=1e-9)


# --- intervals


def test_intervals_hold_the_true_distances_as_often_as_they_say():
    """Normal features whose distances have closed forms, and equal distributions, at 100 images in 4 dimensions."""
    d, n, n_repeats = 4, 100, 200
    scale, shift = 1.3, 0.5
    true_frechet = d * (shift**2 + (scale - 1) ** 2)
    rngs = rng(3)
    big_a = torch.randn(20_000, d, dtype=torch.float64, generator=rngs)
    big_b = torch.randn(20_000, d, dtype=torch.float64, generator=rngs) * scale + shift
    parts = zip(big_a.split(2000), big_b.split(2000), strict=True)
    true_kernel = np.mean([kernel_distance(one, other) for one, other in parts])
    held = {"frechet": 0, "kernel": 0, "kernel of equal ones": 0}
    plain, corrected = [], []
    for _ in range(n_repeats):
        a = torch.randn(n, d, dtype=torch.float64, generator=rngs)
        b = torch.randn(n, d, dtype=torch.float64, generator=rngs)
        moved = b * scale + shift
        found = distances.frechet(a, moved)
        plain.append(found.plain)
        corrected.append(found.corrected.value)
        held["frechet"] += found.corrected.low <= true_frechet <= found.corrected.high
        kernel, same = distances.kernel(a, moved), distances.kernel(a, b)
        held["kernel"] += kernel.low <= true_kernel <= kernel.high
        held["kernel of equal ones"] += same.low <= 0 <= same.high
    for what, times in held.items():
        assert 0.90 <= times / n_repeats <= 0.99, (what, times / n_repeats)
    error = np.std(corrected) / np.sqrt(n_repeats)
    assert np.mean(plain) > true_frechet + 5 * error  # the bias that is taken away
    assert abs(np.mean(corrected) - true_frechet) < 4 * error


def test_too_few_images_are_refused():
    x = torch.randn(12, 20, dtype=torch.float64, generator=rng())
    with pytest.raises(UsageError, match="12 images say too little about 20 features; .* needs 25"):
        distances.frechet(x, x)
    with pytest.raises(UsageError, match="12 images are too few for a kernel distance with an interval; it needs 20"):
        distances.kernel(x, x)
    assert distances.frechet(x[:, :4], x[:, :4]).plain == pytest.approx(0, abs=1e-9)
