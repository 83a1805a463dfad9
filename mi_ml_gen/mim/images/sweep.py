"""The published loop over data sets, image models, priors and seeds (Livne et al., arXiv 1910.03175, section 5).

    for finished in run_sweep(settings):     # trains what is missing, several runs side by side, and measures it
        print(finished.line)
    write_report(settings)                   # table.*, differences.*, index.html

The folder of a sweep:

    FOLDER/config.yaml
           runs/DATASET/MODEL_PRIOR.../seedN/    one run folder (`mi_ml_gen.mim.images.training`), and results.json
           cells/                                locks, and why a run failed (`core/cells.py`)
           table.*  differences.*  index.html

The same settings go on with an interrupted sweep. A run that was stopped by the clock is measured as it is, its table
says how many epochs it had, and the next call trains and measures it further. Several commands, on one machine or
several that share the folder, divide the runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mi_ml_gen.core import config, runs, runtime, student
from mi_ml_gen.core.cells import Cells, Done
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.core.workers import side_by_side
from mi_ml_gen.mim.images import likelihood, networks, training
from mi_ml_gen.mim.images.evaluation import evaluate_model
from mi_ml_gen.mim.images.evaluation_settings import ImageEvaluationConfig
from mi_ml_gen.mim.images.sets import ImageSets
from mi_ml_gen.mim.images.settings import MimImageConfig
from mi_ml_gen.mim.images.sweep_settings import ImageSweepConfig, Point
from mi_ml_gen.probe.accuracy import Z_95
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Estimate

RESULTS = "results.json"
N_NEIGHBOURS = 5
RING_S = 2.0
"""Between two signals that the time is over."""


class Measured(NamedTuple):
    """A run with its results."""

    point: Point
    path: Path
    results: dict[str, Any]


def run_sweep(settings: ImageSweepConfig, progress: bool = True) -> Iterator[Done]:
    """Train and measure what is missing, and give each run as it ends.

    A run that fails leaves the others alone; the same call tries it again. Raises UsageError where the folder was made
    with other settings, a data set is not there or smaller than a batch; Preempted when a signal asked to stop: what is
    trained is saved.
    """
    stop_at_s = None if settings.train_seconds is None else time.monotonic() + settings.train_seconds
    runtime.resolve_device(settings.device)
    check_data(settings)
    queue = cells_of(settings)
    with queue.alone("folder"), open_folder(settings):
        pass  # the settings agree with the folder's
    waiting = queue.waiting([point.name for point in settings.points])
    start = functools.partial(worker, settings, stop_at_s, progress and settings.workers == 1)
    for done in side_by_side(waiting, settings.workers, start, Done.lost):
        if done is not None:
            yield done


def check_data(settings: ImageSweepConfig) -> None:
    """Load the data sets of what is not measured yet, so that what is wrong with them is said once, before anything is
    written. Raises as `training.load_sets` and `training.check_sizes`."""
    sets: dict[str, ImageSets] = {}
    for point in settings.points:
        own = settings.settings_of(point)
        if not (own.folder / RESULTS).exists():
            if point.dataset not in sets:
                sets[point.dataset] = training.load_sets(own)
            training.check_sizes(own, sets[point.dataset])


def open_folder(settings: ImageSweepConfig) -> runs.RunFolder:
    return runs.RunFolder.open(settings.save_folder, config.to_dict(settings), **config.resuming(ImageSweepConfig))


def cells_of(settings: ImageSweepConfig) -> Cells:
    """The runs as cells; a run that the clock stopped is measured, and not finished."""
    files = {point.name: settings.settings_of(point).folder / RESULTS for point in settings.points}
    return Cells(
        Path(settings.save_folder) / "cells", most_failures=10**6, file=files.__getitem__,
        is_finished=lambda found: bool(found.get("is_complete")),
    )  # fmt: skip


def worker(settings: ImageSweepConfig, stop_at_s: float | None, progress: bool) -> Callable[[str], Done | None]:
    """What a process does with the name of a run; None where another process has it in work."""
    if settings.workers > 1:
        likelihood.FLOATS_AT_ONCE["cuda"] //= settings.workers  # they share its memory
    queue = cells_of(settings)
    points = {point.name: point for point in settings.points}

    @functools.lru_cache(maxsize=1)
    def sets_of(dataset: str, seed: int) -> ImageSets:
        point = next(point for point in settings.points if (point.dataset, point.seed) == (dataset, seed))
        return training.load_sets(settings.settings_of(point))

    def action(name: str) -> dict[str, Any]:
        point = points[name]
        return attempt(settings, point, sets_of(point.dataset, point.seed), stop_at_s, progress)

    return lambda name: next(queue.work([name], action), None)


def attempt(
    settings: ImageSweepConfig, point: Point, sets: ImageSets, stop_at_s: float | None, progress: bool = False
) -> dict[str, Any]:
    """Train one run, to its end or to the moment `stop_at_s` of time.monotonic, and measure it; gives the results.
    Raises UsageError where no epoch has ended."""
    own = settings.settings_of(point)
    is_done = stop_at_s is None or time.monotonic() < stop_at_s
    if is_done:
        with stopped_at(stop_at_s) as clock:
            try:
                training.train_mim_image(own, sets, progress=progress)
            except Preempted:
                if not clock.is_over:
                    raise
                is_done = False
    if not (own.folder / training.BEST).exists():
        raise UsageError("stopped by --train_seconds before its first epoch ended")
    return measure_run(settings, own, sets, is_done, has_pictures=point.seed == settings.points[0].seed)


class Clock:
    """Whether the time was over."""

    is_over = False


@contextlib.contextmanager
def stopped_at(stop_at_s: float | None) -> Iterator[Clock]:
    """Ask the training of this process to stop, as a batch system does, at a moment of time.monotonic."""
    clock = Clock()
    if stop_at_s is None:
        yield clock
        return

    def ring() -> None:
        if not done.wait(max(0.0, stop_at_s - time.monotonic())):
            clock.is_over = True
            while not done.wait(RING_S):  # a signal before the first step is not heard
                os.kill(os.getpid(), signal.SIGUSR1)

    done = threading.Event()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for those that come outside of the loop
    thread = threading.Thread(target=ring, daemon=True)
    thread.start()
    try:
        yield clock
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


# --- measuring ----------------------------------------------------------------------------------------------


def measure_run(
    settings: ImageSweepConfig, own: MimImageConfig, sets: ImageSets, is_complete: bool, has_pictures: bool
) -> dict[str, Any]:
    """Measure the best model of a run; its pictures are written into its folder."""
    device = runtime.resolve_device("cpu" if own.no_cuda else own.device)
    runtime.set_precision("fp32")
    model = networks.load_model(own.folder / training.BEST, device)
    rows = runs.read_metrics(own.folder, whole=True)
    standing = training.Standing.of(rows, own)
    results = {
        "is_complete": is_complete,
        "epochs": len(rows),
        "best_epoch": standing.best_epoch,
        "validation_loss": standing.best_loss,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    how = ImageEvaluationConfig(
        S=settings.S, n_likelihood=settings.n_likelihood, n_embedded=settings.n_embedded, seed=own.seed
    )
    return results | evaluate_model(model, sets.to(device), how, own.folder / "images" if has_pictures else None)


# --- the report ---------------------------------------------------------------------------------------------


def read_results(settings: ImageSweepConfig) -> list[Measured]:
    """The runs that are measured. Raises CorruptCheckpointError for results that cannot be read."""
    found = []
    for point in settings.points:
        path = settings.settings_of(point).folder
        if (path / RESULTS).exists():
            found.append(Measured(point, path, runs.read_json(path / RESULTS)))
    return found


def sweep_table(found: Sequence[Measured]) -> report.Table:
    """A line for each data set, model and prior; means and standard errors over seeds, of one seed over test images."""
    columns = [
        "data", "model", "prior", "seeds", "epochs", "log p(x) (nats)", "bound (nats)", "KL (nats)",
        "I(x; z) ≥ (nats)", "I(x; z) ≤ (nats)", f"KNN-{N_NEIGHBOURS} (%)", "NMI",
    ]  # fmt: skip
    lines: list[list[report.Cell]] = []
    for key in dict.fromkeys(one.point[:3] for one in found):
        own = [one.results for one in found if one.point[:3] == key]
        epochs = sorted({one["epochs"] for one in own})
        lines.append([
            *key, len(own), f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            *(_over_seeds([one["likelihood"][name] for one in own]) for name in ("mean", "bound", "kl")),
            *(_over_seeds([one["information"][name] for one in own]) for name in ("lower", "at_most")),
            _over_seeds([one.get(f"knn{N_NEIGHBOURS}") for one in own], 100),
            _over_seeds([one.get("nmi") for one in own]),
        ])  # fmt: skip
    caption = (
        "Test images. ±: standard error, over seeds where there are several, otherwise over test images. "
        f"{likelihood.of_few_draws(one.results['likelihood'] for one in found)}"
    )
    formats = dict.fromkeys(columns[5:8], ".1f") | dict.fromkeys(columns[8:10], ".2f")
    return report.Table(columns, lines, caption, formats | {columns[10]: ".1f", columns[11]: ".3f"})


def differences_table(found: Sequence[Measured]) -> report.Table | None:
    """A line for each model that is trained with another loss than the VAE's: how far it is from the VAE of its family,
    data and prior, paired by seed, with Student's 95% interval; None where no pair has two seeds."""
    quantities: dict[str, tuple[Callable[[dict[str, Any]], float | None], str]] = {
        "log p(x) (nats)": (lambda of: of["likelihood"]["mean"]["value"], ".1f"),
        "I(x; z) ≥ (nats)": (lambda of: of["information"]["lower"]["value"], ".2f"),
        f"KNN-{N_NEIGHBOURS} (points)": (lambda of: _percent(of.get(f"knn{N_NEIGHBOURS}")), ".1f"),
        "NMI (points)": (lambda of: _percent(of.get("nmi")), ".1f"),
    }
    lines: list[list[report.Cell]] = []
    for data, model, prior in dict.fromkeys(one.point[:3] for one in found):
        family, _, loss = model.partition("-")
        if loss in ("", "vae"):
            continue
        line: list[report.Cell] = [data, model, prior]
        n_seeds = 0
        for get, form in quantities.values():
            own, other = (
                {one.point.seed: value for one in found if one.point[:3] == (data, name, prior)
                 if (value := get(one.results)) is not None}
                for name in (model, family)
            )  # fmt: skip
            gap = student.paired(own, other)
            if gap is None or gap.n < 2:
                line += [None, None]
                continue
            n_seeds = max(n_seeds, gap.n)
            line += [gap.mean, f"{gap.low:+{form}} to {gap.high:+{form}}"]
        if n_seeds:
            lines.append([*line, n_seeds])
    if not lines:
        return None
    columns = ["data", "model", "prior"]
    for name in quantities:
        columns += [name, f"{name.partition(' (')[0]}: interval"]
    caption = (
        "Difference from the VAE of the same networks and prior, paired by seed: mean, and Student's 95% interval over "
        "seeds. Where a data set comes with its test images, all seeds share them, and the intervals are about other "
        "seeds alone."
    )
    formats = {name: f"+{form}" for name, (_, form) in quantities.items()}
    return report.Table([*columns, "seeds"], lines, caption, formats)


