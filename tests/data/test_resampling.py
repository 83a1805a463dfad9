"""Resizing against plain definitions: the integral over a pixel's part of the image, OpenCV's rule for growing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mi_ml_gen.data import resampling
from mi_ml_gen.data.resampling import resize, resize_area


def area_twin(line: np.ndarray, size: int) -> np.ndarray:
    """The mean of a step function over each of `size` equal stretches, pixel by pixel."""
    step = len(line) / size
    means = []
    for i in range(size):
        start, stop = i * step, (i + 1) * step
        total = 0.0
        for pixel in range(len(line)):
            overlap = min(stop, pixel + 1) - max(start, pixel)
            if overlap > 0:
                total += overlap * line[pixel]
        means.append(total / step)
    return np.array(means)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (13, 4), (13, 17), (1, 1), (12, 16)])
def test_shrinking_takes_the_mean_over_what_a_pixel_covers(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    columns = np.stack([[area_twin(row, width) for row in image[:, :, c].astype(float)] for c in range(3)], -1)
    expected = np.stack(
        [np.stack([area_twin(columns[:, x, c], height) for x in range(width)], 1) for c in range(3)], -1
    )
    result = resize_area(image, height, width)
    assert result.dtype == np.uint8 and result.shape == (height, width, 3)
    assert np.abs(result - expected).max() <= 0.5 + 1e-6


def test_growing_keeps_the_middle_of_each_pixel() -> None:
    """Twice as large: OpenCV's area rule repeats each pixel, where plain bilinear would mix all of them."""
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_area(image, 12, 10), image.repeat(2, 0).repeat(2, 1))


def test_growing_by_a_fraction_mixes_two_neighbours() -> None:
    line = np.array([0, 100, 200], np.uint8)
    image = np.repeat(np.repeat(line[None, :, None], 3, 0), 3, 2)
    # 3 -> 4: an output pixel covers 3/4 of a pixel; by how much it reaches into the next, in output pixels.
    expected = []
    for x in range(4):
        first = math.floor(x * 3 / 4)
        weight = (x + 1) - (first + 1) * 4 / 3
        weight = 0 if weight <= 0 else weight - math.floor(weight)
        expected.append((1 - weight) * line[first] + weight * line[min(first + 1, 2)])
    np.testing.assert_allclose(resize_area(image, 4, 4)[1, :, 0], np.rint(expected), atol=0)


def test_the_size_itself_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert resize_area(image, 6, 5) is image
    images = torch.rand(1, 3, 6, 6)
    assert resize(images, 6, "corners") is images and resize(images, 6, "antialias") is images


def test_corners_stay_where_they_are() -> None:
    images = torch.rand(2, 3, 9, 9)
    small = resize(images, 5, "corners")
    torch.testing.assert_close(small, images[..., ::2, ::2])


@pytest.mark.parametrize("size", [5, 17])
def test_antialias_equals_interpolate(size: int) -> None:
    images = torch.rand(2, 3, 11, 11)
    expected = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(images, size, "antialias"), expected, rtol=0, atol=1e-6)


def test_blocks_change_nothing(monkeypatch) -> None:
    """Running sums are taken of some columns at a time."""
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    whole = resampling.resize_area(image, 17, 11)
    monkeypatch.setattr(resampling, "_BLOCK", 37 * 3 * 5)
    np.testing.assert_array_equal(resampling.resize_area(image, 17, 11), whole)


@pytest.mark.parametrize("kind", resampling.KINDS)
@pytest.mark.parametrize("size", [5, 20])
def test_products_equal_interpolation_and_its_gradient(kind: str, size: int) -> None:
    """What other devices than the CPU do, where interpolation has no deterministic backward pass."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    how = {"align_corners": True} if kind == "corners" else {"align_corners": False, "antialias": True}
    weight = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", **how)
    rows = resampling.resizing_matrix(kind, 12, size, torch.float64, torch.device("cpu"))
    for held in (None, rows):
        ours = resampling.resize_by_products(images, size, kind, held)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        slopes = [torch.autograd.grad((one * weight).sum(), images, retain_graph=True)[0] for one in (ours, expected)]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)
    half = resampling.resize_by_products(images.bfloat16(), size, kind)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=0.03)
