"""InfoNCE against the reference's numbers, a slow twin, and identities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.infonce import infonce_bound, infonce_loss
from tests.distributed import run_processes

ARRAYS = dict(np.load(Path(__file__).parents[1] / "golden" / "supcon.npz"))
CASES = json.loads(str(ARRAYS["meta_json"]))


def _unit_features(n_pairs, dim=16, seed=0, dtype=torch.float32):
    noise = torch.randn(n_pairs, 2, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    noise[:, 1] += noise[:, 0]
    return torch.nn.functional.normalize(noise, dim=-1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"].split("/")[1])
@pytest.mark.parametrize("suffix", ["", "_f64"])
def test_equals_the_reference(case, suffix):
    key = case["key"]
    dtype = torch.float64 if suffix else torch.float32
    features = torch.from_numpy(ARRAYS[f"{key}/features"]).to(dtype).requires_grad_()
    loss = infonce_loss(features, case["temperature"], case["base_temperature"])
    loss.backward()
    assert loss.item() == pytest.approx(float(ARRAYS[f"{key}/loss{suffix}"]), rel=1e-9 if suffix else 1e-5)
    if f"{key}/grad{suffix}" in ARRAYS:
        expected = torch.from_numpy(ARRAYS[f"{key}/grad{suffix}"])
        torch.testing.assert_close(features.grad, expected, rtol=0, atol=1e-9 if suffix else 2e-6)


def test_equals_a_slow_twin():
    features, temperature = _unit_features(5, dtype=torch.float64), 0.2
    points = [(i, side) for i in range(5) for side in (0, 1)]
    total = 0.0
    for i, side in points:
        scores = {
            other: math.exp(float(features[i, side] @ features[other]) / temperature)
            for other in points
            if other != (i, side)
        }
        total -= math.log(scores[i, 1 - side] / sum(scores.values()))
    expected = total / len(points) * temperature / 0.07
    assert infonce_loss(features, temperature, 0.07).item() == pytest.approx(expected, rel=1e-12)


def test_one_pair_gives_zero_loss_and_gradient():
    features = _unit_features(1).requires_grad_()
    loss = infonce_loss(features)
    loss.backward()
    assert loss.item() == 0 and torch.equal(features.grad, torch.zeros(1, 2, 16))
    assert infonce_bound(loss, 1).nats == 0


def test_float32_inside_autocast():
    features = _unit_features(8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = infonce_loss(features)
    assert inside.dtype == torch.float32 and torch.equal(inside, infonce_loss(features))
    assert infonce_loss(features.bfloat16()).dtype == torch.float32


def test_large_scores_stay_finite():
    features = (1e4 * _unit_features(8)).requires_grad_()
    loss = infonce_loss(features, temperature=0.01)
    loss.backward()
    assert loss.isfinite() and features.grad.isfinite().all()


def test_bound_of_a_critic_that_knows_nothing_is_zero_and_of_a_perfect_one_the_ceiling():
    same = torch.ones(32, 2, 4) / 2
    bound = infonce_bound(infonce_loss(same), 32)
    assert bound.nats == pytest.approx(0, abs=1e-5) and not bound.saturated
    assert bound.ceiling_nats == pytest.approx(math.log(63))

    perfect = torch.eye(32)[:, None].expand(32, 2, 32)
    bound = infonce_bound(infonce_loss(perfect, 0.01), 32, 0.01)
    assert bound.nats == pytest.approx(math.log(63)) and bound.saturated


def test_bound_undoes_both_temperatures():
    features = _unit_features(6)
    losses = {base: infonce_loss(features, 0.3, base) for base in (0.07, 0.3, 1.0)}
    bounds = [infonce_bound(loss, 6, 0.3, base).nats for base, loss in losses.items()]
    assert bounds == pytest.approx([bounds[1]] * 3, rel=1e-5)
    cross_entropy = infonce_loss(features, 0.3, 0.3).item()
    assert bounds[1] == pytest.approx(math.log(11) - cross_entropy)


def test_bound_never_exceeds_its_ceiling_and_says_when_it_is_near():
    assert infonce_bound(-1e-7, 64).nats == math.log(127)
    assert infonce_bound(0.69 / 0.7, 64).saturated and not infonce_bound(0.70 / 0.7, 64).saturated
    nan = infonce_bound(math.nan, 64)
    assert math.isnan(nan.nats) and not nan.saturated


@pytest.mark.parametrize("shape", [(4, 16), (4, 3, 16), (0, 2, 16)])
def test_refuses_other_shapes(shape):
    with pytest.raises(UsageError, match=r"\(n >= 1, 2, d\)"):
        infonce_loss(torch.zeros(shape))


def test_refuses_temperatures_not_above_zero():
    with pytest.raises(UsageError, match="above 0"):
        infonce_loss(_unit_features(2), temperature=0.0)
    with pytest.raises(UsageError, match="at least 1"):
        infonce_bound(1.0, 0)


def _loss_and_gradients(n_processes):
    """Loss over all processes' pairs, and gradients of a shared linear map after averaging; float64."""
    whole = torch.randn(12, 2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.manual_seed(4)
    network = torch.nn.Linear(5, 4, dtype=torch.float64)
    n = len(whole) // n_processes
    mine = whole[runtime.rank() * n : (runtime.rank() + 1) * n]
    features = torch.nn.functional.normalize(network(mine), dim=-1)
    loss = infonce_loss(runtime.gather(features), 0.1)
    loss.backward()
    runtime.average_gradients(network)
    return {"loss": loss.detach(), "weight": network.weight.grad, "bias": network.bias.grad}


def test_gathered_over_two_processes_equals_one_process_with_the_whole_batch():
    alone = _loss_and_gradients(1)
    for rank in run_processes(_loss_and_gradients, 2, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-12, atol=1e-12)
