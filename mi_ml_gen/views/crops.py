"""The geometry of T_x: centre crops, flips and random boxes brought to one size, on the device.

Everything is differentiable in the images, and nothing is read by the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import kernels


def center_crop(images: Tensor, size: int) -> Tensor:
    """The middle (n, c, size, size) of images (n, c, H, W), as torchvision's center_crop places it."""
    height, width = images.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def flip_some(images: Tensor, flip: Tensor) -> Tensor:
    """images (n, c, H, W), mirrored left to right where flip (n,) is true."""
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


class Boxes(NamedTuple):
    """One box for each of n samples, in pixels, and whether the sample is mirrored; all tensors (n,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


def resize_boxes(images: Tensor, boxes: Boxes, size: int, antialias: bool, corners: bool) -> Tensor:
    """The box of each sample, brought to (n, c, size, size) bilinearly, and mirrored where its flip is true.

    antialias, corners: see `_interpolation`. Both steps are linear and separable: rows @ image @ columns, with one
    pair of matrices a sample.
    """
    image_height, image_width = images.shape[2:]
    top, height = boxes.top.to(images.dtype), boxes.height.to(images.dtype)
    left, width = boxes.left.to(images.dtype), boxes.width.to(images.dtype)
    if images.dtype == torch.float32 and kernels.usable(images, channels_last=False):
        how = (size, antialias, corners)
        rows = kernels.interpolation(top, height, None, image_height, *how)
        columns = kernels.interpolation(left, width, boxes.flip, image_width, *how)
        return _resampled(images, rows, columns)
    no_flip = torch.zeros_like(boxes.flip)
    rows = _interpolation(top, height, no_flip, image_height, size, antialias, corners)
    columns = _interpolation(left, width, boxes.flip, image_width, size, antialias, corners)
    return _resampled(images, rows, columns)


def _resampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows (n, size, H) @ images (n, c, H, W) @ columns (n, size, W) transposed."""
    n, channels, height, width = images.shape
    narrow = images.reshape(n, channels * height, width) @ columns.mT  # (n, c H, size)
    return rows[:, None] @ narrow.view(n, channels, height, columns.shape[1])


def _interpolation(
    start: Tensor, length: Tensor, flip: Tensor, n_in: int, n_out: int, antialias: bool, corners: bool
) -> Tensor:
    """Matrices (n, n_out, n_in) that take pixels start to start + length of a line to n_out pixels.

    Output pixel i lies at (i + 1/2) length / n_out from the edge of the box or, with corners, at i (length - 1) /
    (n_out - 1) from the centre of its first pixel, so that the outermost pixels of box and output coincide. Its
    weights are a triangle of half width 1, or of the step between output pixels where that is larger and antialias
    is on, over the pixels of the box, and sum to one. At the border of the box this is the same as repeating the
    outermost pixel.
    """
    out = torch.arange(n_out, device=start.device, dtype=start.dtype)
    out = torch.where(flip[:, None], n_out - 1 - out, out)  # (n, n_out)
    if corners:
        step = ((length - 1) / max(n_out - 1, 1))[:, None]
        center = out * step + 0.5
    else:
        step = (length / n_out)[:, None]
        center = (out + 0.5) * step
    half_width = step.clamp(min=1) if antialias else torch.ones_like(step)
    pixel = torch.arange(n_in, device=start.device, dtype=start.dtype) - start[:, None]  # (n, n_in), within the box
    inside = (pixel >= 0) & (pixel < length[:, None])
    distance = (pixel[:, None, :] + 0.5 - center[:, :, None]).abs()
    weights = (1 - distance / half_width[:, :, None]).clamp(min=0) * inside[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)
