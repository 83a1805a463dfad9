"""Every estimator of information against tasks of known information: errors, intervals, and whether verdicts hold.

The work is a queue of cells: one task, one number of pairs, one estimator. A finished cell is a row of metrics.jsonl
and is not done again. The queue is in a random order that the seed fixes, so what is done so far is a fair part of it.
The page and the JSON are written when the queue is empty, and when a signal asks to stop.

Three parts share the queue:

- the grid: tasks drawn from families x levels x dimensions x numbers of pairs, each given to every estimator;
- the table: correlated normal numbers, 10,000 pairs, at 2, 4, 6 and 10 nats, 1 to 3 coordinates a side, as in the table
  of the package mutinfo (VanessB/mutinfo, source/evaluate/tables/lowdim/continuous);
- the picture: what InfoNCE, DV, NWJ and SMILE show of 20 + 20 normal numbers with 2 to 10 nats (after Poole et al.
  2019, figure 2): saturation and variance.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mi_ml_gen.core import config, runtime
from mi_ml_gen.core.arrays import read_npz
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.core.loop import Preemption
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.core.runs import RunFolder
from mi_ml_gen.experiments.settings import CalibrationConfig, InformationConfig
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.registry import DEFAULT_ESTIMATOR, ESTIMATORS
from mi_ml_gen.information.tasks import TASKS, Task, make_task
from mi_ml_gen.information.verdicts import RIGHT_RELATIVE, WRONG_NATS, WRONG_RELATIVE, is_right, is_wrong
from mi_ml_gen.report.figures import PALETTE, TruthPoint, against_truth
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Table

TABLE_NATS, TABLE_DIMS, TABLE_PAIRS = (2.0, 4.0, 6.0, 10.0), (1, 2, 3), 10_000
PUBLIC = {"KSG": (0.05, 0.45, 1.27, 3.79), "InfoNCE": (0.03, 0.14, 0.63, 3.89), "MINE": (0.02, 0.13, 0.66, 3.88)}
"""mutinfo's mean absolute errors at these levels, as the package's table has them."""
PICTURE_NATS, PICTURE_DIM, PICTURE_PAIRS = (2.0, 4.0, 6.0, 8.0, 10.0), 20, 10_000
BOUNDS = ("infonce", "dv", "nwj", "smile")
QUICK = {"tasks": ["normal", "half-cube", "student", "additive-uniform"], "nats": [0.5, 2.0, 4.0], "dims": [1, 3],
         "sizes": [500, 2000], "n_tasks": 8, "table": False, "picture": False}  # fmt: skip
_KEPT = (
    "ceiling_nats", "batch_nats", "batch_std_nats", "batch_pairs", "standard_error_nats", "n_steps", "members_nats",
    "train_nats", "gaussian_nats", "conditional_nats", "marginal_nats", "at_half_n_nats", "gaps_nats", "gains_nats",
)  # fmt: skip


class Cell(NamedTuple):
    """One estimate to be made."""

    part: str
    """ "grid", "table" or "picture"."""
    task: str
    nats: float
    dim: int
    n: int
    estimator: str

    @property
    def key(self) -> str:
        return f"{self.part} {self.task} {self.nats:g} {self.dim} {self.n} {self.estimator}"


class Result(NamedTuple):
    """A cell and its estimate."""

    cell: Cell
    truth: float
    nats: float
    low: float
    high: float
    verdict: Verdict
    reason: str
    cpu_s: float
    details: dict[str, Any]

    @property
    def is_wrong(self) -> bool:
        return is_wrong(self.nats, self.truth)

    @property
    def is_right(self) -> bool:
        return is_right(self.nats, self.truth)

    @property
    def is_covered(self) -> bool:
        return self.low <= self.truth <= self.high


def cells(settings: InformationConfig) -> list[Cell]:
    """The queue, in the order in which it is done."""
    rng = np.random.default_rng((settings.seed, 1))
    every = [
        Cell("grid", name, nats, dim, n, "")
        for name in settings.tasks for nats in settings.nats for dim in settings.dims for n in settings.sizes
        if TASKS[name].reaches(nats, dim) and 2 * dim * n <= settings.most_values
    ]  # fmt: skip
    drawn = [every[i] for i in rng.permutation(len(every))[: settings.n_tasks]]
    queue = [cell._replace(estimator=estimator) for cell in drawn for estimator in settings.estimators]
    if settings.table:
        known = [
            name for name in settings.estimators if name in (DEFAULT_ESTIMATOR, "gaussian", "ksg", "infonce", "dv")
        ]
        queue += [
            Cell("table", "normal", nats, dim, TABLE_PAIRS, name)
            for nats in TABLE_NATS for dim in TABLE_DIMS for name in known
        ]  # fmt: skip
    if settings.picture:
        queue += [
            Cell("picture", "normal", nats, PICTURE_DIM, PICTURE_PAIRS, name)
            for nats in PICTURE_NATS for name in settings.estimators if name in BOUNDS
        ]  # fmt: skip
    return [queue[i] for i in rng.permutation(len(queue))]


def calibrate(settings: InformationConfig, progress: bool = True) -> list[Result]:
    """Do what is left of the queue; write information.html, information.json and images/.

    Raises UsageError for unknown tasks or estimators and for settings that differ from the folder's, Preempted when a
    signal asked to stop: the page then shows what is done.
    """
    if settings.quick:
        settings = _replaced(settings, QUICK)
    for name in settings.estimators:
        ESTIMATORS.check(name)
    for name in settings.tasks:
        TASKS.check(name)
    queue = cells(settings)
    if not queue:
        raise UsageError("--tasks, --nats and --dims: no task reaches any of these levels")
    free = config.free(InformationConfig)
    with RunFolder.open(settings.save_folder, config.to_dict(settings), free) as folder, Preemption() as preemption:
        done = {result.cell.key: result for result in map(_from_row, folder.metrics())}
        left = [cell for cell in queue if cell.key not in done]
        bar = Bar(total=len(queue), initial=len(queue) - len(left), unit="estimate", disable=not progress)
        for cell in left:
            if preemption.requested:
                break
            bar.set_postfix_str(cell.key, refresh=True)
            result = measure(cell, settings)
            folder.log(len(done), **_as_row(result))
            done[cell.key] = result
            bar.update()
        bar.close()
        results = list(done.values())  # also those that a call with other estimators left here
        n_left = sum(cell.key not in done for cell in queue)
        if results:
            write(folder, results, len(results) + n_left)
        if n_left:
            raise Preempted(
                f"{folder.path}: {len(queue) - n_left} of {len(queue)} estimates are done; the same command resumes"
            )
    return results


def _replaced(settings: InformationConfig, values: dict[str, Any]) -> InformationConfig:
    return InformationConfig(**{name: getattr(settings, name) for name in config.to_dict(settings)} | values)


def measure(cell: Cell, settings: InformationConfig) -> Result:
    """One estimate. The pairs depend on the task, their number and the seed alone: all estimators get the same."""
    task: Task = make_task(cell.task, cell.nats, cell.dim)
    rng = runtime.stream(settings.seed, f"{cell.part} {cell.task} {cell.nats:g} {cell.dim}", cell.n, 0)
    x, y = task.sample(cell.n, rng)
    began_s = time.process_time()
    estimate = estimate_information(x, y, cell.estimator, seed=settings.seed, device=settings.device)
    cpu_s = time.process_time() - began_s
    details = {name: _plain(value) for name, value in estimate.details.items() if name in _KEPT}
    return Result(
        cell, task.nats, estimate.nats, estimate.low_nats, estimate.high_nats, estimate.verdict, estimate.reason, cpu_s,
        details,
    )  # fmt: skip


def _as_row(result: Result) -> dict[str, Any]:
    row = result._asdict() | {"cell": list(result.cell), "verdict": str(result.verdict)}
    return row | {"high": None if math.isinf(result.high) else result.high}


def _from_row(row: dict[str, Any]) -> Result:
    values = {name: row[name] for name in Result._fields}
    # What is not finite stands as null: the upper end of a lower bound, or an estimate that is no number.
    values["high"] = math.inf if row["high"] is None else row["high"]
    values["nats"], values["low"] = (math.nan if row[name] is None else row[name] for name in ("nats", "low"))
    return Result(**values | {"cell": Cell(*row["cell"]), "verdict": Verdict(row["verdict"])})


# --- what came out --------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """The record of one estimator."""

    estimator: str
    n: int
    n_right: int
    n_right_warned: int
    n_wrong: int
    n_wrong_warned: int
    n_consistent: int
    n_consistent_covered: int
    median_error: float
    cpu_s: float


def summarise(results: Sequence[Result]) -> list[Summary]:
    """One record for each estimator, and one of all together."""
    names = _names(results)
    groups = {name: [r for r in results if r.cell.estimator == name] for name in names}
    if len(groups) > 1:
        groups["all"] = list(results)
    summaries = []
    for name, group in groups.items():
        right = [r for r in group if r.is_right]
        wrong = [r for r in group if r.is_wrong]
        consistent = [r for r in group if not r.verdict.is_warning]
        errors = [abs(r.nats - r.truth) if math.isfinite(r.nats) else math.inf for r in group]
        summaries.append(
            Summary(
                name, len(group), len(right), sum(r.verdict.is_warning for r in right), len(wrong),
                sum(r.verdict.is_warning for r in wrong), len(consistent), sum(r.is_covered for r in consistent),
                statistics.median(errors), statistics.fmean(r.cpu_s for r in group),
            )
        )  # fmt: skip
    return summaries


def _names(results: Sequence[Result]) -> list[str]:
    """The estimators in the order of the registry, then those of users."""
    known = ESTIMATORS.names()
    found = dict.fromkeys(result.cell.estimator for result in results)
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))


def summary_table(summaries: Sequence[Summary]) -> Table:
    """Counts and shares."""
    columns = ["estimator", "estimates", "right", "of them warned", "wrong", "of them warned ", "consistent",
               "truth in their interval", "median error (nats)", "CPU seconds"]  # fmt: skip
    rows: list[list[Any]] = [
        [
            s.estimator, s.n,
            s.n_right, _share(s.n_right_warned, s.n_right),
            s.n_wrong, _share(s.n_wrong_warned, s.n_wrong),
            s.n_consistent, _share(s.n_consistent_covered, s.n_consistent), s.median_error, s.cpu_s,
        ]
        for s in summaries
    ]  # fmt: skip
    caption = (
        f"Right: off by at most {RIGHT_RELATIVE:.0%}. Wrong: off by more than {WRONG_RELATIVE:.0%} and {WRONG_NATS} "
        "nats. Warned: any verdict but `consistent`. The interval of a lower bound is open upwards."
    )
    return Table(columns, rows, caption, {"median error (nats)": ".3f", "CPU seconds": ".1f"})


def _share(part: int, whole: int) -> str:
    """As in "3 (12%)"; 100% and 0% are said of all and of none alone."""
    if not whole:
        return "–"
    share = part / whole
    digits = next(n for n in range(12) if share in (0, 1) or 0 < round(100 * share, n) < 100)
    return f"{part} ({share:.{digits}%})"


def public_table(results: Sequence[Result]) -> Table | None:
    """Mean absolute errors on correlated normal numbers, beside mutinfo's; None where the queue had none of them."""
    own = [r for r in results if r.cell.part == "table"]
    if not own:
        return None
    rows: list[list[Any]] = [[f"mutinfo: {name}", *errors] for name, errors in PUBLIC.items()]
    for name in dict.fromkeys(r.cell.estimator for r in own):
        errors: list[Any] = []
        for nats in TABLE_NATS:
            group = [r for r in own if r.cell.estimator == name and r.cell.nats == nats]
            if not group:
                errors.append(None)
                continue
            n_warned = sum(r.verdict.is_warning for r in group)
            mean = statistics.fmean(abs(r.nats - r.truth) for r in group)
            errors.append(f"{mean:.3f}" + (f" ({n_warned} of {len(group)} warned)" if n_warned else ""))
        rows.append([name, *errors])
    caption = (
        f"Mean absolute error in nats: correlated normal numbers, {TABLE_PAIRS:,} pairs, 1 to 3 coordinates a side, "
        "one draw of each."
    )
    cells_ = [[cell if isinstance(cell, (str, type(None))) else f"{cell:.2f}" for cell in row] for row in rows]
    return Table(["estimator", *(f"{nats:g} nats" for nats in TABLE_NATS)], cells_, caption)


