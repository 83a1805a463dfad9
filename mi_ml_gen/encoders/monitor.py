"""What is watched while an encoder trains: are its features alive, and do they tell classes apart?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.source import ImageSource
from mi_ml_gen.data.splits import Subset
from mi_ml_gen.probe.features import Extraction, extract_features, labels_of
from mi_ml_gen.probe.readouts import knn_scores

COLLAPSED_STD = 0.05
"""Below this spread of the features a training counts as collapsed: all images lie nearly in one point. Untrained and
healthy encoders have 0.3 and more."""


class Health(NamedTuple):
    """How alive a batch of features is, as device scalars stacked by `health` or as plain numbers."""

    feature_std: float
    """Spread of the unit vectors: 0 in one point, 1 when even over the sphere."""
    effective_rank: float
    """Dimensions that the unit vectors fill: 1 to min(n, d)."""

    @property
    def collapsed(self) -> bool:
        return self.feature_std < COLLAPSED_STD


@torch.no_grad()
def health(features: Tensor) -> Tensor:
    """(feature_std, effective_rank) of features (n, d), on their device; nothing is read back."""
    return torch.stack([feature_std(features), effective_rank(features)])


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation over the batch of each coordinate of features (n, d) brought to length 1, averaged over the
    coordinates and multiplied by sqrt(d) (Chen and He 2021, section 4.1): 0 in one point, 1 when even over the
    sphere."""
    unit = functional.normalize(features.float(), dim=1)
    return unit.std(dim=0, unbiased=False).mean() * unit.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy) of the singular values, divided by their sum, of features (n, d) brought to length 1 (Roy and
    Vetterli 2007; RankMe, Garrido et al. 2023)."""
    unit = functional.normalize(features.float(), dim=1)
    gram = unit.mT @ unit if unit.shape[1] <= unit.shape[0] else unit @ unit.mT
    singular = torch.linalg.eigvalsh(runtime.in_float64(gram)).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp().float().to(features.device)


class KnnMonitor:
    """kNN accuracy on a small part of a labelled set: fixed images, those that vote and those asked for apart.

    n_bank, n_queries: images of each, at most; a small set is divided four to one.
    """

    def __init__(self, source: ImageSource, how: Extraction, n_bank: int = 2000, n_queries: int = 500) -> None:
        labels = labels_of(source)
        if source.n_images < 2:
            raise UsageError(f"{source.name}: {source.n_images} images are too few to judge an encoder by")
        if len(labels.unique()) < 2:
            raise UsageError(f"{source.name}: all images are of one class, so every encoder scores 100%")
        order = torch.randperm(source.n_images, generator=runtime.stream(0, "knn", 0, 0))
        n_queries = min(n_queries, max(1, source.n_images // 5))
        self.queries = Subset(source, order[:n_queries], f"{source.name}, queries")
        self.bank = Subset(source, order[n_queries : n_queries + n_bank], f"{source.name}, bank")
        self.how = how
        self.n_classes = int(labels.max()) + 1

    def accuracy(self, backbone: nn.Module) -> float:
        """Share of the queries whose class their neighbours vote for; all processes call it together."""
        bank = extract_features(backbone, self.bank, self.how)
        queries = extract_features(backbone, self.queries, self.how)
        votes = knn_scores(bank, queries.values, self.n_classes, device=self.how.device)
        return float(runtime.in_float64(votes.argmax(dim=1) == queries.labels).mean())


__all__ = ["Health", "KnnMonitor", "effective_rank", "feature_std", "health"]
