"""Images from the autoregressive decoder, pixel by pixel, with cached features.

A pass of the whole decoder for each of H * W pixels computes almost everything again. Here each layer keeps what it has
seen of the pixels so far, and a new pixel costs one matrix product a layer: of the position, its left neighbour and the
three above. What the decoder sees of the latents is known beforehand and is computed at once.

    x = sample(model, z, uniforms)        # the images of PixelHVAE.sample_plainly, equal bit for bit on the CPU

The sums of a layer come in another order here, so the means of pixels differ from those of whole passes by rounding. A
draw is the same unless its uniform number lies as close to the edge of an outcome as that. On the CPU such draws, some
in a hundred thousand, are decided by whole passes of their images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.mim.images.base import Latents, Pixels
from mi_ml_gen.mim.images.densities import BINS
from mi_ml_gen.mim.images.layers import MaskedConv
from mi_ml_gen.mim.images.networks import PixelHVAE

TAPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0))
"""Row and column of what a masked 3x3 convolution sees, from its own position."""
CLOSE, VERY_CLOSE = 1e-5, 5e-7
"""Distances of a draw from the edge of its outcome, in brightness, below which whole passes decide: of the images that
are that close, or of all together."""


class Layer(NamedTuple):
    """A masked convolution with the batch norm after it."""

    weight: Tensor
    """(taps * n_in, n_out), scaled by the norm; the taps in the order of TAPS."""
    bias: Tensor
    """(n_out,)"""


@torch.no_grad()
def sample(model: PixelHVAE, z: Latents, uniforms: Tensor) -> Tensor:
    """Images x ~ p(x|z), (n, C, H, W), from uniform numbers in [0, 1) of their shape; pixel (i, j) uses those there.

    The batch norms use their running statistics.
    """
    with model.with_running_statistics():
        return _sample(model, z, uniforms)


def _sample(model: PixelHVAE, z: Latents, uniforms: Tensor) -> Tensor:
    n, channels, height, width = uniforms.shape
    maps = model.maps(z)
    layers = list(_layers(model.pixelcnn))
    first, norm = model.pixelcnn[0], model.pixelcnn[1]
    assert isinstance(first, MaskedConv)
    of_maps = norm(first(torch.cat((torch.zeros_like(uniforms), maps), 1))).permute(2, 3, 0, 1).contiguous()
    assert isinstance(first.weight, Tensor) and isinstance(first.mask, Tensor)
    first_image = _weight(first.weight * first.mask, channels) * _scale(norm)
    # What each layer sees, by position: a row above, and a column on either side, are empty.
    seen = [uniforms.new_zeros(height + 1, width + 2, n, channels)]
    seen += [uniforms.new_zeros(height + 1, width + 2, n, len(layer.weight) // len(TAPS)) for layer in layers]
    x = torch.zeros_like(uniforms)
    for row in range(height):
        for column in range(width):
            own = row + 1, column + 1
            state = torch.relu(torch.addmm(of_maps[row, column], _taps(seen[0], own), first_image))
            for cache, layer in zip(seen[1:], layers, strict=True):
                cache[own] = state
                state = torch.relu(torch.addmm(layer.bias, _taps(cache, own), layer.weight))
            at = (..., slice(row, row + 1), slice(column, column + 1))
            pixels, u = model._at_pixel(state[:, :, None, None]), uniforms[at]
            x[at] = pixels.draw(u)
            if x.device.type == "cpu":
                _decide_close_ones(model, x, maps, at, u, pixels)
            seen[0][own] = x[:, :, row, column]
    return x


def _layers(network: nn.Sequential) -> list[Layer]:
    """The layers after the first."""
    parts = list(network)
    found = []
    for conv, norm in zip(parts[3::3], parts[4::3], strict=True):
        assert isinstance(conv, MaskedConv)
        weight = _weight(conv.weight * conv.mask, conv.in_channels)
        found.append(Layer(weight * _scale(norm), _shift(norm)))
    return found


def _weight(weight: Tensor, n_in: int) -> Tensor:
    """Of a masked kernel (n_out, n, 3, 3) the taps on the first n_in channels: (taps * n_in, n_out)."""
    return torch.cat([weight[:, :n_in, 1 + i, 1 + j].T for i, j in TAPS])


def _scale(norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    return norm.weight / torch.sqrt(norm.running_var + norm.eps)


def _shift(norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    return norm.bias - norm.running_mean * _scale(norm)


def _taps(cache: Tensor, own: tuple[int, int]) -> Tensor:
    """(n, taps * n_in) around a position of (H + 1, W + 2, n, n_in)."""
    row, column = own
    return torch.cat([cache[row + i, column + j] for i, j in TAPS], 1)


def _decide_close_ones(
    model: PixelHVAE, x: Tensor, maps: Tensor, at: tuple[Any, ...], uniforms: Tensor, pixels: Pixels
) -> None:
    """Draw again, by whole passes, what lies close to the edge of its outcome. Changes x."""
    rows = _close(pixels, uniforms, CLOSE)
    if len(rows) and len(_close(_draw_again(model, x, maps, at, uniforms, rows), uniforms[rows], VERY_CLOSE)):
        _draw_again(model, x, maps, at, uniforms, torch.arange(len(x)))  # batches of other sizes may round otherwise


def _draw_again(
    model: PixelHVAE, x: Tensor, maps: Tensor, at: tuple[Any, ...], uniforms: Tensor, rows: Tensor
) -> Pixels:
    """One pixel of some images by a whole pass. Changes x; gives the parameters of that pixel."""
    before = x[rows]
    before[at] = 0  # as it was when this pixel was drawn
    exact = model._at_pixel(model.pixelcnn(torch.cat((before, maps[rows]), 1))[at])
    here = x[at]
    here[rows] = exact.draw(uniforms[rows])
    return exact


def _close(pixels: Pixels, uniforms: Tensor, limit: float) -> Tensor:
    """The images, int64, any of whose draws lies that close to the edge of its outcome."""
    if pixels.log_var is None:
        distance = (uniforms - pixels.mean).abs()
    else:
        u = uniforms.clamp(1e-6, 1 - 1e-6)
        offset = torch.exp(pixels.log_var) * (torch.log(u) - torch.log1p(-u))
        levels = (pixels.mean + offset) * BINS
        distance = (levels - levels.round()).abs() / BINS / (1 + offset.abs())
    return (distance < limit).flatten(1).any(1).nonzero()[:, 0]


__all__ = ["sample"]
