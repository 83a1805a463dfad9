"""The tasks' true values against numerical integration of densities written down here, and against their samples."""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import closed_forms, transforms
from mi_ml_gen.information.gaussian import JointGaussian
from mi_ml_gen.information.ksg import ksg_mutual_information
from mi_ml_gen.information.task_files import export_tasks, file_name
from mi_ml_gen.information.tasks import (
    TASKS,
    additive_uniform_pairs,
    bmi_tasks,
    gaussian,
    grid,
    make_task,
    transformed,
)
from scripts import export_tasks as script


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _integrated(log_joint, log_x, log_y, x, y):
    """Integral of p log(p / (p_x p_y)) by Gauss-Legendre between the knots x and y: it must be smooth in between."""
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def rule(knots):
        knots = np.asarray(knots, dtype=float)
        half, middle = np.diff(knots) / 2, (knots[1:] + knots[:-1]) / 2
        return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()

    (px, wx), (py, wy) = rule(x), rule(y)
    a, b = np.meshgrid(px, py, indexing="ij")
    log_p = log_joint(a, b)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isfinite(log_p), np.exp(log_p) * (log_p - log_x(a) - log_y(b)), 0.0)
    return float(wx @ terms @ wy)


# --- closed forms against integrals -------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_normal_pair(rho):
    both = stats.multivariate_normal(cov=[[1, rho], [rho, 1]])
    edges = np.linspace(-8, 8, 17)
    found = _integrated(
        lambda a, b: both.logpdf(np.stack([a, b], -1)), stats.norm.logpdf, stats.norm.logpdf, edges, edges
    )
    assert closed_forms.normal_pairs_information(rho) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("half_width", [0.1, 0.5, 0.75, 3.0])
def test_additive_uniform(half_width):
    width = 2 * half_width

    def height(y):  # of the trapezoid
        return max(0.0, min(1.0, y + half_width) - max(0.0, y - half_width)) / width

    corners = sorted({-half_width, half_width, 1 - half_width, 1 + half_width})
    entropy = sum(
        integrate.quad(lambda y: -height(y) * math.log(height(y)) if height(y) > 0 else 0.0, a, b)[0]
        for a, b in itertools.pairwise(corners)
    )
    assert closed_forms.additive_uniform_information(half_width) == pytest.approx(entropy - math.log(width), abs=1e-8)


@pytest.mark.parametrize(("df", "rho"), [(3, 0.0), (5, 0.6)])
def test_student_pair(df, rho):
    """In t = sinh u, so that the tails fit into a grid."""
    both = stats.multivariate_t(shape=[[1, rho], [rho, 1]], df=df)
    edges = np.linspace(-14, 14, 29)

    def log_joint(a, b):
        at = np.stack([np.sinh(a), np.sinh(b)], -1)
        return both.logpdf(at.reshape(-1, 2)).reshape(a.shape) + np.log(np.cosh(a) * np.cosh(b))

    def log_side(a):
        return stats.t.logpdf(np.sinh(a), df) + np.log(np.cosh(a))

    nats = closed_forms.normal_pairs_information(rho) + closed_forms.student_excess(df, 1, 1)
    assert nats == pytest.approx(_integrated(log_joint, log_side, log_side, edges, edges), abs=1e-6)


def test_student_of_several_numbers():
    """As the mean of log p / (p_x p_y) over samples, with scipy's densities; and none is left as df grows."""
    df, rho = 4, 0.5
    shape = np.kron([[1, rho], [rho, 1]], np.eye(3))
    draws = stats.multivariate_t(shape=shape, df=df).rvs(40_000, random_state=0)
    sides = [stats.multivariate_t(shape=np.eye(3), df=df).logpdf(draws[:, i : i + 3]) for i in (0, 3)]
    terms = stats.multivariate_t(shape=shape, df=df).logpdf(draws) - sides[0] - sides[1]
    nats = closed_forms.normal_pairs_information(rho, 3) + closed_forms.student_excess(df, 3, 3)
    assert abs(nats - terms.mean()) < 4 * terms.std() / math.sqrt(len(terms))
    assert closed_forms.student_excess(1e6, 3, 3) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shape", [0.5, 1.0, 4.0])
