"""Grids of images with labels, as PNG.

The few lines that place images are written here: torchvision's `make_grid` costs the import of all of torchvision,
which takes seconds, and pads around the grid.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_SMALLEST_LABELLED_PX = 24
"""Images lower than this are enlarged (each pixel to a square) where they have labels, which would overlap else."""

# Images


def image_grid(
    images: Tensor | np.ndarray,
    n_rows: int | None = None,
    n_columns: int | None = None,
    padding: int = 2,
    value_range: tuple[float, float] = (0.0, 1.0),
    background: int = 255,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Images side by side, row after row, as one uint8 array (H, W, 3).

        save_png("grid.png", image_grid(images, n_columns=8, row_labels=["anchor", "chunks 0_1"]))

    images: (n, c, h, w) with c 1 or 3, or (n, h, w); floating point within value_range, which becomes 0 to
    255 (values outside are clipped, what is not a number becomes black), or uint8, which stays. Without
    n_rows and n_columns the grid is about square; with one of them, the other follows; with both, images
    beyond them are left out. padding: pixels between images, none around. background: grey of the gaps and of
    empty places.
    row_labels, column_labels: one text for each row, to its left, and for each column, above it. With labels, images
    lower than 24 px are enlarged by a whole factor.
    Raises UsageError for other shapes, and for another number of labels.
    """
    pixels = _to_bytes(images, value_range)  # (n, h, w, 3)
    if len(pixels) == 0:
        raise UsageError("image_grid: no images")
    if row_labels is not None or column_labels is not None:
        factor = math.ceil(_SMALLEST_LABELLED_PX / pixels.shape[1])
        pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, _ = pixels.shape
    if n_columns is None:
        n_columns = math.ceil(n / n_rows) if n_rows is not None else math.ceil(n**0.5)
    if n_rows is None:
        n_rows = math.ceil(n / n_columns)

    step_y, step_x = height + padding, width + padding
    canvas = np.full((n_rows * step_y - padding, n_columns * step_x - padding, 3), background, np.uint8)
    for i in range(min(n, n_rows * n_columns)):
        top, left = i // n_columns * step_y, i % n_columns * step_x
        canvas[top : top + height, left : left + width] = pixels[i]
    _check_labels(row_labels, n_rows, "row")
    _check_labels(column_labels, n_columns, "column")
    if row_labels is None and column_labels is None:
        return canvas
    font = _font(min(24, max(11, height // 5)))
    if row_labels is not None:
        canvas = np.concatenate([_row_margin(row_labels, height, step_y, len(canvas), font, background), canvas], 1)
    if column_labels is not None:
        left = canvas.shape[1] - (n_columns * step_x - padding)
        top = _column_margin(column_labels, left, width, step_x, canvas.shape[1], font, background)
        canvas = np.concatenate([top, canvas])
    return canvas


def pair_grid(
    anchors: Tensor,
    positives: Tensor,
    n_columns: int = 8,
    padding: int = 2,
    gap: int = 8,
    labels: tuple[str, str] | None = None,
) -> np.ndarray:
    """Anchors above their positives, in double rows that stand apart: uint8 (H, W, 3).

        pair = walker(generator, z)
        save_png("pairs.png", pair_grid(generator.decode(pair.anchor), generator.decode(pair.positive)))

    anchors, positives: (n, c, h, w) in [0, 1]. n_columns: pairs in a double row. padding: pixels between images.
    gap: pixels between double rows. labels: texts to the left of the two rows, ("anchor", "positive").
    Raises UsageError where the two have different shapes.
    """
    if anchors.shape != positives.shape:
        raise UsageError(f"pair_grid: anchors {tuple(anchors.shape)}, positives {tuple(positives.shape)}")
    n_columns = min(n_columns, len(anchors))
    double_rows: list[np.ndarray] = []
    for start in range(0, len(anchors), n_columns):
        rows = []
        for images in (anchors, positives):
            pixels = _to_bytes(images[start : start + n_columns], (0.0, 1.0))
            rows.append(np.pad(pixels, [(0, n_columns - len(pixels)), (0, 0), (0, 0), (0, 0)], constant_values=255))
        both = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
        grid = image_grid(both, 2, n_columns, padding, row_labels=labels)
        if double_rows:
            double_rows.append(np.full((gap, grid.shape[1], 3), 255, np.uint8))
        double_rows.append(grid)
    return np.concatenate(double_rows)


def png_bytes(array: np.ndarray) -> bytes:
    """The PNG file of a uint8 array (H, W, 3) or (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, array: np.ndarray) -> Path:
    """Write a uint8 array (H, W, 3) or (H, W), such as `image_grid` gives, as a PNG, whole or not at all.

    Makes missing folders, gives the path, and raises as `core.files.atomic_write` where it cannot be written.
    """
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


# Labels


def _check_labels(labels: Sequence[str] | None, n: int, what: str) -> None:
    if labels is not None and len(labels) != n:
        raise UsageError(f"image_grid: {len(labels)} {what} labels for {n} {what}s")


@functools.cache
def _font(size_px: int) -> FreeTypeFont:
    """The font that matplotlib brings along: the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def _drawn(text: str, font: FreeTypeFont, background: int) -> np.ndarray:
    """One line of text as uint8 (h, w, 3), a line high whatever its letters, dark on light or light on dark."""
    from PIL import ImageDraw

    ascent, descent = font.getmetrics()
    size = max(1, math.ceil(font.getlength(text))), ascent + descent
    image = Image.new("RGB", size, (background,) * 3)
    ImageDraw.Draw(image).text((0, 0), text, fill=(0, 0, 0) if background > 127 else (255, 255, 255), font=font)
    return np.asarray(image)


def _row_margin(
    labels: Sequence[str], height: int, step: int, total: int, font: FreeTypeFont, background: int
) -> np.ndarray:
    """Labels to the left of their rows, uint8 (total, w, 3): flush right, halfway down each row."""
    texts = [_drawn(label, font, background) for label in labels]
    gap = int(font.size) // 2
    margin = np.full((total, max(text.shape[1] for text in texts) + 2 * gap, 3), background, np.uint8)
    for i, text in enumerate(texts):
        _paste(margin, text, i * step + (height - len(text)) // 2, margin.shape[1] - gap - text.shape[1])
    return margin


def _column_margin(
    labels: Sequence[str], left: int, width: int, step: int, total: int, font: FreeTypeFont, background: int
) -> np.ndarray:
    """Labels above their columns, uint8 (h, total, 3); all upright, or all turned where one is too wide."""
    texts = [_drawn(label, font, background) for label in labels]
    if max(text.shape[1] for text in texts) > width:
        texts = [np.rot90(text) for text in texts]
    gap = int(font.size) // 3
    margin = np.full((max(len(text) for text in texts) + 2 * gap, total, 3), background, np.uint8)
    for i, text in enumerate(texts):
        _paste(margin, text, len(margin) - gap - len(text), left + i * step + (width - text.shape[1]) // 2)
    return margin


def _paste(canvas: np.ndarray, image: np.ndarray, top: int, left: int) -> None:
    """Put an image onto the canvas, without what lies beyond its edges."""
    y, x = max(0, -top), max(0, -left)
    image = image[y : y + len(canvas) - max(top, 0), x : x + canvas.shape[1] - max(left, 0)]
    canvas[top + y : top + y + image.shape[0], left + x : left + x + image.shape[1]] = image
