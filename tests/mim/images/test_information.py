"""Bounds of the mutual information of images and latents against what is known."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images.information import information_bounds, pairwise_log_q
from tests.mim.images.linear_model import LinearModel
from tests.mim.images.test_networks import small_images, small_model


@pytest.mark.parametrize("noise", [0.6, 0.2])
def test_bounds_lie_on_both_sides_of_the_truth(noise: float) -> None:
    """Of a linear model; with little noise the information comes near log n, and the lower bound stays below."""
    model = LinearModel(exact=True, noise=noise)
    found = information_bounds(model, model.draw(800, torch.Generator().manual_seed(0)))
    truth = model.information()
    assert found.lower.value < truth + 3 * found.lower.spread and found.upper.value > truth - 3 * found.upper.spread
    assert found.lower.value <= found.ceiling == math.log(800)
    assert found.upper.value - found.lower.value < (0.3 if noise == 0.6 else 2.0)


@pytest.mark.parametrize("family", ["vae", "hvae_2level"])
@torch.no_grad()
def test_pairs_have_their_densities(family: str) -> None:
    model, x = small_model(family).eval(), small_images(5)
    seen = model.features(x)
    z = model.q_z(seen, model.noise(5, torch.Generator().manual_seed(0))).z
    table = pairwise_log_q(model, seen, z)
    for i in range(5):
        for j in range(5):
            expected = model.log_q(seen.rows(slice(j, j + 1)), z.rows(slice(i, i + 1)))
            torch.testing.assert_close(table[i, j], expected[0])


def test_one_image_says_nothing() -> None:
    with pytest.raises(UsageError, match="at least two"):
        information_bounds(small_model("vae"), small_images(1))