def truth_figure(results: Sequence[Result]) -> Any:
    """Estimates against the truth, a panel for each estimator."""
    panels = {
        name: [TruthPoint(r.truth, r.nats, r.low, r.high, str(r.verdict)) for r in results if r.cell.estimator == name]
        for name in _names(results)
    }
    return against_truth(panels, _colors(results), labels=("truth (nats)", "estimate (nats)"))


def picture_figure(results: Sequence[Result]) -> Any:
    """The bounds of single batches, mean and standard deviation, against the truth."""
    own = [r for r in results if r.cell.part == "picture"]
    panels: dict[str, list[TruthPoint]] = {}
    ceilings: dict[str, float] = {}
    for name in [name for name in BOUNDS if any(r.cell.estimator == name for r in own)]:
        for r in (r for r in own if r.cell.estimator == name):
            mean, spread = r.details["batch_nats"], r.details["batch_std_nats"]
            title = f"{name}, batches of {r.details['batch_pairs']}"
            point = TruthPoint(r.truth, mean, mean - spread, mean + spread, str(r.verdict))
            panels.setdefault(title, []).append(point)
            if name == "infonce":
                ceilings[title] = math.log(r.details["batch_pairs"])
    return against_truth(panels, _colors(own), ceilings, labels=("truth (nats)", "single batches (nats)"))


