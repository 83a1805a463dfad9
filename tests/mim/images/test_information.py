"""Bounds on what latents tell about images, against closed forms."""

import math

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images import information
from mi_ml_gen.mim.images.information import encoder_information
from tests.mim.images.linear_model import LinearModel
from tests.mim.images.test_networks import small_images, small_model


@pytest.mark.parametrize("exact", [True, False])
def test_bounds_hold_the_known_information(exact):
    model = LinearModel(exact=exact)
    x = model.draw(3000, torch.Generator().manual_seed(0))
    found, truth = encoder_information(model, x), model.information()
    assert 1 < truth < 3
    assert found.at_least.low < truth and found.at_least.nats == pytest.approx(truth, abs=0.1)  # log n is far above
    assert found.at_most.high > truth
    rate = model.kl(x).mean().item()
    assert found.at_most.low < rate < found.at_most.high
    excess = model.rate() - truth  # KL of q(z) from p(z)
    assert excess == pytest.approx(0, abs=1e-9) if exact else excess > 0.01
    assert found.at_most.low < model.rate() < found.at_most.high


def test_intervals_hold_in_most_repetitions():
    model = LinearModel(exact=True)
    truth, held = model.information(), 0
    for seed in range(40):
        x = model.draw(400, torch.Generator().manual_seed(seed))
        limit = encoder_information(model, x, seed).at_most
        held += limit.low < truth < limit.high
    assert held >= 34


def test_few_images_show_no_more_than_their_logarithm():
    model = LinearModel(exact=True, noise=0.01)
    found = encoder_information(model, model.draw(50, torch.Generator().manual_seed(0)))
    assert model.information() > 9
    assert found.at_least.nats == pytest.approx(math.log(50), abs=0.05) and found.at_least.ceiling == math.log(50)
    assert "never more than 3.91" in str(found.at_least)
    with pytest.raises(UsageError, match="30 images are too few"):
        encoder_information(model, model.draw(30, torch.Generator()))


@torch.no_grad()
def test_all_pairs_of_two_levels_are_the_plain_loop(monkeypatch):
    model = small_model("hvae_2level").eval()
    x = small_images(45)
    monkeypatch.setattr(information, "PAIRS_AT_ONCE", 7 * 45)  # parts of seven rows
    found = encoder_information(model, x, seed=1)
    seen = model.features(x)
    drawn = model.q_z(seen, model.noise(45, runtime.stream(1, "information draws", 0, 0)))
    table = torch.stack([model.log_q(seen, drawn.z.rows(slice(i, i + 1)).repeat(45)) for i in range(45)]).double()
    expected = (table.diagonal() - table.logsumexp(1) + math.log(45)).mean().item()
    assert found.at_least.nats == pytest.approx(expected, abs=1e-4)
    top = torch.distributions.Normal(seen.mean, (0.5 * seen.log_var).exp())
    scores = top.log_prob(drawn.z.z2[:, None]).sum(2).double()
    expected = (scores.diagonal() - scores.logsumexp(1) + math.log(45)).mean().item()
    assert found.top_at_least.nats == pytest.approx(expected, abs=1e-4)
    rate = (drawn.log_q - model.log_prior(drawn.z, model.components())).mean().item()
    assert found.at_most.nats == pytest.approx(rate, abs=1e-3)
