"""Table 1 of the paper: for each latent variable, how far a learned walker moves it, and what the pair still shares.

`navigator/folders.py` reads the folder of walkers that it is made of.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mi_ml_gen import delta
from mi_ml_gen.core import runs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write, write_json
from mi_ml_gen.delta import DeltaEstimate
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.information.image_critic import CriticSettings, PairCritic
from mi_ml_gen.information.infonce import infonce_bound
from mi_ml_gen.information.verdicts import Finding
from mi_ml_gen.latents import NoiseDistribution, TruncatedNormal
from mi_ml_gen.navigator import folders, stored_critics
from mi_ml_gen.navigator.folders import SMOOTHED_STEPS, TrainedWalker
from mi_ml_gen.navigator.folders import find_walkers as find_walkers
from mi_ml_gen.navigator.remaining import (
    SHARED_NATS,
    SHARES_OF_INDEPENDENT,
    Curve,
    Point,
    Remaining,
    measure_remaining,
)
from mi_ml_gen.navigator.selection import NOT_CHECKED
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.several import train_several
from mi_ml_gen.navigator.spread import WalkerMean, over_walkers
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import bars, curves, figure_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.text import encoded
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.pictures import decode_shown, swaps

LEAST_FRESH_STEPS = 60
"""Steps of a fresh critic below which none is trained unless it was asked for."""


@dataclass(frozen=True)
class Row:
    """One line of Table 1."""

    walker: TrainedWalker
    delta: DeltaEstimate
    independent: DeltaEstimate
    """Length between independent draws on the same chunks."""
    each: tuple[DeltaEstimate, ...] = ()
    """Delta of each of several walkers; `delta` is then their mean."""
    remaining: Remaining | None = None
    """What its pairs still share, by a fresh critic; None where none was trained."""

    @property
    def spread(self) -> WalkerMean | None:
        """Delta with its interval over walkers and draws; None of one walker, which has no such interval."""
        return over_walkers([one.mean for one in self.each], [one.standard_error for one in self.each])

    @property
    def verdict(self) -> Finding | None:
        """Of the information that the row states: of the fresh critic's, else of the bound of the training."""
        if self.remaining is not None:
            return Finding(self.remaining.together.verdict, self.remaining.together.reason)
        return self.walker.bound

    @property
    def bound_nats(self) -> float | None:
        """From the smoothed loss: three losses of single batches are too few for a bound."""
        w = self.walker
        if w.own_bound_nats is not None:
            return w.own_bound_nats
        return None if w.smoothed_infonce is None else infonce_bound(w.smoothed_infonce, w.n_pairs, w.temperature).nats


# ---------------------------------------------------------------------------------------------------------------
# Making the table


def check_iterations(
    base: str | Path, samples: Sequence[int] | None, settings: NavigatorConfig, generator: MultiLatentGenerator,
    group: int = 1,
) -> None:  # fmt: skip
    """Refuse by UsageError, before `train_missing` trains anything, checkpoints that `find_walkers` could not find."""
    if samples is None:
        return
    base = Path(base)
    there = folders.folders_of_walkers(base) if base.is_dir() else []
    names = sorted({path.name for path in there} | set(_trained_names(generator, group)), key=folders.natural_key)
    folders.check_count(samples, names)
    for name, at in zip(names, samples, strict=True):
        if name in _trained_names(generator, group) and at > settings.num_samples:
            raise UsageError(f"--walkers_iter {at}: {name} is trained on {settings.num_samples:,} samples alone")


def _trained_names(generator: MultiLatentGenerator, group: int) -> list[str]:
    """The subfolders that `train_missing` trains in."""
    stem = "chunk" if group == 1 else "group_"
    return [f"{stem}{i}" for i in range(len(generator.groups(group)))]


SEVERAL = 4
"""Walkers that are trained for each group of chunks, so that delta has an interval over trainings."""


