"""The linear classifier on an encoder's features, and its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mi_ml_gen.checkpoints.reading import read_checkpoint, without_wrappers
from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.resnet import ResNet, sizes_of
from mi_ml_gen.core.weights import Content, Kind, register_kind
from mi_ml_gen.data.splits import PUBLISHED_CLASSES
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub.sharing import Shared
from mi_ml_gen.probe.readouts import Linear

logger = logging.getLogger(__name__)

FORMAT = "mi_ml_gen classifier"
"""In the metadata of files of version 0.1."""
PUBLISHED_IMAGE_SIZE = 128


class LinearClassifier(Shared):
    """A frozen backbone and a linear layer: normalised views (n, 3, H, W) -> logits (n, n_classes).

    image_size: side in pixels of the images whose centre crops it was trained on. classes: their names.
    has_names: False where the file that it was read from named no classes, so that they are only numbers.
    Whatever mode is asked for, the backbone stays in evaluation mode, and it is never part of a graph.
    """

    def __init__(
        self, backbone: nn.Module, fc: nn.Linear, classes: tuple[str, ...], image_size: int = PUBLISHED_IMAGE_SIZE
    ) -> None:
        super().__init__()
        if len(classes) != fc.out_features:
            raise UsageError(f"{len(classes)} classes for a layer of {fc.out_features} outputs")
        self.backbone = backbone.requires_grad_(False)
        self.fc = fc
        self.classes = classes
        self.image_size = image_size
        self.has_names = True
        self.train(self.training)

    def config(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "n_classes": len(self.classes), "classes": list(self.classes)}

    def train(self, mode: bool = True) -> LinearClassifier:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, views: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(views)
        return self.fc(features.float())


def check_classes(dataset: str | None, n_classes: int) -> None:
    """Warn where a set of the paper's has another number of classes than the paper's classifiers of it."""
    expected = PUBLISHED_CLASSES.get(dataset or "")
    if expected is not None and expected != n_classes:
        logger.warning("%s: %d classes here, %d in the paper's classifiers", dataset, n_classes, expected)


def _layer(linear: Linear) -> nn.Linear:
    layer = nn.Linear(linear.weight.shape[1], len(linear.weight))
    layer.load_state_dict(linear._asdict())
    return layer.requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------
# Files


def save_classifier(path: str | Path, classifier: LinearClassifier) -> None:
    """Write a classifier on a `ResNet`, under the published names: model.conv1.weight ... model.fc.bias.

    Raises NonFiniteError, and writes nothing, for weights that are no finite numbers."""
    weights.save(path, classifier)


@register_kind
class ClassifierFiles(Kind[LinearClassifier]):
    """Linear classifiers in files."""

    name = "classifier"
    models = LinearClassifier
    file = "classifier.safetensors"
    about = "A linear classifier on a frozen encoder: how much a linear layer finds in its features."
    use = (
        "from mi_ml_gen.probe import LinearClassifier\n\n"
        'classifier = LinearClassifier.from_pretrained("{repo}")\n'
        "logits = classifier(images)  # normalised images (n, 3, height, width); classifier.classes names the columns"
    )

    def config(self, model: LinearClassifier) -> dict[str, Any]:
        return {"image_size": model.image_size, "classes": list(model.classes)}

    def tensors(self, model: LinearClassifier) -> dict[str, Tensor]:
        named = {f"model.{key}": value for key, value in model.backbone.state_dict().items()}
        return named | {f"model.fc.{key}": value for key, value in model.fc.state_dict().items()}

    def build(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> LinearClassifier:
        return _build_classifier(tensors, tuple(map(str, config["classes"])), int(config["image_size"]))

    def older(self, path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Content | None:
        """Metadata of 0.1: format, image_size, and classes as JSON."""
        if metadata.get("format") != FORMAT:
            return None
        try:
            size, classes = int(metadata["image_size"]), list(weights.parsed(path, metadata["classes"]))
        except (KeyError, ValueError, TypeError):
            raise CorruptCheckpointError(f"{path}: no linear classifier: its header is damaged") from None
        return Content(self.name, {"image_size": size, "classes": classes}, {}, tensors)


def load_classifier(path: str | Path) -> LinearClassifier:
    """The classifier of a probe's run folder, of its classifier.safetensors, or of a published Lightning checkpoint, a
    path or a reference (see hub/fetching.py).

    Every tensor of the network must be there, and no other. A published file names no classes, so they are "0", "1"
    ..., and was trained on images of 128 px.
    Raises UsageError for a missing file, UnsafeCheckpointError or CorruptCheckpointError for one that is refused.
    """
    path = hub.local_path(path)
    if path.is_dir():
        path = next((path / name for name in ("classifier.safetensors", "last.ckpt") if (path / name).is_file()), path)
        if path.is_dir():
            raise UsageError(f"{path}: no classifier.safetensors or last.ckpt is in it")
    if path.suffix == ".safetensors" and weights.is_own(path):
        classifier = weights.load(path, ClassifierFiles.name)
        assert isinstance(classifier, LinearClassifier)
        return classifier
    tensors = read_checkpoint(path, keys=("state_dict",))
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CorruptCheckpointError(f"{path}: holds no state_dict of tensors")
    weights.check_finite(path, tensors)
    try:
        return _build_classifier(without_wrappers(tensors))
    except (CheckpointError, UsageError, RuntimeError, KeyError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CorruptCheckpointError(f"{path}: no linear classifier: {reason}") from None


def _build_classifier(
    tensors: Mapping[str, Tensor], classes: tuple[str, ...] | None = None, image_size: int = PUBLISHED_IMAGE_SIZE
) -> LinearClassifier:
    own = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    if other := sorted(set(tensors) - {f"model.{key}" for key in own}):
        raise CheckpointError(f"unknown {', '.join(other[:3])}")
    weight, bias = own.pop("fc.weight"), own.pop("fc.bias")
    if own["conv1.weight"].ndim != 4 or weight.ndim != 2:
        raise CheckpointError("conv1.weight must have 4 axes and fc.weight 2")
    sizes = sizes_of(own)
    assert sizes is not None
    backbone = ResNet(sizes.depth, sizes.small_images, sizes.width, halves=sizes.halves)
    backbone.load_state_dict(own)
    layer = nn.Linear(backbone.feature_dim, len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    names = tuple(map(str, range(len(weight)))) if classes is None else classes
    classifier = LinearClassifier(backbone, layer.requires_grad_(False), names, image_size)
    classifier.has_names = classes is not None
    return classifier.eval()