def _colors(results: Sequence[Result]) -> dict[str, str]:
    colors = dict(zip(map(str, Verdict), (PALETTE[2], PALETTE[1], PALETTE[4], PALETTE[5], PALETTE[3]), strict=True))
    found = {str(r.verdict) for r in results}
    return {verdict: color for verdict, color in colors.items() if verdict in found}


def picture_table(results: Sequence[Result]) -> Table:
    """The numbers of the picture."""
    own = sorted(
        (r for r in results if r.cell.part == "picture"), key=lambda r: (BOUNDS.index(r.cell.estimator), r.truth)
    )
    rows: list[list[Any]] = [
        [r.cell.estimator, r.truth, r.details["batch_nats"], r.details["batch_std_nats"], r.nats, r.low,
         None if math.isinf(r.high) else r.high, str(r.verdict)]
        for r in own
    ]  # fmt: skip
    columns = [
        "bound",
        "truth",
        "single batch",
        "its standard deviation",
        "all held-out pairs",
        "low",
        "high",
        "verdict",
    ]
    formats = {"truth": "g"} | {name: ".2f" for name in columns[2:7]}
    return Table(columns, rows, "In nats. The interval is that of all held-out pairs.", formats)


def all_table(results: Sequence[Result]) -> Table:
    """Every estimate."""
    rows: list[list[Any]] = [
        [r.cell.task, r.cell.dim, r.cell.n, r.cell.estimator, r.truth, r.nats, r.low,
         None if math.isinf(r.high) else r.high, str(r.verdict), r.reason]
        for r in sorted(results, key=lambda r: (r.cell.task, r.truth, r.cell.dim, r.cell.n, r.cell.estimator))
    ]  # fmt: skip
    columns = ["task", "dim", "pairs", "estimator", "truth", "estimate", "low", "high", "verdict", "reason"]
    formats = {"truth": ".3g", "pairs": ","} | {name: ".3f" for name in ("estimate", "low", "high")}
    return Table(columns, rows, "In nats, with 95% intervals; those of lower bounds have no upper end.", formats)