def test_gamma_exponential(shape):
    """In logarithms, where both sides have smooth densities."""
    x = np.linspace(-60 if shape < 1 else -25, 5, 61)
    y = np.linspace(-25, 65, 61)

    def log_x(u):
        return shape * u - np.exp(u) - math.lgamma(shape)

    found = _integrated(
        lambda u, v: log_x(u) + u + v - np.exp(np.minimum(u + v, 600)),
        log_x,
        lambda v: math.log(shape) + v - (shape + 1) * np.logaddexp(0, v),
        x,
        y,
    )
    assert closed_forms.gamma_exponential_information(shape) == pytest.approx(found, abs=1e-6)


def test_equicorrelated_is_the_gaussian_formula():
    cov = np.full((7, 7), 0.4) + 0.6 * np.eye(7)
    blocks = [torch.from_numpy(cov[rows, columns]) for rows, columns in (
        (slice(0, 3), slice(0, 3)), (slice(3, 7), slice(3, 7)), (slice(0, 3), slice(3, 7)))]  # fmt: skip
    joint = JointGaussian(torch.zeros(3).double(), torch.zeros(4).double(), *blocks)
    assert closed_forms.equicorrelated_information(0.4, 3, 4) == pytest.approx(joint.mutual_information, abs=1e-12)
    task = gaussian(joint)
    assert task.nats == joint.mutual_information and task.sample(5, _rng()).y.shape == (5, 4)


def test_separated_mixture_by_an_integral():
    """Two squares, uniform in one, a diagonal band in the other: the density on the plane, written out."""
    width = 0.25
    band = additive_uniform_pairs(width)
    weights = [0.3, 0.7]

    def joint(x, y):
        if x < 2:
            return weights[0] if 0 <= x <= 1 and -1 <= y <= 0 else 0.0
        return weights[1] / (2 * width) if 2 <= x <= 3 and abs(y - x) <= width else 0.0

    def trapezoid(y):
        return max(0.0, min(3.0, y + width) - max(2.0, y - width)) / (2 * width)

    grid_x = (np.arange(2000) + 0.5) / 2000
    total = 0.0
    for corner_x, low_y, high_y in ((0.0, -1.0, 0.0), (2.0, 2.0 - width, 3.0 + width)):
        ys = low_y + (high_y - low_y) * grid_x
        for x in corner_x + grid_x[::20]:
            p_x = weights[0] if corner_x == 0 else weights[1]
            for y in ys[::4]:
                p = joint(x, y)
                if p > 0:
                    p_y = weights[0] if y < 1 else weights[1] * trapezoid(y)
                    total += p * math.log(p / (p_x * p_y)) * (high_y - low_y) / len(ys[::4]) / 100
    nats = closed_forms.separated_mixture_information(weights, [0.0, band.nats])
    assert nats == pytest.approx(total, abs=2e-3)
    with pytest.raises(UsageError, match="sum of 1"):
        closed_forms.separated_mixture_information([0.5, 0.6], [0.0, 0.0])


def test_bits():
    for agreement in (0.0, 0.5, 0.9):
        table = np.array([[agreement, 1 - agreement], [1 - agreement, agreement]]) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.nansum(table * np.log(table / 0.25))
        assert closed_forms.symmetric_bits_information(agreement) == pytest.approx(expected, abs=1e-12)


# --- maps -----------------------------------------------------------------------------------------------------------


def test_maps_of_single_numbers_rise():
    v = torch.linspace(-6, 6, 401, dtype=torch.float64)[:, None]
    bimodal = transforms.bimodal(0.3, 0.0, 5.0)
    for each in (transforms.half_cube, transforms.normal_cdf, transforms.wiggly_x, transforms.wiggly_y, bimodal):
        assert (each(v).diff(dim=0) > 0).all()
    share = 0.3 * torch.special.ndtr(bimodal(v)) + 0.7 * torch.special.ndtr(bimodal(v) - 5)
    torch.testing.assert_close(share, torch.special.ndtr(v), rtol=1e-9, atol=1e-12)


def test_the_spiral_can_be_undone():
    v = torch.randn(50, 5, generator=_rng(), dtype=torch.float64)
    there = transforms.spiral(0.7)(v)
    assert (there - v).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(transforms.spiral(-0.7)(there), v)
    with pytest.raises(UsageError, match="two coordinates"):
        transforms.spiral(1.0)(v[:, :1])


