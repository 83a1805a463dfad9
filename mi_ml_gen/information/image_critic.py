"""Fresh critics: how much information the two images of a pair share, measured on pairs from a frozen source.

A new critic is trained on pairs that are drawn for the purpose, until pairs that it was not trained on show that it has
stopped improving, and its bound is then taken on further pairs. So the number belongs to the source alone: not to a
critic that trained against a moving walker, and not to the batch that it trained with.

The bound is InfoNCE with candidates of the other side (van den Oord et al. 2018; both directions, as Radford et al.
2021): for pairs (a_i, b_i), i = 1 .. N, and scores f(a, b),

    log N + mean_i f(a_i, b_i) - 1/2 mean_i log sum_j exp f(a_i, b_j) - 1/2 mean_i log sum_j exp f(a_j, b_i)

Each direction bounds I(a; b) from below for any critic, whatever the two marginal distributions are: no candidate can
be rejected for the side that it comes from, so no Jensen-Shannon part enters (see `infonce.py`).

The N points of each side are computed once and compared in one table, so thousands of candidates cost little, and the
number of candidates is raised until the ceiling, log N, is no longer near.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import optimizers, runtime
from mi_ml_gen.core.errors import NonFiniteError, UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.information import verdicts
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean, Verdict
from mi_ml_gen.information.infonce import SATURATION_MARGIN_NATS, cross_side_cross_entropy

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""draw(n, rng) -> images (n, 3, H, W) in [0, 1] of both sides; row i of one is the partner of row i of the other."""


class Uses(NamedTuple):
    """A source whose pairs are few, so that each of them serves one use (`information/stored_pairs.py`)."""

    train: Draw
    held_out: Draw
    """For when to stop."""
    evaluate: Draw
    """For the measurement."""

    def of(self, use: str) -> Draw:
        return self.train if use.startswith("train") else self.held_out if use == "held out" else self.evaluate


ONE_SIDED_95 = 1.645
"""Standard errors below the estimate at which its one-sided 95% interval ends."""
PIXELS = 8
"""Side, in px, of the small image whose numbers reach the critic's head directly."""
KEPT_VALUES = 2**27
"""Values of images, of all sources together, that are kept to be trained on again: 256 MB."""
ASSUMES = (
    "Pairs are independent draws of one source. The number is a lower bound: at most 5% of repetitions of the "
    "measurement give a lower end above the information."
)

K = TypeVar("K")


@dataclass(frozen=True)
class CriticSettings:
    """How a fresh critic is trained and evaluated; the defaults suit images of 8 to 64 px on a CPU."""

    width: int = 32
    """Channels of the first stage; they double with each halving of the image, to at most 8 times as many."""
    points: int = 64
    """Length of the vectors whose products are the scores."""
    batch_size: int = 256
    """Pairs of a step; its logarithm is also the most that training can distinguish."""
    lr: float = 2e-3
    """Learning rate of Adam; it rises over the first 20 steps, and after `settle` steps falls with the root of their
    number."""
    settle: int = 100
    max_steps: int = 1000
    """Steps after which training ends where it has not converged, for each source."""
    first_check: int = 60
    """Steps before the held-out pairs are first looked at, for each source."""
    growth: float = 1.3
    """Factor of steps from one look to the next."""
    tolerance: float = 0.015
    """A critic has converged where its last two looks together raised the held-out bound by at most this share of it,
    or by 0.01 nats."""
    reuse: int = 2
    """Steps that a pair is trained on, in the mean: new pairs of a step are this share of its batch, the rest is drawn
    from earlier ones. More spare the generator, fewer the critic's steps: it learns most from pairs it never saw."""
    heldout_pairs: int = 512
    """Pairs that decide when to stop, never trained on; they are kept in memory."""
    eval_pairs: int = 2048
    """Fresh pairs of the final measurement, and so its candidates, to begin with."""
    max_eval_pairs: int = 8192
    """The most of them: doubled while the bound is within 2 nats of the ceiling."""
    critics: int = 1
    """Critics from different initial weights; where there are several, the interval holds the least of them."""

    def __post_init__(self) -> None:
        least = {"width": 1, "points": 1, "batch_size": 2, "max_steps": 1, "first_check": 1, "reuse": 1,
                 "heldout_pairs": 2, "eval_pairs": 4, "critics": 1}  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} {getattr(self, name)} of a fresh critic: must be at least {value}")
        if not (self.lr > 0 and self.growth > 1 and self.tolerance > 0 and self.max_eval_pairs >= self.eval_pairs):
            raise UsageError(f"{self}: lr and tolerance above 0, growth above 1, max_eval_pairs at least eval_pairs")


