"""BYOL (Grill et al. 2020): predict what a slowly following copy of the network sees in the other view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core.passes import passes
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.encoders.base import Architecture, Encoder, Layout, Outputs, backbone_key, float32, mlp

PROJECTOR_FACTOR = 4
"""Hidden units of the projector over the backbone's features, as published."""


class Branch(nn.Module):
    """A backbone and its projector."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.encoder = architecture.backbone()
        width = self.encoder.feature_dim
        self.projector = mlp(width, PROJECTOR_FACTOR * width, architecture.dim)

    def forward(self, views: Tensor) -> Tensor:
        return self.projector(self.encoder(views))


class BYOL(Encoder):
    """An online branch with a predictor, and a target branch that follows the online one's parameters.

    momentum: what the target keeps of itself at each step. The target starts as a copy of the online branch, when
    the encoder is made, and is part of the state dict: a resumed training goes on with it. Its norms keep their own
    running statistics, from its own forward passes, as published.
    """

    method: ClassVar[str] = "byol"
    backbone_prefix: ClassVar[str] = "online.encoder."
    published_layouts = (
        Layout("byol", "BYOL, as published", "online_network.encoder.", "online_network.encoder.0.weight"),
    )

    def __init__(self, architecture: Architecture | None = None, momentum: float = 0.996) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        self.momentum = momentum
        self.online = Branch(self.architecture)
        self.target = Branch(self.architecture)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.predictor = mlp(self.architecture.dim, self.architecture.pred, self.architecture.dim)

    @classmethod
    def from_settings(cls, architecture: Architecture, settings: Any) -> BYOL:
        return cls(architecture, settings.target_momentum)

    @property
    def backbone(self) -> ResNet:
        return self.online.encoder

    def forward(self, first: Tensor, second: Tensor) -> Outputs:
        """Parts: predictions of both views, then the target's projections of both, (n, dim) each, float32."""
        with torch.no_grad(), passes([self.target], 1)[0]:  # first, as the others keep what their backward pass needs
            t_first, t_second = self.target(first), self.target(second)
        for_first, for_second = passes([self.online, self.predictor], 2)
        with for_first:
            features = self.online.encoder(first)
            p_first = self.predictor(self.online.projector(features))
        with for_second:
            p_second = self.predictor(self.online(second))
        return Outputs(features.detach(), tuple(map(float32, (p_first, p_second, t_first, t_second))))

    def loss(self, parts: tuple[Tensor, ...]) -> Tensor:
        return byol_loss(*parts)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self.online.parameters(), *self.predictor.parameters()], "fix_lr": False}]

    @torch.no_grad()
    def after_step(self) -> None:
        """The target moves (1 - momentum) of the way to the online branch, in a few launches for all parameters."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - self.momentum)

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> Encoder:
        """The encoder in a published state dict, strictly. Raises CorruptCheckpointError for another layout."""
        return cls.with_tensors({_own_key(key): value for key, value in state.items()})


def byol_loss(p_first: Tensor, p_second: Tensor, t_first: Tensor, t_second: Tensor) -> Tensor:
    """Mean squared distance of each view's prediction from the target's projection of the other, all (n, dim) brought
    to length 1: 4 - 2 cos - 2 cos, 0 to 8 (Grill et al. 2020, equation 2, both ways round)."""
    one = functional.cosine_similarity(p_first, t_second, dim=1)
    other = functional.cosine_similarity(p_second, t_first, dim=1)
    return (4 - 2 * one - 2 * other).mean()


def _own_key(published: str) -> str:
    key = published.replace("_network.", ".", 1)
    for branch in ("online.", "target."):
        if key.startswith(f"{branch}encoder."):
            return f"{branch}encoder." + backbone_key(key.removeprefix(f"{branch}encoder."))
        if key.startswith(f"{branch}projection.net."):
            return key.replace("projection.net.", "projector.", 1)
    return key.replace("predictor.net.", "predictor.", 1)


__all__ = ["BYOL", "byol_loss"]
