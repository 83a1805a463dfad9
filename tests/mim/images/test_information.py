"""Bounds of the mutual information of images and latents against what is known."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images import information
from mi_ml_gen.mim.images.information import information_bounds, pairwise_log_q, top_log_q
from tests.mim.images.linear_model import LinearModel
from tests.mim.images.test_networks import small_images, small_model


@pytest.mark.parametrize("noise", [0.6, 0.2])
def test_bounds_lie_on_both_sides_of_the_truth(noise: float) -> None:
    """Of a linear model; with little noise the information comes near log n, and the lower bound stays below."""
    model = LinearModel(exact=True, noise=noise)
    found = information_bounds(model, model.draw(1500, torch.Generator().manual_seed(0)))
    truth = model.information()
    assert found.lower.value < truth + 3 * found.lower.spread and found.upper.value > truth - 3 * found.upper.spread
    assert found.lower.value <= found.top_lower.value + 0.2, "more images, a higher ceiling"
    assert (found.n, found.n_top) == (1000, 1500) and found.ceiling == math.log(1000)
    assert found.lower.value <= found.ceiling and found.top_lower.value <= found.top_ceiling
    assert found.upper.value - found.lower.value < (0.3 if noise == 0.6 else 2.0)
    assert abs(found.rate.value - truth) < 4 * found.rate.spread, "q(z) is p(z): then the rate is the information"
    assert found.at_most.value == min(found.upper.value, found.rate.value)


def test_the_rate_is_above_by_the_divergence_of_the_marginal() -> None:
    model = LinearModel(exact=False)
    found = information_bounds(model, model.draw(3000, torch.Generator().manual_seed(0)))
    assert model.rate() > model.information() + 0.01
    assert abs(found.rate.value - model.rate()) < 4 * found.rate.spread


def test_errors_are_as_large_as_told() -> None:
    model = LinearModel(exact=True)
    off = []
    for seed in range(40):
        rate = information_bounds(model, model.draw(300, torch.Generator().manual_seed(seed)), seed).rate
        off.append((rate.value - model.information()) / rate.spread)
    assert sum(x * x for x in off) / 40 == pytest.approx(1, abs=0.5)


def test_few_images_show_no_more_than_their_logarithm() -> None:
    model = LinearModel(exact=True, noise=0.01)
    found = information_bounds(model, model.draw(50, torch.Generator().manual_seed(0)))
    assert model.information() > 9
    assert found.lower.value == pytest.approx(math.log(50), abs=0.05) and found.lower.value <= found.ceiling


@pytest.mark.parametrize("family", ["vae", "hvae_2level"])
@torch.no_grad()
def test_pairs_have_their_densities(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_model(family).eval(), small_images(5)
    seen = model.features(x)
    z = model.q_z(seen, model.noise(5, torch.Generator().manual_seed(0))).z
    for at_once in (8192, 12):  # all at once, two lines at a time
        monkeypatch.setattr(information, "ROWS_AT_ONCE", at_once)
        table = pairwise_log_q(model, seen, z)
        for i in range(5):
            for j in range(5):
                expected = model.log_q(seen.rows(slice(j, j + 1)), z.rows(slice(i, i + 1)))
                torch.testing.assert_close(table[i, j], expected[0].double(), rtol=1e-5, atol=1e-5)
    normal = torch.distributions.Normal(seen.mean, (0.5 * seen.log_var).exp())
    scores = normal.log_prob(z.top[:, None]).sum(2).double()
    found = top_log_q(seen, z.top)
    torch.testing.assert_close(found - found.mean(), scores - scores.mean(), rtol=1e-4, atol=1e-4)


def test_no_table_of_all_test_images_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LinearModel(exact=True)
    x = model.draw(60, torch.Generator().manual_seed(0))
    whole, sizes, plain = information_bounds(model, x, n_candidates=10), [], top_log_q

    def counted(seen, z):
        sizes.append(len(z) * len(seen.mean))
        return plain(seen, z)

    monkeypatch.setattr(information, "PAIRS_AT_ONCE", 60 * 7)
    monkeypatch.setattr(information, "top_log_q", counted)
    found = information_bounds(model, x, n_candidates=10)
    assert max(sizes) == 60 * 7 and sum(sizes) == 60 * 60 + 10 * 10
    for name in ("lower", "upper", "rate", "top_lower"):
        assert getattr(found, name).value == pytest.approx(getattr(whole, name).value, rel=1e-12)
    table = plain(model.features(x), model.q_z(model.features(x), model.noise(60, torch.Generator())).z.top)
    assert table.shape == (60, 60)


def test_one_image_says_nothing() -> None:
    with pytest.raises(UsageError, match="at least two"):
        information_bounds(small_model("vae"), small_images(1))