class Measured(NamedTuple):
    """What was measured, and the critic that measured it."""

    estimate: Estimate
    critic: PairCritic


@dataclass(frozen=True)
class MeasuredTogether(Generic[K]):
    """What was measured of several sources, by name, and the one critic that measured them."""

    estimates: dict[K, Estimate]
    critic: PairCritic


class PairCritic(nn.Module):
    """Scores of pairs of images: f(a, b) = p(a) q(b) + u(a) + v(b), all four of one network with two heads.

    A product of vectors and a term for each side can take the form of the log density ratio of any jointly normal
    pair, which the cosine of the published critic cannot. The trunk halves the image until 4 px are left; beside it,
    the image at 8 px reaches the heads directly. n_sources: a critic of several sources of pairs shares all but the
    gains and offsets of the heads and the statistics of the norms, which each source has of its own.
    """

    def __init__(self, resolution: int, width: int = 32, points: int = 64, n_sources: int = 1) -> None:
        super().__init__()
        self.resolution, self.width, self.points, self.n_sources = resolution, width, points, n_sources
        self.enter = _Norm(3, n_sources, is_affine=False)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        channels, side = 3, resolution
        for i in range(max(1, math.ceil(math.log2(resolution / 4)))):
            wider = width * min(8, 2**i)
            self.convolutions.append(nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False))
            self.norms.append(_Norm(wider, n_sources))
            channels, side = wider, (side + 1) // 2
        self.pixels = _Norm(3 * PIXELS**2, n_sources, is_affine=False)
        n_features = channels * side**2 + 3 * PIXELS**2
        hidden = 4 * points
        self.heads = nn.ModuleList(_Head(n_features, hidden, points, n_sources) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor, source: int = 0) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) and (m, 3, H, W) in [0, 1] -> (n, points + 2) and (m, points + 2), whose products are
        the scores (n, m) of all combinations."""
        features = self._features(torch.cat([a, b]), source)
        left, right = (
            head(part, source) for head, part in zip(self.heads, features.split([len(a), len(b)]), strict=True)
        )
        ones_a, ones_b = left.new_ones(len(a), 1), right.new_ones(len(b), 1)
        scale = self.points**-0.5
        p, u = left[:, :-1] * scale, left[:, -1:]
        q, v = right[:, :-1], right[:, -1:]
        return torch.cat([p, u, ones_a], 1), torch.cat([q, ones_b, v], 1)

    def _features(self, images: Tensor, source: int) -> Tensor:
        small = functional.interpolate(images, size=(PIXELS, PIXELS), mode="area")
        x = self.enter(images, source)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x), source))
        return torch.cat([x.flatten(1), self.pixels(small.flatten(1), source)], 1)


class _Norm(nn.Module):
    """Batch normalisation whose stored statistics are each source's own: sources may differ in their marginals, and in
    evaluation each must be normalised as in training."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, n_sources: int, is_affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if is_affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if is_affine else None
        self.register_buffer("running_mean", torch.zeros(n_sources, channels))
        self.register_buffer("running_var", torch.ones(n_sources, channels))

    def forward(self, x: Tensor, source: int) -> Tensor:
        mean, var = self.running_mean[source], self.running_var[source]
        eps = 1e-3  # above what a pixel that hardly varies would be magnified from
        return functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, momentum=0.1, eps=eps)


class _Head(nn.Module):
    """Features (n, f) -> (n, points + 1): a linear map and a hidden layer side by side."""

    def __init__(self, n_features: int, hidden: int, points: int, n_sources: int) -> None:
        super().__init__()
        self.direct = nn.Linear(n_features, points + 1)
        self.enter = nn.Linear(n_features, hidden)
        self.leave = nn.Linear(hidden, points + 1, bias=False)
        self.gain = nn.Parameter(torch.ones(n_sources, points + 1))
        self.hidden_gain = nn.Parameter(torch.ones(n_sources, hidden))
        self.hidden_offset = nn.Parameter(torch.zeros(n_sources, hidden))

    def forward(self, features: Tensor, source: int) -> Tensor:
        hidden = functional.relu(torch.addcmul(self.hidden_offset[source], self.enter(features),
                                               self.hidden_gain[source]))  # fmt: skip
        return (self.direct(features) + self.leave(hidden)) * self.gain[source]