@pytest.mark.parametrize("dim", [1, 2, 5, 12])
def test_a_tangle_can_be_undone_and_preserves_volume(dim):
    tangle = transforms.Tangle(dim, seed=3)
    v = torch.randn(20, dim, generator=_rng(), dtype=torch.float64)
    torch.testing.assert_close(tangle.inverse(tangle(v)), v)
    jacobian = torch.autograd.functional.jacobian(lambda u: tangle(u[None])[0], v[0])
    assert jacobian.det().abs().item() == pytest.approx(1, abs=1e-9)
    if dim > 1:  # and it is far from linear: the best linear fit leaves a good part over
        many = torch.randn(4000, dim, generator=_rng(), dtype=torch.float64)
        fit = torch.linalg.lstsq(many, tangle(many)).solution
        assert (tangle(many) - many @ fit).var() > 0.2 * tangle(many).var()


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_every_task_of_the_grid_has_what_was_asked_for():
    found = list(grid(nats=(0.0, 1.0, 4.0), dims=(1, 2, 20)))
    assert {task.name for task in found} == set(TASKS.names())
    assert len({file_name(task) for task in found}) == len(found)
    for task in found:
        assert any(abs(task.nats - level) < 1e-6 for level in (0.0, 1.0, 4.0))
        x, y = task.sample(7, _rng())
        assert x.shape == (7, task.d_x) and y.shape == (7, task.d_y) and (x.isfinite() & y.isfinite()).all()
        again = task.sample(7, _rng())
        assert torch.equal(again.x, x) and torch.equal(again.y, y)


@pytest.mark.parametrize("name", [name for name in TASKS.names() if name != "images"])  # has too many numbers for KSG
def test_samples_hold_what_the_task_says(name):
    """KSG at 4,000 points in one or two dimensions: a look at the samples, not at the formula. In two it stays below
    the truth where a map bends much."""
    dim = 1 if TASKS[name].has_dim(1) else 2
    task = make_task(name, 1.0, dim)
    found = ksg_mutual_information(*task.sample(4000, _rng(1)), n_jobs=1)
    assert (0.92 if dim == 1 else 0.65) < found.nats < 1.08


def test_out_of_reach_is_refused():
    with pytest.raises(UsageError, match="must be one of normal,"):
        make_task("norml", 1.0)
    with pytest.raises(UsageError, match="must be a TaskFamily"):
        make_task("math:sqrt", 1.0)
    with pytest.raises(UsageError, match="there is none with dim 1"):
        make_task("spiral", 1.0)
    with pytest.raises(UsageError, match=r"0.1 nats are out of reach; with dim 1 give at least 0.69"):
        make_task("clusters", 0.1)
    with pytest.raises(UsageError, match="at least 1"):
        make_task("normal", 1.0).sample(0)


def test_the_benchmarks_tasks():
    """Names and true values as the package benchmark-mi 0.1.3 gives them."""
    found = {task.name: task.nats for task in bmi_tasks()}
    stated = {
        "1v1-normal-0.75": 0.41334,
        "normal_cdf-1v1-normal-0.75": 0.41334,
        "1v1-additive-0.1": 1.70944,
        "1v1-additive-0.75": 0.33333,
        "1v1-bimodal-0.75": 0.41334,
        "wiggly-1v1-normal-0.75": 0.41334,
        "half_cube-1v1-normal-0.75": 0.41334,
        "student-identity-1-1-1": 0.22417,
        "asinh-student-identity-1-1-1": 0.22417,
        "swissroll_x-normal_cdf-1v1-normal-0.75": 0.41334,
        "multinormal-dense-2-2-0.5": 0.29389,
        "multinormal-dense-3-3-0.5": 0.41334,
        "multinormal-dense-5-5-0.5": 0.59281,
        "multinormal-dense-25-25-0.5": 1.29218,
        "multinormal-dense-50-50-0.5": 1.62427,
        "multinormal-sparse-2-2-2-2.0": 1.02165,
        "multinormal-sparse-3-3-2-2.0": 1.02165,
        "multinormal-sparse-5-5-2-2.0": 1.02165,
        "multinormal-sparse-25-25-2-2.0": 1.02165,
        "student-identity-2-2-1": 0.43195,
        "student-identity-2-2-2": 0.19315,
        "student-identity-3-3-2": 0.29092,
        "student-identity-3-3-3": 0.17871,
        "student-identity-5-5-2": 0.44815,
        "student-identity-5-5-3": 0.29854,
        "normal_cdf-multinormal-sparse-3-3-2-2.0": 1.02165,
        "normal_cdf-multinormal-sparse-5-5-2-2.0": 1.02165,
        "normal_cdf-multinormal-sparse-25-25-2-2.0": 1.02165,
        "half_cube-multinormal-sparse-3-3-2-2.0": 1.02165,
        "half_cube-multinormal-sparse-5-5-2-2.0": 1.02165,
        "half_cube-multinormal-sparse-25-25-2-2.0": 1.02165,
        "spiral-multinormal-sparse-3-3-2-2.0": 1.02165,
        "spiral-multinormal-sparse-5-5-2-2.0": 1.02165,
        "spiral-multinormal-sparse-25-25-2-2.0": 1.02165,
        "spiral-normal_cdf-multinormal-sparse-3-3-2-2.0": 1.02165,
        "spiral-normal_cdf-multinormal-sparse-5-5-2-2.0": 1.02165,
        "spiral-normal_cdf-multinormal-sparse-25-25-2-2.0": 1.02165,
        "asinh-student-identity-2-2-1": 0.43195,
        "asinh-student-identity-3-3-2": 0.29092,
        "asinh-student-identity-5-5-2": 0.44815,
    }
    assert found.keys() == stated.keys() and len(found) == len(bmi_tasks()) == 40
    for name, nats in stated.items():
        assert found[name] == pytest.approx(nats, abs=1e-5), name
    assert [task.d_x for task in bmi_tasks() if task.name.startswith("swissroll")] == [2]


