"""Statistics against the reference's, KNN against scikit-learn's rule written out, and a model that knows the truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim import datasets, evaluate
from mi_ml_gen.mim.distributions import Gaussian
from mi_ml_gen.mim.model import MIM

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mim_data.npz")
EXPECTED = json.loads(str(GOLDEN["stats_json"]))
COLUMNS = (
    "Dkl_q_p Dkl_p_q Dkl MI H_q_x H_p_z H_enc H_dec H_Msamp H_mean MI_ksg MI_ksg_l2_err H_P_x H_P_z x_recon_err "
    "epoch loss clf_acc_KNN1 clf_acc_KNN3 clf_acc_KNN5 clf_acc_KNN10"
).split()


def test_the_references_statistics():
    given = {key.removeprefix("stats/in/"): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if "/in/" in key}
    q, p, q_x, p_z = (Gaussian(given[f"{law}_loc"], given[f"{law}_scale"]) for law in ("q_zx", "p_xz", "q_x", "p_z"))
    x, z = given["x"], given["z"]
    terms = SimpleNamespace(
        x=x, z=z, x_given_z=p.log_prob(x), q_x=q_x.log_prob(x), p_z=p_z.log_prob(z), z_given_x=q.log_prob(z)
    )
    fresh, free = q.loc + q.std * given["eps_q"], p_z.loc + p_z.std * given["eps_p"]
    forward, backward = q.log_prob(fresh) - p_z.log_prob(fresh), p_z.log_prob(free) - q.log_prob(free)
    found = (
        evaluate.divergences(forward, backward)
        | evaluate.entropies(terms)
        | evaluate.information(x, z, EXPECTED["_N"])
        | {"x_recon_err": evaluate.reconstruction_error(x, given["x_recon"])}
    )
    for name, value in found.items():
        assert value == pytest.approx(EXPECTED[name], rel=1e-9), name


def test_a_row_of_a_model():
    data = datasets.load("toy4")
    torch.manual_seed(0)
    model = MIM(2, mid_dim=8, min_logvar=6)
    rng = torch.Generator().manual_seed(0)
    found = evaluate.evaluate(model, data, rng, epoch=7, loss=1.5)
    row = found.as_dict()
    assert list(row) == COLUMNS and all(math.isfinite(value) for value in row.values())
    assert (row["epoch"], row["loss"]) == (7, 1.5)
    assert row["Dkl"] == pytest.approx((row["Dkl_q_p"] + row["Dkl_p_q"]) / 2)
    assert row["H_mean"] == pytest.approx((row["H_enc"] + row["H_dec"]) / 2)
    assert row["H_P_x"] == pytest.approx(-data.anchor.log_prob(data.test.x).mean().item(), rel=1e-5)
    # q(x) is marginal: both sides then agree at every pair
    assert row["H_enc"] == pytest.approx(row["H_dec"], rel=1e-4)
    assert row["H_enc"] == pytest.approx(row["H_Msamp"], rel=1e-4)
    assert all(0.19 < row[f"clf_acc_KNN{k}"] < 1 for k in (1, 3, 5, 10))  # five classes
    again = evaluate.evaluate(model, data, torch.Generator().manual_seed(0), neighbours=False).as_dict()
    assert list(again) == COLUMNS[:15] and again["MI_ksg"] == row["MI_ksg"]


def test_an_encoder_that_knows_the_truth():
    """toy0 is N(0, 1.25^2 I). z = x / 1.25 in the first coordinate plus noise: mutual information and divergences
    have closed forms."""
    data, noise = datasets.load("toy0"), 0.5
    model = MIM(2, z_dim=1, layers=1, min_logvar=9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        linear = model.q_z_given_x.linear
        scale = math.sqrt(1 - noise**2) / 1.25
        linear.weight[..., 0, 0] = scale  # (out, in): loc first, then log std
        linear.bias[..., 1] = math.log(noise)
    encoding = model.encode(data.test.x)
    assert torch.allclose(encoding.mean[:, 0], scale * data.test.x[:, 0], atol=1e-6)
    assert torch.allclose(encoding.stddev, torch.tensor(noise))
    found = evaluate.evaluate(model, data, torch.Generator().manual_seed(1), neighbours=False)
    truth = -math.log(noise)  # z is standard normal, z given x has standard deviation 1/2
    assert found.MI_ksg == pytest.approx(truth, abs=0.05)
    for value in (found.MI, found.Dkl_q_p):
        assert value == pytest.approx(truth, abs=0.03)
    backward = math.log(noise) + 0.5 * (2 - noise**2) / noise**2 - 0.5  # E KL(N(0, 1) || q(z|x))
    assert found.Dkl_p_q == pytest.approx(backward, abs=0.12)
    assert found.H_p_z == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.03)
    assert found.H_P_z == found.H_p_z


def test_published_rows_have_another_test_set_each():
    model = MIM(2, mid_dim=4)
    plain, published = (datasets.load("toy1", as_published=flag) for flag in (False, True))
    rows = [
        evaluate.evaluate(model, data, torch.Generator().manual_seed(seed), n_ksg=100, neighbours=False).H_P_x
        for data in (plain, published)
        for seed in (0, 1)
    ]
    assert rows[0] == rows[1] and rows[2] != rows[3]


def slow_accuracy(train, train_labels, test, test_labels, k):
    right = 0
    for point, label in zip(test, test_labels, strict=True):
        nearest = np.argsort(np.linalg.norm(train - point, axis=1), kind="stable")[:k]
        votes = np.bincount(train_labels[nearest])
        right += votes.argmax() == label  # the smallest label of the most frequent
    return right / len(test)


@pytest.mark.parametrize("dim", [2, 12])
def test_neighbours_against_the_slow_twin(dim):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    points = rng.standard_normal((500, dim)) + 0.6 * labels[:, None] + 1000  # far from the origin
    train, test = torch.from_numpy(points[:300]), torch.from_numpy(points[300:])
    tags = torch.from_numpy(labels)
    found = evaluate.neighbour_accuracy(train, tags[:300], test, tags[300:])
    expected = {k: slow_accuracy(points[:300], labels[:300], points[300:], labels[300:], k) for k in (1, 3, 5, 10)}
    assert found == expected and 0.3 < found[1] < 0.95


def test_both_ways_to_neighbours_agree(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    points, queries = torch.randn(400, 5, generator=rng), torch.randn(90, 5, generator=rng)
    trees = evaluate.nearest_neighbours(points, queries, 10)
    monkeypatch.setattr(evaluate, "TREE_DIMENSIONS", 0)
    monkeypatch.setattr(evaluate, "_DISTANCES_AT_ONCE", 4000)
    assert torch.equal(trees, evaluate.nearest_neighbours(points, queries, 10))


def test_too_few_points_for_neighbours():
    with pytest.raises(UsageError, match="10 nearest of 9"):
        evaluate.neighbour_accuracy(torch.zeros(9, 1), torch.zeros(9).long(), torch.zeros(2, 1), torch.zeros(2).long())


def test_over_seeds():
    rows = [{"MI": 1.0, "loss": 4.0}, {"MI": 2.0}, {"MI": 6.0, "loss": 8.0}]
    found = evaluate.over_seeds(rows)
    assert found["MI"].value == 3 and found["MI"].spread == pytest.approx(math.sqrt(7 / 3))
    assert found["loss"].value == 6 and math.isnan(evaluate.over_seeds(rows[:1])["MI"].spread)
    with pytest.raises(UsageError):
        evaluate.over_seeds([])
