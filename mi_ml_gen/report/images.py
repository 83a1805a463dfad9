"""Grids of images, as PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write

if TYPE_CHECKING:
    pass

# Images


def image_grid(
    images: Tensor | np.ndarray,
    n_rows: int | None = None,
    n_columns: int | None = None,
    padding: int = 2,
    value_range: tuple[float, float] = (0.0, 1.0),
    background: int = 255,
) -> np.ndarray:
    """Images side by side, row after row, as one uint8 array (H, W, 3).

    images: (n, c, h, w) with c 1 or 3, or (n, h, w); floating point within value_range, which becomes 0 to
    255 (values outside are clipped, what is not a number becomes black), or uint8, which stays. Without
    n_rows and n_columns the grid is about square; with one of them, the other follows; with both, images
    beyond them are left out. padding: pixels between images, none around. background: grey of the gaps and of
    empty places.
    Raises UsageError for other shapes.
    """
    pixels = _to_bytes(images, value_range)  # (n, h, w, 3)
    n, height, width, _ = pixels.shape
    if n == 0:
        raise UsageError("image_grid: no images")
    if n_columns is None:
        n_columns = math.ceil(n / n_rows) if n_rows is not None else math.ceil(n**0.5)
    if n_rows is None:
        n_rows = math.ceil(n / n_columns)

    step_y, step_x = height + padding, width + padding
    canvas = np.full((n_rows * step_y - padding, n_columns * step_x - padding, 3), background, np.uint8)
    for i in range(min(n, n_rows * n_columns)):
        top, left = i // n_columns * step_y, i % n_columns * step_x
        canvas[top : top + height, left : left + width] = pixels[i]
    return canvas


def pair_grid(anchors: Tensor, positives: Tensor, n_columns: int = 8, padding: int = 2, gap: int = 8) -> np.ndarray:
    """Anchors above their positives, in double rows that stand apart: uint8 (H, W, 3).

    anchors, positives: (n, c, h, w) in [0, 1].
    """
    if anchors.shape != positives.shape:
        raise UsageError(f"pair_grid: anchors {tuple(anchors.shape)}, positives {tuple(positives.shape)}")
    n_columns = min(n_columns, len(anchors))
    double_rows: list[np.ndarray] = []
    for start in range(0, len(anchors), n_columns):
        part = slice(start, start + n_columns)
        pair = [
            image_grid(images[part], n_rows=1, n_columns=n_columns, padding=padding) for images in (anchors, positives)
        ]
        between = np.full((padding, pair[0].shape[1], 3), 255, np.uint8)
        if double_rows:
            double_rows.append(np.full((gap, pair[0].shape[1], 3), 255, np.uint8))
        double_rows += [pair[0], between, pair[1]]
    return np.concatenate(double_rows)


def png_bytes(array: np.ndarray) -> bytes:
    """The PNG file of a uint8 array (H, W, 3) or (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, array: np.ndarray) -> Path:
    """Write a uint8 array (H, W, 3) or (H, W) as a PNG, whole or not at all."""
    path = Path(path)
    atomic_write(path, png_bytes(array))
    return path


def _to_bytes(images: Tensor | np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """(n, c, h, w) or (n, h, w) -> uint8 (n, h, w, 3)."""
    tensor = torch.as_tensor(images).detach()
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise UsageError(f"images of shape {tuple(tensor.shape)}: expected (n, 1 or 3, h, w) or (n, h, w)")
    if tensor.dtype != torch.uint8:
        low, high = value_range
        scaled = (tensor.float() - low) / (high - low)
        tensor = (scaled.nan_to_num(nan=0.0) * 255).round().clamp(0, 255).to(torch.uint8)
    return tensor.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
