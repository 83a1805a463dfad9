"""Views by budget: how strong a perturbation must be so that image and perturbed image share a given number of nats.

In a T_z, `budget:NATS` may stand where the strength of a group would:

    0_1=budget:3.0                     noise on chunk 0 after which image and positive share 3 nats
    0_1=budget:3.0 1_4=budget:2.0      each group by itself: the other is left alone while one is solved
    0_4=budget:3.0                     one noise on all four chunks, so 3 nats in all
    0_2=ganspace:5,budget:3.0          along directions, their strength solved
    0_1=walker_runs/coarse,budget:3.0  a learned walker, its perturbation made longer or shorter

`--budget NATS` beside a T_z makes all of its perturbations longer or shorter by one factor, so that pairs share NATS in
all.

The strength of noise and of directions is their standard deviation; that of another walker is a factor of its
perturbation (`scaled.py`). Information falls as it grows, so the strength is found between two ends by a root search on
its logarithm (Brent 1973). At each strength the information is the bound of a critic in closed form
(`information/canonical.py`) on the same anchors and the same noise, so the search sees a smooth curve. Its critic is
made from few pairs and finds too little, by a share that changes little with the strength. So a critic of many pairs
then says what was reached, and the search is repeated for a corrected number until that is the budget. The result is
checked on new pairs by a new critic of as many. All of it is a function of the seed.

The bound is exact where images are jointly normal, up to the noise of sampling. Elsewhere it is a lower bound, so the
pair shares at least as much as asked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import read_json
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.information.canonical import Whitening, measure
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.latents import Chunks, NoiseDistribution, TruncatedNormal
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.noise import RandomWalker
from mi_ml_gen.walkers.scaled import ScaledWalker
from mi_ml_gen.walkers.spec import budget_in, has_own_strength, is_groups, read_groups, walker_from

logger = logging.getLogger(__name__)

LEAST_STRENGTH, MOST_STRENGTH = 1e-3, 3.0
"""Ends of the search: root mean squares of the moved numbers, in standard deviations of the anchors' noise. Beyond the
upper one latents lie far outside of what a generator knows, and images lose what the other chunks say, too."""
TOLERANCE = 0.02
"""The search ends where the logarithm of the strength is known to this."""


WORD = "budget:"
"""What stands before the nats in a T_z."""


class Size(NamedTuple):
    """Of a measurement: pairs that its critic is made from, pairs that it is measured on, and components it sees."""

    fitted: int
    held_out: int
    components: int


SEARCH = Size(512, 512, 48)
CHECK = Size(4096, 2048, 192)
"""Of the corrections and of the final check. On tiny-bigbigan twice as many pairs find no more."""
MOST_NATS = math.log(CHECK.held_out) - 2.0
"""Above this the bound would lack more than a tenth for want of candidates."""
REACHED = 0.02
"""Corrections end where the bound is within this share of the budget."""
MOST_CORRECTIONS = 4
MOST_MISSED = 0.1
"""Share of the budget by which the check may miss it without a warning."""
SIZE_PX = 32
"""Side of the images that the critics see, at most."""
BATCH = 256
WHITENED = 1024
"""Images, at most, from which the components are computed."""
RECORD = "budget.json"


@dataclass(frozen=True)
class Solved:
    """A strength, and what it was found to leave."""

    chunks: str
    """The ranges that are perturbed, with blanks between them."""
    budget_nats: float
    strength: float
    """Standard deviation of noise or along directions, or the factor of another walker's perturbation."""
    achieved: Estimate
    """By a new critic on new pairs."""
    perturbation: str = "noise"
    """What the strength is of, as the T_z writes it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "chunks": self.chunks,
            "perturbation": self.perturbation,
            "budget_nats": self.budget_nats,
            "strength": self.strength,
            "achieved": self.achieved.to_json(),
        }


def solve(
    generator: MultiLatentGenerator,
    chunks: Chunks,
    nats: float,
    noise: NoiseDistribution | None = None,
    seed: int = 0,
    walker_of: Callable[[float], Walker] | None = None,
) -> Solved:
    """The standard deviation of noise on `chunks` that leaves this many nats.

    noise: that of the anchors. walker_of: from a standard deviation to a walker; by default noise truncated at 2 of
    them. Raises UsageError for a budget that is not within reach, naming what is.
    """
    walk = walker_of or (lambda strength: RandomWalker(chunks, strength))
    return _solve(generator, str(chunks), nats, noise or TruncatedNormal(), seed, walk, 1.0, "noise")


def solve_walker(
    generator: MultiLatentGenerator,
    walker: Walker,
    nats: float,
    noise: NoiseDistribution | None = None,
    seed: int = 0,
    name: str = "walker",
) -> Solved:
    """The factor by which a walker's perturbation must be longer so that pairs share this many nats; see ScaledWalker.

    name: what the result calls the perturbation. Raises UsageError as `solve`, and for a walker that moves nothing.
    """
    noise = noise or TruncatedNormal()
    length = _root_mean_square(generator, walker, noise, seed)
    chunks = " ".join(map(str, walker.chunks))
    if not length > 0:
        raise UsageError(f"budget {nats:g}: {name} moves nothing in {generator.name}, so no factor can reach a budget")
    return _solve(generator, chunks, nats, noise, seed, lambda factor: ScaledWalker(walker, factor), 1 / length, name)


def _solve(
    generator: MultiLatentGenerator,
    chunks: str,
    nats: float,
    noise: NoiseDistribution,
    seed: int,
    walk: Callable[[float], Walker],
    unit: float,
    name: str,
) -> Solved:
    """unit: the strength that moves the numbers by a root mean square of 1."""
    if not 0 < nats <= MOST_NATS:
        raise UsageError(f"budget {nats:g}: must be above 0 and at most {MOST_NATS:.1f} nats")
    search = _Images(generator, noise, seed, "search", SEARCH)

    @cache
    def nats_at(log_strength: float) -> float:
        return search.share(walk(math.exp(log_strength))).nats

    scale = noise.std if isinstance(noise, TruncatedNormal) and noise.std else 1.0
    ends = [math.log(end * scale * unit) for end in (LEAST_STRENGTH, MOST_STRENGTH)]
    most, least = map(nats_at, ends)

    def strength_for(wanted: float, share: float) -> float:
        if not least < wanted < most:
            low, high = max(least, 0.0) / share, min(most / share, MOST_NATS)
            within = f"leaves between about {low:.2f} and {high:.2f} nats; choose a number between, or other chunks"
            if low >= high:
                within = f"leaves about {low:.2f} nats or more, beyond all budgets; choose other chunks"
            raise UsageError(f"budget {nats:g} on chunks {chunks} of {generator.name}: {name} {within}")
        return brentq(lambda x: nats_at(x) - wanted, *ends, xtol=TOLERANCE)

    correct = _Images(generator, noise, seed, "correct", CHECK)
    share = 1.0  # of what a critic of many pairs finds, this much is found in the search
    for _ in range(MOST_CORRECTIONS):
        log_strength = strength_for(nats * share, share)
        reached = correct.share(walk(math.exp(log_strength))).nats
        if abs(reached - nats) <= REACHED * nats:
            break
        share *= nats / max(reached, 0.1 * nats)
    strength = math.exp(log_strength)
    check = _Images(generator, noise, seed, "check", CHECK)
    return Solved(chunks, nats, strength, check.share(walk(strength)), name)


def measured(
    generator: MultiLatentGenerator, walker: Walker, noise: NoiseDistribution | None = None, seed: int = 0
) -> Estimate:
    """What pairs of a walker share, by a critic like the one that checks a budget."""
    return _Images(generator, noise or TruncatedNormal(), seed, "measured", CHECK).share(walker)


@torch.no_grad()
def _root_mean_square(generator: MultiLatentGenerator, walker: Walker, noise: NoiseDistribution, seed: int) -> float:
    """Of the numbers of the noise that the walker moves."""
    device = device_of(generator)
    z = noise.sample((BATCH, generator.noise_dim), runtime.stream(seed, "budget length: anchors", 0, 0, device))
    rng = runtime.stream(seed, "budget length: noise", 0, 0, device)
    lengths = [
        (moved - z)[:, generator.walk_slice(chunks)].flatten() for chunks, moved in walker.moves(generator, z, rng)
    ]
    return torch.cat(lengths).square().mean().sqrt().item() if lengths else 0.0


class _Images:
    """Anchors of one use, decoded once, and positives of walkers with the same noise for each."""

    def __init__(
        self, generator: MultiLatentGenerator, noise: NoiseDistribution, seed: int, use: str, size: Size
    ) -> None:
        self.generator, self.seed, self.use, self.n_fitted = generator, seed, use, size.fitted
        self.device = device_of(generator)
        self.z = noise.sample((size.fitted + size.held_out, generator.noise_dim), self._rng("anchors", 0))
        images = torch.cat([self._shown(generator.latents(z), i, "anchor") for i, z in enumerate(self.z.split(BATCH))])
        self.whitening = Whitening.of(images[: min(size.fitted, WHITENED)], size.components)
        self.anchors = self.whitening(images)

    def share(self, walker: Walker) -> Estimate:
        """What anchors and positives share; the critic is made from the first pairs, and measured on the others."""
        parts = []
        for i, z in enumerate(self.z.split(BATCH)):
            with torch.no_grad():
                pair = walker(self.generator, z, self._rng("noise", i))
            parts.append(self.whitening(self._shown(pair.positive, i, "positive")))
        positives, n = torch.cat(parts), self.n_fitted
        return measure(self.anchors[:n], positives[:n], self.anchors[n:], positives[n:])

    @torch.no_grad()
    def _shown(self, latents: Tensor, i: int, name: str) -> Tensor:
        images = self.generator.decode(latents, self._rng(f"decode {name}", i))
        if self.generator.resolution > SIZE_PX:
            images = functional.interpolate(images, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
        return images.cpu()

    def _rng(self, name: str, step: int) -> torch.Generator:
        return runtime.stream(self.seed, f"budget {self.use}: {name}", step, 0, self.device)


# --- in a T_z -------------------------------------------------------------------------------------------------


class Budget(NamedTuple):
    """A group of a T_z that names nats in place of a strength."""

    nats: float
    perturbation: str
    """What else the group says: "noise" where it says nothing."""


def budgets(written: Any) -> dict[str, Budget]:
    """The budgets of a T_z by the text of their chunks; empty for a T_z without any.

    Raises UsageError where `budget:` is not followed by a number, and where noise with a strength of its own stands
    before it.
    """
    if not _is_grouped(written):
        return {}
    found = {}
    for chunks, member in read_groups(written).items():
        budget = budget_in(member)
        if budget is None:
            continue
        of, nats = budget
        try:
            found[chunks] = Budget(float(nats), of or "noise")
        except ValueError:
            raise UsageError(f"T_z: {chunks}={member}: write a number of nats, as in {chunks}=budget:3.0") from None
        if of is not None and has_own_strength(of):
            raise UsageError(
                f"T_z: {chunks}={member}: {of} has a strength of its own; write {chunks}=budget:{nats} for noise, or "
                f"directions without a strength, as in {chunks}=ganspace:5,budget:3.0"
            )
    return found


def _is_grouped(written: Any) -> bool:
    if isinstance(written, Mapping):
        return True
    is_file = isinstance(written, str | Path) and Path(written).suffix in (".yaml", ".yml")
    return is_file or (isinstance(written, str) and is_groups(written))


def resolved(
    written: Any,
    generator: MultiLatentGenerator,
    noise: NoiseDistribution,
    seed: int,
    folder: str | Path | None = None,
    whole_nats: float | None = None,
) -> Any:
    """The T_z with a walker in place of every budget; one without budgets as it is. `solved` gives what was found.

    folder: a run folder. What its budget.json records is not solved again, so a run goes on with the noise that it
    began with. whole_nats: the budget of the T_z in all (`--budget`). Raises UsageError as `budgets` and `solve`, for
    budgets of groups beside one of the whole, and for one of a T_z that perturbs nothing, and CorruptCheckpointError
    where budget.json is damaged.
    """
    asked = budgets(written)
    if whole_nats is None and not asked:
        return written
    if whole_nats is not None and asked:
        raise UsageError(f"--budget {whole_nats:g}: groups of the T_z have budgets of their own; leave out either")
    known = _recorded(Path(folder) / RECORD) if folder is not None else []
    if whole_nats is not None:
        walker = walker_from(written, generator)
        if not walker.chunks:
            raise UsageError(f"--budget {whole_nats:g}: needs a T_z that perturbs something, such as 0_1=1")
        name = "the whole T_z"
        found = _known(known, " ".join(map(str, walker.chunks)), whole_nats, name)
        found = found or solve_walker(generator, walker, whole_nats, noise, seed, name).to_json()
        return _marked(ScaledWalker(walker, found["strength"]), found)

    groups: dict[str, Any] = dict(read_groups(written))
    for text, (nats, perturbation) in asked.items():
        chunks = generator.chunks(text, "T_z: group")
        found = _known(known, str(chunks), nats, perturbation)
        if perturbation == "noise":
            found = found or solve(generator, chunks, nats, noise, seed).to_json()
            groups[text] = _marked(RandomWalker(chunks, found["strength"]), found)
        else:
            member = walker_from({text: perturbation}, generator)
            found = found or solve_walker(generator, member, nats, noise, seed, perturbation).to_json()
            groups[text] = _marked(ScaledWalker(member, found["strength"]), found)
    return groups


def walker_by(
    written: Any,
    generator: MultiLatentGenerator,
    noise: NoiseDistribution,
    seed: int,
    device: torch.device | str | None = None,
    flag: str = "--Tz",
    folder: str | Path | None = None,
    whole_nats: float | None = None,
) -> Walker:
    """The walker of a T_z, its budgets solved; what was found for them is logged, and `solved` gives it.

    noise: that of the anchors. flag: what errors name. folder, whole_nats: as in `resolved`. Raises as `resolved` and
    `walker_from`.
    """
    walker = walker_from(resolved(written, generator, noise, seed, folder, whole_nats), generator, device, flag)
    if runtime.is_main():
        for one in solved(walker):
            text = "budget of %g nats on chunks %s: %s of strength %.4g, which leaves %s"
            achieved = Estimate.from_json(one["achieved"])
            logger.info(text, one["budget_nats"], one["chunks"], one["perturbation"], one["strength"], achieved)
            if (missed := miss(one["budget_nats"], achieved)) is not None:
                logger.warning("budget of %g nats on chunks %s: %s", one["budget_nats"], one["chunks"], missed)
    return walker


def miss(budget_nats: float, achieved: Estimate) -> str | None:
    """How the check missed the budget by more than MOST_MISSED and more than its noise; None where it did not."""
    noise = achieved.nats - achieved.low_nats
    if achieved.nats - noise > (1 + MOST_MISSED) * budget_nats:
        found = "more"
    elif achieved.nats + noise < (1 - MOST_MISSED) * budget_nats:
        found = "less"
    else:
        return None
    return (
        f"the check on new pairs finds {achieved.nats:.2f} nats, {found} than asked for by over {MOST_MISSED:.0%}; "
        "choose another budget, or give a strength"
    )


def _known(known: Sequence[dict[str, Any]], chunks: str, nats: float, perturbation: str) -> dict[str, Any] | None:
    """What a run recorded for this budget before."""
    wanted = (chunks, nats, perturbation)
    for one in known:
        if (one["chunks"], one["budget_nats"], one.get("perturbation", "noise")) == wanted:
            return one
    return None


def _marked(walker: Walker, found: dict[str, Any]) -> Walker:
    walker.about = {"budget": found}
    return walker


def solved(walker: Walker) -> list[dict[str, Any]]:
    """What was found for each budget of a walker from `resolved`: the content of a run's budget.json."""
    return [one.about["budget"] for one in walker.modules() if isinstance(one, Walker) and "budget" in one.about]


def _recorded(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [
            {**one, "chunks": str(one["chunks"]), "budget_nats": float(one["budget_nats"]),
             "strength": float(one["strength"])}
            for one in read_json(path, list)
        ]  # fmt: skip
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpointError(f"{path}: damaged: {' '.join(str(error).split())}") from None
