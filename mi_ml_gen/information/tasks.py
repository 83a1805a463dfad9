"""Tasks: pairs (x, y) whose mutual information is known exactly, to hold estimators against.

    make_task("normal", nats=2.0, dim=5)      one task of a family
    grid(nats=[0.5, 2, 10], dims=[1, 5, 20])  every family at every level that it reaches
    bmi_tasks()                               tasks of the benchmark of Czyz et al. 2023, by its definitions

    task.nats, task.d_x, task.d_y
    x, y = task.sample(1000, torch.Generator().manual_seed(0))     float64, (1000, d_x) and (1000, d_y)

A family is a function of (nats, dim) under `@register_task`, where dim is the number of pairs of coordinates; its
parameter is solved for the information that was asked for, and `task.nats` is the closed form at that parameter. The
package `mutinfo` (Butakov et al.) calls the families "normal", "uniform", "additive-uniform" and "student"
CorrelatedNormal, CorrelatedUniform, SmoothedUniform and CorrelatedStudent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry
from mi_ml_gen.information import closed_forms, transforms
from mi_ml_gen.information.gaussian import JointGaussian, Samples

Rng = torch.Generator | None


@dataclass(frozen=True)
class Task:
    """Pairs of known mutual information: `nats`, exact to 1e-6 or better."""

    name: str
    nats: float
    d_x: int
    d_y: int
    draw: Callable[[int, Rng], Samples] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that say which task of its kind this is."""

    def sample(self, n: int, rng: Rng = None) -> Samples:
        """n independent pairs in float64: x (n, d_x), y (n, d_y). Without `rng` torch's own generator draws."""
        if n < 1:
            raise UsageError(f"{n} pairs of {self.name}: must be at least 1")
        x, y = self.draw(n, rng)
        assert x.shape == (n, self.d_x) and y.shape == (n, self.d_y) and x.dtype == y.dtype == torch.float64
        return Samples(x, y)

    def __str__(self) -> str:
        return f"{self.name} ({self.d_x} + {self.d_y} numbers, {self.nats:.3g} nats)"


@dataclass(frozen=True)
class TaskFamily:
    """Tasks of one kind at any level of information and, mostly, any dimension."""

    make: Callable[[float, int], Task]
    """(nats, dim) -> task."""
    least_nats: Callable[[int], float]
    """(dim) -> the least information that the family has there; it has all above."""
    has_dim: Callable[[int], bool]

    def reaches(self, nats: float, dim: int) -> bool:
        return self.has_dim(dim) and self.least_nats(dim) <= nats < math.inf


def _family(name: str, found: Any) -> TaskFamily:
    if not isinstance(found, TaskFamily):
        raise UsageError(f"--tasks {name}: must be a TaskFamily (mi_ml_gen.information.tasks)")
    return found


TASKS: Registry[TaskFamily] = Registry("task", "--tasks", adapt=_family)
"""Families of tasks by name."""


def register_task(
    name: str,
    least_nats: Callable[[int], float] = lambda dim: 0.0,
    has_dim: Callable[[int], bool] = lambda dim: dim >= 1,
) -> Callable[[Callable[[float, int], Task]], Callable[[float, int], Task]]:
    """Decorator of a function (nats, dim) -> task: make its family known under a name."""

    def add(make: Callable[[float, int], Task]) -> Callable[[float, int], Task]:
        TASKS.add(name, TaskFamily(make, least_nats, has_dim))
        return make

    return add


def make_task(name: str, nats: float, dim: int = 1) -> Task:
    """The task of a family with this much information (to 1e-9) in `dim` pairs of coordinates.

    Raises UsageError for an unknown family, and for a level or a dimension that it does not have.
    """
    family = TASKS[name]
    if not family.has_dim(dim):
        raise UsageError(f"task {name}: there is none with dim {dim}")
    if not family.reaches(nats, dim):
        raise UsageError(
            f"task {name}: {nats} nats are out of reach; with dim {dim} give at least {family.least_nats(dim):.4g}"
        )
    task = family.make(nats, dim)
    assert abs(task.nats - nats) < 1e-6, f"{task} was to hold {nats} nats"
    return task


