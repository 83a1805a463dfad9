"""The toy laws against the reference's, and their draws against their densities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim import toy

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mim_data.npz")
LAWS = ["toy4", "toy-4", "toy4_20", "toy1", "toy0", "toy7_3", "toy4_1", "toyMIM", "toyVAE", "toyAE"]


@pytest.mark.parametrize("name", LAWS)
def test_the_references_laws(name):
    law = toy.mixture(name[3:])
    locs, scales, points, log_prob = (
        torch.from_numpy(GOLDEN[f"gmm/{name}/{key}"]) for key in ("locs", "scales", "points", "log_prob")
    )
    torch.testing.assert_close(law.locs, locs, rtol=0, atol=1e-5)
    torch.testing.assert_close(law.scales, scales, rtol=0, atol=1e-7)
    torch.testing.assert_close(law.log_prob(points), log_prob, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("text", ["4", "-3", "2_3", "0", "AE"])
def test_density_against_a_loop(text):
    law = toy.mixture(text)
    points = torch.randn(3, 5, law.dim, generator=torch.Generator().manual_seed(0))  # any leading axes
    slow = torch.zeros(3, 5, dtype=torch.float64)
    for loc, scale in zip(law.locs.double(), law.scales.double(), strict=True):
        slow += torch.distributions.Normal(loc, scale).log_prob(points.double()).sum(-1).exp() / law.n_components
    torch.testing.assert_close(law.log_prob(points.double()), slow.log())


@pytest.mark.parametrize("text", ["4", "3_3", "MIM"])
def test_draws_follow_the_law(text):
    law, rng, n = toy.mixture(text), torch.Generator().manual_seed(1), 60_000
    draw = law.draw(n, rng)
    assert draw.x.shape == (n, law.dim) and draw.labels.dtype == torch.int64
    shares = torch.bincount(draw.labels, minlength=law.n_components) / n
    assert (shares * law.n_components - 1).abs().max() < 5 * math.sqrt(law.n_components / n)
    standard = (draw.x - law.locs[draw.labels]) / law.scales[draw.labels]
    assert standard.mean(0).abs().max() < 5 / math.sqrt(n) and (standard.std(0) - 1).abs().max() < 0.02
    again = law.draw_from(draw.labels, rng)
    assert ((again - law.locs[draw.labels]) / law.scales[draw.labels]).abs().max() < 6
    assert not torch.equal(again, draw.x)


def test_the_circle_stays_open():
    """N modes at angles of N + 1, as published; without the origin they close it."""
    assert len(toy.mixture("4").locs) == 5 and len(toy.mixture("-4").locs) == 4
    open_angle = torch.atan2(*toy.mixture("4").locs[2].flip(0))
    closed_angle = torch.atan2(*toy.mixture("-4").locs[1].flip(0))
    assert open_angle.item() == pytest.approx(2 * math.pi / 5, abs=1e-6)
    assert closed_angle.item() == pytest.approx(2 * math.pi / 4, abs=1e-6)


def test_the_old_font():
    assert toy.bitmap("MIM").shape == (11, 18) and toy.bitmap("MIM").sum() == 60
    rows = ["".join(".#"[int(pixel)] for pixel in row) for row in toy.bitmap("I")]
    assert rows[2:10] == ["......", "####..", ".##...", ".##...", ".##...", ".##...", "####..", "......"]
    below = toy.mixture("_L").locs  # an underscore is the lowest thing, and stands left
    assert below[below[:, 1].argmin()][0] < 0.2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-0", "no component is left"),
        ("4_0", "with D at least 1"),
        ("4_-2", "with D at least 1"),
        ("MIM_20", "a text has two dimensions"),
        ("", "1 to 64 letters"),
        ("A" * 65, "not 65"),
        (" ", "none of the pixels"),
        ("日本", "Latin-1"),
    ],
)
def test_impossible_laws(text, says):
    with pytest.raises(UsageError) as refused:
        toy.mixture(text)
    assert says in str(refused.value) and "\n" not in str(refused.value)
