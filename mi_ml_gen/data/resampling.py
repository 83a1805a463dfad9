"""Images to other sizes, in the few ways that the experiments need.

corners     bilinear between corner pixels, unfiltered: the paper's last step to 128 px
antialias   bilinear, averaged over the pixels that an output pixel covers
area        the mean over the pixels that an output pixel covers, as OpenCV's INTER_AREA, with which .beton files
            are written and read
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("corners", "antialias")

_BLOCK = 2**22  # values whose running sums are held at a time


def resize(images: Tensor, size: int, kind: str, rows: Tensor | None = None) -> Tensor:
    """Square images (n, c, side, side) in floating point -> (n, c, size, size); the same ones where size is side.

    kind: one of KINDS. rows: `resizing_matrix` of it, from who holds it (a compiled function should be given it: it
    cannot remember one). Differentiable; inside autocast it works in the images' precision, bfloat16 in float32.
    """
    assert kind in KINDS and images.shape[-1] == images.shape[-2], (kind, images.shape)
    if images.shape[-1] == size:
        return images
    if kind == "corners" and images.device.type == "cpu":
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=True)
    return resize_by_products(images, size, kind, rows)


def resize_by_products(images: Tensor, size: int, kind: str, rows: Tensor | None = None) -> Tensor:
    """As `resize`, by two fixed matrix products: unlike interpolate's, their backward on CUDA gives the same bits each
    time."""
    dtype = torch.float32 if images.dtype.itemsize < 4 else images.dtype
    if rows is None or rows.dtype != dtype:
        rows = resizing_matrix(kind, images.shape[-1], size, dtype, images.device)
    with torch.autocast(images.device.type, enabled=False):
        return (rows @ images.to(dtype) @ rows.T).to(images.dtype)


@lru_cache(maxsize=16)
def resizing_matrix(kind: str, side: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, side): bilinear resizing along one axis."""
    how: dict[str, Any] = dict(align_corners=True) if kind == "corners" else dict(align_corners=False, antialias=True)
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(side, dtype=dtype)[None, None]
        rows = F.interpolate(identity, size=(size, side), mode="bilinear", **how)
        return rows[0, 0].to(device)


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A uint8 image (H, W, c) -> (height, width, c), rounded, as OpenCV's INTER_AREA to within one level.

    Where both sides shrink an output pixel is the mean over the part of the image that it covers. Where one grows,
    both are interpolated between two neighbours, with weights that keep most of each pixel's square as it is.
    """
    assert image.dtype == np.uint8 and image.ndim == 3
    if image.shape[:2] == (height, width):
        return image
    if height <= image.shape[0] and width <= image.shape[1]:
        values = _area_means(_area_means(image, height).transpose(1, 0, 2), width).transpose(1, 0, 2)
    else:
        values = _area_taps(_area_taps(image, height).transpose(1, 0, 2), width).transpose(1, 0, 2)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _area_means(values: np.ndarray, size: int) -> np.ndarray:
    """(n, ...) -> (size, ...): means over equal stretches of the first axis, their ends in parts of a pixel."""
    n = len(values)
    if n % size == 0:
        return values.reshape(size, n // size, *values.shape[1:]).mean(axis=1, dtype=np.float32)
    edges = np.arange(size + 1) * (n / size)
    whole = np.minimum(edges.astype(int), n - 1)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    out = np.empty((size, *values.shape[1:]), np.float64)
    step = max(1, _BLOCK // (n * math.prod(values.shape[2:])))
    for start in range(0, values.shape[1], step):  # running sums take eight times the bytes of the image
        block = values[:, start : start + step]
        sums = np.zeros((n + 1, *block.shape[1:]), np.float64)  # up to 255 * 65535^2, beyond float32
        np.cumsum(block, axis=0, dtype=np.float64, out=sums[1:])
        out[:, start : start + step] = np.diff(sums[whole] + part * block[whole], axis=0) / (n / size)
    return out


def _area_taps(values: np.ndarray, size: int) -> np.ndarray:
    """(n, ...) -> (size, ...): two neighbours along the first axis, weighted as INTER_AREA does when it enlarges."""
    n = len(values)
    place = np.arange(size)
    first = np.floor(place * (n / size)).astype(int)
    weight = (place + 1) - (first + 1) * (size / n)
    weight = np.where(weight <= 0, 0.0, weight - np.floor(weight)).reshape(-1, *[1] * (values.ndim - 1))
    second = np.minimum(first + 1, n - 1)
    return values[first] * (1 - weight) + values[second] * weight