def grid(
    nats: Iterable[float] = (0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0),
    dims: Sequence[int] = (1, 2, 5, 20, 50),
    names: Iterable[str] | None = None,
) -> Iterator[Task]:
    """Every family (or those named) at each level of information and dimension that it reaches, in a fixed order."""
    names = TASKS.names() if names is None else list(names)
    for level in nats:
        for name in names:
            for dim in dims:
                if TASKS[name].reaches(level, dim):
                    yield make_task(name, level, dim)


# --- building blocks --------------------------------------------------------------------------------------------


def gaussian(joint: JointGaussian, name: str = "gaussian", **parameters: Any) -> Task:
    """Any jointly normal vectors."""
    return Task(name, joint.mutual_information, len(joint.mean_x), len(joint.mean_y), joint.sample, parameters)


def normal_pairs(nats: Sequence[float], name: str = "normal", **parameters: Any) -> Task:
    """Independent pairs of standard normal numbers (x_i, y_i), each with its own information."""
    kept = torch.tensor([math.exp(-each) for each in nats], dtype=torch.float64)  # sqrt(1 - correlation^2)
    correlation = torch.tensor([closed_forms.normal_pairs_correlation(each) for each in nats], dtype=torch.float64)

    def draw(n: int, rng: Rng) -> Samples:
        x, rest = torch.randn(2, n, len(nats), generator=rng, dtype=torch.float64)
        return Samples(x, correlation * x + kept * rest)

    return Task(name, math.fsum(nats), len(nats), len(nats), draw, parameters)


def equicorrelated(correlation: float, d_x: int, d_y: int, name: str = "normal-dense") -> Task:
    """Standard normal numbers, every two of one correlation of at least 0: a shared number and one of each its own."""
    nats = closed_forms.equicorrelated_information(correlation, d_x, d_y)

    def draw(n: int, rng: Rng) -> Samples:
        noise = torch.randn(n, 1 + d_x + d_y, generator=rng, dtype=torch.float64)
        drawn = math.sqrt(correlation) * noise[:, :1] + math.sqrt(1 - correlation) * noise[:, 1:]
        return Samples(drawn[:, :d_x], drawn[:, d_x:])

    return Task(name, nats, d_x, d_y, draw, {"correlation": correlation})


def student(normal: Task, df: float, name: str) -> Task:
    """The multivariate Student t that has `normal`, a task of mean 0, as its normal vector: both sides are divided by
    one common sqrt(chi^2 / df)."""
    nats = normal.nats + closed_forms.student_excess(df, normal.d_x, normal.d_y)

    def draw(n: int, rng: Rng) -> Samples:
        x, y = normal.sample(n, rng)
        chi2 = 2 * torch.from_numpy(_numpy(rng).standard_gamma(df / 2, (n, 1)))
        scale = (df / chi2).sqrt()
        return Samples(x * scale, y * scale)

    return Task(name, nats, normal.d_x, normal.d_y, draw, {**normal.parameters, "df": df})


def additive_uniform_pairs(half_width: float, dim: int = 1, name: str = "additive-uniform") -> Task:
    """Pairs x_i uniform on [0, 1], y_i = x_i + u_i with u_i uniform on [-half_width, half_width]."""
    nats = dim * closed_forms.additive_uniform_information(half_width)

    def draw(n: int, rng: Rng) -> Samples:
        x, noise = torch.rand(2, n, dim, generator=rng, dtype=torch.float64)
        return Samples(x, x + half_width * (2 * noise - 1))

    return Task(name, nats, dim, dim, draw, {"half_width": half_width})


