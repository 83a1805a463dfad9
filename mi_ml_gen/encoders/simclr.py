"""SimCLR (Chen et al. 2020): views of one image attract each other among those of all others."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.passes import passes
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.encoders.base import Architecture, Encoder, Outputs, float32
from mi_ml_gen.information.infonce import infonce_loss


class SimCLR(Encoder):
    """ResNet, a head of Linear, ReLU, Linear onto the unit sphere, and NT-Xent over the views of all processes.

    temperature: of NT-Xent. base_temperature: the loss is multiplied by temperature / base_temperature; by
    default by nothing. (The COP-Gen code, whose procedure the paper follows for SimCLR, has 0.07 there.)
    Both views go through the network as one batch, so its norms see them together, as in that code.
    """

    method: ClassVar[str] = "simclr"
    couples_samples: ClassVar[bool] = True

    def __init__(
        self, architecture: Architecture | None = None, temperature: float = 0.1, base_temperature: float | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture or Architecture(dim=128)
        self.temperature = temperature
        self.base_temperature = temperature if base_temperature is None else base_temperature
        self.encoder = self.architecture.backbone()
        width = self.encoder.feature_dim
        self.projector = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, self.architecture.dim)
        )

    @classmethod
    def from_settings(cls, architecture: Architecture, settings: Any) -> SimCLR:
        return cls(architecture, settings.temperature, settings.base_temperature)

    @property
    def backbone(self) -> ResNet:
        return self.encoder

    def forward(self, first: Tensor, second: Tensor) -> Outputs:
        """Parts: points (n, 2, dim) of the unit sphere, float32."""
        (whole,) = passes([self], 1)
        with whole:
            features = self.encoder(torch.cat([first, second]))
            points = functional.normalize(float32(self.projector(features)), dim=1)
        return Outputs(features[: len(first)].detach(), (torch.stack(points.chunk(2), dim=1),))

    def loss(self, parts: tuple[Tensor, ...]) -> Tensor:
        """NT-Xent (Chen et al. 2020, equation 1) over the pairs of all processes; each process holds the whole."""
        (points,) = parts
        return infonce_loss(runtime.gather(points), self.temperature, self.base_temperature)


__all__ = ["SimCLR"]
