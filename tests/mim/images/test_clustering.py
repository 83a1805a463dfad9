"""Clusters against labels: known agreement, scikit-learn's number where it is installed, and intervals that hold."""

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images.clustering import cluster_agreement, k_means, neighbours, normalised_information


def blobs(n=300, n_classes=5, spread=0.05, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=rng)
    centers = torch.randn(n_classes, 4, generator=rng)
    return centers[labels] + spread * torch.randn(n, 4, generator=rng), labels


def test_separate_blobs_agree_wholly_and_noise_not_at_all():
    points, labels = blobs()
    found = cluster_agreement(points, labels)
    assert found.nmi == pytest.approx(1) and found.low <= found.nmi <= found.high
    assert len(k_means(points, 5).unique()) == 5
    noise = cluster_agreement(torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)), blobs(2000)[1])
    assert noise.nmi < 0.02


def test_the_number_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 500)
    clusters = np.where(rng.random(500) < 0.6, labels, rng.integers(0, 6, 500))
    table = np.zeros((6, 6))
    np.add.at(table, (clusters, labels), 1)
    expected = metrics.normalized_mutual_info_score(labels, clusters, average_method="max")
    assert float(normalised_information(table)) == pytest.approx(expected, abs=1e-12)
    assert float(normalised_information(np.array([[5.0], [0.0]]))) == 0


def test_clusters_are_as_tight_as_scikit_learns():
    cluster = pytest.importorskip("sklearn.cluster")
    points, _ = blobs(500, 6, spread=0.6)
    found = k_means(points, 6)
    inertia = sum((points[found == k] - points[found == k].mean(0)).square().sum().item() for k in range(6))
    theirs = cluster.KMeans(6, n_init=10, random_state=0).fit(points.numpy()).inertia_
    assert inertia <= 1.01 * theirs


def test_the_interval_narrows_with_images():
    wide, narrow = (cluster_agreement(*blobs(n, spread=0.8)) for n in (200, 3200))
    assert wide.low < wide.nmi < wide.high
    assert (narrow.high - narrow.low) < 0.5 * (wide.high - wide.low)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="one class"):
        cluster_agreement(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))
    with pytest.raises(UsageError, match="cannot make 9 clusters"):
        k_means(torch.randn(5, 2), 9)


def test_neighbours_count_the_right_answers():
    points, labels = blobs()
    found = neighbours(points[:200], labels[:200], points[200:], labels[200:], (1, 3))
    assert found[3].n == 100 and found[3].n_correct == 100
    assert found[3].interval.low > 0.95
