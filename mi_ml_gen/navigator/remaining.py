"""What pairs still share, by fresh critics: of trained walkers, and along the length of a perturbation.

A *curve* of chunks is nats against delta, for two kinds of perturbation side by side: learned walkers, scaled, and
random noise of growing standard deviation, up to chunks that are drawn anew. From it chunks can be compared at equal
information and at equal delta, and neither depends on how long a walker was trained.

One critic serves all walkers and strengths of the same chunks (`image_critic.measure_together`): what an image shows is
the same for all of them.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.information import verdicts
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.information.image_critic import ASSUMES, ONE_SIDED_95, CriticSettings, Draw, PairCritic, measure_together
from mi_ml_gen.latents import Chunks, NoiseDistribution, TruncatedNormal
from mi_ml_gen.navigator.spread import WalkerMean, over_walkers
from mi_ml_gen.walkers.base import Pair, Walker
from mi_ml_gen.walkers.noise import RandomWalker

LEARNED_STRENGTHS = (0.5, 1.0, 2.0)
"""Multiples of a learned perturbation that its curve has points at."""
RANDOM_STDS = (0.25, 0.5, 1.0, 2.0)
"""Standard deviations of random noise that its curve has points at, in those of the generator's noise."""
SHARED_NATS = (1.0, 2.0, 3.0)
"""Information at which chunks are compared by delta."""
SHARES_OF_INDEPENDENT = (0.25, 0.5, 1.0)
"""Deltas, in those of independent draws, at which chunks are compared by information."""
DELTA_PAIRS = 2048
"""Pairs that the delta of a point is the mean of."""
MARKS = {Verdict.SATURATED: ">"}
"""What stands behind a number that was read off saturated points; behind other warnings stands *."""
_REPETITIONS = 400
"""Draws of a curve from its errors, which give the intervals of what is read off it."""

Perturb = Callable[[torch.Tensor, torch.Generator], Pair]
"""Noise z (n, noise_dim) and a random stream -> flat latents of anchors and positives."""


@dataclass(frozen=True)
class Point:
    """One perturbation of a curve."""

    kind: Literal["learned", "random"]
    label: str
    delta: float
    estimate: Estimate

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "label": self.label, "delta": self.delta, **self.estimate.to_json()}


@dataclass(frozen=True)
class Reading:
    """A number read off a curve between two of its points, with a 95% interval by the errors of the points."""

    value: float | None
    """None where the curve does not reach there; `why` then says what it does."""
    low: float | None = None
    high: float | None = None
    """Ends of the interval; None where the errors of the points give none."""
    why: str = ""
    verdict: Verdict = Verdict.CONSISTENT
    """The worse one of the two points that it lies between."""

    def __str__(self) -> str:
        if self.value is None:
            return self.why
        interval = "no interval" if self.low is None else f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.value:.2f} ({interval})" + MARKS.get(self.verdict, "*" if self.verdict.is_warning else "")