def n_walkers(
    base: str | Path, generator: MultiLatentGenerator, group: int, asked: int | None, as_published: bool, usual: int
) -> int:
    """How many walkers `train_missing` is to train for each group of chunks: what is asked for, else what an earlier
    call has begun with in `base`, else `usual`. Raises UsageError for several walkers as published."""
    if as_published and asked not in (None, 1):
        raise UsageError(f"--as-published and {asked} walkers: the published procedure trains one; leave out either")
    if asked is not None or as_published:
        return asked or 1
    begun = [Path(base) / name for name in _trained_names(generator, group)]
    found = [runs.read_config(path) for path in begun if (path / "config.yaml").exists()]
    return int(found[0].get("walkers", 1)) if found else usual


def train_missing(
    base: str | Path,
    settings: NavigatorConfig,
    generator: MultiLatentGenerator,
    group: int = 1,
    progress: bool = True,
) -> None:
    """Train `settings.walkers` for each group of `group` chunks, in base/chunk0, base/chunk1, ...; finished ones stay.

    Interrupted, the same call resumes. Raises UsageError when the chunks cannot be cut into such groups.
    """
    for name, chunks in zip(_trained_names(generator, group), generator.groups(group), strict=True):
        own = dataclasses.replace(settings, chunks=str(chunks))
        train = train_navigator if settings.walkers == 1 else train_several
        train(own, generator, Path(base) / name, progress)


def of_tz(
    written: Sequence[str], generator: MultiLatentGenerator, noise: NoiseDistribution, seed: int,
    device: torch.device | str,
) -> list[TrainedWalker]:  # fmt: skip
    """Perturbations that nobody trained, written as T_z, for rows of their own beside the walkers.

    Raises UsageError for one that does not perturb exactly one range of chunks, for one given twice, and as
    `budget.walker_by`.
    """
    found = []
    for text in written:
        walker = budget.walker_by(text, generator, noise, seed, device)
        if len(walker.chunks) != 1:
            raise UsageError(f"--Tz {text}: perturbs {len(walker.chunks)} ranges of chunks; give one T_z for each row")
        if written.count(text) > 1:
            raise UsageError(f"--Tz {text}: is given twice")
        folder = Path(re.sub(r"[^A-Za-z0-9_.-]+", "-", f"Tz {text}"))
        found.append(TrainedWalker(folder, walker, 0, None, None, 0, 0.0, written=text))
    return found


def estimate_rows(
    generator: MultiLatentGenerator,
    found: Sequence[TrainedWalker],
    n_samples: int,
    distribution: NoiseDistribution | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
    *,
    law: TruncatedNormal | None = None,
) -> list[Row]:
    """One row for each walker. Raises UsageError for a walker that does not fit the generator."""
    distribution = distribution or law  # its former name
    rows = []
    for one in found:
        for chunks in one.walker.chunks:
            generator.chunks(str(chunks), flag=f"{one.folder}: walker on chunks")
        each = [
            delta.estimate_delta(generator, walker.to(device), n_samples, distribution, seed, device, progress)
            for walker in one.walkers
        ]
        whole = one.walker.chunks[0]
        independent = delta.independent_delta(generator, whole, distribution=distribution, seed=seed, device=device)
        rows.append(Row(one, _mean_of(each), independent, tuple(each) if one.several else ()))
    return rows


def _mean_of(each: Sequence[DeltaEstimate]) -> DeltaEstimate:
    """Mean delta over walkers, with the root of their mean variance over anchors."""
    if len(each) == 1:
        return each[0]
    std = math.sqrt(statistics.fmean(one.std**2 for one in each))
    return DeltaEstimate(statistics.fmean(one.mean for one in each), std, each[0].n_samples)


def fresh_settings(found: Sequence[TrainedWalker], settings: CriticSettings | None = None) -> CriticSettings | None:
    """Settings of fresh critics that cost less than the training of the walkers did; None where that is too little.

    The images that a critic sees for the first time are bounded by twice the number that its walkers trained on: a step
    of the training also goes back through the generator, and twice through its critic. Walkers of unknown training, as
    the published ones, have no such bound.
    """
    settings = settings or CriticSettings()
    seen = [one.rows[-1]["samples"] * len(one.walkers) for one in found if one.rows]
    if not seen:
        return settings
    n_sources = max(len(one.walkers) for one in found)
    steps = 2 * min(seen) * settings.reuse // (settings.batch_size * n_sources)
    if steps < LEAST_FRESH_STEPS:
        return None
    return dataclasses.replace(settings, max_steps=min(settings.max_steps, steps))


