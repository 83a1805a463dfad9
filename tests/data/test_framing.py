"""Crops and sizes: the reference's numbers for cars, FFCV's rules for where the square lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data import known
from mi_ml_gen.data.framing import FRAMINGS, Framing, center_square, framing, shrink
from tests.conftest import GOLDEN


def test_cars_are_framed_as_in_the_reference(fill) -> None:
    """512 px -> the central 384 -> 128, bilinear between corner pixels."""
    with np.load(GOLDEN / "pipeline_images.npz") as golden:
        expected, name = golden["stylegan_preprocess_grid"], str(golden["stylegan_preprocess_name"])
    image = fill(name, (1, 3, 512, 512))
    cars = FRAMINGS["stylegan"]
    square = center_square(image[0].permute(1, 2, 0).numpy(), cars.ratio)
    assert square.shape == (384, 384, 3)
    framed = cars.finish(torch.from_numpy(square).permute(2, 0, 1)[None])
    np.testing.assert_allclose(framed[:, :, ::4, ::4].numpy(), expected, rtol=0, atol=1e-4)


def test_bytes_are_framed_as_numbers_are_and_rounded() -> None:
    squares = torch.randint(0, 256, (2, 3, 384, 384), dtype=torch.uint8)
    exact = FRAMINGS["stylegan"].finish(squares / 255)
    rounded = FRAMINGS["stylegan"].finish(squares)
    assert rounded.dtype == torch.uint8 and rounded.shape == (2, 3, 128, 128)
    assert (rounded / 255 - exact).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("shape", "ratio", "rows", "columns"),
    [
        ((10, 6), 1, (2, 8), (0, 6)),
        ((7, 10), 1, (0, 7), (1, 8)),
        ((9, 9), 0.75, (1, 7), (1, 7)),
        ((1, 5), 0.5, (0, 1), (2, 3)),
    ],
)
def test_where_the_central_square_lies(shape, ratio, rows, columns) -> None:
    image = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(*shape, 1)
    np.testing.assert_array_equal(center_square(image, ratio), image[slice(*rows), slice(*columns)])


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    image = np.full((300, 401, 3), 7, np.uint8)
    assert shrink(image, 256).shape == (191, 256, 3)  # 256 / 401 * 300 = 191.5, cut as FFCV cuts it
    assert shrink(image, 401) is image and shrink(image, 1000) is image
    assert shrink(np.zeros((1, 999, 3), np.uint8), 10).shape == (1, 10, 3)


@pytest.mark.parametrize("name", FRAMINGS)
def test_every_framing_gives_its_size(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    for size in (None, 20):
        frame = framing(name, size)
        square = frame.cut(frame.store(image))
        result = frame.finish(torch.from_numpy(square).permute(2, 0, 1)[None])
        assert result.shape == (1, 3, size or 128, size or 128) and result.dtype == torch.uint8


def test_the_reference_crops() -> None:
    assert FRAMINGS["bigbigan"] == Framing(128, crop_px=256, ratio=1, stored_px=256)
    assert FRAMINGS["stylegan"] == Framing(128, crop_px=384, ratio=0.75, stored_px=512)
    assert FRAMINGS["classification"] == Framing(128, crop_px=None, ratio=1, stored_px=256)


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="nearest known framing: bigbigan"):
        framing("bigigan")
    with pytest.raises(UsageError, match="at least 1"):
        framing("whole", 0)


def test_names_are_known_without_torch():
    assert tuple(FRAMINGS) == known.FRAMINGS
    assert known.published_framing("auto", "imagenet") == "bigbigan"
    assert known.published_framing("auto", None) == "classification"
    with pytest.raises(UsageError, match="whole"):
        known.published_framing("whol", None)