@dataclass(frozen=True)
class Curve:
    """Nats against delta for some chunks."""

    chunks: Chunks
    independent_delta: float
    points: tuple[Point, ...]

    def of(self, kind: str) -> list[Point]:
        """Points of one kind, by delta; chunks that are drawn anew end the random ones."""
        return sorted((point for point in self.points if point.kind == kind), key=lambda point: point.delta)

    def delta_at(self, kind: str, nats: float) -> Reading:
        """Delta at which the pair still shares this much information."""
        points = self.of(kind)
        if not points:
            return Reading(None, why="no points")
        shared = [point.estimate.nats for point in points]
        if nats < min(shared):
            return Reading(None, why=f"shares more at every delta measured, up to {points[-1].delta:.2f}")
        if nats > max(shared):
            return Reading(None, why=f"shares less from delta {points[0].delta:.2f} on")
        return self._read(points, lambda deltas, values: _crossing(deltas, values, nats), lambda delta: delta)

    def nats_at(self, kind: str, share: float) -> Reading:
        """Nats that remain at this share of the distance between independent draws."""
        points = self.of(kind)
        wanted = share * self.independent_delta
        if not points or wanted > points[-1].delta * 1.02:
            return Reading(None, why=f"no point beyond delta {points[-1].delta:.2f}" if points else "no points")
        if wanted < points[0].delta:
            return Reading(None, why=f"at least {points[0].estimate.nats:.2f}, as at delta {points[0].delta:.2f}")
        return self._read(points, lambda deltas, values: _interpolated(deltas, values, wanted), lambda _: wanted)

    def _read(
        self,
        points: Sequence[Point],
        read: Callable[[list[float], list[float]], float | None],
        place: Callable[[float], float],
    ) -> Reading:
        """read: from deltas and falling nats of the points to a number. place: from that number to its delta."""
        deltas = [point.delta for point in points]
        value = read(deltas, _falling([point.estimate.nats for point in points]))
        if value is None:
            return Reading(None, why="not on the curve")
        verdict = _worst_beside(points, place(value))
        rng = torch.Generator().manual_seed(0)
        found = []
        for _ in range(_REPETITIONS):
            noise = torch.randn(len(points), generator=rng).tolist()
            values = [
                point.estimate.nats + e * point.estimate.details.get("standard_error_nats", 0.0)
                for point, e in zip(points, noise, strict=True)
            ]
            if (one := read(deltas, _falling(values))) is not None:
                found.append(one)
        if len(found) < _REPETITIONS // 2:
            return Reading(value, verdict=verdict)
        ends = statistics.quantiles(found, n=40)
        return Reading(value, min(ends[0], value), max(ends[-1], value), verdict=verdict)

    def to_json(self) -> dict[str, Any]:
        """Points and what is read off them, as plain values."""
        kinds = [kind for kind in ("learned", "random") if self.of(kind)]
        return {
            "chunks": str(self.chunks),
            "independent_delta": self.independent_delta,
            "points": [point.to_json() for point in self.points],
            "delta_at_nats": {
                kind: {f"{nats:g}": _plain(self.delta_at(kind, nats)) for nats in SHARED_NATS} for kind in kinds
            },
            "nats_at_share_of_independent": {
                kind: {f"{share:g}": _plain(self.nats_at(kind, share)) for share in SHARES_OF_INDEPENDENT}
                for kind in kinds
            },
            "intervals": "95%, by the errors of the points; they do not cover another training of the walkers",
        }


