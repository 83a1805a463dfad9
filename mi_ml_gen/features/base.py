"""What a network must offer to have images measured in its features."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mi_ml_gen.core.errors import CorruptCheckpointError


class FeatureNetwork(nn.Module, abc.ABC):
    """A fixed network: images -> features.

    `load(path)` makes it with its weights; path: what stands after the colon of its reference, or None.
    """

    title: str
    """What it is, in words, for tables and cards."""
    feature_dim: int

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] -> features (n, feature_dim). Resizing and normalising are its own affair."""

    @classmethod
    @abc.abstractmethod
    def load(cls, path: str | None = None) -> FeatureNetwork:
        """With its weights. Raises UsageError where it needs a path and has none, and what reading a file raises."""


def take_weights(network: nn.Module, tensors: Mapping[str, Tensor], place: Path, what: str) -> None:
    """Load a state dict into a network, all of it. Step counters of batch norm may be missing, as in old files.

    Raises CorruptCheckpointError, one line that names the file and the first tensor that does not fit.
    """
    wanted = network.state_dict()
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    tensors = counters | dict(tensors)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        raise CorruptCheckpointError(f"{place}: is not {what}: {'lacks' if name in wanted else 'has'} {name}")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            found, right = tuple(tensors[name].shape), tuple(value.shape)
            raise CorruptCheckpointError(f"{place}: is not {what}: {name} has shape {found} instead of {right}")
    network.load_state_dict(tensors)
