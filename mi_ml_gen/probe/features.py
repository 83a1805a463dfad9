"""Features of a frozen backbone: every image once, unaugmented, kept on disk under a name that says of what.

The backbone runs in evaluation mode without gradients, and gets back the modes that it came with: no weight and no
running statistic of it changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.core import files, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.data.source import ImageSource, batches
from mi_ml_gen.views.augment import Augment

logger = logging.getLogger(__name__)

N_FINGERPRINT_IMAGES = 64
"""Images whose pixels stand for a source in its fingerprint."""


class Features(NamedTuple):
    """Features of labelled images, on the CPU."""

    values: Tensor
    """float32 (n, d)"""
    labels: Tensor
    """int64 (n,)"""

    def rows(self, indices: Tensor) -> Features:
        return Features(self.values[indices], self.labels[indices])


class Extraction(NamedTuple):
    """How features are computed."""

    device: torch.device
    precision: str = "fp32"
    batch_size: int = 256
    progress: bool = False


@contextlib.contextmanager
def frozen(backbone: nn.Module) -> Iterator[None]:
    """Within: evaluation mode and no gradients. After: each module's own mode again."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def labels_of(source: ImageSource) -> Tensor:
    """int64 (n,). Raises UsageError for a source without labels."""
    if source.labels is None:
        raise UsageError(f"{source.name}: has no labels; a probe needs them (folders: one for each class)")
    return source.labels


def extract_features(
    backbone: nn.Module, source: ImageSource, how: Extraction, cache: str | Path | None = None, split: str = ""
) -> Features:
    """Features (n, d) of the centre crops (7/8 of the side, ImageNet normalisation) of a source's images.

    backbone: normalised images (n, 3, H, W) to features; it is moved to the device. cache: a folder; the features are
    kept there as features_SPLIT_HASH.safetensors, where the hash is of the backbone's weights, the data and how they
    are computed, and are read from it by the next call. All processes share the work.
    """
    labels = labels_of(source)
    backbone.to(how.device)
    augment = Augment("none", source.image_size).to(how.device)
    path = None
    if cache is not None:
        key = _hash(backbone, source, augment, how.precision)
        path = Path(cache) / f"features_{split or 'all'}_{key}.safetensors"
        found = runtime.on_main(lambda: _read(path))
        if found is not None:
            return Features(found, labels)

    n, world = source.n_images, runtime.world_size()
    mine = torch.arange(runtime.rank(), max(n, 1) + (-n) % world, world) % max(n, 1)  # the same number on every rank
    parts = []
    bar = Bar(total=n, desc=f"features {split}".strip(), unit="image", disable=not how.progress)
    with bar, frozen(backbone):
        for images in batches(source, mine, how.batch_size):
            views = augment(runtime.to_device(images, how.device).float() / 255)
            with runtime.autocast(how.device, how.precision):
                parts.append(backbone(views).float().cpu())
            bar.update(len(images) * world)
    own = torch.cat(parts)
    whole = runtime.gather(own).view(world, len(own), -1).transpose(0, 1).reshape(world * len(own), -1)[:n]
    values = runtime.finite(f"features of the encoder on {source.name}", whole.contiguous())
    if path is not None and runtime.is_main():
        files.save_tensors(path, {"values": values}, {"source": source.name})
    return Features(values, labels)


def _read(path: Path) -> Tensor | None:
    if not path.exists():
        return None
    try:
        return files.load_tensors(path).tensors["values"]
    except (CorruptCheckpointError, KeyError) as error:
        logger.warning("%s; the features are computed again", error)
        return None


def _hash(backbone: nn.Module, source: ImageSource, augment: Augment, precision: str) -> str:
    """16 hexadecimal digits of everything that features depend on."""
    about: list[Any] = [type(backbone).__qualname__, precision, augment.image_size, augment.crop_size]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    digest.update(fingerprint(source).encode())
    return digest.hexdigest()[:16]


def fingerprint(source: ImageSource) -> str:
    """A hash of a source's size, labels, and the pixels of some evenly spaced images: not of all of them, since
    reading a large set takes as long as the features that are to be saved."""
    shown = torch.linspace(0, max(0, source.n_images - 1), min(source.n_images, N_FINGERPRINT_IMAGES)).round().long()
    digest = hashlib.sha256(f"{source.n_images} {source.image_size}".encode())
    if source.labels is not None:
        digest.update(_bytes(source.labels))
    if len(shown):
        digest.update(_bytes(source.batch(shown)))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


__all__ = ["Extraction", "Features", "extract_features", "fingerprint", "frozen", "labels_of"]
