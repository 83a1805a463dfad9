"""Do embeddings cluster by class? Normalised mutual information of a k-means clustering with the labels, and accuracy
of nearest neighbours, both with intervals of 95%."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.evaluate import NEIGHBOURS, neighbour_accuracy
from mi_ml_gen.probe.accuracy import Accuracy

SEED = 177
"""Of the clustering, as published."""
N_STARTS = 10
MOST_ITERATIONS = 100
N_BOOTSTRAP = 1000


class ClusterAgreement(NamedTuple):
    """Normalised mutual information of clusters and labels, 0 to 1: the information of both over the larger entropy, as
    published. The interval is of 95%, over images, for the clustering that was found."""

    nmi: float
    low: float
    high: float
    n: int


def cluster_agreement(embeddings: Tensor, labels: Tensor, n_clusters: int | None = None) -> ClusterAgreement:
    """Cluster embeddings (n, d) into as many clusters as there are classes, and compare with labels (n,).

    k-means in Euclidean distance, the best of N_STARTS starts. The interval is bootstrapped: images are drawn again
    with the cluster and the label that they have. Raises UsageError for one class alone.
    """
    classes, own = np.unique(labels.cpu().numpy(), return_inverse=True)
    if len(classes) < 2:
        raise UsageError("all images are of one class; there is nothing that clusters could agree with")
    clusters = k_means(embeddings, n_clusters or len(classes))
    table = np.zeros((clusters.max() + 1, len(classes)))
    np.add.at(table, (clusters, own), 1)
    draws = np.random.default_rng(SEED).multinomial(len(own), table.flatten() / len(own), N_BOOTSTRAP)
    spread = normalised_information(draws.reshape(N_BOOTSTRAP, *table.shape))
    low, high = np.quantile(spread, (0.025, 0.975))
    value = float(normalised_information(table))
    return ClusterAgreement(value, min(value, float(low)), max(value, float(high)), len(own))


def k_means(embeddings: Tensor, n_clusters: int) -> np.ndarray:
    """The cluster of each of n embeddings, int64 (n,)."""
    points = embeddings.detach().cpu().double().numpy()
    if len(points) < n_clusters:
        raise UsageError(f"{len(points)} embeddings cannot make {n_clusters} clusters")
    best: tuple[float, np.ndarray] | None = None
    for start in range(N_STARTS):
        with warnings.catch_warnings():  # an empty cluster stays empty
            warnings.simplefilter("ignore")
            centers, clusters = kmeans2(points, n_clusters, MOST_ITERATIONS, minit="++", seed=SEED + start)
        inertia = float(np.square(points - centers[clusters]).sum())
        if best is None or inertia < best[0]:
            best = inertia, clusters.astype(np.int64)
    assert best is not None
    return best[1]


def normalised_information(table: np.ndarray) -> np.ndarray:
    """I(cluster; label) / max(H(cluster), H(label)) of counts (..., clusters, labels): (...,); 0 where both are 0."""
    p = table / table.sum((-2, -1), keepdims=True)
    of_cluster, of_label = _entropy(p.sum(-1)), _entropy(p.sum(-2))
    information = of_cluster + of_label - _entropy(p.reshape(*p.shape[:-2], -1))
    largest = np.maximum(of_cluster, of_label)
    return np.clip(np.where(largest > 0, information / np.where(largest > 0, largest, 1), 0.0), 0, 1)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def neighbours(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, of: tuple[int, ...] = NEIGHBOURS
) -> dict[int, Accuracy]:
    """Accuracy of the vote of the k nearest training embeddings, for each k; see `mim.evaluate.neighbour_accuracy`."""
    shares = neighbour_accuracy(train, train_labels, test, test_labels, of)
    return {k: Accuracy(round(share * len(test)), len(test)) for k, share in shares.items()}


__all__ = ["ClusterAgreement", "cluster_agreement", "k_means", "neighbours", "normalised_information"]
