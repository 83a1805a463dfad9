"""The critic f: the ResNet-18 whose InfoNCE loss bounds the mutual information of anchor and positive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CheckpointError, UsageError
from mi_ml_gen.core.passes import passes
from mi_ml_gen.core.resnet import resnet, torchvision_key
from mi_ml_gen.core.weights import Kind, register_kind
from mi_ml_gen.hub.sharing import Shared


class Critic(Shared):
    """Normalised images (n, 3, H, W) to points (n, projection_dim) of the unit sphere, float32.

    ResNet-18 and a head of Linear, ReLU, Linear. `image_size` (px, of the images that reach the critic, so
    after any crop) only chooses the stem; `width` is the number of channels of the first stage, 64 as
    published, less for a critic that a CPU trains in minutes. `zero_init_residual` starts the blocks as their
    shortcuts: not as published, but a narrow critic then learns much faster (docs/information.md).
    """

    def __init__(
        self,
        image_size: int = 128,
        projection_dim: int = 128,
        width: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if projection_dim < 1:
            raise UsageError(f"projection dimension {projection_dim}: must be at least 1")
        self._config = {"image_size": image_size, "projection_dim": projection_dim, "width": width,
                        "zero_init_residual": zero_init_residual}  # fmt: skip
        self.encoder = resnet(18, image_size, width, zero_init_residual)
        features = self.encoder.feature_dim
        self.head = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, projection_dim)
        )

    def forward(self, images: Tensor) -> Tensor:
        (whole,) = passes([self], 1)
        with whole:
            projected = self.head(self.encoder(images))
        if projected.dtype.itemsize < 4:  # off the sphere by 1e-2, which the temperature magnifies
            projected = projected.float()
        return functional.normalize(projected, eps=1e-12)

    def config(self) -> dict[str, Any]:
        """Plain values from which, with a state dict, the same critic is built again."""
        return dict(self._config)

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor]) -> Critic:
        """Critic holding the tensors of a state dict in the layout of the reference implementation.

        Stem, width and projection are read off the shapes.  Raises `CheckpointError` when it is another
        layout.
        """
        tensors = {_own_key(key): value for key, value in state_dict.items()}
        try:
            width, _, kernel, _ = tensors["encoder.conv1.weight"].shape
            projection_dim, _ = tensors["head.2.weight"].shape
        except (KeyError, ValueError):
            raise CheckpointError(
                "published critic: must hold encoder.stem.0.weight (4 axes) and head.2.weight (2 axes)"
            ) from None
        critic = cls(32 if kernel == 3 else 128, projection_dim, width)
        try:
            critic.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"published critic: {' '.join(str(error).split())}") from None
        return critic


def _own_key(published: str) -> str:
    key = published.removeprefix("module.").replace("encoder.module.", "encoder.")
    if key.startswith("encoder."):
        return "encoder." + torchvision_key(key.removeprefix("encoder."))
    return key


def save_critic(path: str | Path, critic: Critic, **about: Any) -> None:
    """Write a critic as safetensors, with `about`, plain values, in the head. Raises NonFiniteError, and writes
    nothing, for weights that are no finite numbers."""
    weights.write(path, CriticFiles.name, critic.state_dict(), critic.config(), about)


def load_critic(path: str | Path) -> Critic:
    """The critic that `save_critic` wrote. Raises UsageError for a missing file, CorruptCheckpointError for one that
    is damaged or holds something else."""
    critic = weights.load(path, CriticFiles.name)
    assert isinstance(critic, Critic)
    return critic


@register_kind
class CriticFiles(Kind[Critic]):
    """Critics in files."""

    name = "critic"
    models = Critic
    about = (
        "A critic: its InfoNCE loss on pairs of images bounds the mutual information of a pair, for the pairs that it "
        "was trained on."
    )
    use = (
        "from mi_ml_gen.information.critic import Critic\n\n"
        'critic = Critic.from_pretrained("{repo}")\n'
        "points = critic(images)  # normalised images (n, 3, height, width) -> (n, projection_dim) of the unit sphere"
    )

    def build(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> Critic:
        critic = Critic(**config)
        critic.load_state_dict(tensors)
        return critic


__all__ = ["Critic", "load_critic", "save_critic"]