def with_remaining(
    generator: MultiLatentGenerator,
    rows: Sequence[Row],
    settings: CriticSettings | None = None,
    distribution: NoiseDistribution | None = None,
    with_curves: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
    keep: Path | None = None,
) -> list[Row]:
    """The rows with what their pairs still share, measured by fresh critics; each starts from that of the row before.

    with_curves: also the curve of nats against delta of each row's chunks. Walkers of several ranges of chunks (grouped
    ones) have no curve. keep: a folder for what was found; the same call then trains no critic again.
    """
    measured: list[Row] = []
    warm: PairCritic | None = None
    settings, distribution = settings or CriticSettings(), distribution or TruncatedNormal()
    before = ""
    for row in rows:
        walkers = [walker.to(device) for walker in row.walker.walkers]
        median = next(i for i, walker in enumerate(row.walker.walkers) if walker is row.walker.walker)
        with_curve = with_curves and len(walkers[0].chunks) == 1 and row.walker.written is None
        measure = partial(
            measure_remaining, generator, walkers, row.independent.mean, distribution=distribution, settings=settings,
            with_curve=with_curve, curve_of=median, seed=seed, device=device, warm=warm, progress=progress,
        )  # fmt: skip
        if keep is None:
            remaining, warm = measure()
        else:
            before = stored_critics.origin(generator, walkers, distribution, settings, before, with_curve=with_curve,
                                 curve_of=median, seed=seed, independent=row.independent.mean)  # fmt: skip
            path = keep / f"{row.walker.folder.name}.safetensors"
            remaining, warm = stored_critics.measured_once(path, before, measure)
            warm = warm.to(device)
        measured.append(dataclasses.replace(row, remaining=remaining))
    return measured


def to_table(rows: Sequence[Row], notes: Sequence[str] = ()) -> report.Table:
    """All columns; delta and InfoNCE as in the paper, and beside them their errors and scales.

    notes: in what the table was measured otherwise than its runs recorded; they stand in the caption.
    """
    has_smoothed = any(row.walker.infonce != row.walker.smoothed_infonce for row in rows)  # published walkers
    has_several = any(row.each for row in rows)
    has_training = any(row.walker.training is not None for row in rows)
    has_remaining = any(row.remaining is not None for row in rows)
    has_tz = any(row.walker.written is not None for row in rows)
    columns = [
        "chunks",
        *(["T_z"] if has_tz else []),
        "delta",
        *(["95% interval"] if has_several else []),
        "std",
        "std. error",
        "of independent",
    ]
    columns += ["InfoNCE", *(["smoothed"] if has_smoothed else []), "bound (nats)"]
    columns += [*(["remaining (nats)", "at least (nats)"] if has_remaining else [])]
    columns += [*(["verdict", "training"] if has_training or has_remaining else []), "samples"]
    cells = []
    for row in rows:
        fresh = None if row.remaining is None else row.remaining.together
        values: dict[str, report.Cell] = {
            "chunks": row.walker.chunks,
            "T_z": row.walker.written or "learned",
            "delta": row.delta.mean,
            "95% interval": "–" if row.spread is None else f"{row.spread.low:.3f} to {row.spread.high:.3f}",
            "std": row.delta.std,
            "std. error": row.delta.standard_error,
            "of independent": row.delta.mean / row.independent.mean,
            "InfoNCE": row.walker.infonce,
            "smoothed": row.walker.smoothed_infonce,
            "bound (nats)": row.bound_nats,
            "remaining (nats)": None if fresh is None else fresh.nats,
            "at least (nats)": None if fresh is None else fresh.low_nats,
            "verdict": "–" if row.verdict is None else str(row.verdict.verdict),
            "training": row.walker.training or "–",
            "samples": row.walker.samples if row.walker.written is None else None,
        }
        cells.append([values[name] for name in columns])
    formats = {"delta": ".3f", "std": ".3f", "std. error": ".4f", "of independent": ".1%", "InfoNCE": ".3f",
               "smoothed": ".3f", "bound (nats)": ".2f", "remaining (nats)": ".2f", "at least (nats)": ".2f",
               "samples": ","}  # fmt: skip
    return report.Table(
        columns, cells, _caption(rows, has_smoothed, has_several, has_training, has_remaining, notes),
        {name: text for name, text in formats.items() if name in columns},
    )  # fmt: skip