@dataclass(frozen=True)
class Remaining:
    """What the pairs of a chunk's walkers still share."""

    walkers: tuple[Estimate, ...]
    """Of each walker."""
    together: Estimate
    """Their mean, whose interval is over walkers and draws, and the worst verdict of theirs."""
    spread: WalkerMean | None
    """The mean with its two-sided interval over walkers, draws and critics: where that of other walkers would lie,
    measured by another critic."""
    curve: Curve | None = None

    def to_json(self) -> dict[str, Any]:
        spread = None if self.spread is None else [self.spread.low, self.spread.high]
        return {
            **self.together.to_json(),
            "interval_over_walkers_nats": spread,
            "walkers": [one.to_json() for one in self.walkers],
            **({} if self.curve is None else {"curve": self.curve.to_json()}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Remaining:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for other values."""
        each = tuple(Estimate.from_json(one) for one in values["walkers"])
        together, spread = combined(each)
        curve = None
        if (drawn := values.get("curve")) is not None:
            points = tuple(
                Point(one["kind"], one["label"], float(one["delta"]), Estimate.from_json(one))
                for one in drawn["points"]
            )
            curve = Curve(Chunks.of(drawn["chunks"]), float(drawn["independent_delta"]), points)
        return cls(each, together, spread, curve)


@torch.no_grad()
def measure_remaining(
    generator: MultiLatentGenerator,
    walkers: Sequence[Walker],
    independent_delta: float,
    *,
    distribution: NoiseDistribution | None = None,
    settings: CriticSettings | None = None,
    with_curve: bool = False,
    curve_of: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    warm: PairCritic | None = None,
    progress: bool = False,
) -> tuple[Remaining, PairCritic]:
    """What anchors and positives of walkers of the same chunks still share, by one fresh critic for all of them.

    walkers: of the same range of chunks, at least one. independent_delta: the length between independent draws there.
    with_curve: also measure the curve of nats against delta: the walker of index `curve_of`
    scaled by LEARNED_STRENGTHS, random noise
    of RANDOM_STDS, and chunks drawn anew. warm: a critic of the same generator to start from. Gives the critic, too.
    """
    drawn: NoiseDistribution = distribution or TruncatedNormal()
    chunks = walkers[0].chunks[0]
    perturbations: dict[tuple[str, str], Perturb] = {
        ("walker", str(i)): _scaled(generator, walker, 1.0) for i, walker in enumerate(walkers)
    }
    if with_curve:
        for strength in LEARNED_STRENGTHS:
            if strength != 1.0:
                perturbations["learned", f"x {strength:g}"] = _scaled(generator, walkers[curve_of], strength)
        for std in RANDOM_STDS:
            noise = RandomWalker(chunks, TruncatedNormal(0.0, std * getattr(drawn, "std", 1.0), 2.0))
            perturbations["random", f"std {std:g}"] = _scaled(generator, noise, 1.0)
        perturbations["random", "drawn anew"] = _anew(generator, chunks, drawn)
    sources = {name: _source(generator, perturb, walkers[0].chunks, drawn) for name, perturb in perturbations.items()}
    with torch.enable_grad():
        measured = measure_together(
            sources, resolution=generator.resolution, settings=settings, seed=seed, device=device, warm=warm,
            progress=progress,
        )  # fmt: skip
    estimates = measured.estimates
    each = [estimates["walker", str(i)] for i in range(len(walkers))]
    curve = None
    if with_curve:
        points = []
        for (kind, label), perturb in perturbations.items():
            if kind == "walker" and label != str(curve_of):
                continue
            length = _mean_delta(generator, perturb, walkers[0].chunks, drawn, seed, device)
            is_random = kind == "random"
            points.append(Point("random" if is_random else "learned", "x 1" if kind == "walker" else label, length,
                                estimates[kind, label]))  # fmt: skip
        curve = Curve(chunks, independent_delta, tuple(points))
    together, spread = combined(each)
    return Remaining(tuple(each), together, spread, curve), measured.critic


def combined(each: Sequence[Estimate]) -> tuple[Estimate, WalkerMean | None]:
    """The mean of the walkers' estimates with a one-sided interval over walkers and draws, and its two-sided spread."""
    n = len(each)
    nats = statistics.fmean(one.nats for one in each)
    errors = [one.details["standard_error_nats"] for one in each]
    # Candidates of a walker are drawn for it alone, but one critic serves all: its error is counted once, not as 1/n.
    critic = [one.details.get("critic_error_nats", 0.0) for one in each]  # as half of a 95% interval
    of_both = [math.hypot(error, of_critic / 1.96) for error, of_critic in zip(errors, critic, strict=True)]
    spread = over_walkers([one.nats for one in each], of_both)
    low = each[0].low_nats
    if spread is not None:
        from scipy import stats

        own = float(stats.t.ppf(0.95, n - 1)) * statistics.stdev(one.nats for one in each) / math.sqrt(n)
        low = nats - math.hypot(own, ONE_SIDED_95 * statistics.fmean(errors))
    worst = max(each, key=lambda one: _SEVERITY.index(one.verdict))
    n_warned = sum(one.verdict.is_warning for one in each)
    reason = worst.reason if n == 1 or not n_warned else f"{n_warned} of {n} walkers carry a warning: {worst.reason}"
    finding = verdicts.Finding(worst.verdict, reason)
    assumes = ASSUMES if n == 1 else f"{ASSUMES} The walkers are draws from trainings, their values roughly normal."
    details = {"walkers": [one.nats for one in each], "standard_error_nats": statistics.fmean(errors),
               "candidates": min(one.details["candidates"] for one in each)}  # fmt: skip
    n_pairs = sum(one.n for one in each)
    return Estimate(nats, low, math.inf, n_pairs, "fresh critic", assumes, *finding, details), spread


_SEVERITY = (
    Verdict.CONSISTENT,
    Verdict.MARGINALS_DIFFER,
    Verdict.SATURATED,
    Verdict.NOT_CONVERGED,
    Verdict.NOT_TRUSTED,
)


# ---------------------------------------------------------------------------------------------------------------
# Perturbations and sources


def _scaled(generator: MultiLatentGenerator, walker: Walker, strength: float) -> Perturb:
    """A walker whose perturbation of the latents is so many times as long."""

    def perturb(z: torch.Tensor, rng: torch.Generator) -> Pair:
        pair = walker(generator, z, rng)
        if strength == 1.0:
            return pair
        return Pair(pair.anchor, pair.anchor + strength * (pair.positive - pair.anchor))

    return perturb


def _anew(generator: MultiLatentGenerator, chunks: Chunks, drawn: NoiseDistribution) -> Perturb:
    """The chunks of an independent draw: what is left is what the other chunks say."""
    at = generator.layout.slice(chunks)

    def perturb(z: torch.Tensor, rng: torch.Generator) -> Pair:
        other = drawn.sample(z.shape, rng, z.device)
        anchor, latents = generator.latents(z), generator.moved_latents(z, other)
        return Pair(anchor, torch.cat([anchor[:, : at.start], latents[:, at], anchor[:, at.stop :]], 1))

    return perturb


def _source(
    generator: MultiLatentGenerator, perturb: Perturb, chunks: Sequence[Chunks], drawn: NoiseDistribution
) -> Draw:
    """Images of a perturbation's pairs; decoded in parts of at most 256."""

    def draw(n: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        z = drawn.sample((n, generator.noise_dim), rng)
        parts = []
        for part in z.split(256):
            pair = perturb(part, rng)
            if len(chunks) == 1:
                parts.append(generator.decode_pair(pair.anchor, pair.positive, chunks[0], rng))
            else:
                parts.append(ImagePair(generator.decode(pair.anchor, rng), generator.decode(pair.positive, rng)))
        anchors, positives = zip(*parts, strict=True)
        return torch.cat(anchors), torch.cat(positives)

    return draw


def _mean_delta(
    generator: MultiLatentGenerator, perturb: Perturb, chunks: Sequence[Chunks], drawn: NoiseDistribution, seed: int,
    device: torch.device | str,
) -> float:  # fmt: skip
    from mi_ml_gen.delta import pair_delta

    lengths = []
    for i in range(0, DELTA_PAIRS, 256):
        rng = runtime.stream(seed, "delta of a curve", i, 0, device)
        pair = perturb(drawn.sample((256, generator.noise_dim), rng), rng)
        lengths.append(pair_delta(generator, pair, tuple(chunks)))
    return torch.cat(lengths).mean().item()


# ---------------------------------------------------------------------------------------------------------------
# Reading a curve


def _falling(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never rises, in least squares (pool adjacent violators): more perturbation cannot leave
    more information, so what rises is error."""
    blocks: list[list[float]] = []  # [mean, count]
    for value in values:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, count = blocks.pop()
            before, n = blocks.pop()
            blocks.append([(before * n + mean * count) / (n + count), n + count])
    return list(itertools.chain.from_iterable([mean] * round(count) for mean, count in blocks))


def _interpolated(deltas: Sequence[float], values: Sequence[float], wanted: float) -> float | None:
    """The value at a delta, linear between points; the last value just beyond the last point."""
    for (d0, v0), (d1, v1) in itertools.pairwise(zip(deltas, values, strict=True)):
        if d0 <= wanted <= d1:
            return v0 + (v1 - v0) * ((wanted - d0) / (d1 - d0) if d1 > d0 else 0.0)
    return values[-1] if wanted > deltas[-1] else None


def _crossing(deltas: Sequence[float], values: Sequence[float], nats: float) -> float | None:
    """The first delta at which falling values reach so many nats."""
    for (d0, v0), (d1, v1) in itertools.pairwise(zip(deltas, values, strict=True)):
        if v0 >= nats >= v1:
            return d0 + (d1 - d0) * ((v0 - nats) / (v0 - v1) if v0 > v1 else 0.0)
    return None


def _worst_beside(points: Sequence[Point], delta: float) -> Verdict:
    """The worse verdict of the two points, sorted by delta, that a delta lies between."""
    after = min(bisect.bisect_left([point.delta for point in points], delta), len(points) - 1)
    beside = [points[max(after - 1, 0)], points[after]]
    return max((point.estimate.verdict for point in beside), key=_SEVERITY.index)


def _plain(reading: Reading) -> Mapping[str, Any]:
    if reading.value is None:
        return {"value": None, "why": reading.why}
    interval = None if reading.low is None else [reading.low, reading.high]
    return {"value": reading.value, "interval": interval, "verdict": str(reading.verdict)}
