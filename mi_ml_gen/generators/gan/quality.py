"""How good a small generator is: Frechet distance, precision and recall in the features of a small classifier.

The classifier is trained on the same labelled images, since features of large pretrained networks say little of
32 px garments or emoji. Every figure stands beside its floor: what as many real training images get against the
held-out set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.features.distances import N_NEAREST, frechet_distance, precision_recall
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.quality import samples
from mi_ml_gen.latents import NoiseDistribution


class SmallClassifier(nn.Module):
    """Four convolutions, 128 features, one linear layer; images (n, n_channels, 32, 32) in [0, 1], one channel for grey
    ones."""

    def __init__(self, n_classes: int = 10, n_channels: int = 1):
        super().__init__()
        self.n_channels = n_channels
        layers: list[nn.Module] = []
        for c_in, c_out, stride in ((n_channels, 32, 1), (32, 64, 2), (64, 96, 2), (96, 128, 2)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128, n_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, n_channels, 32, 32) -> (n, 128)."""
        return self.body(images * 2 - 1).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    device: torch.device,
    epochs: int = 4,
    progress: bool = True,
    stop: Callable[[], object] = lambda: None,
) -> SmallClassifier:
    """Train on images (n, 1 or 3, 32, 32) in [0, 1] and labels (n,), by Adam with a cosine schedule.

    stop: called before every step; what it raises ends the training.
    """
    torch.manual_seed(seed)
    batch_size = min(128, len(images))
    model = SmallClassifier(int(labels.max()) + 1, images.shape[1]).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    n_steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    bar = Bar(total=n_steps, desc="classifier", disable=not progress, unit="step")
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=runtime.stream(seed, "classifier", epoch, 0))
        for chosen in order.split(batch_size)[: len(images) // batch_size]:
            stop()
            x, y = images[chosen].to(device), labels[chosen].to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Quality:
    """Measured quality of a generator; `floor_...` is what as many real training images get."""

    n: int
    """Images on each side of the Frechet distance."""
    n_neighbours: int
    """Images on each side of precision and recall."""
    classifier_accuracy: float
    """Of the feature classifier, on the held-out images."""
    frechet: float
    floor_frechet: float
    precision: float
    floor_precision: float
    recall: float
    floor_recall: float
    class_shares: tuple[float, ...]
    """Share of each class among the generated images, as the classifier sees them."""
    real_shares: tuple[float, ...]
    """The same of the held-out images."""
    confidence: float
    """Mean largest class probability of generated images."""
    floor_confidence: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def measure_quality(
    generator: MultiLatentGenerator,
    classifier: SmallClassifier,
    train_images: torch.Tensor,
    held_out: torch.Tensor,
    held_out_labels: torch.Tensor,
    seed: int,
    n: int = 10_000,
    n_neighbours: int = 5_000,
    distribution: NoiseDistribution | None = None,
) -> Quality:
    """Hold n generated images, and n real training images as the floor, against n held-out real ones; all the images
    that there are where there are fewer.

    All real images (m, c, 32, 32) in [0, 1], with the classifier's channels. Where these are one, generated images are
    averaged over colour. distribution: of the noise (default: a standard normal truncated at 2).
    Raises UsageError for fewer real images than precision and recall need.
    """
    n = min(n, len(held_out), len(train_images))
    n_neighbours = min(n_neighbours, n)
    if n <= N_NEAREST:
        raise UsageError(f"{n} images are too few to measure a generator by; give more than {N_NEAREST} of both splits")
    device = next(classifier.parameters()).device
    order = torch.randperm(len(train_images), generator=runtime.stream(seed, "quality floor", 0, 0))

    def features(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [classifier.features(part.to(device)) for part in images.split(500)]
        whole = torch.cat(parts)
        return whole.cpu().double(), classifier.head(whole).softmax(dim=1).cpu()

    def generated() -> torch.Tensor:
        parts = samples(generator, n, seed, distribution, device)
        return torch.cat([(p.mean(dim=1, keepdim=True) if classifier.n_channels == 1 else p).cpu() for p in parts])

    def shares(probabilities: torch.Tensor) -> tuple[float, ...]:
        counts = torch.bincount(probabilities.argmax(dim=1), minlength=probabilities.shape[1])
        return tuple(round(share, 4) for share in (counts / n).tolist())

    real, real_probabilities = features(held_out[:n])
    floor, _ = features(train_images[order[:n]])
    fake, probabilities = features(generated())
    m = n_neighbours
    precision, recall = precision_recall(real[:m], fake[:m])
    floor_precision, floor_recall = precision_recall(real[:m], floor[:m])
    return Quality(
        n=n,
        n_neighbours=m,
        classifier_accuracy=(real_probabilities.argmax(dim=1) == held_out_labels[:n]).double().mean().item(),
        frechet=frechet_distance(real, fake),
        floor_frechet=frechet_distance(real, floor),
        precision=precision,
        floor_precision=floor_precision,
        recall=recall,
        floor_recall=floor_recall,
        class_shares=shares(probabilities),
        real_shares=shares(real_probabilities),
        confidence=probabilities.max(dim=1).values.mean().item(),
        floor_confidence=real_probabilities.max(dim=1).values.mean().item(),
    )