def _caption(
    rows: Sequence[Row], has_smoothed: bool, has_several: bool, has_training: bool, has_remaining: bool,
    notes: Sequence[str],
) -> str:  # fmt: skip
    n = rows[0].delta.n_samples
    text = f"Delta is the mean length of each walker's perturbation over {n:,} draws of the anchor."
    if has_several:
        n_walkers = max(len(row.each) for row in rows)
        text += f" It is the mean over up to {n_walkers} walkers, and its 95% interval covers another training of them."
    else:
        text += " Its standard error covers draws of the anchor, and not another training of the walker."
    text += (
        " InfoNCE is the loss of the critic that trained against the walker, and the bound is what that loss says of "
        "the information that the pair shares."
    )
    if has_remaining:
        text += (
            " Remaining is a lower bound on that information by a fresh critic, which was trained on the finished "
            "walker alone; with 95% confidence the information is at least the next column. The verdict is that of "
            "the remaining information."
        )
    elif has_training:
        text += " The verdict is that of the bound."
    alone = [row for row in rows if not row.walker.several and row.bound_nats is not None]
    if alone:
        bounds = [(str(row.walker.chunks), row.walker.bound) for row in alone]
        unchecked = [chunks for chunks, bound in bounds if bound is None or NOT_CHECKED in bound.reason]
        most = f"{math.log(2):.2f} nats"
        text += f" Of the bound of a single walker up to {most} may say that positives look like no anchor"
        if len(unchecked) == len(alone):
            text += ", which was not checked."
        else:
            text += "; a discriminator has looked for that, and `marginals differ` says that it found much of it"
            text += f" (chunks {', '.join(unchecked)}: not checked)." if unchecked else "."
    if has_smoothed:
        text += (
            " InfoNCE of published walkers is the mean of three losses, as published; beside it stands the mean over "
            f"{SMOOTHED_STEPS} steps to either side, from which the bound follows."
        )
    if any(row.walker.written is not None for row in rows):
        text += " Where T_z is not `learned`, nothing was trained: the perturbation is the one that the T_z writes."
    if notes:
        text += f" Measured with {'; '.join(notes)}."
    return text


