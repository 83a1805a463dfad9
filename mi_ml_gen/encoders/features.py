"""Features to measure images by: a network by its name, or an encoder or classifier of the user's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mi_ml_gen.core import weights
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.features.base import FeatureNetwork
from mi_ml_gen.features.registry import is_network, load_network
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.probe.classifier import ClassifierFiles, load_classifier
from mi_ml_gen.views.augment import Augment


class BackboneFeatures(FeatureNetwork):
    """A backbone's features of the centre crops (7/8 of the side) of images, as probes read them."""

    def __init__(self, backbone: nn.Module, title: str) -> None:
        super().__init__()
        self.backbone, self.title = backbone, title
        self.feature_dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        self._augments: dict[int, Augment] = {}

    def forward(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        if side not in self._augments:
            self._augments[side] = Augment("none", side).to(images.device)
        return self.backbone(self._augments[side](images))

    @classmethod
    def load(cls, path: str | None = None) -> BackboneFeatures:
        """Of an encoder's or a classifier's file or run folder. Raises as `load_encoder` and `load_classifier`."""
        assert path is not None
        place = hub.local_path(path)
        own = place / ClassifierFiles.file if place.is_dir() else place
        is_own = own.suffix == ".safetensors" and own.is_file() and weights.is_own(own)
        if is_own and weights.read(own).kind == ClassifierFiles.name:
            classifier = load_classifier(own)
            return cls(classifier.backbone, f"the classifier {path} ({len(classifier.classes)} classes)")
        loaded = load_encoder(place)
        return cls(loaded.backbone, f"the encoder {path} ({loaded.layout})")


def load_features(reference: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network of a reference, frozen, on a device: imagenet, inception:FILE, FILE.py:CLASS, or the file or run
    folder of an encoder or classifier. Raises what reading these raises."""
    network = load_network(reference) if is_network(reference) else BackboneFeatures.load(reference)
    return network.eval().requires_grad_(False).to(device)


__all__ = ["BackboneFeatures", "load_features"]