def gamma_exponential_pairs(shape: float, dim: int = 1, name: str = "gamma-exponential") -> Task:
    """Pairs x_i of a Gamma distribution of this shape, y_i exponential of rate x_i, given as logarithms: their own
    values span more digits than float64 has where the shape is small."""
    nats = dim * closed_forms.gamma_exponential_information(shape)

    def draw(n: int, rng: Rng) -> Samples:
        draws = _numpy(rng)
        # Gamma(a) is Gamma(a + 1) U^(1/a), which does not underflow as a logarithm.
        log_x = np.log(draws.standard_gamma(shape + 1, (n, dim))) - draws.standard_exponential((n, dim)) / shape
        log_y = np.log(draws.standard_exponential((n, dim))) - log_x
        return Samples(torch.from_numpy(log_x), torch.from_numpy(log_y))

    return Task(name, nats, dim, dim, draw, {"shape": shape})


def transformed(task: Task, name: str, of_x: transforms.Map | None = None, of_y: transforms.Map | None = None) -> Task:
    """A task after an invertible map of each side, which leaves the information as it is."""

    def draw(n: int, rng: Rng) -> Samples:
        x, y = task.sample(n, rng)
        return Samples(x if of_x is None else of_x(x), y if of_y is None else of_y(y))

    x, y = draw(1, torch.Generator().manual_seed(0))
    return Task(name, task.nats, x.shape[1], y.shape[1], draw, dict(task.parameters))


def separated_mixture(parts: Sequence[Task], weights: Sequence[float], name: str, **parameters: Any) -> Task:
    """A mixture of tasks of which each side alone tells the component: the parts must lie apart, in x and in y."""
    nats = closed_forms.separated_mixture_information(weights, [part.nats for part in parts])
    assert len({(part.d_x, part.d_y) for part in parts}) == 1, "the parts need one shape"

    def draw(n: int, rng: Rng) -> Samples:
        which = torch.multinomial(torch.tensor(weights, dtype=torch.float64), n, replacement=True, generator=rng)
        x = torch.empty(n, parts[0].d_x, dtype=torch.float64)
        y = torch.empty(n, parts[0].d_y, dtype=torch.float64)
        for i, part in enumerate(parts):
            rows = (which == i).nonzero()[:, 0]
            if len(rows):
                x[rows], y[rows] = part.sample(len(rows), rng)
        return Samples(x, y)

    return Task(name, nats, parts[0].d_x, parts[0].d_y, draw, parameters)


def bits(agreement: float, name: str = "bits") -> Task:
    """x and y are -1 or 1, each with probability 1/2, and equal with this probability."""

    def draw(n: int, rng: Rng) -> Samples:
        draws = torch.rand(2, n, 1, generator=rng, dtype=torch.float64)
        x = (draws[0] < 0.5).double() * 2 - 1
        return Samples(x, torch.where(draws[1] < agreement, x, -x))

    nats = closed_forms.symmetric_bits_information(agreement)
    return Task(name, nats, 1, 1, draw, {"agreement": agreement})