def details(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything that is known of each row, as plain values: intervals, verdicts with their reasons, and curves."""
    found = []
    for row in rows:
        spread, verdict, bound = row.spread, row.verdict, row.walker.bound
        found.append(
            {
                "chunks": row.walker.chunks,
                "T_z": row.walker.written or "learned",
                "n_walkers": len(row.walker.walkers),
                "delta": row.delta.mean,
                "delta_interval_over_walkers": None if spread is None else [spread.low, spread.high],
                "delta_of_each_walker": [one.mean for one in row.each] or [row.delta.mean],
                "delta_std_over_anchors": row.delta.std,
                "independent_delta": row.independent.mean,
                "training": row.walker.training,
                "bound_nats": row.bound_nats,
                "bound_verdict": None if bound is None else str(bound.verdict),
                "bound_verdict_because": None if bound is None else bound.reason,
                "verdict": None if verdict is None else str(verdict.verdict),
                "verdict_because": None if verdict is None else verdict.reason,
                "remaining": None if row.remaining is None else row.remaining.to_json(),
            }
        )
    return found


def warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row whose information or training needs caution."""
    lines = []
    for row in rows:
        if (verdict := row.verdict) is not None and verdict.verdict.is_warning:
            lines.append(f"{row.walker.name}: {verdict.verdict}: {verdict.reason}")
        is_said = row.remaining is None and verdict is not None  # the bound's verdict knows of it
        if row.walker.training not in (None, "converged") and not is_said:
            lines.append(f"chunks {row.walker.chunks}: the training of the walker has not converged "
                         f"({row.walker.training}): train longer before you compare its delta")  # fmt: skip
    return lines


def to_curve_table(rows: Sequence[Row]) -> report.Table | None:
    """Chunks at equal information and at equal delta, a line for each kind of perturbation; None without curves."""
    columns = ["chunks", "perturbation", *(f"delta at {nats:g} nats" for nats in SHARED_NATS)]
    columns += [f"nats at {share:.0%}" for share in SHARES_OF_INDEPENDENT]
    cells = []
    for row in rows:
        curve = _curve_of(row)
        for kind in ("learned", "random") if curve is not None else ():
            assert curve is not None
            readings = [curve.delta_at(kind, nats) for nats in SHARED_NATS]
            readings += [curve.nats_at(kind, share) for share in SHARES_OF_INDEPENDENT]
            cells.append([row.walker.chunks, kind, *map(str, readings)])
    if not cells:
        return None
    caption = (
        "Delta at which a pair still shares so many nats, and nats that it shares at so much of the distance between "
        "independent draws. The numbers are read off the curves of nats against delta, between measured points; the "
        "95% intervals follow from the errors of the points and do not cover another training of the walker. The nats "
        "are lower bounds by a fresh critic. > marks a number beside a point whose bound is saturated: the information "
        "may be much higher. * marks one beside a point with another warning, which table1_details.json names."
    )
    return report.Table(columns, cells, caption)


def _curve_of(row: Row) -> Curve | None:
    return None if row.remaining is None else row.remaining.curve


def curve_figure(curve: Curve) -> Any:
    """Nats against delta, learned and random perturbations side by side, with intervals; warned points are open."""

    def row(point: Point) -> dict[str, float]:
        found = point.estimate
        return {"delta": point.delta, "nats": found.nats, "nats_low": found.low_nats, "nats_high": found.high_nats,
                "nats_warned": found.verdict.is_warning}  # fmt: skip

    lines = {kind: [row(point) for point in curve.of(kind)] for kind in ("learned", "random")}
    labels = {"nats": f"Chunks {curve.chunks}: nats shared"}
    return curves({kind: points for kind, points in lines.items() if points}, ("nats",), "delta", "delta", labels, 1)


def to_paper_table(rows: Sequence[Row]) -> report.Table:
    """The paper's columns, for LaTeX: chunk, mean and standard deviation of delta, InfoNCE; and where it is known, the
    verdict on the bound that follows from InfoNCE."""
    columns = ["chunk", "mean", "std", "InfoNCE"]
    formats = dict.fromkeys(columns[1:], ".2f")
    cells: list[list[report.Cell]]
    cells = [
        [row.walker.written or row.walker.chunks, row.delta.mean, row.delta.std, row.walker.infonce] for row in rows
    ]
    if any(row.walker.bound is not None for row in rows):
        columns.append("verdict")
        for cell, row in zip(cells, rows, strict=True):
            cell.append("–" if row.walker.bound is None else str(row.walker.bound.verdict))
    return report.Table(columns, cells, formats=formats)


def write_table(rows: Sequence[Row], folder: str | Path, notes: Sequence[str] = ()) -> list[Path]:
    """Table 1 as Markdown, CSV, JSON, LaTeX and a figure in `folder`, and its details as JSON; gives the files."""
    folder = Path(folder)
    written = list(to_table(rows, notes).write(folder, "table1").values())
    write_json(folder / "table1_details.json", details(rows))
    written.append(folder / "table1_details.json")
    if (by_curve := to_curve_table(rows)) is not None:
        written += by_curve.write(folder, "table1_curves").values()
    atomic_write(folder / "table1.tex", encoded(to_paper_table(rows).to_latex()))
    atomic_write(folder / "table1.png", figure_png(delta_figure(rows)))
    return [*written, folder / "table1.png"]


def delta_figure(rows: Sequence[Row]) -> Any:
    """Delta of each row as bars: with its 95% interval over trainings where all rows have one, else with the standard
    deviation over anchors."""
    spreads = [row.spread for row in rows if row.spread is not None]
    if len(spreads) == len(rows):
        of_trainings = {
            row.walker.name: report.Estimate(spread.mean, spread.half_width)
            for row, spread in zip(rows, spreads, strict=True)
        }
        return bars(of_trainings, x_label="delta (mean ± half of the 95% interval over trainings)")
    values = {row.walker.name: report.Estimate(row.delta.mean, row.delta.std) for row in rows}
    return bars(values, x_label="delta (mean ± standard deviation over anchors)")


class MeasuredGenerator(NamedTuple):
    """A generator, the rows of its Table 1, and the noise with which it was measured."""

    generator: MultiLatentGenerator
    rows: Sequence[Row]
    distribution: NoiseDistribution
    seed: int
    device: torch.device | str
    notes: Sequence[str] = ()
    """In what it was measured otherwise than its runs recorded."""


def write_page(
    path: str | Path, measured: Sequence[MeasuredGenerator], title: str, commands: str, n_images: int = 10
) -> Path:
    """One self-contained HTML page: for each generator the table, delta as bars, anchors beside positives per chunk,
    chunks exchanged, and the curves of training."""
    page = Page(
        title,
        "A walker was trained on each latent variable (chunk, or group of chunks) of a frozen generator: it perturbs "
        "that part alone, so that image and perturbed image share as little information as a critic can find. The "
        "length of the perturbation, delta, and what changes in the images say what the part does.",
    )
    for one in measured:
        _add_generator(page, one, n_images)
    page.section("Commands").code(commands)
    return page.write(path)


@torch.no_grad()
def _add_generator(page: Page, measured: MeasuredGenerator, n_images: int) -> None:
    generator, rows = measured.generator, measured.rows
    shape = (n_images, generator.noise_dim)
    z, donors = (
        measured.distribution.sample(shape, runtime.stream(measured.seed, name, 0, 0, measured.device))
        for name in ("page", "donors")
    )
    page.section(f"Table 1 of {generator.name}").table(to_table(rows, measured.notes))
    page.text(
        "`of independent` is delta over the length between two independent draws of the chunk: at 100% the anchor is "
        "forgotten. `bound` is what the critic of the training finds, in nats. It is a lower bound on the mutual "
        "information of the pair, but for what the table's caption says of single walkers."
    )
    for line in warnings(rows):
        page.text(f"Caution: {line}.")
    if (by_curve := to_curve_table(rows)) is not None:
        page.section(f"Nats against delta, {generator.name}").table(by_curve)
        found = [curve for row in rows if (curve := _curve_of(row)) is not None]
        text = (
            "Nats shared against delta, a panel for each chunk. Lines reach down to the lower end of the 95% interval; "
            "open circles carry a warning, which table1_details.json names."
        )
        page.figure([curve_figure(curve) for curve in found], text)
    page.figure(delta_figure(rows), f"Delta of each walker of {generator.name} as a bar")
    page.section(f"What each latent variable of {generator.name} does")
    page.text(f"The same {n_images} anchors in every row, each above its positive.")
    scale = max(1.0, 64 / generator.resolution)
    anchor = decode_shown(generator, generator.latents(z))
    for row in rows:
        positive = decode_shown(generator, row.walker.walker(generator, z).positive)
        page.rows(
            {"anchor": anchor, "positive": positive},
            f"anchors and positives of {generator.name}, {row.walker.name}",
            f"{row.walker.name}: delta {row.delta.mean:.2f}",
            scale=scale,
        )
    page.text("The same anchors with these chunks exchanged for those of other images, the donors; nothing is trained.")
    groups = list(dict.fromkeys(chunks for row in rows for chunks in row.walker.walker.chunks))
    page.image(
        swaps(generator, z, donors, groups),
        f"anchors of {generator.name}, a row per part taken from the donors, donors",
        f"anchors; {', '.join(map(str, groups))} from the donors; donors",
        scale=scale,
    )
    courses = {f"chunks {row.walker.chunks}": row.walker.rows for row in rows if row.walker.rows}
    if courses:
        page.section(f"Training of the walkers of {generator.name}").figure(
            [curves(courses, (name,), x="samples", x_label="samples") for name in ("loss", "bound_nats", "delta")],
            "Loss, bound and delta during training, a line for each walker",
            "The critic first learns to tell pairs (the loss falls), then the walker takes information away.",
        )
