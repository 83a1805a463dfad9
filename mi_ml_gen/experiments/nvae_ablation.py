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
from mi_ml_gen.generators.nvae.evaluation import evaluate_nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.latents import Chunks
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.report.figures import scatter
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Table
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.pictures import decode_shown

TEMPERATURES = (0.6, 0.8, 1.0)
N_PAIRS = 256
"""Pairs over which the change of an image is averaged."""


@dataclass(frozen=True)
class Part:
    """One group, or one whole scale, of an NVAE."""

    name: str
    chunks: Chunks
    kl_nats: float
    """How much it tells about an image, by the model's own KL divergence on test images."""
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
    Raises UsageError for fewer than four pairs.
    """
    n = len(x)
    if n < 4:
        raise UsageError(f"a rank correlation of {n} groups has no interval; use a network with at least four")
    value = float(stats.spearmanr(x, y).statistic)
    if math.isnan(value) or abs(value) > 1 - 1e-12:  # the same value everywhere, or the same order
        return Correlation(value, -1.0 if math.isnan(value) else value, 1.0 if math.isnan(value) else value, n)
    half = 1.959964 * math.sqrt((1 + value**2 / 2) / (n - 3))
    return Correlation(value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half), n)


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
    kl = evaluate_nvae(generator, images, seed=settings.seed, progress=progress).kl_nats
    found = []
    for name, chunks in {**groups(generator), **scales(generator)}.items():
        own = folder / name.replace(" ", "_").replace(":", "_")
        train_navigator(dataclasses.replace(settings, chunks=str(chunks)), generator, own / "walker", progress)
        (walker,) = table1.find_walkers(own)
        (row,) = table1.estimate_rows(
            generator, [walker], n_samples, settings.distribution, settings.seed, device, progress
        )
        z = settings.distribution.sample(
            (N_PAIRS, generator.noise_dim), runtime.stream(settings.seed, "ablation", 0, 0, device)
        )
        changes = {t: _change(generator, walker.walker, z, t) for t in TEMPERATURES}
        random_change = _change(generator, walker.walker, z, 1.0, random_direction=True)
        part_kl = sum(kl[chunks.start : chunks.stop])
        found.append(Part(name, chunks, part_kl, row, changes, random_change))
    return found


@torch.no_grad()
def _change(generator: NVAE, walker: Walker, z: Tensor, temperature: float, random_direction: bool = False) -> float:
    """Root mean square change of the image under a walker, or under steps as long in random directions."""
    before = generator.temperature
    generator.use({"temperature": temperature})
    pair = walker(generator, z)
    step = pair.positive - pair.anchor
    if random_direction:
        rng = runtime.stream(0, "random directions", 0, 0, z.device)
        direction = runtime.normal(step.shape, rng) * (step != 0).any(0)
        step = direction * (step.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp(min=1e-12))
    squares = []
    for anchor, moved in zip(pair.anchor.split(64), step.split(64), strict=True):
        change = decode_shown(generator, anchor + moved) - decode_shown(generator, anchor)
        squares.append(change.square().mean((1, 2, 3)))
    generator.use({"temperature": before})
    return torch.cat(squares).mean().sqrt().item()


# --- The page


def to_table(parts: Sequence[Part]) -> Table:
    """Table 1 of an NVAE with the KL divergences beside it."""
    cells = [
        [
            part.name, str(part.chunks), part.row.delta.n_samples, part.kl_nats, part.row.delta.mean,
            part.row.delta.std, part.of_independent, part.row.bound_nats,
            *(part.changes[t] for t in TEMPERATURES), part.random_change,
        ]
        for part in parts
    ]  # fmt: skip
    temperatures = [f"change at t = {t:g}" for t in TEMPERATURES]
    columns = ["part", "chunks", "draws", "KL (nats)", "delta", "std", "of independent", "bound (nats)"]
    formats = {"draws": ",", "KL (nats)": ".2f", "delta": ".3f", "std": ".3f", "of independent": ".1%"}
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


def write_page(path: str | Path, generator: NVAE, parts: Sequence[Part], z: Tensor, command: str) -> Path:
    """One self-contained HTML page. z: noise (n, noise_dim) of the anchors that are shown."""
    single = [part for part in parts if part.name.startswith("group")]
    page = Page(
        f"What each latent variable of {generator.name} is used for",
        "A walker was trained on each group and on each scale of an NVAE. It changes that part alone, so that image "
        "and perturbed image share as little information as a critic can find. The KL divergence of a group is the "
        "model's own account of how much the group tells about an image.",
    )
    page.section("Table 1 of NVAE, and the KL divergence").table(to_table(parts))
    page.text(
        "`of independent` is delta over the length between two independent draws. `bound` is a lower bound on the "
        "information that a pair still shares. A change is the root mean square difference of the two images; "
        "`random directions` has steps of the same length in random directions, at temperature 1."
    )
    page.section("Do walkers and KL divergence agree?")
    page.facts(
        {f"rank correlation of the KL divergence with {name}": str(r) for name, r in correlations(parts).items()}
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
        "One point for each group.",
    )
    page.section("Images").text("The same anchors in every pair of rows, each above its positive.")
    anchor = decode_shown(generator, generator.latents(z))
    for part in parts:
        positive = decode_shown(generator, part.row.walker.walker(generator, z).positive)
        page.rows(
            {"anchor": anchor, "positive": positive},
            f"anchors and positives of {generator.name}, {part.name}",
            f"{part.name}: delta {part.row.delta.mean:.2f}, KL {part.kl_nats:.1f} nats",
            scale=max(1.0, 64 / generator.resolution),
        )
    page.section("Command").code(command)
    return page.write(path)