def measure_pairs(
    draw: Draw | Uses,
    *,
    resolution: int,
    settings: CriticSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    warm: PairCritic | None = None,
    progress: bool = False,
) -> Measured:
    """The information that the two images of a pair share, as a lower bound in nats, by a critic trained for it.

    draw: the frozen source, draw(n, rng) -> images of both sides, (n, 3, resolution, resolution) in [0, 1], on
    `device`, without gradients; every call with a new rng gives independent pairs. It may be called with any n up to
    the larger of `settings.batch_size` and 512. A source of few pairs gives a draw for each use. settings: default
    `CriticSettings()`. seed: of initial weights and of all draws: the same call gives the same number on one machine.
    warm: a critic to start from instead of new weights, which is left as it is; it must be of the same resolution,
    width and points. A critic of pairs of the same generator under another perturbation converges several times sooner
    than a new one, and the bound is as valid as before, since any critic bounds the information from below.

    The verdict of the estimate says whether the critic was still improving, whether the bound is near what its
    candidates can show, and whether its halves disagree. Its `details` hold the course of training ("course": steps and
    held-out nats), "steps", "candidates", "ceiling_nats", "standard_error_nats", "still_rising_nats" and the nats with
    half as many candidates.
    Raises UsageError for images of another shape, NonFiniteError where training leaves the finite numbers.
    """
    together = measure_together(
        {"pairs": draw}, resolution=resolution, settings=settings, seed=seed, device=device, warm=warm,
        progress=progress,
    )  # fmt: skip
    return Measured(together.estimates["pairs"], together.critic)


def measure_together(
    draws: Mapping[K, Draw | Uses],
    *,
    resolution: int,
    settings: CriticSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    warm: PairCritic | None = None,
    progress: bool = False,
) -> MeasuredTogether[K]:
    """As `measure_pairs`, for several sources of pairs and one critic, which takes steps on each in turn.

    Every step compares pairs of one source only, so the number of each source is a bound on its own information. What
    images show is learned once for all of them: for sources of one generator this costs far less than a critic each.
    Each source has an estimate and a verdict of its own. A warm critic of another number of sources gives what it
    shares, and the gains of its first source.
    """
    settings = settings or CriticSettings()
    device = torch.device(device)
    if not draws:
        raise UsageError("no source of pairs to measure")
    sources = [_Source(name, draw, index, seed, resolution, settings, device)
               for index, (name, draw) in enumerate(draws.items())]  # fmt: skip
    trained = [
        _train(sources, resolution, settings, seed, turn, device, warm, progress) for turn in range(settings.critics)
    ]
    best = max(range(len(trained)), key=lambda i: sum(trained[i].heldout.values()))
    estimates = {source.name: _estimate(source, trained, best, settings) for source in sources}
    return MeasuredTogether(estimates, trained[best].critic)


# ---------------------------------------------------------------------------------------------------------------
# Training


