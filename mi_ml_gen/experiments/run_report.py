"""Runs side by side on one page: the settings that differ, their curves, their last numbers and their pictures.

Made for runs of the navigator, whose numbers are those of summary.json, each with its verdict. Runs of other trainers
(encoders, probes, generators, NVAE, MIM) are shown as far as their rows of metrics go.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mi_ml_gen.core import runs
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.information.estimate import Verdict
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import QUANTITIES, curves
from mi_ml_gen.report.page import Page

LAST_SHARE = 0.1
"""Share of a run's rows whose mean is its last value, where nothing better was written down."""
LEAST_ROWS = 20
"""Rows from which that mean gets an interval."""
PLACES = ("step", "samples", "epoch")
"""Columns that say where in a run a row stands, and are no results."""
MOST_PICTURES = 4
WIDEST_PX = 1200


@dataclass(frozen=True)
class Run:
    """What is known of one run folder."""

    name: str
    path: Path
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    """The content of summary.json; empty where the run has not ended, or its trainer writes none."""

    @property
    def is_navigator(self) -> bool:
        return "bound_nats" in self.summary and "delta" in self.summary


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, by the shortest ends of their paths that tell them apart.

    Raises UsageError for a folder that is no run's, or is given twice, CorruptCheckpointError for a damaged file.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("RUN: a run folder is given twice")
    names = _names([path.resolve() for path in paths])
    return [
        Run(name, path, runs.read_config(path), runs.read_metrics(path, whole=True), _summary(path))
        for name, path in zip(names, paths, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    for n in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-n:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _summary(path: Path) -> dict[str, Any]:
    file = path / "summary.json"
    return runs.read_json(file) if file.exists() else {}


# ---------------------------------------------------------------------------------------------------------------
# Tables


def differing_settings(found: Sequence[Run]) -> report.Table:
    """The settings in which the runs differ, a line each."""
    names = dict.fromkeys(name for run in found for name in run.settings)
    rows: list[list[report.Cell]] = []
    for name in names:
        values = [_shown(run.settings.get(name, "(not set)")) for run in found]
        if len(set(values)) > 1:
            rows.append([name, *values])
    caption = "Settings in which the runs differ." if rows else "The runs have the same settings."
    return report.Table(["setting", *(run.name for run in found)], rows, caption)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def final_numbers(found: Sequence[Run]) -> list[report.Table]:
    """What the runs came to: a table of the navigator's runs, and one of the others."""
    tables = []
    if navigators := [run for run in found if run.is_navigator]:
        tables.append(_navigator_table(navigators))
    if others := [run for run in found if not run.is_navigator]:
        tables.append(_other_table(others))
    return tables


def _navigator_table(found: Sequence[Run]) -> report.Table:
    columns = ["run", "delta", "95% interval", "of independent", "bound (nats)", "ceiling", "verdict", "why", "samples"]
    rows: list[list[report.Cell]] = []
    for run in found:
        s = run.summary
        verdict, reason = verdict_of(s)
        rows.append([
            run.name, report.Estimate(s["delta"], s["delta_std"]) if "delta_std" in s else s["delta"], _interval(s),
            s.get("delta_of_independent"), s["bound_nats"], s.get("ceiling_nats"), verdict, reason,
            s.get("selected_samples"),
        ])  # fmt: skip
    caption = (
        "Delta of one walker with its standard deviation over anchors, or the mean of several walkers with its 95% "
        "interval over walkers. One walker does not tell how far another training's would lie: it has no interval. "
        "`of independent` is delta as a share of the distance between independent draws. The bound is what the "
        "critic of the training finds, a lower bound with the verdict beside it."
    )
    formats = {"delta": ".3f", "of independent": ".1%", "bound (nats)": ".2f", "ceiling": ".2f", "samples": ","}
    return report.Table(columns, rows, caption, formats)


def verdict_of(summary: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on a run's bound, and the reason: what it wrote down (of several walkers the first that warns), or
    what the summary of an earlier version tells."""
    each = [one for one in summary.get("walkers") or [summary] if "bound_verdict" in one]
    if each:
        warned = [one for one in each if one["bound_verdict"] != Verdict.CONSISTENT]
        one = (warned or each)[0]
        reason = str(one["bound_verdict_because"])
        is_of_some = len(each) > 1 and warned
        return str(one["bound_verdict"]), f"{len(warned)} of {len(each)} walkers: {reason}" if is_of_some else reason
    if summary.get("bound_is_saturated"):
        return str(Verdict.SATURATED), "the bound is near the most that its candidates can show"
    if not summary.get("converged", True):
        return str(Verdict.NOT_CONVERGED), str(summary.get("convergence", "the loss was still changing"))
    return "none", "one critic, still in training against a moving walker"


def _interval(summary: Mapping[str, Any]) -> str:
    """The 95% interval of delta over walkers, where there are several."""
    low, high = summary.get("delta_interval") or (None, None)
    return "none" if low is None else f"{low:.3f} to {high:.3f}"


def _other_table(found: Sequence[Run]) -> report.Table:
    names = dict.fromkeys(name for run in found for name in quantities(run.rows))
    columns = ["run", *names, "last step"]
    rows: list[list[report.Cell]] = []
    for run in found:
        last = [last_value(run.rows, name) for name in names]
        rows.append([run.name, *last, run.rows[-1]["step"] if run.rows else None])
    caption = (
        f"The mean over the last {LAST_SHARE:.0%} of the rows of metrics and, from {LEAST_ROWS} rows on, its standard "
        "error over rows. That error does not cover another training."
    )
    return report.Table(columns, rows, caption, {"last step": ","})


def quantities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of metrics that hold numbers, but for those that say where a row stands."""
    found: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            if name not in PLACES and isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = None
    return list(found)


def last_value(rows: Sequence[Mapping[str, Any]], name: str) -> report.Cell:
    """The mean of a column over the last rows, with its standard error where there are enough of them."""
    values = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    last = values[-max(1, round(LAST_SHARE * len(values))) :]
    mean = statistics.fmean(last)
    if len(values) < LEAST_ROWS or len(last) < 2:
        return mean
    return report.Estimate(mean, statistics.stdev(last) / math.sqrt(len(last)))


# ---------------------------------------------------------------------------------------------------------------
# The page


def write_report(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Write the page; gives its path. Raises as `read_runs`."""
    found = read_runs(folders)
    unfinished = [run.name for run in found if not run.summary]
    page = Page(
        f"{len(found)} runs" if len(found) > 1 else f"Run {found[0].name}",
        "Settings, curves, last numbers and pictures of runs, read from their folders.",
    )
    page.section("Last numbers")
    for table in final_numbers(found):
        page.table(table)
    if unfinished:
        page.text(f"Without a summary.json, so perhaps not finished: {', '.join(unfinished)}.")
    page.section("Settings").table(differing_settings(found))
    if courses := {run.name: run.rows for run in found if run.rows}:
        page.section("Curves")
        names = _curve_names(list(courses.values()))
        x = "samples" if all(any("samples" in row for row in rows) for rows in courses.values()) else "step"
        page.figure(
            [curves(courses, (name,), x=x, x_label=x) for name in names],
            "Metrics of the runs, a line for each run",
            "The smoothed line over the values as they were logged.",
        )
    if any(pictures(run.path) for run in found):
        page.section("Pictures")
        for run in found:
            for picture in pictures(run.path):
                page.image(_read(picture), f"{picture.name} of {run.name}", f"{run.name}: {picture.name}")
    page.section("Folders").code("\n".join(str(run.path) for run in found))
    return page.write(path)


def _curve_names(courses: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """The navigator's three quantities where every run has them, else all columns of numbers, at most 9."""
    columns = [quantities(rows) for rows in courses]
    if all(set(QUANTITIES) <= set(names) for names in columns):
        return list(QUANTITIES)
    return list(dict.fromkeys(name for names in columns for name in names))[:9]


def pictures(path: Path) -> list[Path]:
    """The newest picture of each name in a run's images/, the number at its end left out; at most MOST_PICTURES."""
    newest: dict[str, tuple[int, Path]] = {}
    for found in (path / "images").glob("*.png"):
        match = re.fullmatch(r"(.*?)_?(\d*)", found.stem)
        assert match is not None
        number = int(match[2] or 0)
        if match[1] not in newest or number > newest[match[1]][0]:
            newest[match[1]] = number, found
    return [newest[name][1] for name in sorted(newest)][:MOST_PICTURES]


def _read(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), at most WIDEST_PX wide."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
            if image.width > WIDEST_PX:
                image = image.resize((WIDEST_PX, max(1, round(image.height * WIDEST_PX / image.width))))
            return np.asarray(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptCheckpointError(f"{path}: not an image: {' '.join(str(error).split())}") from None
