"""Views by budget: how strong noise must be so that image and perturbed image share a given number of nats.

In a T_z, a group may say `budget:NATS` where its noise would stand:

    0_1=budget:3.0                     noise on chunk 0 after which image and positive share 3 nats
    0_1=budget:3.0 1_4=budget:2.0      each group by itself: the other is left alone while one is solved
    0_4=budget:3.0                     one noise on all four chunks, so 3 nats in all

The strength is the standard deviation of normal noise, truncated at 2. Information falls as it grows, so the strength
is found between two ends by a root search on its logarithm (Brent 1973). At each strength the information is the bound
of a critic in closed form (`information/canonical.py`) on the same anchors and the same noise, so the search sees a
smooth curve. The result is checked on new pairs by a new critic. All of it is a function of the seed.

The bound is exact where images are jointly normal, up to the noise of sampling. Elsewhere it is a lower bound, so the
pair shares at least as much as asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mi_ml_gen.walkers.spec import is_groups, read_groups

WORD = "budget:"
LEAST_STRENGTH, MOST_STRENGTH = 1e-3, 3.0
"""Ends of the search, in standard deviations of the anchors' noise. Beyond the upper one latents lie far outside of
what a generator knows, and images lose what the other chunks say, too."""
TOLERANCE = 0.02
"""The search ends where the logarithm of the strength is known to this."""
N_PAIRS = 1024
"""Pairs from which a critic is made in the search, and pairs on which it is measured; the check takes twice as many."""
MOST_NATS = math.log(N_PAIRS) - 2.0
"""Above this the bound would lack more than a tenth for want of candidates."""
N_COMPONENTS = 192
SIZE_PX = 32
"""Side of the images that the critics see, at most."""
BATCH = 256
RECORD = "budget.json"


@dataclass(frozen=True)
class Solved:
    """A strength, and what it was found to leave."""

    chunks: Chunks
    budget_nats: float
    strength: float
    """Standard deviation of the noise."""
    achieved: Estimate
    """By a new critic on new pairs."""

    def to_json(self) -> dict[str, Any]:
        return {
            "chunks": str(self.chunks),
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
    """The strength at which a walker on `chunks` leaves this many nats.

    noise: that of the anchors. walker_of: from a strength to a walker; by default noise of that standard deviation,
    truncated at 2. Raises UsageError for a budget that is not within reach, naming what is.
    """
    noise = noise or TruncatedNormal()
    if not 0 < nats <= MOST_NATS:
        raise UsageError(f"budget {nats:g}: must be above 0 and at most {MOST_NATS:.1f} nats")
    walk = walker_of or (lambda strength: RandomWalker(chunks, strength))
    search = _Images(generator, noise, seed, "search", 2 * N_PAIRS)

    def nats_at(log_strength: float) -> float:
        return search.share(walk(math.exp(log_strength)), N_PAIRS).nats

    scale = noise.std if isinstance(noise, TruncatedNormal) and noise.std else 1.0
    ends = [math.log(end * scale) for end in (LEAST_STRENGTH, MOST_STRENGTH)]
    most, least = map(nats_at, ends)
    if not least < nats < most:
        raise UsageError(
            f"budget {nats:g} on chunks {chunks} of {generator.name}: noise leaves between {max(least, 0.0):.2f} and "
            f"{most:.2f} nats; choose a number between, or other chunks"
        )
    strength = math.exp(brentq(lambda x: nats_at(x) - nats, *ends, xtol=TOLERANCE))
    check = _Images(generator, noise, seed, "check", 4 * N_PAIRS)
    return Solved(chunks, nats, strength, check.share(walk(strength), 2 * N_PAIRS))


class _Images:
    """Anchors of one use, decoded once, and positives of walkers with the same noise for each."""

    def __init__(self, generator: MultiLatentGenerator, noise: NoiseDistribution, seed: int, use: str, n: int) -> None:
        self.generator, self.seed, self.use = generator, seed, use
        self.device = device_of(generator)
        self.z = noise.sample((n, generator.noise_dim), self._rng("anchors", 0))
        images = torch.cat([self._shown(generator.latents(z), i, "anchor") for i, z in enumerate(self.z.split(BATCH))])
        self.whitening = Whitening.of(images[:N_PAIRS], N_COMPONENTS)
        self.anchors = self.whitening(images)

    def share(self, walker: Walker, n_fitted: int) -> Estimate:
        """What anchors and positives share; the critic is made from the first pairs, and measured on the others."""
        parts = []
        for i, z in enumerate(self.z.split(BATCH)):
            with torch.no_grad():
                pair = walker(self.generator, z, self._rng("noise", i))
            parts.append(self.whitening(self._shown(pair.positive, i, "positive")))
        positives = torch.cat(parts)
        return measure(self.anchors[:n_fitted], positives[:n_fitted], self.anchors[n_fitted:], positives[n_fitted:])

    @torch.no_grad()
    def _shown(self, latents: Tensor, i: int, name: str) -> Tensor:
        images = self.generator.decode(latents, self._rng(f"decode {name}", i))
        if self.generator.resolution > SIZE_PX:
            images = functional.interpolate(images, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
        return images.cpu()

    def _rng(self, name: str, step: int) -> torch.Generator:
        return runtime.stream(self.seed, f"budget {self.use}: {name}", step, 0, self.device)


# --- in a T_z -------------------------------------------------------------------------------------------------


def budgets(written: Any) -> dict[str, float]:
    """The budgets of a T_z in nats, by the text of their chunks; empty for a T_z without any.

    Raises UsageError where `budget:` is not followed by a number.
    """
    if not (isinstance(written, Mapping) or (isinstance(written, str) and is_groups(written))):
        return {}
    found = {}
    for chunks, member in read_groups(written).items():
        if isinstance(member, str) and member.startswith(WORD):
            try:
                found[chunks] = float(member.removeprefix(WORD))
            except ValueError:
                raise UsageError(f"T_z: {chunks}={member}: write a number of nats, as in {chunks}=budget:3.0") from None
    return found


def resolved(
    written: Any,
    generator: MultiLatentGenerator,
    noise: NoiseDistribution,
    seed: int,
    folder: str | Path | None = None,
) -> Any:
    """The T_z with a walker in place of every budget; one without budgets as it is. `solved` gives what was found.

    folder: a run folder. What its budget.json records is not solved again, so a run goes on with the noise that it
    began with. Raises as `budgets` and `solve`, and CorruptCheckpointError where that file is damaged.
    """
    asked = budgets(written)
    if not asked:
        return written
    known = _recorded(Path(folder) / RECORD) if folder is not None else []
    groups: dict[str, Any] = dict(read_groups(written))
    for text, nats in asked.items():
        chunks = generator.chunks(text, "T_z: group")
        old = next((one for one in known if (one["chunks"], one["budget_nats"]) == (str(chunks), nats)), None)
        found = old if old is not None else solve(generator, chunks, nats, noise, seed).to_json()
        walker = RandomWalker(chunks, found["strength"])
        walker.about = {"budget": found}
        groups[text] = walker
    return groups


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