def write(folder: RunFolder, results: Sequence[Result], n_cells: int) -> None:
    """The page, the JSON and the figures."""
    grid = [r for r in results if r.cell.part == "grid"] or list(results)
    summaries = summarise(grid)
    whole = summaries[-1]
    page = Page(
        "Estimators of mutual information, against the truth",
        f"{len(results):,} of {n_cells:,} estimates on pairs whose information is known. A verdict should warn of "
        "every wrong number, and of few right ones.",
    )
    page.facts(
        {
            "wrong and warned of (at least 95%)": _share(whole.n_wrong_warned, whole.n_wrong),
            "right and warned of (at most 10%)": _share(whole.n_right_warned, whole.n_right),
            "consistent, with the truth inside": _share(whole.n_consistent_covered, whole.n_consistent),
        }
    )
    page.section("Each estimator")
    page.table(summary_table(summaries))
    figure = truth_figure(grid)
    page.figure(figure, "Estimates against the truth, a panel for each estimator", "Bars are 95% intervals.")
    folder.save_figure("against_truth.png", figure)
    if (public := public_table(results)) is not None:
        page.section("Against a public table").table(public)
    if any(r.cell.part == "picture" for r in results):
        figure = picture_figure(results)
        folder.save_figure("bounds.png", figure)
        page.section("Four bounds").text(
            f"{PICTURE_DIM} + {PICTURE_DIM} normal numbers, {PICTURE_PAIRS:,} pairs. Points are the mean of single "
            "batches, bars one standard deviation; the colour is the verdict of the estimate from all held-out pairs. "
            "The dashed line is the log of the batch."
        )
        page.figure(figure, "Bounds of single batches against the truth").table(picture_table(results))
    page.section("Every estimate").table(all_table(results))
    page.write(folder.path / "information.html")
    folder.write_json(
        "information.json",
        {
            "summaries": [s._asdict() | {"median_error": _finite(s.median_error)} for s in summaries],
            "estimates": [_as_json(r) for r in results],
        },
    )


