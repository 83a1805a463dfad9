"""The ablation of NVAE: what each latent variable is used for, by learned walkers and by the model's own KL divergence.

A walker is trained on each group and on each whole scale. Its delta, and the information that its pairs still share,
stand beside the KL divergence of the group, which says how many nats about an image the group carries. If both measure
how much a latent variable is used, groups with a large KL divergence are those that walkers change most to some effect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments import table1
from mi_ml_gen.experiments.table1 import Row
from mi_ml_gen.generators.anchors import anchor_distribution
from mi_ml_gen.generators.nvae.evaluation import evaluate_nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.latents import Chunks
from mi_ml_gen.navigator import folders
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.report.figures import bars, curves, scatter
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Table
from mi_ml_gen.walkers.base import Pair, Walker
from mi_ml_gen.walkers.pictures import decode_shown

TEMPERATURES = (0.6, 0.8, 1.0)
N_PAIRS = 256
"""Pairs over which the change of an image is averaged."""
VALUES_AT_ONCE = 2**21
"""Numbers of noise of the pairs that are decoded at a time, at most 64 pairs."""


@dataclass(frozen=True)
class Part:
    """One group, or one whole scale, of an NVAE."""

    name: str
    chunks: Chunks
    kl_nats: float
    """How much it tells about an image, by the model's own KL divergence on test images."""
    kl_error: float
    """Its standard error over the images; of a scale the sum of its groups' errors, which is at least its own."""
    row: Row
    """Its walker's line of Table 1."""
    changes: Mapping[float, float]
    """Root mean square change of the image under the walker, for each temperature; colours in [0, 1]."""
    random_change: float
    """The same, at temperature 1, under steps of the same lengths in random directions."""

    @property
    def of_independent(self) -> float:
        """Delta over the length between independent draws."""
        return self.row.delta.mean / self.row.independent.mean


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, with an interval of 95% (Bonett and Wright, 2000)."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} (95% interval {self.low:+.2f} to {self.high:+.2f}, n = {self.n})"


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Of two lists of numbers, one pair for each group.

    The interval is tanh(atanh(r) +- 1.96 sqrt((1 + r^2 / 2) / (n - 3))): wide for the few groups of a small network.
    Of the same order in both lists, r = 1, it reaches down from the largest r below 1 that n pairs can have.
    Raises UsageError for fewer than four pairs.
    """
    n = len(x)
    if n < 4:
        raise UsageError(f"a rank correlation of {n} groups has no interval; use a network with at least four")
    if min(x) == max(x) or min(y) == max(y):  # nothing to put in an order
        return Correlation(math.nan, -1.0, 1.0, n)
    value = float(stats.spearmanr(x, y).statistic)
    most = 1 - 12 / (n * (n**2 - 1))  # of two lists that differ by an exchange of neighbours
    inner = max(-most, min(value, most))
    half = 1.959964 * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return Correlation(value, min(low, value), max(high, value), n)


def scales(generator: NVAE) -> dict[str, Chunks]:
    """The chunks of each scale, deepest first, by names such as "scale 0"."""
    found, start = {}, 0
    for scale, n_groups in enumerate(generator.settings.groups_per_scale):
        found[f"scale {scale}"] = Chunks(start, start + n_groups)
        start += n_groups
    return found


def groups(generator: NVAE) -> dict[str, Chunks]:
    """The chunk of each group by names such as "group 0:1"."""
    return {f"group {group}": Chunks(i, i + 1) for i, group in enumerate(generator.settings.groups)}


def run_ablation(
    generator: NVAE,
    settings: NavigatorConfig,
    images: Tensor,
    folder: str | Path,
    n_samples: int = 100_000,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[Part]:
    """Train the walkers that are missing in `folder`, and measure all parts: the groups, then the scales.

    images: test images (n, colours, side, side), uint8, for the KL divergences. n_samples: draws for each delta.
    Interrupted, the same call goes on.
    """
    folder = Path(folder)
    quality = evaluate_nvae(generator, images, seed=settings.seed, progress=progress)
    noise = anchor_distribution(settings, generator)
    found = []
    for name, chunks in {**groups(generator), **scales(generator)}.items():
        own = folder / name.replace(" ", "_").replace(":", "_")
        train_navigator(dataclasses.replace(settings, chunks=str(chunks)), generator, own / "walker", progress)
        (walker,) = folders.find_walkers(own)
        (row,) = table1.estimate_rows(generator, [walker], n_samples, noise, settings.seed, device, progress)
        z = noise.sample((N_PAIRS, generator.noise_dim), runtime.stream(settings.seed, "ablation", 0, 0, device))
        changes = {t: _change(generator, walker.walker, z, t) for t in TEMPERATURES}
        random_change = _change(generator, walker.walker, z, 1.0, random_direction=True)
        kl, error = (sum(v[chunks.start : chunks.stop]) for v in (quality.kl_nats, quality.kl_errors))
        found.append(Part(name, chunks, kl, error, row, changes, random_change))
    return found


@torch.no_grad()
def _change(generator: NVAE, walker: Walker, z: Tensor, temperature: float, random_direction: bool = False) -> float:
    """Root mean square change of the image under a walker, or under steps as long in random directions."""
    before = generator.temperature
    generator.use({"temperature": temperature})
    squares = []
    rows = max(1, min(64, VALUES_AT_ONCE // generator.noise_dim))
    rng = runtime.stream(0, "random directions", 0, 0, z.device)
    for part in z.split(rows):
        pair = random_steps(walker(generator, part), rng) if random_direction else walker(generator, part)
        change = decode_shown(generator, pair.positive) - decode_shown(generator, pair.anchor)
        squares.append(change.square().mean((1, 2, 3)))
    generator.use({"temperature": before})
    return torch.cat(squares).mean().sqrt().item()


def random_steps(pair: Pair, rng: torch.Generator) -> Pair:
    """The same anchors, with steps of the same lengths in random directions of the same latent variables."""
    step = pair.positive - pair.anchor
    direction = runtime.normal(step.shape, rng, step.device) * (step != 0).any(0)
    scale = step.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return Pair(pair.anchor, pair.anchor + direction * scale)


# --- The page


def to_table(parts: Sequence[Part]) -> Table:
    """Table 1 of an NVAE with the KL divergences beside it."""
    cells = [
        [
            part.name, str(part.chunks), part.row.delta.n_samples, part.kl_nats, part.kl_error, part.row.delta.mean,
            part.row.delta.std, part.of_independent, part.row.bound_nats,
            "–" if part.row.verdict is None else str(part.row.verdict.verdict), part.row.walker.training or "–",
            *(part.changes[t] for t in TEMPERATURES), part.random_change,
        ]
        for part in parts
    ]  # fmt: skip
    temperatures = [f"change at t = {t:g}" for t in TEMPERATURES]
    columns = ["part", "chunks", "draws", "KL (nats)", "KL error", "delta", "std", "of independent", "bound (nats)"]
    columns += ["verdict", "training"]
    formats = {
        "draws": ",",
        "KL (nats)": ".2f",
        "KL error": ".2f",
        "delta": ".3f",
        "std": ".3f",
        "of independent": ".1%",
    }
    formats |= {"bound (nats)": ".2f", "random directions": ".4f"} | dict.fromkeys(temperatures, ".4f")
    caption = "Learned walkers on each group and each scale, beside the KL divergence on test images."
    return Table([*columns, *temperatures, "random directions"], cells, caption, formats)


def correlations(parts: Sequence[Part]) -> dict[str, Correlation]:
    """Of the KL divergence of single groups with what their walkers say."""
    single = [part for part in parts if len(part.chunks) == 1 and part.name.startswith("group")]
    kl = [part.kl_nats for part in single]
    found = {
        "delta of independent": rank_correlation(kl, [part.of_independent for part in single]),
        "change of the image": rank_correlation(kl, [part.changes[1.0] for part in single]),
    }
    bounds = [part.row.bound_nats for part in single]
    if None not in bounds:
        found["information that remains"] = rank_correlation(kl, [bound for bound in bounds if bound is not None])
    return found


def in_words(parts: Sequence[Part]) -> str:
    """What the correlations and the groups with the largest KL divergence and the least information left say."""
    found = correlations(parts)
    decided = [name for name, r in found.items() if r.low > 0 or r.high < 0]
    single = [part for part in parts if part.name.startswith("group")]
    text = f"These {len(single)} groups do not decide it: the interval of every rank correlation holds 0. "
    if decided:
        said = "; ".join(f"KL divergence and {name}: {found[name]}" for name in decided)
        text = f"The interval of {len(decided)} of {len(found)} rank correlations excludes 0 ({said}). "
    largest = max(single, key=lambda part: part.kl_nats)
    text += f"The largest KL divergence is that of {largest.name}, {largest.kl_nats:.1f} nats"
    if largest.row.bound_nats is None:
        return text + "."
    least = min(single, key=lambda part: part.row.bound_nats or 0.0)
    text += f"; the critic of its walker finds {_found(largest)}. "
    if least is largest:
        return text + "No other critic finds less."
    return text + (
        f"The critic of {least.name} finds least, {_found(least)}, where the KL divergence is {least.kl_nats:.1f} nats."
    )


def _found(part: Part) -> str:
    """What the critic of a walker's training finds, and whether it may be believed."""
    bound = part.row.walker.bound
    return f"{part.row.bound_nats:.2f} nats ({'no verdict' if bound is None else bound.verdict})"


