"""Layers of the image models: gated blocks (Dauphin et al., arXiv 1612.08083) and masked convolutions.

The names of their parameters are those of the published code, so that weights can be carried over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


def both(h: nn.Linear | nn.Conv2d, g: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weights and biases of the two halves of a gated layer, as those of one layer of twice the width."""
    assert h.bias is not None and g.bias is not None
    return torch.cat((h.weight, g.weight)), torch.cat((h.bias, g.bias))


class GatedDense(nn.Module):
    """h(x) * sigmoid(g(x)) with affine h and g: (n, n_in) -> (n, n_out). One matrix product computes both."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.h = nn.Linear(n_in, n_out)
        self.g = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(functional.linear(x, *both(self.h, self.g)), 1)


class GatedConv(nn.Module):
    """The same with convolutions of zero padding: (n, n_in, H, W) -> (n, n_out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.h = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2)
        self.g = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(functional.conv2d(x, *both(self.h, self.g), self.h.stride, self.h.padding), 1)


class Dense(nn.Module):
    """An affine layer and an activation."""

    def __init__(self, n_in: int, n_out: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return activated(self.linear(x), self.activation)


class PointwiseConv(nn.Module):
    """A convolution of kernel 1 and an activation: each pixel by itself."""

    def __init__(self, n_in: int, n_out: int, activation: Activation | None = None, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 1, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return activated(self.conv(x), self.activation)


def activated(x: Tensor, activation: Activation | None) -> Tensor:
    return x if activation is None else activation(x)


class MaskedConv(nn.Conv2d):
    """A 3x3 convolution that sees, of its first `n_ordered` channels, only positions that come before, line by line
    from above and from left to right (van den Oord et al., arXiv 1601.06759, section 3.4).

    kind: "A" hides the position itself too, "B" shows it. What channels follow the ordered ones are seen whole: they
    are no part of what is generated. n_ordered: default all.
    """

    mask: Tensor

    def __init__(self, kind: Literal["A", "B"], n_in: int, n_out: int, n_ordered: int | None = None) -> None:
        super().__init__(n_in, n_out, 3, padding=1, bias=False)
        mask = torch.ones_like(self.weight)
        ordered = mask[:, : n_in if n_ordered is None else n_ordered]
        ordered[:, :, 1, 1 + (kind == "B") :] = 0
        ordered[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, None)


def clamp_log_var(low: float, high: float) -> Activation:
    """Logarithms of variances between two bounds, without a gradient beyond them."""

    def clamped(x: Tensor) -> Tensor:
        return functional.hardtanh(x, low, high)

    return clamped


@torch.no_grad()
def start_weights(network: nn.Module, rng: torch.Generator) -> None:
    """Draw all weights: affine ones from He's normal distribution, convolutions from torch's uniform one, as published.

    Biases are uniform as torch has them. Batch norms keep their ones and zeros.
    """
    for module in network.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        fan_in = module.weight[0].numel()
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, math.sqrt(2 / fan_in), generator=rng)
        else:
            module.weight.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=rng)
        if module.bias is not None:
            module.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=rng)
