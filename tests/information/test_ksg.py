"""KSG estimates against the reference's numbers, a slow twin, closed forms, and themselves under changes that must
not matter."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from scipy.special import digamma

from mi_ml_gen.core import progress
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import ksg
from mi_ml_gen.information.ksg import faster_method, ksg_mutual_information, log_ball_volume, normal_scores

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ksg.npz")
EXPECTED = json.loads(str(GOLDEN["expected_json"]))
CASES = [(case, name) for case, values in EXPECTED.items() for name in values if name[:7] in ("kraskov", "revised")]


def slow_ksg(x: np.ndarray, y: np.ndarray, k: int, variant: str, norm: float, ties: bool = False) -> float:
    """Equation by equation, a point at a time, all distances written out. ties: count in open balls where distances
    are equal, and among exact copies where there are k of them; otherwise k points, as published."""
    n, terms = len(x), []
    d_x, d_y = x.shape[1], y.shape[1]
    volumes = log_ball_volume(d_x, norm) + log_ball_volume(d_y, norm) - log_ball_volume(d_x + d_y, norm)

    def length(difference: np.ndarray) -> np.ndarray:
        return np.linalg.norm(difference, ord=norm, axis=1)

    for i in range(n):
        far_x, far_y, far = (length(side - side[i]) for side in (x, y, np.concatenate([x, y], axis=1)))
        radius = np.sort(far)[k]
        has_ties = sum(far < radius) < k or sum(far <= radius) > k + 1
        if ties and radius == 0:
            m, m_x, m_y = (sum(d == 0 for d in side) for side in (far, far_x, far_y))
            terms.append(digamma(m) + digamma(n) - digamma(m_x) - digamma(m_y))
        elif variant == "ksg1" or (ties and has_ties):
            n_x, n_y = (sum(d < radius for d in side) for side in (far_x, far_y))
            n_both = sum(far < radius) if ties else k
            terms.append(digamma(n_both) + digamma(n) - digamma(n_x) - digamma(n_y))
            terms[-1] += volumes if variant == "revised" else 0
        else:
            n_x, n_y = (sum(d <= radius for d in side) - 1 for side in (far_x, far_y))
            terms.append(digamma(k) + math.log(n) - math.log(n_x) - math.log(n_y) + volumes)
    return float(np.mean(terms))


def scores(x: np.ndarray) -> np.ndarray:
    return normal_scores(torch.from_numpy(x.reshape(len(x), -1))).numpy()


def normal_pair(rho: float, n: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, dim))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("method", ["trees", "brute"])
@pytest.mark.parametrize(("case", "name"), CASES)
def test_the_references_numbers(case, name, method):
    """They are of distances as given: the published code scales nothing."""
    x, y = GOLDEN[f"{case}/x"], GOLDEN[f"{case}/z"]
    variant = "ksg1" if name.startswith("kraskov") else "revised"
    norm = 2.0 if name.endswith("q2") else math.inf
    k = int(name.split("_k")[1][0])
    found = ksg_mutual_information(x, y, k, variant, norm=norm, method=method, scale="none")
    # The reference's strictness is lost at large scales; the right value is that of the same points, scaled down.
    case = "scale_1" if case == "scale_1e4" else case
    assert found.nats == pytest.approx(EXPECTED[case][name], abs=1e-9)
    assert found.n == len(x) and found.n_coincident == 0


VARIANTS = [("ksg1", math.inf), ("revised", math.inf), ("revised", 2.0), ("revised", 1.0)]


@pytest.mark.parametrize("method", ["trees", "brute"])
@pytest.mark.parametrize(("variant", "norm"), VARIANTS)
@pytest.mark.parametrize("scale", ["ranks", "none"])
def test_equals_the_slow_twin(scale, variant, norm, method):
    x, y = normal_pair(0.7, 120, 3, seed=1)
    y = y[:, :2]
    found = ksg_mutual_information(x, y, 4, variant, norm=norm, method=method, scale=scale)
    if scale == "ranks":
        expected = slow_ksg(scores(x), scores(y), 4, variant, norm, ties=True)
    else:
        expected = slow_ksg(x, y, 4, variant, norm)
    assert found.nats == pytest.approx(expected, abs=1e-12)


def on_grids(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs with equal distances of every kind, (n, 1) or (n, 2)."""
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((4, n, 2))
    pairs = {
        "rounded": (normal[0].round(1), (normal[0] + normal[1]).round(1)),
        "digits": (rng.integers(0, 10, (n, 1)), rng.integers(0, 10, (n, 1))),
        "coins": (rng.integers(0, 2, (n, 2)), rng.integers(0, 2, (n, 1))),
        "counts against a density": (rng.poisson(3, (n, 1)), normal[2]),
        "half zeros": (np.where(normal[0] < 0, 0, normal[0]), normal[1]),
        "copies": (np.repeat(normal[0][: n // 4], 4, axis=0), np.repeat(normal[1][: n // 4], 4, axis=0)),
        "equal": (rng.integers(0, 20, (n, 1)),) * 2,
    }
    return {name: (x.astype(float), y.astype(float)) for name, (x, y) in pairs.items()}


@pytest.mark.parametrize("method", ["trees", "brute"])
@pytest.mark.parametrize("variant", ["ksg1", "revised"])
@pytest.mark.parametrize("kind", list(on_grids(8)))
def test_ties_are_those_of_the_slow_twin(kind, variant, method):
    x, y = on_grids(120)[kind]
    found = ksg_mutual_information(x, y, 3, variant, method=method)
    assert found.nats == pytest.approx(slow_ksg(scores(x), scores(y), 3, variant, math.inf, ties=True), abs=1e-12)
    assert found.n_coincident + found.n_tied > 0


@pytest.mark.parametrize("scale", ["ranks", "none"])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_both_methods_give_the_same_bits(dim, scale):
    x, y = normal_pair(0.8, 700, dim, seed=2)
    x[5], y[5] = x[6], y[6]  # a copy
    x[:50] = x[:50].round(1)  # ties
    for variant in ("ksg1", "revised"):
        trees, brute = (
            ksg_mutual_information(x, y, 5, variant, method=method, scale=scale) for method in ("trees", "brute")
        )
        assert trees == brute


def test_many_blocks_are_one(monkeypatch):
    """Of rows that do not divide n, on both ways."""
    x, y = normal_pair(0.8, 300, 4, seed=2)
    whole = ksg_mutual_information(x, y)
    monkeypatch.setattr(ksg, "_PAIRS_AT_ONCE", 7 * 300)
    monkeypatch.setattr(ksg, "_ROWS_AT_ONCE", 7)
    for method in ("trees", "brute"):
        assert ksg_mutual_information(x, y, method=method) == whole


@pytest.mark.parametrize("method", ["trees", "brute"])
def test_a_bar_when_asked_for(method, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    x, y = normal_pair(0.8, 300, 4, seed=2)
    ksg_mutual_information(x, y, method=method)
    assert capsys.readouterr().err == ""
    ksg_mutual_information(x, y, method=method, progress=True)
    assert "KSG: 100%" in capsys.readouterr().err


def test_auto_chooses_as_measured(monkeypatch):
    used = []
    for name in ("_by_trees", "_by_brute_force"):
        true = getattr(ksg, name)
        monkeypatch.setattr(ksg, name, lambda *a, true=true, name=name: used.append(name) or true(*a))
    for dim in (2, 20):
        ksg_mutual_information(*normal_pair(0.5, 1000, dim, seed=0))
    assert used == ["_by_trees", "_by_brute_force"]
    assert faster_method(200, 20, 20, on_cpu=False) == faster_method(10**5, 1, 1, on_cpu=False) == "brute"
    # More points favour trees, more dimensions all pairs.
    assert [faster_method(n, 5, 5) for n in (10**3, 10**6)] == ["brute", "trees"]
    assert [faster_method(10**4, d, d) for d in (2, 8)] == ["trees", "brute"]


GROWTH = """
import resource
import numpy as np
from mi_ml_gen.information.ksg import ksg_mutual_information
x, y = np.random.default_rng(0).standard_normal((2, 8_000, 2))
ksg_mutual_information(x[:500], y[:500], method="brute")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ksg_mutual_information(x, y, method="brute")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_all_pairs():
    """All distances between 8,000 points take 488 MiB."""
    found = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 120


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


def test_normal_scores():
    x = np.array([[3.0, 3.0, -1e300, 7.0, 3.0, 1e-300], np.arange(6.0)]).T
    expected = scipy.special.ndtri((scipy.stats.rankdata(x, axis=0) - 0.5) / 6)
    np.testing.assert_allclose(scores(x), expected, atol=1e-14)


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 2.0**-60, 1e-4, 3.0, 1e4, 1e30, 1e300])
@pytest.mark.parametrize("kind", ["normal", *on_grids(8)])
def test_the_scale_of_a_side_does_not_matter(kind, factor):
    x, y = normal_pair(0.9, 200, 2, seed=4) if kind == "normal" else on_grids(200)[kind]
    plain = ksg_mutual_information(x, y)
    assert ksg_mutual_information(factor * x, y) == ksg_mutual_information(x, factor * y) == plain
    assert ksg_mutual_information(factor * x, factor * y) == plain


def test_units_origins_and_logarithms_of_coordinates_do_not_matter():
    x, y = normal_pair(0.9, 300, 2, seed=4)
    plain = ksg_mutual_information(x, y)
    assert ksg_mutual_information(x * [1e4, 1e-4] + [0, 100], y - 1e6) == plain
    assert ksg_mutual_information(np.exp(3 * x), np.sinh(5 * y)) == plain
    assert ksg_mutual_information(x * [-1, 1], -y) == plain


@pytest.mark.parametrize("factor", [1e-30, 2.0**-60, 1e-4, 3.0, 1e4, 1e30])
def test_a_common_scale_does_not_matter_without_ranks(factor):
    x, y = normal_pair(0.9, 300, 2, seed=4)
    plain, scaled = (ksg_mutual_information(f * x, f * y, scale="none").nats for f in (1.0, factor))
    assert scaled == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("scale", ["ranks", "none"])
@pytest.mark.parametrize("kind", ["normal", *on_grids(8)])
def test_order_and_sides_do_not_matter(kind, scale):
    x, y = normal_pair(0.9, 300, 2, seed=5) if kind == "normal" else on_grids(300)[kind]
    plain = ksg_mutual_information(x, y, scale=scale).nats
    order = np.random.default_rng(0).permutation(300)
    assert ksg_mutual_information(x[order], y[order], scale=scale).nats == pytest.approx(plain, abs=1e-12)
    assert ksg_mutual_information(y, x, scale=scale).nats == pytest.approx(plain, abs=1e-12)
    assert ksg_mutual_information(x[:, ::-1].copy(), y, scale=scale).nats == pytest.approx(plain, abs=1e-12)


def table_information(table: np.ndarray) -> float:
    """Of two discrete variables with these joint probabilities."""
    product = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    held = table > 0
    return float((table[held] * np.log(table[held] / product[held])).sum())


def rounded_information(rho: float, step: float) -> float:
    """Of two normal variables, each rounded to multiples of step: probabilities of cells from a grid of 0.02."""
    fine = np.arange(-7, 7, 0.02) + 0.01
    density = np.exp(-(fine[:, None] ** 2 - 2 * rho * fine[:, None] * fine + fine**2) / (2 * (1 - rho**2)))
    cell = np.round(fine / step).astype(int)
    into = (cell - cell.min())[None] == np.arange(np.ptp(cell) + 1)[:, None]  # (cells, fine)
    return table_information(into @ (density / density.sum()) @ into.T)


def independent(rng: np.random.Generator, n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    a, b = rng.standard_normal((2, n, 2))
    zeros = rng.random((2, n)) < 0.5
    return {
        "bytes": tuple(rng.integers(0, 256, (2, n), dtype=np.uint8)),
        "digits": tuple(rng.integers(0, 10, (2, n))),
        "coins": tuple(rng.integers(0, 2, (2, n))),
        "thirty kinds": tuple(rng.integers(0, 30, (2, n))),
        "counts": (rng.poisson(3, n), rng.poisson(20, n)),
        "rare counts": tuple(rng.poisson(0.05, (2, n))),
        "rounded to 0.1": (a[:, 0].round(1), b[:, 0].round(1)),
        "rounded to 1": (a[:, 0].round(), b[:, 0].round()),
        "rounded, 2 + 2": (a.round(), b.round(1)),
        "coin and density": (rng.integers(0, 2, n), a[:, 0]),
        "counts and density": (rng.poisson(3, n), a),
        "half zeros": (np.where(zeros[0], 0, a[:, 0]), np.where(zeros[1], 0, b[:, 0])),
        "Cauchy": tuple(rng.standard_cauchy((2, n))),
        "Cauchy and normal": (rng.standard_cauchy(n), b[:, 0]),
        "lognormal, 2 + 2": (np.exp(4 * a), np.exp(4 * b)),
        "Cauchy, rounded": tuple(rng.standard_cauchy((2, n)).round()),
        "constant": (np.full(n, 3.0), a),
        "constant column": (np.stack([a[:, 0], np.full(n, 1e9)], 1), b),
    }


@pytest.mark.parametrize("kind", list(independent(np.random.default_rng(0), 8)))
@pytest.mark.parametrize("n", [60, 400, 2000])
def test_independent_data_of_every_kind_give_nought(n, kind):
    """On average over repeats, which shows a bias that the noise of one estimate hides."""
    found = [
        ksg_mutual_information(*independent(np.random.default_rng(seed), n)[kind]) for seed in range(2400 // n or 1)
    ]
    bias = np.mean([estimate.nats for estimate in found])
    error = np.mean([estimate.standard_error_nats for estimate in found])
    assert abs(bias) < 3 * error / math.sqrt(len(found)) + 0.3 / math.sqrt(n) / 2
    assert all(abs(estimate.nats) < 5 * estimate.standard_error_nats + 0.02 for estimate in found)


def dependent(rng: np.random.Generator, n: int) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Pairs and the information between them."""
    a, noise = rng.standard_normal((2, n))
    b = 0.8 * a + 0.6 * noise
    normal = -math.log(0.6)
    kinds, uniform = rng.integers(0, 5, n), rng.random(n)
    coin, error = rng.integers(0, 2, n), rng.random(n) < 0.1
    channel = np.array([[0.45, 0.05], [0.05, 0.45]])
    code = np.array([[0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1]])
    return {
        "rounded to 0.1": (a.round(1), b.round(1), rounded_information(0.8, 0.1)),
        "rounded to 0.5": ((2 * a).round() / 2, (2 * b).round() / 2, rounded_information(0.8, 0.5)),
        "rounded to 1": (a.round(), b.round(), rounded_information(0.8, 1.0)),
        "Cauchy": (np.tan(math.pi * (scipy.special.ndtr(a) - 0.5)), np.exp(4 * b), normal),
        "other units": (1e4 * a, 1e-4 * b - 7, normal),
        "channel": (coin, coin ^ error, table_information(channel)),
        # Gao, Kannan, Oh, Viswanath 2017, experiment I: y uniform between x and x + 2
        "kind and density": (kinds, kinds + 2 * uniform, math.log(5) - 0.8 * math.log(2)),
        "equal": (kinds, kinds, math.log(5)),
        "code of a kind": (code[kinds % 4], kinds % 4, table_information(np.diag([0.4, 0.2, 0.2, 0.2]))),
    }


@pytest.mark.parametrize("kind", list(dependent(np.random.default_rng(0), 8)))
@pytest.mark.parametrize("n", [200, 2000])
def test_dependent_data_of_every_kind(n, kind):
    found = [dependent(np.random.default_rng(seed), n)[kind] for seed in range(2000 // n)]
    truth = found[0][2]
    nats = np.mean([ksg_mutual_information(x, y).nats for x, y, _ in found])
    assert nats == pytest.approx(truth, abs=0.06)


def test_atoms_of_a_discrete_distribution():
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
    assert found.n_coincident == 10 and "10 of 200 pairs are exact copies" in caplog.text
    others = np.unique(np.concatenate([x, y], axis=1), axis=0)
    without = ksg_mutual_information(others[:, :2], others[:, 2:], 5, variant)
    share = 10 / 200 * math.log(200 / 10)  # of the atom
    assert abs(found.nats - without.nats - share) < 0.1


def test_copied_pairs_are_reported(caplog):
    x, y = normal_pair(0.0, 200, 1, seed=0)
    ksg_mutual_information(np.repeat(x, 2), np.repeat(y, 2))
    assert "400 of 400 pairs are exact copies of others" in caplog.text
    caplog.clear()
    ksg_mutual_information(*np.random.default_rng(0).integers(0, 10, (2, 400)))  # repeated because they are few
    assert "exact copies of others" not in caplog.text


def test_ties_without_ranks_are_reported(caplog):
    x, y = np.random.default_rng(0).standard_normal((2, 400)).round(1)
    found = ksg_mutual_information(x, y, scale="none")
    assert found.n_tied > 200 and f"{found.n_tied} of 400 points" in caplog.text and 'scale="ranks"' in caplog.text
    caplog.clear()
    ksg_mutual_information(x, y)
    ksg_mutual_information(*normal_pair(0.5, 400, 1, seed=0), scale="none")
    assert caplog.text == ""


def test_a_constant_says_nothing():
    for constant in (np.zeros(500), np.full((500, 3), 1e300)):
        assert ksg_mutual_information(constant, np.random.default_rng(0).random(500)).nats == pytest.approx(
            0, abs=1e-12
        )
    assert ksg_mutual_information(np.zeros(500), np.ones(500)).nats == pytest.approx(0, abs=1e-12)
    assert abs(ksg_mutual_information(np.zeros(500), np.random.default_rng(0).random(500), scale="none").nats) < 0.2


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
        ({"scale": "sides"}, "scale 'sides': must be one of ranks, none"),
        ({"norm": 2.0}, "norm 2.0"),
        ({"variant": "revised", "norm": 0.5}, "norm 0.5"),
        ({"variant": "revised", "norm": math.nan}, "norm nan"),
        ({"y": np.zeros(19)}, "20 points and y 19"),
        ({"x": np.r_[np.nan, np.inf, np.zeros(18)]}, "x holds 2 values that are not finite"),
        ({"y": np.r_[-np.inf, np.zeros(19)]}, "y holds 1 values that are not finite"),
        ({"x": np.arange(20.0) + 1j}, "x holds complex numbers"),
        ({"x": np.array(["a"] * 20)}, "x: must be an array of numbers"),
        ({"x": None}, "x: must be an array of numbers"),
        ({"x": np.zeros(0), "y": np.zeros(0)}, "k 5: must be at least 1 and below the number of pairs, 0"),
        ({"x": np.zeros((20, 0))}, "shape (20, 0)"),
        ({"variant": "revised", "norm": 2.0, "y": np.arange(20) // 2}, "column 0 of y: 20 of 20 values are repeated"),
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
        found = ksg_mutual_information(x, y, 19, method=method, scale="none")
        assert found.nats == pytest.approx(slow_ksg(x, y, 19, "ksg1", math.inf), abs=1e-12)
        found = ksg_mutual_information(x, y, 19, method=method)
        expected = slow_ksg(scores(x), scores(y), 19, "ksg1", math.inf, ties=True)
        assert found.nats == pytest.approx(expected, abs=1e-12)


def test_ball_volumes():
    assert log_ball_volume(2, 2.0) == pytest.approx(math.log(math.pi))
    assert log_ball_volume(5, 1.0) == pytest.approx(math.log(2**5 / math.factorial(5)))
    assert log_ball_volume(3, math.inf) == pytest.approx(3 * math.log(2))