def _with_columns(table: Table, columns: Sequence[str], caption: str) -> Table:
    """Some columns of a table; the first one, of names, is not broken into lines."""
    places = [table.columns.index(name) for name in columns]
    rows = [[str(row[places[0]]).replace(" ", "\u00a0"), *(row[place] for place in places[1:])] for row in table.rows]
    return Table(list(columns), rows, caption, {k: v for k, v in table.formats.items() if k in columns})


@torch.no_grad()
def write_page(path: str | Path, generator: NVAE, parts: Sequence[Part], z: Tensor, command: str) -> Path:
    """One self-contained HTML page. z: noise (n, noise_dim) of the anchors that are shown."""
    single = [part for part in parts if part.name.startswith("group")]
    page = Page(
        f"What each latent variable of {generator.name} is used for",
        "A walker was trained on each group and on each scale of an NVAE. It changes that part alone, so that image "
        "and perturbed image share as little information as a critic can find. The KL divergence of a group is the "
        "model's own account of how much the group tells about an image.",
    )
    whole = to_table(parts)
    changes = [name for name in whole.columns if name.startswith("change at")] + ["random directions"]
    n_draws = parts[0].row.delta.n_samples
    shown = [name for name in whole.columns if name not in (*changes, "draws")]
    table = _with_columns(whole, shown, f"{whole.caption} Each delta is a mean of {n_draws:,} draws.")
    page.section("Table 1 of NVAE, and the KL divergence").table(table)
    page.text(
        "`of independent` is delta divided by the distance between two independent draws. `bound` is what the critic "
        f"of the training finds of the information that a pair still shares. Up to {math.log(2):.2f} nats of it may "
        "say that positives look like no anchor. It has no interval, and `verdict` says whether it may be believed. "
        "`KL error` is the standard error over the test images (for a scale, the sum of its groups' errors, which is "
        "at least its own). `training` says how the training of the walker ended."
    )
    most = min(math.log(2 * part.row.walker.n_pairs - 1) for part in parts)
    samples = sorted({part.row.walker.samples for part in parts})
    trained = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    n_converged = sum(part.row.walker.training == "converged" for part in parts)
    page.text(
        f"Limits: each part has one walker, trained with one seed, and no column covers another training. "
        f"{n_converged} of {len(parts)} walkers converged; the walkers that were kept had seen {trained} samples. The "
        f"candidates of a batch can show at most {most:.2f} nats, so a bound close to that only says that much "
        "information remains."
    )
    found = correlations(parts)
    page.section("Do walkers and KL divergence agree?")
    page.text(in_words(parts))
    page.facts({f"KL and {name}: rank correlation (95% interval {r.low:+.2f} to {r.high:+.2f})": f"{r.value:+.2f}"
                for name, r in found.items()})  # fmt: skip
    page.text(
        "If both measure how much a latent variable is used, a group with a large KL divergence needs a longer "
        "perturbation, changes the image more, or leaves less information behind. An interval that holds 0 decides "
        "nothing."
    )
    labels = [part.name.removeprefix("group ") for part in single]
    kl = [part.kl_nats for part in single]
    panels = {"delta of independent": [part.of_independent for part in single],
              "change of the image": [part.changes[1.0] for part in single]}  # fmt: skip
    if all(part.row.bound_nats is not None for part in single):
        panels["information that remains (nats)"] = [part.row.bound_nats or 0.0 for part in single]
    page.figure(
        [scatter(kl, values, labels, x_label="KL (nats)", title=name) for name, values in panels.items()],
        "What the walkers say over the KL divergence, a point for each group",
        "One point for each group, SCALE:GROUP; scale 0 is the coarsest and is decoded first.",
    )
    page.section("Temperature, and random directions")
    caption = (
        f"Root mean square difference of anchor and positive over {N_PAIRS} pairs, colours in [0, 1]. `random "
        "directions`: steps of the same length in random directions, at temperature 1."
    )
    page.table(_with_columns(whole, ["part", *changes], caption))
    courses = {p.name: [{"temperature": t, "change": c} for t, c in p.changes.items()] for p in single}
    page.figure(
        curves(courses, ("change",), x="temperature", labels={"change": "Change of the image"}),
        "Change of the image under each group's walker, over the temperature",
        "The same walkers at three temperatures: each scales the standard deviation of every group.",
    )
    ratios = {part.name: part.changes[1.0] / part.random_change for part in parts if part.random_change > 0}
    page.figure(
        bars(ratios, x_label="change by the walker / by random steps", number_format=".2f"),
        "How much more a learned walker changes the image than random steps",
        "Random steps have the same lengths. At 1, the learned direction changes the image no more than a random one.",
    )
    page.section("Images").text(
        "The same anchors in every group of rows, at temperature "
        f"{generator.temperature:g}: the positives of the learned walker, and steps of the same lengths in random "
        "directions."
    )
    anchor = decode_shown(generator, generator.latents(z))
    for part in parts:
        pair = part.row.walker.walker(generator, z)
        drawn = random_steps(pair, runtime.stream(0, "random directions", 1, 0, z.device))
        page.rows(
            {
                "anchor": anchor,
                "learned": decode_shown(generator, pair.positive),
                "random": decode_shown(generator, drawn.positive),
            },
            f"anchors and positives of {generator.name}, {part.name}",
            f"{part.name}: delta {part.row.delta.mean:.2f}, KL {part.kl_nats:.1f} nats",
            scale=max(1.0, 64 / generator.resolution),
        )
    page.section("Command").code(command)
    return page.write(path)