def test_a_turned_plane():
    """exp(speed |v|^2 A) v, with A the generator of turns in the plane."""
    v = torch.tensor([[0.3, -1.2, 0.5], [2.0, 0.1, -0.7]], dtype=torch.float64)
    turned = transforms.turned_plane(1 / 3, 1, 2)(v)
    generator = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    for one, found in zip(v, turned, strict=True):
        wanted = torch.linalg.matrix_exp(generator * one.square().sum() / 3) @ one
        torch.testing.assert_close(found, wanted)


def test_a_map_of_one_side_leaves_the_other():
    base = make_task("normal", 1.0, 2)
    mapped = transformed(base, "mapped", of_x=torch.exp)
    (x, y), (u, v) = base.sample(9, _rng()), mapped.sample(9, _rng())
    assert torch.equal(u, x.exp()) and torch.equal(v, y) and mapped.nats == base.nats


# --- files ----------------------------------------------------------------------------------------------------------


def test_exported_files_are_read_by_the_loader_beside_them(tmp_path, capsys):
    words = ["--tasks", "normal", "bmi", "--nats", "0.5", "--dims", "1", "2", "--n", "20", "--out", str(tmp_path)]
    script.main(words)
    assert f"{2 + len(bmi_tasks())} tasks of 20 pairs" in capsys.readouterr().out
    spec = importlib.util.spec_from_file_location("load_task", tmp_path / "load_task.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    assert len((tmp_path / "load_task.py").read_text().splitlines()) <= 10
    x, y, nats, about = loader.load_task(tmp_path / "normal_2x2_0.5nats.npz")
    assert x.shape == y.shape == (20, 2) and x.dtype == np.float64 and nats == pytest.approx(0.5, abs=1e-9)
    assert (
        about["name"] == "normal"
        and about["n"] == 20
        and about["correlation"] == pytest.approx(math.sqrt(1 - math.exp(-0.5)))
    )
    first = (tmp_path / "normal_2x2_0.5nats.npz").read_bytes()
    script.main(words)
    assert (tmp_path / "normal_2x2_0.5nats.npz").read_bytes() == first


def test_export_refuses_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        export_tasks(tmp_path / "out", [make_task("normal", 1.0)], 0)
    with pytest.raises(UsageError, match="two would be written"):
        export_tasks(tmp_path / "out", [make_task("normal", 1.0)] * 2, 5)
    for words in (["--n", "0"], ["--tasks", "no-such"], ["--tasks", "clusters", "--nats", "0.1"]):
        with pytest.raises(UsageError):
            script.main(["--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_listing_writes_nothing(tmp_path, capsys):
    script.main(["--out", str(tmp_path / "out"), "--tasks", "student", "--nats", "4", "--dims", "5", "--list"])
    assert capsys.readouterr().out == "student (5 + 5 numbers, 4 nats)\n" and not (tmp_path / "out").exists()
