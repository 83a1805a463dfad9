"""SimSiam (Chen and He 2021): a predictor and a stopped gradient in place of negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core.passes import passes
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.encoders.base import Architecture, Encoder, Layout, Outputs, backbone_key, float32, mlp


class SimSiam(Encoder):
    """ResNet (its blocks start as shortcuts), a projector of three layers, a predictor of two.

    The projector's last bias is frozen, for a norm follows; it stays in the state dict as published.
    """

    method: ClassVar[str] = "simsiam"
    published_layouts = (Layout("simsiam", "SimSiam, as published", "encoder.", "encoder.fc.6.weight"),)

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        dim, pred = self.architecture.dim, self.architecture.pred
        self.encoder = self.architecture.backbone(zero_init_residual=True)
        width = self.encoder.feature_dim
        last = nn.Linear(width, dim)
        assert last.bias is not None
        last.bias.requires_grad_(False)
        self.projector = nn.Sequential(
            *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            *(last, nn.BatchNorm1d(dim, affine=False)),
        )
        self.predictor = mlp(dim, pred, dim)

    @property
    def backbone(self) -> ResNet:
        return self.encoder

    def forward(self, first: Tensor, second: Tensor) -> Outputs:
        """Parts: predictions of both views, then projections of both without a graph, (n, dim) each, float32."""
        for_first, for_second = passes([self], 2)
        with for_first:
            features = self.encoder(first)
            z_first = self.projector(features)
            p_first = self.predictor(z_first)
        with for_second:
            z_second = self.projector(self.encoder(second))
            p_second = self.predictor(z_second)
        parts = (p_first, p_second, z_first.detach(), z_second.detach())
        return Outputs(features.detach(), tuple(map(float32, parts)))

    def loss(self, parts: tuple[Tensor, ...]) -> Tensor:
        return simsiam_loss(*parts)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The predictor keeps the peak learning rate (Chen and He 2021, section 4.2)."""
        branch = [*self.encoder.parameters(), *self.projector.parameters()]
        return [
            {"params": [parameter for parameter in branch if parameter.requires_grad], "fix_lr": False},
            {"params": list(self.predictor.parameters()), "fix_lr": True},
        ]

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> Encoder:
        """The encoder in a published state dict, strictly. Raises CorruptCheckpointError for another layout."""
        return cls.with_tensors({_own_key(key): value for key, value in state.items()})


def simsiam_loss(p_first: Tensor, p_second: Tensor, z_first: Tensor, z_second: Tensor) -> Tensor:
    """Minus the mean cosine of each view's prediction with the other view's projection, (n, dim) each; -1 to 1.

    No gradient flows to the projections (Chen and He 2021, equations 1 to 4).
    """
    one = functional.cosine_similarity(p_first, z_second.detach(), dim=1).mean()
    other = functional.cosine_similarity(p_second, z_first.detach(), dim=1).mean()
    return -(one + other) / 2


def _own_key(published: str) -> str:
    if published.startswith("encoder.fc."):
        return published.replace("encoder.fc.", "projector.", 1)
    if published.startswith("encoder."):
        return "encoder." + backbone_key(published.removeprefix("encoder."))
    return published


__all__ = ["SimSiam", "simsiam_loss"]
