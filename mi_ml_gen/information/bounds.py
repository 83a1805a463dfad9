"""Variational bounds with one critic interface: InfoNCE, Donsker-Varadhan (MINE), NWJ and SMILE.

A critic scores pairs: f(x, y), high where they belong together. p is the distribution of pairs, q that of independent
x and y; the scores of B pairs against one another, (B, B), hold B draws of p on the diagonal and B (B - 1) of q off it.

    InfoNCE   log B + mean_i [f_ii - logsumexp_j f_ij]              van den Oord et al. 2018, equation 4
    DV        E_p f - log E_q exp f                                 Donsker and Varadhan 1983; Belghazi et al. 2018
    NWJ       E_p f - E_q exp(f - 1)                                Nguyen, Wainwright and Jordan 2010
    SMILE     E_p f - log E_q clip(exp f, exp(-tau), exp(tau))      Song and Ermon 2020, equation 10

The first three are lower bounds for every critic, on pairs that the critic was not trained on. Their intervals are
one-sided: the information is at least so much. SMILE is no bound, because clipping takes away from the mean that is
subtracted.

InfoNCE and NWJ are trained by themselves. DV is trained as MINE is: the mean of exponentials in the denominator of the
gradient is a running one, which takes most of the gradient's bias off (Belghazi et al. 2018, section 3.2). SMILE is
trained by the Jensen-Shannon objective E_p log sigmoid(f) + E_q log sigmoid(-f), whose best critic is log p/q too (Song
and Ermon 2020, section 4).

Pairs come in canonical coordinates (copula.py), which leaves the information as it is.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import copula
from mi_ml_gen.information.ensembles import FULL, HALF, N_MEMBERS, Course, Mlp, Split, Training, fit
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean, Verdict
from mi_ml_gen.information.estimator import N_BLOCKS, Estimator, jackknife_error, quantile
from mi_ml_gen.information.floors import floors
from mi_ml_gen.information.verdicts import Finding, findings, rests_on_few_draws, tolerance

CriticKind = Literal["separable", "joint"]
MOST_TEST = 2048
"""Held-out pairs that are scored against one another: their square is held in memory."""
_RUNNING = 0.01  # share of the newest mean of exponentials in MINE's running one


# --- critics --------------------------------------------------------------------------------------------------


class PairCritic(nn.Module, abc.ABC):
    """Scores of members: x (members, n, d_x), y (members, m, d_y) -> (members, n, m), every x against every y."""

    @abc.abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor: ...


class SeparableCritic(PairCritic):
    """f(x, y) = u(x) . v(y) + a(x) + b(y), with a network of x and one of y: n + m evaluations."""

    def __init__(self, d_x: int, d_y: int, hidden: int, rng: torch.Generator, n_points: int = 32) -> None:
        super().__init__()
        self.of_x = Mlp(d_x, n_points + 1, hidden, rng)
        self.of_y = Mlp(d_y, n_points + 1, hidden, rng)
        self.scale = n_points**-0.5

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        u, v = self.of_x(x), self.of_y(y)
        products = torch.bmm(u[..., :-1] * self.scale, v[..., :-1].transpose(1, 2))
        return products + u[..., -1:] + v[..., -1:].transpose(1, 2)


class JointCritic(PairCritic):
    """f(x, y) of one network that sees both: n m evaluations, but for the first layer."""

    def __init__(self, d_x: int, d_y: int, hidden: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first_x = Mlp(d_x, hidden, hidden, rng, n_hidden=1)
        self.first_y = Mlp(d_y, hidden, hidden, rng, n_hidden=1)
        self.rest = Mlp(hidden, 1, hidden, rng, n_hidden=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = functional.silu(self.first_x(x)[:, :, None] + self.first_y(y)[:, None])
        return self.rest(pairs.flatten(1, 2)).view(len(x), x.shape[1], y.shape[1])


CRITICS: dict[str, Callable[..., PairCritic]] = {"separable": SeparableCritic, "joint": JointCritic}


# --- the bounds themselves ------------------------------------------------------------------------------------


def off_diagonal(scores: Tensor) -> Tensor:
    """(..., n, n) -> (..., n, n - 1): every x against the y of other pairs."""
    n = scores.shape[-1]
    return scores.flatten(-2)[..., :-1].unflatten(-1, (n - 1, n + 1))[..., 1:].reshape(*scores.shape[:-1], n - 1)


def diagonal(scores: Tensor) -> Tensor:
    """(..., n, n) -> (..., n): the pairs themselves."""
    return scores.diagonal(dim1=-2, dim2=-1)


def log_mean_exp(scores: Tensor) -> Tensor:
    """Log of the mean of exponentials over the last two axes."""
    return scores.flatten(-2).logsumexp(-1) - math.log(scores.shape[-1] * scores.shape[-2])


def infonce_value(scores: Tensor) -> Tensor:
    """(..., B, B) -> (...): at most log B."""
    return math.log(scores.shape[-1]) + (diagonal(scores) - scores.logsumexp(-1)).mean(-1)


def dv_value(scores: Tensor) -> Tensor:
    """(..., B, B) -> (...)."""
    return diagonal(scores).mean(-1) - log_mean_exp(off_diagonal(scores))


def nwj_value(scores: Tensor) -> Tensor:
    """(..., B, B) -> (...)."""
    return diagonal(scores).mean(-1) - (log_mean_exp(off_diagonal(scores)) - 1).exp()


def smile_value(scores: Tensor, tau: float) -> Tensor:
    """(..., B, B) -> (...)."""
    return diagonal(scores).mean(-1) - log_mean_exp(off_diagonal(scores).clamp(-tau, tau))


def jensen_shannon_value(scores: Tensor) -> Tensor:
    """(..., B, B) -> (...): what SMILE's critic is trained by, at most 0."""
    apart = functional.logsigmoid(-off_diagonal(scores)).flatten(-2).mean(-1)
    return functional.logsigmoid(diagonal(scores)).mean(-1) + apart


