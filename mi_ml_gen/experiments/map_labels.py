"""The label of an image whose information a map follows: a classifier's, a network's features', or a cluster's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import load_tensors, save_tensors
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages, held
from mi_ml_gen.encoders.features import load_features
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.features.base import FeatureNetwork
from mi_ml_gen.generators.gan.quality import SmallClassifier, train_classifier
from mi_ml_gen.probe.classifier import LinearClassifier, load_classifier
from mi_ml_gen.probe.features import Features
from mi_ml_gen.probe.readouts import fit_ridge
from mi_ml_gen.views.augment import Augment

Labeller = Callable[[Tensor], Tensor]
"""Decoded images (n, 3, H, W) in [0, 1], on the device -> labels int64 (n,), on the CPU."""
LABEL_COMPONENTS = 50
MOST_LABELLED = 5_000
"""Images that a readout of features is fitted to."""
VALIDATION_SHARE = 0.2
AT_ONCE = 250


def labeller(
    settings: MapConfig,
    sample: Tensor,
    side: int,
    device: torch.device,
    progress: bool,
    stop: Callable[[], object] = lambda: None,
    keep: Path | None = None,
) -> Labeller:
    """The label that the settings ask for. sample: decoded images (n, 3, side, side) in [0, 1], of which clusters are
    made. side: of the generator's images. stop: called before every step of a training; what it raises ends it. keep:
    a file for the classifier that is trained here, which is read where it is there. Raises UsageError for labelled
    images without labels."""
    if settings.classifier is not None:
        return classifier_label(load_classifier(settings.classifier), device)
    network = None if settings.features is None else load_features(settings.features, device)
    if settings.label_data is None:
        return cluster_label(sample, settings.n_labels, settings.seed, network)
    if network is None:
        return learned_label(settings.label_data, side, settings.seed, device, progress, stop, keep)
    return feature_label(settings.label_data, network, side, settings.seed, device)


def label_kind(settings: MapConfig) -> str:
    """The label in words, for the map."""
    if settings.classifier is not None:
        return f"classifier {settings.classifier}"
    if settings.label_data is None:
        return f"k-means, {settings.n_labels}" + (f", in features of {settings.features}" if settings.features else "")
    by = f"ridge regression on features of {settings.features}" if settings.features else "a small classifier"
    return f"classes of {settings.label_data.partition(':')[0]}, by {by}"


def cluster_label(images: Tensor, n_labels: int, seed: int, network: FeatureNetwork | None = None) -> Labeller:
    """k-means in the first principal components of images (n, 3, side, side) in [0, 1]: of their pixels, or of their
    features by a network."""
    side = images.shape[-1]

    def values(images: Tensor) -> Tensor:
        """float64 (n, d), on the CPU."""
        if network is not None:
            device = next((tensor.device for tensor in network.parameters()), images.device)
            parts = [network(part.to(device)) for part in images.split(AT_ONCE)]
            return torch.cat(parts).cpu().double()
        if images.shape[-1] != side:
            images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return images.cpu().flatten(1).double()

    flat = values(images)
    mean = flat.mean(0)
    gram = (flat - mean) @ (flat - mean).T
    vectors = torch.linalg.eigh(gram).eigenvectors
    kept = min(LABEL_COMPONENTS, len(flat) - 1)
    axes = functional.normalize((flat - mean).T @ vectors[:, -kept:], dim=0)
    points = ((flat - mean) @ axes).numpy()
    centres = torch.from_numpy(kmeans2(points, n_labels, iter=50, minit="++", seed=seed)[0])
    return lambda decoded: torch.cdist((values(decoded) - mean) @ axes, centres).argmin(1)


def classifier_label(classifier: LinearClassifier, device: torch.device) -> Labeller:
    """The class that a classifier names, of the centre crop that it was trained on."""
    size = classifier.image_size
    classifier.to(device)
    augment = Augment("none", size).to(device)

    def label(decoded: Tensor) -> Tensor:
        if decoded.shape[-1] != size:
            decoded = functional.interpolate(decoded, (size, size), mode="bilinear", antialias=True)
        return classifier(augment(decoded)).argmax(1).cpu()

    return label


def learned_label(
    reference: str,
    side: int,
    seed: int,
    device: torch.device,
    progress: bool = True,
    stop: Callable[[], object] = lambda: None,
    keep: Path | None = None,
) -> Labeller:
    """The class that a small classifier names, trained here on the grey images of a labelled set at the generator's
    size; stop and keep as in `labeller`. Raises UsageError for a set without labels."""
    if keep is not None and keep.exists():
        classifier = _kept(keep).to(device)
    else:
        source = labelled(reference, side)
        assert source.labels is not None
        grey = source.images.float().mean(1, keepdim=True) / 255
        classifier = train_classifier(grey, source.labels, seed, device, progress=progress, stop=stop)
        if keep is not None:
            save_tensors(keep, classifier.state_dict())
    return lambda decoded: classifier(decoded.mean(1, keepdim=True)).argmax(1).cpu()


def _kept(path: Path) -> SmallClassifier:
    state = load_tensors(path).tensors
    try:
        classifier = SmallClassifier(len(state["head.bias"]))
        classifier.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise CorruptCheckpointError(
            f"{path}: is no classifier of a map ({why}); remove it to train it again"
        ) from None
    return classifier.eval().requires_grad_(False)


def feature_label(reference: str, network: FeatureNetwork, side: int, seed: int, device: torch.device) -> Labeller:
    """The class that ridge regression on a network's features names, fitted to a labelled set at the generator's size.

    Generated images are averaged over colour where the set is grey. Raises UsageError for a set without labels.
    """
    source = labelled(reference, side)
    assert source.labels is not None
    is_grey = bool((source.images == source.images[:, :1]).all())
    rng = runtime.stream(seed, "map labels", 0, 0)
    chosen = torch.randperm(source.n_images, generator=rng)[:MOST_LABELLED]
    parts = (source.batch(part).float() / 255 for part in chosen.split(AT_ONCE))
    seen = Features(torch.cat([network(part.to(device)).cpu() for part in parts]), source.labels[chosen])
    n_train = len(chosen) - max(1, round(VALIDATION_SHARE * len(chosen)))
    train, validation = seen.rows(torch.arange(n_train)), seen.rows(torch.arange(n_train, len(chosen)))
    linear = fit_ridge(train, validation, len(source.classes), device=device).linear

    def label(decoded: Tensor) -> Tensor:
        images = decoded.mean(1, keepdim=True).expand(-1, 3, -1, -1) if is_grey else decoded
        return linear.scores(network(images).cpu()).argmax(1)

    return label


def labelled(reference: str, side: int) -> HeldImages:
    """The training images of a set in memory. Raises UsageError where they have no labels."""
    source = held(load_source(reference, "train", side))
    if source.labels is None:
        raise UsageError(f"--label_data {reference}: has no labels")
    return source
