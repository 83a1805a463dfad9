"""Pictures for the tests: smooth ones, which JPEG keeps, and files of the kinds that folders hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(i: int, height: int, width: int) -> np.ndarray:
    """Picture number i, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    red = 127 + 120 * np.sin((i + 1) * x / width * 2)
    green = 127 + 120 * np.cos(y / height * 3 + i)
    blue = (x + y) * 255 / (height + width)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def save(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def folder(root: Path, n: int = 6, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    """n PNG files, dealt out to class folders (or none), of different shapes."""
    for i in range(n):
        place = root / classes[i % len(classes)] if classes else root
        save(place / f"{i:02}.png", picture(i, 40 + 3 * i, 60 - 2 * i))
    return root