class _Source(Generic[K]):
    """A source of pairs with its held-out pairs; every use has random streams of its own."""

    def __init__(
        self, name: K, draw: Draw | Uses, index: int, seed: int, resolution: int, settings: CriticSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._pool: tuple[Tensor, Tensor] | None
        self.name, self.index, self.seed, self.device = name, index, seed, device
        self._draw, self._shape = draw, (3, resolution, resolution)
        self._turn, self._pool = -1, None
        self.heldout = list(self.batches(settings.heldout_pairs, "held out"))

    @torch.no_grad()
    def pairs(self, n: int, use: str, step: int) -> tuple[Tensor, Tensor]:
        draw = self._draw.of(use) if isinstance(self._draw, Uses) else self._draw
        a, b = draw(n, runtime.stream(self.seed, f"fresh critic {use}", step, self.index, self.device))
        for images in (a, b):
            if images.shape != (n, *self._shape):
                expected = (n, *self._shape)
                raise UsageError(f"a source of pairs gave images of shape {tuple(images.shape)}, not {expected}")
        return a.float(), b.float()

    def training_batch(self, settings: CriticSettings, turn: int, step: int, n_kept: int) -> tuple[Tensor, Tensor]:
        """The pairs of a step: some new ones, and a draw from those of earlier steps, at most `n_kept`."""
        if turn != self._turn:
            self._turn, self._pool = turn, None
        size = settings.batch_size
        new = self.pairs(size if self._pool is None else max(1, size // settings.reuse), f"train {turn}", step)
        new = new[0].half(), new[1].half()
        if self._pool is None:
            self._pool = new
        else:
            a, b = (torch.cat(both)[-n_kept:] for both in zip(self._pool, new, strict=True))
            self._pool = a, b
        rng = runtime.stream(self.seed, f"fresh critic order {turn}", step, self.index)
        chosen = torch.randperm(len(self._pool[0]), generator=rng)[:size].to(self.device)
        return self._pool[0][chosen].float(), self._pool[1][chosen].float()

    def batches(self, n: int, use: str, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """`n` pairs of a use, in parts."""
        for i, start in enumerate(range(0, n, size)):
            yield self.pairs(min(size, n - start), use, i)


@dataclass
class _Trained:
    critic: PairCritic
    steps: int
    heldout: dict[Any, float]
    """Bound of each source on its held-out pairs."""
    rising: dict[Any, float]
    """What the last two looks raised it by."""
    converged: dict[Any, bool]
    course: list[dict[str, Any]]


def _train(
    sources: Sequence[_Source[K]], resolution: int, settings: CriticSettings, seed: int, turn: int,
    device: torch.device, warm: PairCritic | None, progress: bool,
) -> _Trained:  # fmt: skip
    """Train one critic on all sources until it has converged on each, or the steps are spent.

    What is looked at and kept is the average of the weights over about the last tenth of the steps (Karras et al. 2024,
    "Analyzing and improving the training dynamics of diffusion models", section 3, the power-function average): it
    needs no end that was fixed beforehand, and its course is smooth enough to see convergence in.
    """
    rng_state = torch.random.get_rng_state()
    torch.manual_seed(int(runtime.stream(seed, "fresh critic weights", turn, 0).initial_seed() % 2**63))
    critic = PairCritic(resolution, settings.width, settings.points, len(sources))
    torch.random.set_rng_state(rng_state)
    if warm is not None:
        _start_from(critic, warm)
    critic = critic.to(device).train()
    average = copy.deepcopy(critic).eval().requires_grad_(False)
    optimizer = optimizers.Adam(critic.parameters(), lr=settings.lr, betas=(0.9, 0.99))

    n = len(sources)
    n_kept = max(2 * settings.batch_size, KEPT_VALUES // (6 * resolution**2 * n))
    course: list[dict[str, Any]] = []
    looks = _looks(settings, n)
    next_look = next(looks)
    best: tuple[float, dict[str, Tensor]] | None = None
    bar = Bar(total=settings.max_steps * n, desc="fresh critic", disable=not progress, leave=False)
    rising, converged, heldout = {}, {}, {}
    step = 0
    while True:
        # --- One step on one source
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min((step + 1) / 20, 1.0, math.sqrt(settings.settle * n / (step + 1)))
        source = sources[step % n]
        a, b = critic(*source.training_batch(settings, turn, step, n_kept), source.index)
        loss = cross_side_cross_entropy(a @ b.T)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        follow(average, critic, step)
        bar.update()
        if step < next_look:
            continue

        # --- A look at the held-out pairs; has it converged?
        heldout = {one.name: _bound(average, one.heldout, one.index).nats for one in sources}
        if not all(map(math.isfinite, heldout.values())):
            raise NonFiniteError(f"a fresh critic's held-out bound is not finite after {step} steps")
        course.append({"steps": step, "nats": heldout})
        bar.set_postfix(nats=" ".join(f"{value:.2f}" for value in heldout.values()))
        total = sum(heldout.values())
        if best is None or total > best[0]:
            best = total, copy.deepcopy(average.state_dict())
        before = course[-3]["nats"] if len(course) > 2 else None
        rising = {name: value - before[name] if before else math.inf for name, value in heldout.items()}
        converged = {
            name: rising[name] <= max(0.01, settings.tolerance * abs(value)) for name, value in heldout.items()
        }
        if all(converged.values()) or step >= settings.max_steps * n:
            break
        next_look = min(next(looks), settings.max_steps * n)
    bar.close()
    average.load_state_dict(best[1])
    return _Trained(average, step, heldout, rising, converged, course)


def _looks(settings: CriticSettings, n_sources: int) -> Iterator[int]:
    """Steps at which to look, ever further apart."""
    # Several sources share what is learned, so the first look comes sooner than after first_check steps on each.
    first = min(settings.first_check, settings.max_steps) * math.sqrt(n_sources)
    return (round(first * settings.growth**i) for i in itertools.count())


@torch.no_grad()
def follow(average: nn.Module, critic: nn.Module, step: int) -> None:
    """Move the average towards the weights: after t steps, weight i counts as (i / t) ** 9."""
    share = 1 - (1 - 1 / step) ** 10
    for mean, value in zip(average.state_dict().values(), critic.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, share)
        else:
            mean.copy_(value)


_OWN = ("gain", "hidden_gain", "hidden_offset", "running_mean", "running_var")
"""What each source has of its own, by the last part of its name in a state dict."""


def _start_from(critic: PairCritic, warm: PairCritic) -> None:
    """Take over the weights of another critic; gains of sources beyond its own begin as those of its first."""
    if (critic.resolution, critic.width, critic.points) != (warm.resolution, warm.width, warm.points):
        raise UsageError(
            f"warm: a critic of resolution {warm.resolution}, width {warm.width} and {warm.points} points; needed are "
            f"{critic.resolution}, {critic.width} and {critic.points}"
        )
    state = dict(warm.state_dict())
    if warm.n_sources != critic.n_sources:
        for name in list(state):
            if name.rpartition(".")[2] in _OWN:
                state[name] = state[name][:1].expand(critic.n_sources, -1)
    critic.load_state_dict(state)


# ---------------------------------------------------------------------------------------------------------------
# Evaluation


class CrossSideBound(NamedTuple):
    """The bound on a table of N pairs."""

    nats: float
    standard_error_nats: float
    """By the influence of each pair, as query, as partner and as candidate (the infinitesimal jackknife)."""


@torch.no_grad()
def cross_side_bound(a: Tensor, b: Tensor, rows: int = 1024) -> CrossSideBound:
    """The bound in nats from points (N, d) of both sides, whose products are the scores; rows: of the table at a time.

    The standard error counts that each pair is also a candidate of all others: it is the spread of the derivative of
    the bound by the weight of each pair.
    """
    n = len(a)
    log_n = math.log(n)
    partner = (a * b).sum(1)
    rows_of_sums: list[Tensor] = []
    sum_columns = torch.full_like(partner, -math.inf)  # query b_i
    for part in a.split(rows):
        scores = part @ b.T
        rows_of_sums.append(scores.logsumexp(1))
        sum_columns = torch.logaddexp(sum_columns, scores.logsumexp(0))
    sum_rows = torch.cat(rows_of_sums)  # (n,), query a_i
    # How often each point is taken for the partner of another: sums over queries of its probability.
    taken_b, taken_a = torch.zeros_like(partner), torch.zeros_like(partner)
    for i, part in enumerate(a.split(rows)):
        scores = part @ b.T
        at = slice(i * rows, i * rows + len(part))
        taken_b += (scores - sum_rows[at, None]).exp().sum(0)
        taken_a[at] = (scores - sum_columns[None]).exp().sum(1)
    partner, sum_rows, sum_columns = partner.double(), sum_rows.double(), sum_columns.double()
    values = log_n + partner - 0.5 * (sum_rows + sum_columns)
    influence = values - 0.5 * (taken_a + taken_b).double()
    return CrossSideBound(values.mean().item(), influence.std().item() / math.sqrt(n))


@torch.no_grad()
def _points(critic: PairCritic, batches: Iterator[tuple[Tensor, Tensor]], index: int) -> tuple[Tensor, Tensor]:
    parts = [critic(a, b, index) for a, b in batches]
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])


def _bound(critic: PairCritic, batches: Sequence[tuple[Tensor, Tensor]], index: int) -> CrossSideBound:
    return cross_side_bound(*_points(critic, iter(batches), index))


def _estimate(source: _Source[K], trained: Sequence[_Trained], best: int, settings: CriticSettings) -> Estimate:
    """The bound on fresh pairs, with as many candidates as it needs, and its verdict."""
    n = settings.eval_pairs
    chosen = trained[best]
    parts = list(_evaluated(chosen.critic, source, n, 0))
    while True:
        a, b = (torch.cat(side) for side in zip(*parts, strict=True))
        bound = cross_side_bound(a, b)
        if bound.nats < math.log(n) - 2.0 or 2 * n > settings.max_eval_pairs:
            break
        parts += _evaluated(chosen.critic, source, n, len(parts))
        n *= 2
    halves = [cross_side_bound(a[part], b[part]) for part in (slice(0, n // 2), slice(n // 2, n))]
    at_half = 0.5 * (halves[0].nats + halves[1].nats)
    batch = settings.batch_size
    at_batch = [cross_side_bound(a[i : i + batch], b[i : i + batch]).nats for i in range(0, n - batch + 1, batch)]
    others = [
        cross_side_bound(*_points(one.critic, source.batches(n, "evaluate"), source.index)).nats
        for i, one in enumerate(trained)
        if i != best
    ]
    low = min([bound.nats - ONE_SIDED_95 * bound.standard_error_nats, *others])
    rising = chosen.rising[source.name]
    facts = {
        "candidates": n,
        "ceiling_nats": math.log(n),
        "standard_error_nats": bound.standard_error_nats,
        "nats_at_half_the_candidates": at_half,
        "steps": chosen.steps,
        "still_rising_nats": rising if math.isfinite(rising) else None,
        "critic_error_nats": _critic_error(bound.nats, rising, settings),
        "other_critics_nats": others,
        "course": [{"steps": row["steps"], "nats": row["nats"][source.name]} for row in chosen.course],
    }
    unused_in_training = math.log(batch) - sum(at_batch) / len(at_batch) if at_batch else math.inf
    verdict, reason = _judged(bound, low, facts, chosen.converged[source.name], unused_in_training, halves)
    return Estimate(bound.nats, low, math.inf, n, "fresh critic", ASSUMES, verdict, reason, facts)


def _critic_error(nats: float, rising_nats: float, settings: CriticSettings) -> float:
    """How far another critic may come to lie, in nats: as far as the rule of convergence lets one stop, or as far as
    this one still rose. It is no part of the one-sided interval, which every critic's bound has for itself."""
    allowed = max(0.01, settings.tolerance * abs(nats))
    return max(allowed, rising_nats) if math.isfinite(rising_nats) else allowed


def _evaluated(critic: PairCritic, source: _Source[Any], n: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = 512
    with torch.no_grad():
        for i, start in enumerate(range(0, n, size)):
            yield critic(*source.pairs(min(size, n - start), "evaluate", first + i), source.index)


def _judged(
    bound: CrossSideBound,
    low_nats: float,
    facts: Mapping[str, Any],
    converged: bool,
    unused_in_training_nats: float,
    halves: Sequence[CrossSideBound],
) -> verdicts.Finding:
    """The rules of `verdicts` for what a fresh critic knows, and two of its own: convergence is seen at looks that lie
    ever further apart, and a batch has a ceiling of its own."""
    if (nothing := verdicts.no_number(bound.nats, low_nats, math.inf)) is not None:
        return nothing
    at_half = MonteCarloMean(facts["nats_at_half_the_candidates"], bound.standard_error_nats)
    found = [
        verdicts.near_ceiling(bound.nats, facts["ceiling_nats"]),
        verdicts.rises_with_candidates(bound.nats, at_half),
        _taught_too_little(unused_in_training_nats),
        None if converged else _still_improving(facts["still_rising_nats"]),
        _halves_differ(halves),
        verdicts.changes_with_seed(bound.nats, facts["other_critics_nats"]),
        verdicts.too_uncertain(bound.nats, low_nats, math.inf),
    ]
    return verdicts.decide([finding for finding in found if finding is not None])


def _taught_too_little(unused_nats: float) -> verdicts.Finding | None:
    """unused_nats: how far the bound of one batch lies below log of its pairs."""
    if unused_nats >= SATURATION_MARGIN_NATS:
        return None
    reason = (
        f"the batches of training come within {unused_nats:.2f} nats of their ceiling: larger ones would teach more"
    )
    return verdicts.Finding(Verdict.SATURATED, reason)


def _still_improving(rising_nats: float | None) -> verdicts.Finding:
    if rising_nats is None:
        return verdicts.Finding(Verdict.NOT_CONVERGED, "the critic's training ended before convergence could be seen")
    reason = f"the critic was still improving: its last looks raised the held-out bound by {rising_nats:.2f} nats"
    return verdicts.Finding(Verdict.NOT_CONVERGED, reason)


def _halves_differ(halves: Sequence[CrossSideBound]) -> verdicts.Finding | None:
    apart = abs(halves[0].nats - halves[1].nats)
    if apart <= 4 * math.hypot(*(half.standard_error_nats for half in halves)):
        return None
    return verdicts.Finding(Verdict.NOT_TRUSTED, f"the two halves of the pairs differ by {apart:.2f} nats")


__all__ = ["CriticSettings", "CrossSideBound", "Draw", "Measured", "MeasuredTogether", "PairCritic", "Uses",
           "cross_side_bound", "follow", "measure_pairs", "measure_together"]  # fmt: skip