def _as_json(result: Result) -> dict[str, Any]:
    cell = result.cell
    return cell._asdict() | {
        "truth_nats": result.truth, "nats": _finite(result.nats),
        "interval_nats": [_finite(result.low), _finite(result.high)], "verdict": str(result.verdict),
        "reason": result.reason, "cpu_s": result.cpu_s, "details": json.loads(json.dumps(result.details)),
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """A value of an estimate's details as JSON has it: what is not finite becomes None."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


# --- one estimator on pairs of the generator, or on a user's ---------------------------------------------------


class Known(NamedTuple):
    """An estimate beside the truth, which is None for a user's pairs."""

    truth: float | None
    estimate: Estimate


def estimates(settings: CalibrationConfig) -> Iterator[Known]:
    """The registry's estimator on pairs of the linear Gaussian generator at each level, or on those of a file."""
    assert settings.estimator is not None
    if settings.pairs is not None:
        x, y = _read_pairs(settings.pairs)
        yield Known(None, _estimate(settings, x, y))
        return
    generator = LinearGaussian(
        (settings.chunk_size,) * settings.n_chunks, noise=settings.noise, resolution=settings.resolution
    )
    generator.freeze()
    for nats in settings.nats:
        rng = runtime.stream(settings.seed, f"pairs {nats:g}", 0, 0)
        pair = generator.draw_pair(settings.n_pairs, generator.stationary_perturbation(nats), rng=rng)
        x, y = (generator.observe(images).double().numpy() for images in pair)
        yield Known(nats, _estimate(settings, x, y))


def _estimate(settings: CalibrationConfig, x: np.ndarray, y: np.ndarray) -> Estimate:
    assert settings.estimator is not None
    return estimate_information(x, y, settings.estimator, seed=settings.seed, device=settings.device, progress=True)


def _read_pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        x, y = read_npz(path, ("x", "y"))
    except UsageError as error:
        raise UsageError(f"--pairs {error}") from None
    return x, y