def _percent(found: dict[str, float] | None) -> float | None:
    return None if found is None else 100 * found["value"]


def _over_seeds(values: Sequence[dict[str, float] | None], scale: float = 1.0) -> report.Cell:
    """Of estimates with a standard error or an interval of 95%."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        (own,) = known
        error = own["error"] if "error" in own else (own["high"] - own["low"]) / (2 * Z_95)
        return Estimate(scale * own["value"], scale * error)
    found = scale * torch.tensor([value["value"] for value in known], dtype=torch.float64)
    return Estimate(found.mean().item(), found.std().item() / len(found) ** 0.5)


def write_report(settings: ImageSweepConfig, command: str = "") -> list[Path]:
    """The table and the page of what is measured; gives the files. Raises UsageError where nothing is."""
    import numpy as np
    from PIL import Image

    from mi_ml_gen.report.figures import curves

    found, folder = read_results(settings), Path(settings.save_folder)
    if not found:
        raise UsageError(f"{folder}: no run is measured there; leave out --report-only to train")
    table = sweep_table(found)
    page = Page("Image models", "VAE, A-MIM and S-MIM on images: likelihood, information and clusters.")
    missing = [point for point in settings.points if point not in {one.point for one in found}]
    if missing:
        page.text(f"Not measured, and not in the table: {'; '.join(_by_seed(settings, missing))}.")
    cut = [one.point.title for one in found if not one.results["is_complete"]]
    if cut:
        page.text(f"Stopped by the clock and measured as they were: {', '.join(cut)}.")
    ceilings = sorted({f"{one.results['information']['ceiling']:.2f}" for one in found})
    page.section("Results").table(_without_data(table))
    differences = differences_table(found)
    if differences is not None:
        page.table(_without_data(differences))
    n_images = sorted({one.results["likelihood"]["n_images"] for one in found})
    page.text(
        f"log p(x): importance sampling, {settings.S:,} draws for each of {' or '.join(f'{n:,}' for n in n_images)} "
        "test images. The estimate is too low, and more so where few draws carry most of the weight. bound: the "
        f"evidence lower bound. I(x; z): a lower bound, which cannot exceed {' or '.join(ceilings)} nats here, and an "
        f"upper bound. KNN and NMI: of the means of the encoder, {settings.n_embedded:,} training images at most."
    )
    shown = [one for one in found if one.point.seed == settings.points[0].seed]
    rows = {one.point: runs.read_metrics(one.path, whole=True) for one in shown}
    if any(len(own) > 1 for own in rows.values()):
        page.section("Course of training").text(f"Seed {settings.points[0].seed}, validation images.")
        labels = {"validation_reconstruction": "reconstruction (nats)", "validation_kl": "KL (nats)"}
        for data, family in dict.fromkeys((point.dataset, point.model.partition("-")[0]) for point in rows):
            own = {
                f"{point.model.partition('-')[2] or 'vae'}, {point.prior}": metrics
                for point, metrics in rows.items()
                if (point.dataset, point.model.partition("-")[0]) == (data, family)
            }
            page.figure(curves(own, tuple(labels), "epoch", "epoch", labels), f"Course of {family} on {data}")
    page.section("Pictures").text(
        "reconstructions: rows of test images, each above the row of their reconstructions. A PixelCNN sees the true "
        "earlier pixels there, so its reconstructions say little about its latents. samples: images at draws z of the "
        "prior, the means of p(x|z), of a PixelCNN draws x. latents: the encoder's means for test images, in the plane."
    )
    for one in shown:
        for name in ("reconstructions", "samples", "latents"):
            file = one.path / "images" / f"{name}.png"
            if file.exists():
                with Image.open(file) as picture:
                    title = f"{name}, {one.point.title}"
                    page.image(np.asarray(picture.convert("RGB")), title, title)
    page.section("Settings").code(config.to_yaml(settings))
    if command:
        page.section("Command").code(command)
    written = [*table.write(folder, "table").values(), page.write(folder / "index.html")]
    return written if differences is None else [*written, *differences.write(folder, "differences").values()]


def _by_seed(settings: ImageSweepConfig, points: Sequence[Point]) -> list[str]:
    """Points in words, a phrase a seed."""
    found = []
    for seed in dict.fromkeys(point.seed for point in points):
        own = [point for point in points if point.seed == seed]
        n_all = sum(point.seed == seed for point in settings.points)
        names = ", ".join(f"{point.dataset} {point.model} {point.prior}" for point in own)
        found.append(f"seed {seed}: " + ("all" if len(own) == n_all else names))
    return found


def _without_data(table: report.Table) -> report.Table:
    """The same without the column of data sets, where there is one set."""
    sets = {str(row[0]) for row in table.rows}
    if len(sets) > 1:
        return table
    rows = [row[1:] for row in table.rows]
    return replace(table, columns=table.columns[1:], rows=rows, caption=f"{sets.pop()}. {table.caption}")


__all__ = ["Measured", "differences_table", "read_results", "run_sweep", "sweep_table", "write_report"]