def effective_draws(scores: Tensor) -> float:
    """(sum w)**2 / sum w**2 of the exponentials over independent pairs (n, n), with the exponentials of each row added
    up first: draws of one row share their x."""
    rows = off_diagonal(scores).double().logsumexp(-1)
    columns = off_diagonal(scores.T).double().logsumexp(-1)
    return min((2 * side.logsumexp(0) - (2 * side).logsumexp(0)).exp().item() for side in (rows, columns))


# --- estimators -----------------------------------------------------------------------------------------------


class _Measured(NamedTuple):
    """A bound on held-out pairs."""

    nats: float
    left_out: Tensor
    """The same without one block of the pairs, for each block: (n_blocks,)."""

    @property
    def error_nats(self) -> float:
        return jackknife_error(self.left_out)

    @property
    def n_blocks(self) -> int:
        return len(self.left_out)


@dataclass(frozen=True)
class CriticBound(Estimator):
    """An estimator that trains a critic. Subclasses say what its scores are worth and what it is trained by."""

    critic: CriticKind = "separable"
    hidden: int = 64
    n_steps: int = 1000
    batch_size: int = 128

    is_bound: ClassVar[bool] = True
    fewest: ClassVar[int] = 200

    def __post_init__(self) -> None:
        if self.critic not in get_args(CriticKind):
            raise UsageError(f"critic {self.critic!r}: must be one of {', '.join(get_args(CriticKind))}")
        for name, least in (("hidden", 1), ("n_steps", 1), ("batch_size", 4)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least {least}")

    @abc.abstractmethod
    def value(self, scores: Tensor) -> Tensor:
        """(..., B, B) -> (...), in nats."""

    def objective(self, scores: Tensor, state: dict[str, Tensor]) -> Tensor:
        """What training raises: (members, B, B) -> (members,). state: of this training."""
        return self.value(scores)

    def ceiling(self, n_test: int) -> float:
        """The most that can be shown from held-out pairs against one another."""
        return math.log(n_test)

    def own_findings(self, scores: Tensor, nats: float) -> list[Finding]:
        """Checks that only this bound needs. scores: (n_test, n_test)."""
        return []

    def build(self, d_x: int, d_y: int, seed: int) -> PairCritic:
        return CRITICS[self.critic](d_x, d_y, self.hidden, runtime.stream(seed, "critic weights", 0, 0))

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        pairs = copula.canonical(x, y)
        a, b = pairs.x.float().to(device), pairs.y.float().to(device)
        split = Split.of(len(x), seed)
        model = self.build(a.shape[1], b.shape[1], seed)
        state: dict[str, Tensor] = {}

        def loss(model: nn.Module, rows: Tensor, rng: torch.Generator) -> Tensor:
            return -self.objective(model(a[rows], b[rows]), state)

        def value(model: nn.Module, rows: Tensor, block: int) -> Tensor:
            """Mean over blocks of held-out pairs: (members,)."""
            blocks = rows[: len(rows) // block * block].view(-1, block).to(device)
            return torch.stack([self.value(_scores(model, a, b, one)) for one in blocks]).mean(0)

        block = min(self.batch_size, len(split.valid))
        training = Training(self.n_steps, self.batch_size)
        course = fit(
            model, loss, lambda m: value(m, split.valid, block), split, training, seed, device, self.name, progress
        )
        scores = _scores(model, a, b, split.test[:MOST_TEST].to(device)).cpu().double()
        n_train = min(len(scores[0]), len(split.train))
        train = self.value(_scores(model, a, b, split.train[:n_train].to(device)).cpu().double())
        least = floors(x, y, pairs, copula.gaussian_part(pairs))
        return self._result(scores, train[FULL].mean().item(), course, least)

    def _result(self, scores: Tensor, train_nats: float, course: Course, least: dict[str, MonteCarloMean]) -> Estimate:
        n_test = scores.shape[-1]
        of_members = [self.measure(member) for member in scores]
        full = [m.nats for m in of_members[FULL]]
        nats, error = sum(full) / len(full), max(m.error_nats for m in of_members[FULL])
        low = nats - quantile(of_members[0].n_blocks, one_sided=self.is_bound) * error
        high = math.inf if self.is_bound else 2 * nats - low
        mean = scores[FULL].mean(0)
        half = torch.stack([self.value(part) for part in _halves(scores[FULL])]).mean().item()
        ceiling = self.ceiling(n_test)
        # On the same held-out pairs another member differs by its training too, of which both seeds tell.
        change = torch.stack([m.left_out for m in of_members[FULL]]).mean(0) - of_members[HALF].left_out
        change_error = math.hypot(jackknife_error(change), full[0] - full[1])
        found = findings(
            nats, low, high, ceiling_nats=ceiling, with_half_candidates=MonteCarloMean(half, error / 4),
            curve_nats=course.up_to_best(), at_half_n=MonteCarloMean(of_members[HALF].nats, change_error),
            # The training pairs are as many, so their noise is about as large, and independent.
            other_seeds_nats=full, train_nats=train_nats, train_error_nats=math.sqrt(2) * error,
            floors=least, floor_error_nats=error,
        ) + self.own_findings(mean, nats)  # fmt: skip
        return self.result(
            nats, low, high, n_test, found, ceiling_nats=ceiling if math.isfinite(ceiling) else None,
            train_nats=train_nats, n_steps=course.n_steps,
            members_nats=[m.nats for m in of_members], half_candidates_nats=half, standard_error_nats=error,
            curve_nats=course.of_full, critic=self.critic, **self.single_batches(scores[FULL]),
        )  # fmt: skip

    def single_batches(self, scores: Tensor) -> dict[str, float]:
        """Mean and standard deviation of the value of one batch of held-out pairs, as training sees it."""
        size = min(self.batch_size, scores.shape[-1] // 2)
        starts = range(0, scores.shape[-1] - size + 1, size)
        values = torch.stack([self.value(scores[..., i : i + size, i : i + size]) for i in starts]).flatten()
        return {"batch_pairs": size, "batch_nats": values.mean().item(), "batch_std_nats": values.std().item()}

    def measure(self, scores: Tensor) -> _Measured:
        """Value of (n, n), and without one of `N_BLOCKS` blocks of pairs at a time; both sides of a pair leave
        together."""
        n = len(scores)
        n_blocks = min(N_BLOCKS, n // 2)
        left_out = torch.arange(n) % n_blocks
        values = torch.stack([self.value(scores[keep][:, keep]) for keep in (left_out != k for k in range(n_blocks))])
        return _Measured(self.value(scores).item(), values)


def _scores(model: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """(members, n, n) of some pairs against one another, in blocks of columns that fit a joint critic."""
    some = rows.expand(N_MEMBERS, -1)
    return torch.cat([model(x[some], y[part]) for part in some.split(128, 1)], 2)


def _halves(scores: Tensor) -> list[Tensor]:
    """The two diagonal halves of (..., n, n): each has half of the candidates."""
    half = scores.shape[-1] // 2
    return [scores[..., :half, :half], scores[..., half : 2 * half, half : 2 * half]]


@dataclass(frozen=True)
class InfoNCE(CriticBound):
    """InfoNCE on held-out pairs, with as many candidates as there are held-out pairs (at most 2,048)."""

    name: ClassVar[str] = "infonce"
    assumes: ClassVar[str] = "A lower bound for any critic: the information is at least the lower end."

    def value(self, scores: Tensor) -> Tensor:
        return infonce_value(scores)


@dataclass(frozen=True)
class DonskerVaradhan(CriticBound):
    """The Donsker-Varadhan bound, trained as MINE is, with the bias of its gradient taken off."""

    name: ClassVar[str] = "dv"
    assumes: ClassVar[str] = "A lower bound, where many draws decide the mean of exponentials."

    def value(self, scores: Tensor) -> Tensor:
        return dv_value(scores)

    def objective(self, scores: Tensor, state: dict[str, Tensor]) -> Tensor:
        log_mean = log_mean_exp(off_diagonal(scores))
        newest = log_mean.detach()
        before = state.get("log mean")
        running = newest if before is None else torch.logaddexp(
            before + math.log1p(-_RUNNING), newest + math.log(_RUNNING)
        )  # fmt: skip
        state["log mean"] = running
        # Its gradient is that of E_q exp f over the running mean.
        return diagonal(scores).mean(-1) - (log_mean - running).clamp(max=5.0).exp()

    def own_findings(self, scores: Tensor, nats: float) -> list[Finding]:
        return _few(scores)


@dataclass(frozen=True)
class NguyenWainwrightJordan(CriticBound):
    """The bound of Nguyen, Wainwright and Jordan, also called f-GAN KL and MINE-f."""

    name: ClassVar[str] = "nwj"
    assumes: ClassVar[str] = "A lower bound, where many draws decide the mean of exponentials."

    def value(self, scores: Tensor) -> Tensor:
        return nwj_value(scores)

    def objective(self, scores: Tensor, state: dict[str, Tensor]) -> Tensor:
        # Beyond exp(10) the mean goes on linearly, so that one wild pair cannot throw the training off.
        log_mean = log_mean_exp(off_diagonal(scores)) - 1
        tame = torch.where(log_mean > 10, math.exp(10) * (log_mean - 9), log_mean.clamp(max=10).exp())
        return diagonal(scores).mean(-1) - tame

    def own_findings(self, scores: Tensor, nats: float) -> list[Finding]:
        return _few(scores)


@dataclass(frozen=True)
class Smile(CriticBound):
    """SMILE: little variance for some bias, upwards where scores beyond tau are clipped."""

    name: ClassVar[str] = "smile"
    tau: float = 5.0

    is_bound: ClassVar[bool] = False
    assumes: ClassVar[str] = "The critic is the true log ratio, and few scores lie beyond tau."

    def value(self, scores: Tensor) -> Tensor:
        return smile_value(scores, self.tau)

    def objective(self, scores: Tensor, state: dict[str, Tensor]) -> Tensor:
        return jensen_shannon_value(scores)

    def ceiling(self, n_test: int) -> float:
        return math.inf

    def own_findings(self, scores: Tensor, nats: float) -> list[Finding]:
        """By how much clipping raises the estimate if the critic is right: E_q clip(exp f) would be 1 without it, and
        is an expectation over pairs, because q = p exp(-f)."""
        f = diagonal(scores)
        clipped = (f.clamp(-self.tau, self.tau) - f).exp().mean().item()
        raised = -math.log(clipped) if clipped > 0 else math.inf
        if abs(raised) <= tolerance(nats):
            return []
        return [Finding(Verdict.NOT_TRUSTED, f"clipping at tau {self.tau:g} may move it by {raised:+.2f} nats")]


def _few(scores: Tensor) -> list[Finding]:
    found = rests_on_few_draws(effective_draws(scores))
    return [] if found is None else [found]
