"""The output distribution of a pixel: a discretised mixture of logistics (Salimans et al., 2017, PixelCNN++).

Each component draws red, then green given red, then blue given both; a grey image has one colour and no coupling.
Values of an image are in [-1, 1] here, on a grid of 256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_BIN = 1 / 255
"""Half the distance between two grey values in [-1, 1]."""
MIN_LOG_SCALE = -7.0


def n_parameters(n_mixtures: int, n_colours: int) -> int:
    """Channels that the network must give for each pixel."""
    return n_mixtures * (1 + 2 * n_colours + n_colours * (n_colours - 1) // 2)


@dataclass(frozen=True)
class LogisticMixture:
    """Mixtures for all pixels of n images, with M components and C colours."""

    logits: Tensor
    """(n, M, H, W), of the components."""
    means: Tensor
    """(n, M, C, H, W), before the coupling of the colours."""
    log_scales: Tensor
    """(n, M, C, H, W), at least `MIN_LOG_SCALE`."""
    couplings: Tensor
    """(n, M, C (C - 1) / 2, H, W) in (-1, 1): green on red, blue on red, blue on green."""

    @classmethod
    def of(cls, parameters: Tensor, n_mixtures: int, n_colours: int) -> LogisticMixture:
        """From a network's output (n, n_parameters(M, C), H, W).

        The first M channels are the logits. Each component then has its own block of means, log scales and couplings.
        """
        n_couplings = n_colours * (n_colours - 1) // 2
        blocks = parameters[:, n_mixtures:].unflatten(1, (n_mixtures, -1))
        means, log_scales, couplings = blocks.split([n_colours, n_colours, n_couplings], dim=2)
        return cls(parameters[:, :n_mixtures], means, log_scales.clamp(min=MIN_LOG_SCALE), torch.tanh(couplings))

    def log_prob(self, x: Tensor, as_published: bool = False) -> Tensor:
        """Log-probability (n,) in nats of images (n, C, H, W) in [-1, 1], each value meaning its bin of width 2/255.

        The first and the last bin reach to infinity, so that the probabilities of all 256 values sum to one.
        as_published: as in the published code, where the last but one value (254) also gets all that lies above it,
        and the sum exceeds one.
        """
        x = x[:, None]
        centred = x - self._coupled(self.means, self.couplings, x)
        inverse = torch.exp(-self.log_scales)
        upper, lower = inverse * (centred + HALF_BIN), inverse * (centred - HALF_BIN)
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        middle = inverse * centred
        # Where a bin holds almost nothing, its mass is the density at its centre times its width.
        density = middle - self.log_scales - 2 * F.softplus(middle) - math.log(127.5)
        inner = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
        last = -F.softplus(lower)
        first = upper - F.softplus(upper)
        log_prob = torch.where(x < -0.999, first, torch.where(x > (0.99 if as_published else 0.999), last, inner)).sum(
            2
        )  # (n, M, H, W)
        return torch.logsumexp(log_prob + torch.log_softmax(self.logits, 1), 1).sum((1, 2))

    def mean(self) -> Tensor:
        """(n, C, H, W) in [-1, 1]: means and couplings averaged over the components, then coupled."""
        weights = torch.softmax(self.logits, 1)[:, :, None]
        return self._generated((weights * self.means).sum(1), (weights * self.couplings).sum(1))

    def sample(self, u_component: Tensor, u_pixel: Tensor) -> Tensor:
        """(n, C, H, W) in [-1, 1] from uniform numbers in (0, 1): (n, M, H, W) and (n, C, H, W).

        The first choose the component, by the largest logit after Gumbel noise; the second are turned into logistics.
        """
        gumbel = -torch.log(-torch.log(u_component))
        chosen = (self.logits + gumbel).argmax(1)[:, None, None]  # (n, 1, 1, H, W)

        def pick(values: Tensor) -> Tensor:
            return values.gather(1, chosen.expand(-1, -1, values.shape[2], -1, -1))[:, 0]

        drawn = pick(self.means) + torch.exp(pick(self.log_scales)) * torch.logit(u_pixel)
        return self._generated(drawn, pick(self.couplings))

    @staticmethod
    def _coupled(means: Tensor, couplings: Tensor, x: Tensor) -> Tensor:
        """Means given the true colours before each; the colours are dimension 2 of (n, M, C, H, W)."""
        if means.shape[2] == 1:
            return means
        red, green = x[:, :, 0], x[:, :, 1]
        return torch.stack(
            [
                means[:, :, 0],
                means[:, :, 1] + couplings[:, :, 0] * red,
                means[:, :, 2] + couplings[:, :, 1] * red + couplings[:, :, 2] * green,
            ],
            dim=2,
        )

    @staticmethod
    def _generated(values: Tensor, couplings: Tensor) -> Tensor:
        """Colours (n, C, H, W), one after the other, each clamped before the next one uses it."""
        red = values[:, 0].clamp(-1, 1)
        if values.shape[1] == 1:
            return red[:, None]
        green = (values[:, 1] + couplings[:, 0] * red).clamp(-1, 1)
        blue = (values[:, 2] + couplings[:, 1] * red + couplings[:, 2] * green).clamp(-1, 1)
        return torch.stack([red, green, blue], 1)
