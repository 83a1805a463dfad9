"""The published loop over data sets, image models, priors and seeds (Livne et al., arXiv 1910.03175, section 5).

    for finished in run_sweep(settings):     # trains what is missing, several runs side by side, and measures it
        print(finished.line)
    write_report(settings)                   # table.*, index.html

The folder of a sweep:

    FOLDER/config.yaml
           runs/DATASET/MODEL_PRIOR.../seedN/    one run folder (`mi_ml_gen.mim.images.training`), and results.json
           table.*  index.html

The same settings go on with an interrupted sweep. A run that was stopped by the clock is measured as it is, its table
says how many epochs it had, and the next call trains and measures it further.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mi_ml_gen.core import config, runs, runtime, threads
from mi_ml_gen.core.errors import MiMlGenError, Preempted, UsageError
from mi_ml_gen.core.files import write_json
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


class Finished(NamedTuple):
    """How a run of a sweep ended: trained and measured, or not for the reason `error`."""

    point: Point
    error: str | None
    wall_s: float

    @property
    def line(self) -> str:
        how = f"measured after {self.wall_s:.0f} s" if self.error is None else f"not measured: {self.error}"
        return f"{self.point.title}: {how}"


class Measured(NamedTuple):
    """A run with its results."""

    point: Point
    path: Path
    results: dict[str, Any]


def run_sweep(settings: ImageSweepConfig, progress: bool = True) -> Iterator[Finished]:
    """Train and measure what is missing, and give each run as it ends.

    A run that fails leaves the others alone; the same call tries it again. Raises UsageError where the folder was made
    with other settings, Preempted when a signal asked to stop: what is trained is saved.
    """
    stop_at_s = None if settings.train_seconds is None else time.monotonic() + settings.train_seconds
    with runs.RunFolder.open(settings.save_folder, config.to_dict(settings), **config.resuming(ImageSweepConfig)):
        waiting = [point for point in settings.points if not is_complete(settings, point)]
        if settings.workers == 1:
            for point in waiting:
                yield attempt(settings, point, stop_at_s, progress)
        else:
            yield from _side_by_side(settings, waiting, stop_at_s)


def is_complete(settings: ImageSweepConfig, point: Point) -> bool:
    """Whether a run is trained to its end, and measured."""
    file = settings.settings_of(point).folder / RESULTS
    return file.exists() and bool(runs.read_json(file).get("is_complete"))


def attempt(settings: ImageSweepConfig, point: Point, stop_at_s: float | None, progress: bool = False) -> Finished:
    """Train one run, to its end or to the moment `stop_at_s` of time.monotonic, and measure it."""
    own, began_s = settings.settings_of(point), time.monotonic()
    error = None
    try:
        sets = training.load_sets(own)
        is_done = stop_at_s is None or time.monotonic() < stop_at_s
        if is_done:
            with stopped_at(stop_at_s) as clock:
                try:
                    training.train_mim_image(own, sets, progress=progress)
                except Preempted:
                    if not clock.is_over:
                        raise
                    is_done = False
        if (own.folder / training.BEST).exists():
            measure_run(settings, own, sets, is_done)
        else:
            error = "stopped by --train_seconds before its first epoch ended"
    except Preempted:
        raise
    except MiMlGenError as fault:
        error = str(fault)
    return Finished(point, error, time.monotonic() - began_s)


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


def _side_by_side(settings: ImageSweepConfig, waiting: Sequence[Point], stop_at_s: float | None) -> Iterator[Finished]:
    """The runs, each in a process of its own, at most `workers` at a time."""
    context = multiprocessing.get_context("spawn")
    n_workers = min(settings.workers, max(1, len(waiting)))
    n_threads = max(1, threads.available() // n_workers)
    queue = list(waiting)
    active: dict[Point, tuple[Any, Any]] = {}
    try:
        while queue or active:
            while queue and len(active) < n_workers:
                point = queue.pop(0)
                left_s = None if stop_at_s is None else stop_at_s - time.monotonic()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(settings, point, left_s, n_threads, theirs))
                process.start()
                theirs.close()
                active[point] = (process, ours)
            for connection in multiprocessing.connection.wait([ours for _, ours in active.values()], timeout=5.0):
                point = next(point for point, (_, ours) in active.items() if ours is connection)
                process, ours = active.pop(point)
                try:
                    found = ours.recv()
                except EOFError:
                    process.join()
                    found = Finished(point, f"its process has ended with code {process.exitcode}", 0.0)
                ours.close()
                process.join()
                if isinstance(found, str):
                    raise Preempted(found)
                yield found
    finally:
        for process, _ in active.values():
            process.terminate()  # a signal at which a training saves its state
        for process, _ in active.values():
            process.join()


def _work(settings: ImageSweepConfig, point: Point, left_s: float | None, n_threads: int, connection: Any) -> None:
    """One run in a process of its own."""
    torch.set_num_threads(n_threads)
    likelihood.FLOATS_AT_ONCE["cuda"] //= settings.workers  # they share its memory
    stop_at_s = None if left_s is None else time.monotonic() + left_s
    try:
        connection.send(attempt(settings, point, stop_at_s))
    except Preempted as request:
        connection.send(str(request))
    except Exception as error:
        connection.send(Finished(point, f"{type(error).__name__}: {' '.join(str(error).split())}", 0.0))
    finally:
        connection.close()


# --- measuring ----------------------------------------------------------------------------------------------


def measure_run(settings: ImageSweepConfig, own: MimImageConfig, sets: ImageSets, is_complete: bool) -> dict[str, Any]:
    """Measure the best model of a run, and write its results.json and pictures."""
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
    results |= evaluate_model(model, sets.to(device), how, own.folder / "images")
    write_json(own.folder / RESULTS, results)
    return results


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
    caption = "Test images. ±: standard error, over seeds where there are several, otherwise over test images."
    formats = dict.fromkeys(columns[5:8], ".1f") | dict.fromkeys(columns[8:10], ".2f")
    return report.Table(columns, lines, caption, formats | {columns[10]: ".1f", columns[11]: ".3f"})


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
    missing = [point.title for point in settings.points if point not in {one.point for one in found}]
    if missing:
        page.text(f"Not measured, and not in the table: {', '.join(missing)}.")
    cut = [one.point.title for one in found if not one.results["is_complete"]]
    if cut:
        page.text(f"Stopped by the clock and measured as they were: {', '.join(cut)}.")
    ceilings = sorted({f"{one.results['information']['ceiling']:.2f}" for one in found})
    page.section("Results").table(table)
    page.text(
        f"log p(x): importance sampling, {settings.S:,} draws for each of {settings.n_likelihood:,} test images. "
        "The estimate is too low, and more so where few draws carry most of the weight. bound: the evidence lower "
        f"bound. I(x; z): a lower bound, which cannot exceed {' or '.join(ceilings)} nats here, and an upper bound. "
        f"KNN and NMI: of the means "
        f"of the encoder, {settings.n_embedded:,} training images at most."
    )
    page.section("Course of training")
    for model in dict.fromkeys(one.point.model.partition("-")[0] for one in found):
        rows = {
            one.point.title: runs.read_metrics(one.path, whole=True)
            for one in found
            if one.point.model.startswith(model)
        }
        labels = {"validation_reconstruction": "reconstruction (nats)", "validation_kl": "KL (nats)"}
        page.figure(curves(rows, tuple(labels), "epoch", "epoch", labels), f"Course of {model}")
    page.section("Pictures").text("Test images and their reconstructions; draws of the model; latents of test images.")
    for one in found:
        for name in ("reconstructions", "samples", "latents"):
            file = one.path / "images" / f"{name}.png"
            if file.exists():
                with Image.open(file) as picture:
                    page.image(np.asarray(picture.convert("RGB")), f"{name}, {one.point.title}", one.point.title)
    page.section("Settings").code(config.to_yaml(settings))
    if command:
        page.section("Command").code(command)
    return [*table.write(folder, "table").values(), page.write(folder / "index.html")]


__all__ = ["Finished", "Measured", "read_results", "run_sweep", "sweep_table", "write_report"]
