"""Do embeddings cluster by class? Normalised mutual information of a k-means clustering with the labels, and accuracy
of nearest neighbours, both with intervals of 95%."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core import runtime
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
    """Cluster embeddings (n, d), on their device, into as many clusters as there are classes, and compare with labels
    (n,).

    k-means in Euclidean distance, the best of N_STARTS starts. The interval is bootstrapped: images are drawn again
    with the cluster and the label that they have. Raises UsageError for one class alone.
    """
    classes, own = np.unique(labels.cpu().numpy(), return_inverse=True)
    if len(classes) < 2:
        raise UsageError("all images are of one class; there is nothing that clusters could agree with")
    clusters = k_means(embeddings, n_clusters or len(classes)).cpu().numpy()
    table = np.zeros((clusters.max() + 1, len(classes)))
    np.add.at(table, (clusters, own), 1)
    draws = np.random.default_rng(SEED).multinomial(len(own), table.flatten() / len(own), N_BOOTSTRAP)
    spread = normalised_information(draws.reshape(N_BOOTSTRAP, *table.shape))
    value = float(normalised_information(table))
    low, high = np.quantile(spread - spread.mean(), (0.025, 0.975))  # drawn tables agree a little more: a bias
    return ClusterAgreement(value, max(0.0, value + float(low)), min(1.0, value + float(high)), len(own))


@torch.no_grad()
def k_means(embeddings: Tensor, n_clusters: int) -> Tensor:
    """The cluster of each of n embeddings (n, d), int64 (n,), on their device: Lloyd's iterations from starts by
    k-means++ (Arthur and Vassilvitskii 2007), those of least squared distance. A cluster that empties stays empty.

    Raises UsageError for fewer embeddings than clusters.
    """
    if len(embeddings) < n_clusters:
        raise UsageError(f"{len(embeddings)} embeddings cannot make {n_clusters} clusters")
    points = embeddings.detach().float()
    points = points - points.mean(0)  # rounding of distances grows with the distance from the origin
    best: tuple[float, Tensor] | None = None
    for start in range(N_STARTS):
        centers = _first_centers(points, n_clusters, runtime.stream(SEED, "k-means", start, 0))
        clusters = torch.empty(0, dtype=torch.int64, device=points.device)
        for _ in range(MOST_ITERATIONS):
            found = _distances(points, centers).argmin(1)
            if torch.equal(found, clusters):
                break
            clusters = found
            sums = torch.zeros_like(centers).index_add_(0, clusters, points)
            sizes = torch.bincount(clusters, minlength=n_clusters)[:, None]
            centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
        inertia = (points - centers[clusters]).square().sum().item()
        if best is None or inertia < best[0]:
            best = inertia, clusters
    assert best is not None
    return best[1]


def _first_centers(points: Tensor, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Points, each next one with a probability in proportion to its squared distance from those that there are."""
    chosen = runtime.uniform((n_clusters,), rng)
    centers = points[int(chosen[0] * len(points))][None]
    for u in chosen[1:].tolist():
        nearest = runtime.in_float64(_distances(points, centers)).amin(1).clamp(min=0)
        total = nearest.cumsum(0)
        index = int(torch.searchsorted(total, u * total[-1:]).clamp(max=len(points) - 1))
        centers = torch.cat([centers, points[index][None]])
    return centers


def _distances(points: Tensor, centers: Tensor) -> Tensor:
    """Squared, (n, k)."""
    squares = points.square().sum(1, keepdim=True) + centers.square().sum(1)
    return torch.addmm(squares, points, centers.T, alpha=-2)


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