def _numpy(rng: Rng) -> np.random.Generator:
    """NumPy's generator for distributions that torch does not draw from a generator of the caller's."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=rng)))


# --- families ---------------------------------------------------------------------------------------------------


@register_task("normal")
def normal(nats: float, dim: int) -> Task:
    """Independent pairs of normal numbers, all of one correlation."""
    correlation = closed_forms.normal_pairs_correlation(nats, dim)
    return normal_pairs([nats / dim] * dim, correlation=correlation)


@register_task("normal-first", has_dim=lambda dim: dim >= 2)
def normal_first(nats: float, dim: int) -> Task:
    """Normal numbers of which the first of x and the first of y alone are correlated."""
    return normal_pairs([nats] + [0.0] * (dim - 1), "normal-first")


@register_task("normal-dense", has_dim=lambda dim: dim >= 2)
def normal_dense(nats: float, dim: int) -> Task:
    """Normal numbers of which every two have the same correlation."""

    def information(log_rest: float) -> float:
        return closed_forms.equicorrelated_information(-math.expm1(log_rest), dim, dim)

    if nats == 0:
        return equicorrelated(0.0, dim, dim)
    return equicorrelated(-math.expm1(closed_forms.solve(information, nats, 0.0, -36.0)), dim, dim)


@register_task("uniform")
def uniform(nats: float, dim: int) -> Task:
    """As "normal", each number by its rank: uniform on [0, 1]."""
    return transformed(normal(nats, dim), "uniform", transforms.normal_cdf, transforms.normal_cdf)


@register_task("half-cube")
def half_cube(nats: float, dim: int) -> Task:
    """As "normal", longer tails: sign(v) |v|^(3/2)."""
    return transformed(normal(nats, dim), "half-cube", transforms.half_cube, transforms.half_cube)


@register_task("wiggly")
def wiggly(nats: float, dim: int) -> Task:
    """As "normal", each number by a monotone map with waves."""
    return transformed(normal(nats, dim), "wiggly", transforms.wiggly_x, transforms.wiggly_y)


@register_task("bimodal")
def bimodal(nats: float, dim: int) -> Task:
    """As "normal", each number by quantiles to a distribution of two peaks."""
    of_x, of_y = transforms.bimodal(0.3, 0.0, 5.0), transforms.bimodal(0.5, -1.0, 3.0)
    return transformed(normal(nats, dim), "bimodal", of_x, of_y)


@register_task("spiral", has_dim=lambda dim: dim >= 2)
def spiral(nats: float, dim: int) -> Task:
    """As "normal", x and y each wound up about the origin: by one radian at the usual length."""
    turn = transforms.spiral(1 / dim)
    return transformed(normal(nats, dim), "spiral", turn, turn)


@register_task("tangled", has_dim=lambda dim: dim >= 2)
def tangled(nats: float, dim: int) -> Task:
    """As "normal", x and y each by turns and bends that mix all of their numbers (`transforms.Tangle`)."""
    of_x, of_y = (transforms.Tangle(dim, seed=seed) for seed in (1, 2))
    return transformed(normal(nats, dim), "tangled", of_x, of_y)


def _student(df: float, name: str, of: transforms.Map | None = None) -> None:
    def least(dim: int) -> float:
        return closed_forms.student_excess(df, dim, dim)

    @register_task(name, least)
    def make(nats: float, dim: int) -> Task:
        base = student(normal(max(nats - least(dim), 0.0), dim), df, name)
        return base if of is None else transformed(base, name, of, of)


_student(3, "student")  # of mean 0 and finite variance
_student(1, "cauchy")  # of neither
_student(1, "asinh-cauchy", torch.asinh)


@register_task("additive-uniform", least_nats=lambda dim: dim * closed_forms.additive_uniform_information(1e4))
def additive_uniform(nats: float, dim: int) -> Task:
    """Pairs of a uniform number and itself with uniform noise: a density with edges."""

    def information(log_half_width: float) -> float:
        return dim * closed_forms.additive_uniform_information(math.exp(log_half_width))

    half_width = math.exp(closed_forms.solve(information, nats, math.log(2e4), -60.0))
    return additive_uniform_pairs(half_width, dim)


@register_task("gamma-exponential", least_nats=lambda dim: dim * closed_forms.gamma_exponential_information(1e3))
def gamma_exponential(nats: float, dim: int) -> Task:
    """Pairs of a Gamma number and an exponential one of that rate, as logarithms: skewed."""

    def information(log_shape: float) -> float:
        return dim * closed_forms.gamma_exponential_information(math.exp(log_shape))

    return gamma_exponential_pairs(math.exp(closed_forms.solve(information, nats, math.log(2e3), -60.0)), dim)


@register_task("clusters", least_nats=lambda dim: math.log(2))
def clusters(nats: float, dim: int) -> Task:
    """Two clusters apart, equally likely: independent numbers in one, dependent ones ("uniform") in the other."""
    apart = transforms.chain([transforms.normal_cdf, lambda v: v + 2])
    one = uniform(0.0, dim)
    other = transformed(normal(2 * (nats - math.log(2)), dim), "", apart, apart)
    return separated_mixture([one, other], [0.5, 0.5], "clusters")


_AGREEMENT = 0.9


@register_task(
    "normal-and-bits",
    least_nats=lambda dim: math.log(2) + 0.5 * closed_forms.symmetric_bits_information(_AGREEMENT),
    has_dim=lambda dim: dim == 1,
)
def normal_and_bits(nats: float, dim: int) -> Task:
    """Half of the pairs normal, half of them bits that agree nine times in ten (after Gao et al. 2017): neither
    discrete nor continuous."""
    discrete = bits(_AGREEMENT)
    inner = max(2 * (nats - math.log(2)) - discrete.nats, 0.0)
    return separated_mixture([normal(inner, 1), discrete], [0.5, 0.5], "normal-and-bits", agreement=_AGREEMENT)


# --- the tasks of a public benchmark ----------------------------------------------------------------------------


def bmi_tasks() -> list[Task]:
    """The 40 tasks of the benchmark `bmi` (Czyz et al. 2023) under its names, built from its definitions.

    Samples are our own.
    """
    base = normal_pairs([closed_forms.normal_pairs_information(0.75)], "1v1-normal-0.75", correlation=0.75)
    uniform_base = _renamed(base, "normal_cdf-", transforms.normal_cdf, transforms.normal_cdf)
    bimodal_x, bimodal_y = transforms.bimodal(0.3, 0.0, 5.0), transforms.bimodal(0.5, -1.0, 3.0)
    students = [_identity_student(dim, df) for dim, df in ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3))]
    pairs = [_two_pairs(dim) for dim in (2, 3, 5, 25)]
    uniform_pairs = [_renamed(task, "normal_cdf-", transforms.normal_cdf, transforms.normal_cdf) for task in pairs[1:]]
    return [
        base,
        uniform_base,
        additive_uniform_pairs(0.1, name="1v1-additive-0.1"),
        additive_uniform_pairs(0.75, name="1v1-additive-0.75"),
        transformed(base, "1v1-bimodal-0.75", bimodal_x, bimodal_y),
        _renamed(base, "wiggly-", transforms.wiggly_x, transforms.wiggly_y),
        _renamed(base, "half_cube-", transforms.half_cube, transforms.half_cube),
        transformed(uniform_base, "swissroll_x-" + uniform_base.name, transforms.swiss_roll),
        *(equicorrelated(0.5, dim, dim, f"multinormal-dense-{dim}-{dim}-0.5") for dim in (2, 3, 5, 25, 50)),
        *pairs,
        *students,
        *(_renamed(task, "asinh-", torch.asinh, torch.asinh) for task in (students[i] for i in (0, 1, 3, 5))),
        *uniform_pairs,
        *(_renamed(task, "half_cube-", transforms.half_cube, transforms.half_cube) for task in pairs[1:]),
        *(_spiral(task) for task in pairs[1:] + uniform_pairs),
    ]


def _renamed(task: Task, prefix: str, of_x: transforms.Map, of_y: transforms.Map) -> Task:
    return transformed(task, prefix + task.name, of_x, of_y)


def _spiral(task: Task) -> Task:
    """Each side turns in one plane, x in that of its numbers 0 and 1, y in that of 1 and 2."""
    of_x = transforms.turned_plane(1 / task.d_x, 0, 1)
    return _renamed(task, "spiral-", of_x, transforms.turned_plane(1 / task.d_y, 1, 2))


def _identity_student(dim: int, df: int) -> Task:
    return student(normal_pairs([0.0] * dim), df, f"student-identity-{dim}-{dim}-{df}")


def _two_pairs(dim: int) -> Task:
    """Two pairs of correlation 0.8, the other numbers independent."""
    each = closed_forms.normal_pairs_information(0.8)
    return normal_pairs([each] * 2 + [0.0] * (dim - 2), f"multinormal-sparse-{dim}-{dim}-2-2.0", correlation=0.8)
