"""KSG estimates against the reference's numbers, a slow twin, closed forms, and themselves under changes that must
not matter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import digamma

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.ksg import ksg_mutual_information, log_ball_volume

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ksg.npz")
EXPECTED = json.loads(str(GOLDEN["expected_json"]))
CASES = [(case, name) for case, values in EXPECTED.items() for name in values if name[:7] in ("kraskov", "revised")]


def slow_ksg(x: np.ndarray, y: np.ndarray, k: int, variant: str, norm: float) -> float:
    """Equation by equation, a point at a time, all distances written out."""
    n, terms = len(x), []

    def length(difference: np.ndarray) -> np.ndarray:
        return np.linalg.norm(difference, ord=norm, axis=1)

    for i in range(n):
        far_x, far_y, far = (length(side - side[i]) for side in (x, y, np.concatenate([x, y], axis=1)))
        radius = np.sort(far)[k]
        if variant == "ksg1":
            n_x, n_y = (sum(d < radius for d in side) for side in (far_x, far_y))
            terms.append(digamma(k) + digamma(n) - digamma(n_x) - digamma(n_y))
        else:
            n_x, n_y = (sum(d <= radius for d in side) - 1 for side in (far_x, far_y))
            terms.append(digamma(k) + math.log(n) - math.log(n_x) - math.log(n_y))
    if variant == "revised":
        d_x, d_y = x.shape[1], y.shape[1]
        volumes = log_ball_volume(d_x, norm) + log_ball_volume(d_y, norm) - log_ball_volume(d_x + d_y, norm)
        return float(np.mean(terms) + volumes)
    return float(np.mean(terms))


def normal_pair(rho: float, n: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, dim))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("method", ["trees", "brute"])
@pytest.mark.parametrize(("case", "name"), CASES)
def test_the_references_numbers(case, name, method):
    x, y = GOLDEN[f"{case}/x"], GOLDEN[f"{case}/z"]
    variant = "ksg1" if name.startswith("kraskov") else "revised"
    norm = 2.0 if name.endswith("q2") else math.inf
    found = ksg_mutual_information(x, y, int(name.split("_k")[1][0]), variant, norm=norm, method=method)
    # The reference's strictness is lost at large scales; the right value is that of the same points, scaled down.
    case = "scale_1" if case == "scale_1e4" else case
    assert found.nats == pytest.approx(EXPECTED[case][name], abs=1e-9)
    assert found.n == len(x) and found.n_coincident == 0


@pytest.mark.parametrize("method", ["trees", "brute"])
@pytest.mark.parametrize(
    ("variant", "norm"), [("ksg1", math.inf), ("revised", math.inf), ("revised", 2.0), ("revised", 1.0)]
)
def test_equals_the_slow_twin(variant, norm, method):
    x, y = normal_pair(0.7, 120, 3, seed=1)
    found = ksg_mutual_information(x, y[:, :2], 4, variant, norm=norm, method=method)
    assert found.nats == pytest.approx(slow_ksg(x, y[:, :2], 4, variant, norm), abs=1e-12)


@pytest.mark.parametrize("dim", [2, 6])
def test_both_methods_give_the_same_bits(dim):
    x, y = normal_pair(0.8, 700, dim, seed=2)
    x[5], y[5] = x[6], y[6]  # a copy
    x[:50] = x[:50].round(1)  # ties
    trees, brute = (ksg_mutual_information(x, y, method=method) for method in ("trees", "brute"))
    assert trees == brute


def test_auto_chooses_by_dimensions(monkeypatch):
    from mi_ml_gen.information import ksg

    used = []
    for name in ("_by_trees", "_by_brute_force"):
        true = getattr(ksg, name)
        monkeypatch.setattr(ksg, name, lambda *a, true=true, name=name: used.append(name) or true(*a))
    for d_x, d_y in ((4, 4), (4, 5)):
        ksg_mutual_information(np.random.default_rng(0).random((30, d_x)), np.random.default_rng(1).random((30, d_y)))
    assert used == ["_by_trees", "_by_brute_force"]


@pytest.mark.parametrize("variant", ["ksg1", "revised"])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_closed_form_of_normal_pairs(rho, variant):
    x, y = normal_pair(rho, 4000, 1, seed=3)
    found = ksg_mutual_information(x[:, 0], y[:, 0], variant=variant)
    truth = -0.5 * math.log(1 - rho**2)
    assert abs(found.nats - truth) < 4 * found.standard_error_nats
    assert found.standard_error_nats < 0.03


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    estimates = [ksg_mutual_information(*normal_pair(0.8, 400, 1, seed)) for seed in range(60)]
    spread = np.std([estimate.nats for estimate in estimates], ddof=1)
    claimed = np.mean([estimate.standard_error_nats for estimate in estimates])
    assert 0.6 < claimed / spread < 1.6


@pytest.mark.parametrize("factor", [1e-30, 2.0**-60, 1e-4, 3.0, 1e4, 1e30])
def test_scale_does_not_matter(factor):
    x, y = normal_pair(0.9, 300, 2, seed=4)
    plain, scaled = (ksg_mutual_information(f * x, f * y).nats for f in (1.0, factor))
    assert scaled == pytest.approx(plain, abs=1e-12)


def test_order_and_sides_do_not_matter():
    x, y = normal_pair(0.9, 300, 2, seed=5)
    plain = ksg_mutual_information(x, y).nats
    order = np.random.default_rng(0).permutation(300)
    assert ksg_mutual_information(x[order], y[order]).nats == pytest.approx(plain, abs=1e-12)
    assert ksg_mutual_information(y, x).nats == pytest.approx(plain, abs=1e-12)


def test_atoms_of_a_discrete_law():
    """x = y with four values: I is the entropy, log 4; independent coins: 0."""
    values = np.repeat(np.arange(4.0), 500)
    found = ksg_mutual_information(values, 3 - values)
    assert found.nats == pytest.approx(math.log(4), abs=2e-3) and found.n_coincident == 2000
    coins = np.random.default_rng(0).integers(0, 2, (2, 4000)).astype(float)
    assert abs(ksg_mutual_information(*coins).nats) < 3e-3


@pytest.mark.parametrize("method", ["trees", "brute"])
@pytest.mark.parametrize("variant", ["ksg1", "revised"])
def test_copies_are_reported_and_harmless(variant, method, caplog):
    """The reference stops with log(0) where a point has k or more copies."""
    x, y = GOLDEN["many_duplicates/x"], GOLDEN["many_duplicates/z"]
    found = ksg_mutual_information(x, y, 5, variant, method=method)
    assert found.n_coincident == 10 and "10 of 200 points" in caplog.text
    others = np.unique(np.concatenate([x, y], axis=1), axis=0)
    without = ksg_mutual_information(others[:, :2], others[:, 2:], 5, variant)
    share = 10 / 200 * math.log(200 / 10)  # of the atom
    assert abs(found.nats - without.nats - share) < 0.1


def test_a_constant_says_nothing():
    found = ksg_mutual_information(np.zeros(500), np.random.default_rng(0).random(500))
    assert abs(found.nats) < 0.2 and math.isfinite(found.nats)


def test_negative_zero_is_zero():
    x = np.array([0.0, -0.0] * 10)
    assert ksg_mutual_information(x, x, 3) == ksg_mutual_information(np.zeros(20), np.zeros(20), 3)


def test_kinds_of_input_agree():
    x, y = normal_pair(0.5, 100, 2, seed=6)
    plain = ksg_mutual_information(x, y)
    tensors = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)
    assert ksg_mutual_information(*tensors) == plain
    assert ksg_mutual_information(x[:, :1], y) == ksg_mutual_information(x[:, 0], y)
    single = ksg_mutual_information(x.astype(np.float32), y.astype(np.float32))
    assert single.nats == pytest.approx(plain.nats, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 0}, "k 0"),
        ({"k": 20}, "k 20: must be at least 1 and below the number of pairs, 20"),
        ({"variant": "ksg2"}, "must be one of ksg1, revised"),
        ({"method": "forest"}, "method 'forest'"),
        ({"norm": 2.0}, "norm 2.0"),
        ({"variant": "revised", "norm": 0.5}, "norm 0.5"),
        ({"variant": "revised", "norm": math.nan}, "norm nan"),
        ({"y": np.zeros(19)}, "20 points and y 19"),
        ({"x": np.full(20, np.nan)}, "not finite"),
        ({"x": np.zeros((20, 2, 2))}, "shape (20, 2, 2)"),
    ],
)
def test_what_is_refused(change, says):
    given = {"x": np.arange(20.0), "y": np.arange(20.0)} | change
    with pytest.raises(UsageError) as refused:
        ksg_mutual_information(given.pop("x"), given.pop("y"), **given)
    assert says in str(refused.value)


def test_most_neighbours_that_there_are():
    x, y = normal_pair(0.5, 20, 1, seed=7)
    for method in ("trees", "brute"):
        found = ksg_mutual_information(x, y, 19, method=method)
        assert found.nats == pytest.approx(slow_ksg(x, y, 19, "ksg1", math.inf), abs=1e-12)


def test_ball_volumes():
    assert log_ball_volume(2, 2.0) == pytest.approx(math.log(math.pi))
    assert log_ball_volume(5, 1.0) == pytest.approx(math.log(2**5 / math.factorial(5)))
    assert log_ball_volume(3, math.inf) == pytest.approx(3 * math.log(2))
