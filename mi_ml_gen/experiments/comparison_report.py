"""The tables and figures of the comparison of views: accuracies, differences by seed, accuracy against shared nats."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mi_ml_gen.core import config
from mi_ml_gen.core.files import atomic_write, read_json
from mi_ml_gen.core.student import MeanInterval, over_units, paired
from mi_ml_gen.experiments.comparison_settings import REFERENCES, ComparisonConfig
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import figure_png, series_colors
from mi_ml_gen.report.page import Page
from mi_ml_gen.walkers.budget import miss

READOUTS = {"sgd": "linear", "ridge": "ridge", "knn": "kNN"}
"""Readouts of probes, and their names in tables."""
OUT_OF_REACH = "out_of_reach"
"""In the file of a budget that cannot be reached: why."""
LABEL_SHARE = 0.045
"""Height of a label beside the figure, as a share of the axis."""
FIGURE_CAPTION = (
    "A small dot for each seed, a large one and a number for their mean, ± for the standard deviation over seeds."
)
NATS_CAPTION = (
    "A small mark for each seed, a large one for their mean. Nats are lower bounds by a critic; > marks one that is "
    "saturated, * one with another warning, and in both cases pairs may share much more. Levels belong to rows without "
    "nats."
)
INK, SOFT, LINE = "#22262b", "#626973", "#dcdfe3"


class Cell(NamedTuple):
    """One encoder and what its probes found: top-1 of each readout, 0 to 1, on the real test images."""

    row: str
    seed: int
    top1: dict[str, float]
    n_test: int
    seconds: float | None
    """Of training the encoder, where this call did all of it."""
    nats: float | None = None
    """What the pairs share before T_x; None for rows without a walker and for cells of earlier versions."""
    samples: int | None = None
    """What the encoder was trained on; None where nothing was trained and for cells of earlier versions."""


def rows_of(cells: Sequence[Cell], settings: ComparisonConfig) -> list[str]:
    """The rows that have a cell, in the order of the table."""
    return [row for row in settings.methods if any(cell.row == row for cell in cells)]


def mean_over_seeds(cells: Sequence[Cell], row: str, readout: str) -> report.Estimate | None:
    """Mean and standard deviation (with n - 1) over seeds, in percent; None where there is no such cell."""
    values = [100 * cell.top1[readout] for cell in cells if cell.row == row]
    if not values:
        return None
    return report.Estimate(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def mean_nats(cells: Sequence[Cell], row: str) -> float | None:
    """The nats that the pairs of a row share, mean over seeds; None where that was not measured."""
    found = [cell.nats for cell in cells if cell.row == row and cell.nats is not None]
    return statistics.fmean(found) if found else None


class Shared(NamedTuple):
    """What was found of the pairs of a row, once for all its seeds."""

    nats: Estimate
    asked_nats: float | None
    """The budget, for a row that has one."""


def shared_of(rows: Sequence[str], settings: ComparisonConfig) -> dict[str, Shared]:
    """What the folder has for these rows, which have cells; without those of which it has nothing."""
    found = {}
    for row in rows:
        solved, measured = (settings.save_folder / what / f"{row}.json" for what in ("budgets", "nats"))
        if solved.exists():
            content = read_json(solved)
            found[row] = Shared(Estimate.from_json(content["achieved"]), content["budget_nats"])
        elif measured.exists():
            found[row] = Shared(Estimate.from_json(read_json(measured)), None)
    return found


def mark(verdict: Verdict) -> str:
    """What stands beside nats: > where they are saturated, * for another warning."""
    return {Verdict.CONSISTENT: "", Verdict.SATURATED: ">"}.get(verdict, "*")


def nats_table(cells: Sequence[Cell], settings: ComparisonConfig) -> report.Table | None:
    """A line for each row with a walker: what its pairs share, and whether that may be believed."""
    lines: list[list[report.Cell]] = []
    for row, (nats, asked) in shared_of(rows_of(cells, settings), settings).items():
        missed = None if asked is None else miss(asked, nats)
        why = nats.reason if missed is None else f"{missed}; {nats.reason}"
        lines.append([settings.methods[row].title, asked, nats.nats, nats.low_nats, str(nats.verdict), why])
    for row, method in settings.methods.items():
        path = settings.save_folder / "budgets" / f"{row}.json"
        if path.exists() and (why := read_json(path).get(OUT_OF_REACH)):
            lines.append([method.title, method.budget_nats, None, None, "out of reach", why])
    if not lines:
        return None
    columns = ["views", "asked for", "nats", "at least (95%)", "verdict", "why"]
    caption = (
        "What image and perturbed image share before T_x: lower bounds, by critics made from other pairs; the interval "
        "is over pairs. docs/information.md has the verdicts. With any but `consistent`, pairs may share much more, so "
        "rows of equal nats may differ in what they share."
    )
    return report.Table(columns, lines, caption, dict.fromkeys(columns[1:4], ".2f"))


def comparison_table(cells: Sequence[Cell], settings: ComparisonConfig) -> report.Table:
    """A line for each row: what it was trained on, and top-1 by each readout, mean and spread over seeds."""
    lines: list[list[report.Cell]] = []
    for row in rows_of(cells, settings):
        method = settings.methods[row]
        n_seeds = sum(cell.row == row for cell in cells)
        accuracies: list[report.Cell] = []
        for readout in READOUTS:
            estimate = mean_over_seeds(cells, row, readout)
            assert estimate is not None
            accuracies.append(estimate if n_seeds > 1 else estimate.value)
        lines.append([method.title, method.Tz or None, method.Tx, mean_nats(cells, row), *accuracies, n_seeds])
    columns = ["views", "T_z", "T_x", "nats", *(f"{name} (%)" for name in READOUTS.values()), "seeds"]
    shares = [cell.top1[readout] for cell in cells for readout in READOUTS]
    of_images = 196 * math.sqrt(max(share * (1 - share) for share in shares) / cells[0].n_test)
    alone = any(line[-1] == 1 for line in lines)
    caption = (
        f"Top-1 on {cells[0].n_test:,} real test images; mean and standard deviation over seeds. "
        + ("A row of one seed does not say what another would give. " if alone else "")
        + f"Other test images would move a number by up to {of_images:.1f} points (95%). "
        f"ResNet-{settings.depth} of width {settings.width}, SimCLR on {_samples(cells, settings)} samples "
        f"each; probes on at most {settings.probe_images:,} labelled images. Nats: a lower bound of what image and "
        f"perturbed image share, before T_x{_warned(cells, settings)}.{_hours(cells)}"
    )
    return report.Table(columns, lines, caption, dict.fromkeys(columns[3:7], ".2f"))


def _warned(cells: Sequence[Cell], settings: ComparisonConfig) -> str:
    """How many rows have nats with a warning, and which."""
    found = shared_of(rows_of(cells, settings), settings)
    parts = []
    for verdict in dict.fromkeys(one.nats.verdict for one in found.values() if one.nats.verdict.is_warning):
        rows = [row for row, one in found.items() if one.nats.verdict is verdict]
        parts.append(f"{verdict}: {_titles(rows, settings)}")
    return f". Verdicts on them, which nats.md explains: {'; '.join(parts)}" if parts else ""


def _samples(cells: Sequence[Cell], settings: ComparisonConfig) -> str:
    """How many samples the encoders saw, in words."""
    own = sorted({cell.samples for cell in cells if cell.samples is not None})
    if len(own) > 1:
        return f"{own[0]:,} to {own[-1]:,}"
    return f"{own[0] if own else settings.samples:,}"


def _titles(rows: Sequence[str], settings: ComparisonConfig) -> str:
    return ", ".join(f'"{settings.methods[row].title}"' for row in rows)


def _hours(cells: Sequence[Cell]) -> str:
    """What the training of the encoders took, in a sentence; nothing where none was trained."""
    own = [cell for cell in cells if cell.row not in REFERENCES]
    seconds = [cell.seconds for cell in own if cell.seconds is not None]
    if not seconds:
        return ""
    left_out = f"; not counted: {len(own) - len(seconds)} stopped on the way" if len(seconds) < len(own) else ""
    return f" Training took {sum(seconds) / 3600:.2f} hours, summed over {len(seconds)} encoders{left_out}."


def differences_table(cells: Sequence[Cell], settings: ComparisonConfig) -> report.Table | None:
    """A line for each row: its difference from the row `against`, in points, over the seeds that both have; None where
    that row or any other is missing, or no row shares two seeds with it."""
    values = {
        (row, readout): {cell.seed: 100 * cell.top1[readout] for cell in cells if cell.row == row}
        for row in rows_of(cells, settings)
        for readout in READOUTS
    }
    lines: list[list[report.Cell]] = []
    alone = []
    for row in rows_of(cells, settings):
        line: list[report.Cell] = [settings.methods[row].title]
        for readout in READOUTS:
            found = paired(values[row, readout], values.get((settings.against, readout), {}))
            if row == settings.against:
                break
            if found is None or found.n < 2:
                alone.append(row)
                break
            line += [found.mean, _interval(found), found.p]
        else:
            lines.append([*line, found.n if found is not None else None])
    if not lines:
        return None
    columns = ["views"]
    formats: dict[str, str] = {}
    for name in READOUTS.values():
        columns += [name, f"{name}: interval", f"{name}: p"]
        formats |= {name: "+.2f", f"{name}: p": ".2g"}
    title = settings.methods[settings.against].title
    caption = (
        f'Difference from "{title}" in points of top-1, paired by seed: mean, 95% interval and two-sided p of '
        "Student's t over the seeds that both rows have. The seeds share walkers and test images, so the intervals are "
        "about other seeds alone. No p is corrected for the number of rows."
    )
    if alone:
        caption += f" Left out, for fewer than two seeds in common: {_titles(alone, settings)}."
    return report.Table([*columns, "seeds"], lines, caption, formats)


def shape_table(cells: Sequence[Cell], settings: ComparisonConfig) -> report.Table | None:
    """Whether accuracy over the nats of a range of chunks is an inverse U; None where no range has three budgets for
    two seeds.

    A parabola is fitted for each seed. The table has its slopes at the least and the most nats, as means over the seeds
    with their intervals. It is an inverse U where the first is above 0 and the second below (Lind and Mehlum 2010), and
    where the best budget lies between the ends and is better than both, paired by seed. Without the latter a curve that
    rises and then stays level would pass for one, since a parabola through it falls at its end (Simonsohn 2018).
    """
    lines: list[list[report.Cell]] = []
    for chunks, rows in budgets_by_chunks(cells, settings).items():
        nats = {row: found for row in rows if (found := mean_nats(cells, row)) is not None}
        for readout, name in READOUTS.items():
            top1 = {(cell.row, cell.seed): 100 * cell.top1[readout] for cell in cells}
            seeds = [seed for seed in settings.seeds if all((row, seed) in top1 for row in nats)]
            if len(nats) < 3 or len(seeds) < 2:
                continue
            x = np.array(list(nats.values()))
            fits = [np.polyfit(x, [top1[row, seed] for row in nats], 2) for seed in seeds]
            left, right = (over_units([2 * fit[0] * at + fit[1] for fit in fits]) for at in (x.min(), x.max()))
            ends = min(nats, key=nats.__getitem__), max(nats, key=nats.__getitem__)
            best = max(nats, key=lambda row: statistics.fmean(top1[row, seed] for seed in seeds))
            gains = [over_units([top1[best, seed] - top1[end, seed] for seed in seeds]) for end in ends]
            is_one = left.low > 0 and right.high < 0 and all(gain.low > 0 for gain in gains)
            lines.append([_noise_on(chunks), name, left.mean, _interval(left), right.mean, _interval(right),
                          nats[best], len(seeds), "yes" if is_one else "not shown"])  # fmt: skip
    if not lines:
        return None
    columns = ["pairs", "readout", "slope at the least nats", "its interval", "slope at the most nats", "its interval ",
               "best at", "seeds", "inverse U"]  # fmt: skip
    caption = (
        "Is accuracy over shared nats an inverse U? Slopes, in points for each nat, of a parabola for each seed; mean "
        "and 95% interval of Student's t over seeds. It is one where the first is above 0 and the second below, and "
        "where the best budget is better than those at both ends, paired by seed."
    )
    asked = [row for row, method in settings.methods.items() if method.budget_nats is not None]
    if missing := [row for row in asked if row not in rows_of(cells, settings)]:
        caption += f" Left out, since they are not there: {_titles(missing, settings)}."
    return report.Table(columns, lines, caption, {columns[2]: "+.2f", columns[4]: "+.2f", "best at": ".2f"})


def budgets_by_chunks(cells: Sequence[Cell], settings: ComparisonConfig) -> dict[str, list[str]]:
    """The rows by budget that have a cell, for each range of chunks."""
    found: dict[str, list[str]] = {}
    for row in rows_of(cells, settings):
        if settings.methods[row].budget_nats is not None:
            found.setdefault(settings.methods[row].chunks, []).append(row)
    return found


def _noise_on(chunks: str) -> str:
    return {"all": "noise on all chunks", "fine": "noise on the fine chunks"}.get(chunks, f"noise on {chunks}")


def _interval(found: MeanInterval) -> str:
    return f"{found.low:+.2f} to {found.high:+.2f}"


def not_asked_for(settings: ComparisonConfig) -> list[str]:
    """Finished cells in the folder that the settings do not name."""
    found = sorted(path.stem for path in (settings.save_folder / "cells").glob("*.json"))
    return [name for name in found if name not in settings.cells and not name.endswith(".failed")]


def write_report(cells: Sequence[Cell], settings: ComparisonConfig, folder: Path) -> None:
    """The tables as Markdown, CSV, JSON and LaTeX, all single results as cells.json, the figures, and the page
    index.html with all of it; nothing where there is no cell."""
    if not cells:
        return
    accuracies, differences = comparison_table(cells, settings), differences_table(cells, settings)
    shape, shared = shape_table(cells, settings), nats_table(cells, settings)
    tables = {"comparison": accuracies, "differences": differences, "shape": shape, "nats": shared}
    for name, table in tables.items():
        if table is not None:
            table.write(folder, name)
            continue
        for ending in ("md", "csv", "json", "json.sha256", "tex"):  # of rows that were asked for before
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    everything = [cell._asdict() for cell in cells]
    atomic_write(folder / "cells.json", (json.dumps(everything, indent=2) + "\n").encode())
    figures = {"comparison": figure(cells, settings)}
    if any(cell.nats is not None for cell in cells):
        figures["nats"] = nats_figure(cells, settings)
    for name, drawn in figures.items():
        atomic_write(folder / f"{name}.png", figure_png(drawn))
    page = Page(
        "Which views make the better encoder?", f"Generator {settings.generator}, probes on {settings.data_path}."
    )
    missing = [name for name, key in settings.cells.items() if key not in {(cell.row, cell.seed) for cell in cells}]
    if missing:
        page.text(f"Not finished, and not in the tables: {', '.join(missing)}.")
    if others := not_asked_for(settings):
        page.text(f"In the folder, but not asked for and not in the tables: {', '.join(others)}.")
    page.section("Accuracy").table(accuracies).figure(
        figures["comparison"], "Top-1 for each kind of views", FIGURE_CAPTION
    )
    page.section("Differences")
    if differences is not None:
        page.table(differences)
    else:
        page.text(f"None: no other row shares two seeds with `{settings.against}`, which `--against` names.")
    if "nats" in figures:
        page.section("How many nats should a pair share?")
        page.figure(figures["nats"], "Top-1 against the nats that pairs share", NATS_CAPTION)
    if shared is not None:
        page.table(shared)
    if shape is not None:
        page.table(shape)
    page.section("Settings").code(config.to_yaml(settings, as_flags=True))
    page.write(folder / "index.html")


def figure(cells: Sequence[Cell], settings: ComparisonConfig, readout: str = "sgd") -> Any:
    """A line for each row: a small dot for each seed, a large one for their mean, and the numbers; references in
    grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = rows_of(cells, settings)
    drawn = Figure(figsize=(7.5, 0.36 * len(rows) + 0.9), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    trained = [row for row in settings.methods if row not in REFERENCES]
    colors = dict(zip(trained, series_colors(len(trained)), strict=True)) if trained else {}
    for place, row in enumerate(rows):
        color = colors.get(row, SOFT)
        values = [100 * cell.top1[readout] for cell in cells if cell.row == row]
        estimate = mean_over_seeds(cells, row, readout)
        assert estimate is not None
        axes.axhline(place, color=LINE, linewidth=0.7, zorder=1)
        axes.plot(values, [place] * len(values), "o", color=color, markersize=4, alpha=0.55, zorder=2)
        axes.plot(estimate.value, place, "o", color=color, markersize=9, zorder=3)
        spread = f" ± {estimate.spread:.2f}" if math.isfinite(estimate.spread) else ""
        axes.annotate(
            f"{estimate.value:.2f}{spread}", (1, place), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [settings.methods[row].title for row in rows], fontsize=9.5, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # from top to bottom
    axes.margins(x=0.08)
    axes.set_xlabel(f"top-1 on real test images by {_reading(readout)} (%)", fontsize=9, color=SOFT)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, labelcolor=SOFT, color=SOFT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    return drawn


def nats_figure(cells: Sequence[Cell], settings: ComparisonConfig, readout: str = "sgd") -> Any:
    """Accuracy against the nats that pairs share: a line over the budgets of each range of chunks, a mark for every
    other row with a walker, and a level for each row without."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    rows = rows_of(cells, settings)
    by_chunks = budgets_by_chunks(cells, settings)
    walked = {row: nats for row in rows if (nats := mean_nats(cells, row)) is not None}
    shared = shared_of(rows, settings)
    single = [row for row in walked if settings.methods[row].budget_nats is None]
    colors = iter(series_colors(len(by_chunks) + len(single)))

    def level(row: str) -> float:
        estimate = mean_over_seeds(cells, row, readout)
        assert estimate is not None
        return estimate.value

    def dots(row: str, color: str) -> None:
        own = [(cell.nats, 100 * cell.top1[readout]) for cell in cells if cell.row == row and cell.nats is not None]
        axes.plot(*zip(*own, strict=True), "o", color=color, markersize=4, alpha=0.5, zorder=2)
        if row in shared and (text := mark(shared[row].nats.verdict)):
            axes.annotate(
                text, (walked[row], level(row)), (7, 4), textcoords="offset points", fontsize=9, color=color
            )  # fmt: skip

    for chunks, members in by_chunks.items():
        color = next(colors)
        members = sorted((row for row in members if row in walked), key=lambda row: walked[row])
        for row in members:
            dots(row, color)
        places = [walked[row] for row in members], [level(row) for row in members]
        axes.plot(
            *places, "o-", color=color, markersize=8, linewidth=1.6, zorder=3, label=f"{_noise_on(chunks)}, by budget"
        )
    for row, marker in zip(single, "sD^vP*X" * 3, strict=False):
        color = next(colors)
        dots(row, color)
        title = settings.methods[row].title
        axes.plot(walked[row], level(row), marker, color=color, markersize=9, zorder=4, label=title)
    levels = {row: level(row) for row in rows if row not in walked}
    for value in levels.values():
        axes.axhline(value, color=LINE, linewidth=1.0, zorder=0)
    low, high = axes.get_ylim()
    heights = apart(list(levels.values()), LABEL_SHARE * (high - low))
    for row, at in zip(levels, heights, strict=True):
        axes.annotate(
            settings.methods[row].title, (1, levels[row]), (1.05, at), xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"), va="center", fontsize=8, color=SOFT if row in REFERENCES else INK,
            arrowprops=dict(arrowstyle="-", color=SOFT, linewidth=0.6, shrinkA=2, shrinkB=0), annotation_clip=False,
        )  # fmt: skip
    marked = "\n> saturated, * another warning" if any(mark(one.nats.verdict) for one in shared.values()) else ""
    axes.set_xlabel(f"nats that image and perturbed image share (lower bound){marked}", fontsize=9, color=SOFT)
    axes.set_ylabel(f"top-1 by {_reading(readout)} (%)", fontsize=9, color=SOFT)
    axes.tick_params(labelsize=9, labelcolor=SOFT, color=SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(SOFT)
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return drawn


def apart(values: Sequence[float], least: float) -> list[float]:
    """Places for labels of these values, in their order, `least` apart and as near as that allows."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [values[i] for i in order]
    for _ in range(100):  # two that are too near push each other away by half of what is missing
        for i in range(len(places) - 1):
            if (missing := least - (places[i + 1] - places[i])) > 0:
                places[i], places[i + 1] = places[i] - missing / 2, places[i + 1] + missing / 2
    found = dict(zip(order, places, strict=True))
    return [found[i] for i in range(len(values))]


def _reading(readout: str) -> str:
    return {"sgd": "a linear layer", "ridge": "ridge regression", "knn": "nearest neighbours"}[readout]


__all__ = [
    "READOUTS",
    "Cell",
    "comparison_table",
    "differences_table",
    "figure",
    "nats_figure",
    "nats_table",
    "not_asked_for",
    "shape_table",
    "write_report",
]
