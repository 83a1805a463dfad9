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
import json
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
from torch import Tensor

from mi_ml_gen.core import config, runs, runtime, threads
from mi_ml_gen.core.errors import MiMlGenError, Preempted, UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.mim.images import networks, training
from mi_ml_gen.mim.images.base import ImageModel
from mi_ml_gen.mim.images.clustering import cluster_agreement, neighbours
from mi_ml_gen.mim.images.information import information_bounds
from mi_ml_gen.mim.images.likelihood import log_likelihood
from mi_ml_gen.mim.images.sets import Images, ImageSets
from mi_ml_gen.mim.images.settings import MimImageConfig
from mi_ml_gen.mim.images.sweep_settings import ImageSweepConfig, Point
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.images import image_grid, save_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Estimate

RESULTS = "results.json"
ENCODED_AT_ONCE = 500
N_SHOWN = 12
N_NEIGHBOURS = 5
FLOATS_OF_GPU = 2**28
"""Numbers of a decoder's largest layer that all workers together have in work."""
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
    model = networks.load_model(own.folder / training.BEST, device)
    rows = runs.read_metrics(own.folder)
    standing = training.Standing.of(rows, own)
    results = {
        "is_complete": is_complete,
        "epochs": len(rows),
        "best_epoch": standing.best_epoch,
        "validation_loss": standing.best_loss,
        "device": _device_name(device),
    }
    results |= measure(settings, model, sets.to(device), own.seed)
    save_pictures(own.folder / "images", model, sets.to(device))
    atomic_write(own.folder / RESULTS, json.dumps(results, indent=1).encode())
    return results


def measure(settings: ImageSweepConfig, model: ImageModel, sets: ImageSets, seed: int) -> dict[str, Any]:
    """Likelihood, bounds of mutual information, nearest neighbours and clusters of the test images; plain values."""
    x = sets.test.pixels(slice(settings.n_likelihood))
    at_once = FLOATS_OF_GPU // settings.workers if x.device.type == "cuda" else None
    likelihood = log_likelihood(model, x, settings.S, seed, at_once)
    information = information_bounds(model, sets.test.pixels(slice(settings.n_information)), seed)
    results: dict[str, Any] = {
        "log_likelihood": _pair(likelihood.mean),
        "draws_error": likelihood.draws_error,
        "n_uncertain": likelihood.n_uncertain,
        "bound": _pair(likelihood.bound),
        "kl": _pair(likelihood.kl),
        "n_likelihood": len(x),
        "S": settings.S,
        "information_lower": _pair(information.lower),
        "information_upper": _pair(information.upper),
        "information_ceiling": information.ceiling,
    }
    if sets.n_classes:
        parts = {name: images.rows(slice(settings.n_embedded)) for name, images in
                 (("train", sets.train), ("test", sets.test))}  # fmt: skip
        seen = {name: (embedded(model, sets, part, seed), _labels(part)) for name, part in parts.items()}
        accuracy = neighbours(*seen["train"], *seen["test"], of=(N_NEIGHBOURS,))[N_NEIGHBOURS]
        clusters = cluster_agreement(*seen["test"])
        interval = accuracy.interval
        results |= {
            "knn": {"value": accuracy.value, "low": interval.low, "high": interval.high},
            "nmi": {"value": clusters.nmi, "low": clusters.low, "high": clusters.high},
        }
    return results


@torch.no_grad()
def embedded(model: ImageModel, sets: ImageSets, images: Images, seed: int) -> Tensor:
    """The published embeddings, draws of z1 and z2 of q(z|x) beside each other, (n, d) on the CPU."""
    parts = []
    for step, rows in enumerate(torch.arange(len(images), device=images.x.device).split(ENCODED_AT_ONCE)):
        x = sets.draw(images, rows, runtime.stream(seed, "sweep images", step, 0, rows.device))
        noise = model.noise(len(x), runtime.stream(seed, "sweep embeddings", step, 0, rows.device))
        parts.append(model.q_z(model.features(x), noise).z.flat.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def save_pictures(folder: Path, model: ImageModel, sets: ImageSets) -> None:
    """reconstructions.png: test images above their means; samples.png: draws of the model, of binary pixels the means
    where the decoder is not autoregressive."""
    x = sets.test.pixels(slice(N_SHOWN))
    rng = runtime.stream(0, "sweep pictures", 0, 0, x.device)
    mean = model.reconstruct(x, model.noise(len(x), rng))
    save_png(folder / "reconstructions.png", image_grid(torch.cat([x, mean]).cpu(), n_columns=N_SHOWN))
    z = model.sample_prior(2 * N_SHOWN, rng)
    if model.is_autoregressive:
        samples = training.sample_images(model, z, runtime.uniform((2 * N_SHOWN, *sets.shape), rng))
    else:
        samples = model.p_x(z).mean
    save_png(folder / "samples.png", image_grid(samples.cpu(), n_columns=N_SHOWN))


def _labels(images: Images) -> Tensor:
    assert images.labels is not None
    return images.labels.cpu()


def _pair(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.spread]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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
        names = ("log_likelihood", "bound", "kl", "information_lower", "information_upper")
        epochs = sorted({one["epochs"] for one in own})
        lines.append([
            *key, len(own), f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            *(_over_seeds([one[name] for one in own]) for name in names),
            _over_seeds([_spread(one.get("knn"), 100) for one in own]),
            _over_seeds([_spread(one.get("nmi")) for one in own]),
        ])  # fmt: skip
    caption = "Test images. ±: standard error, over seeds where there are several, otherwise over test images."
    formats = dict.fromkeys(columns[5:8], ".1f") | dict.fromkeys(columns[8:10], ".2f")
    return report.Table(columns, lines, caption, formats | {columns[10]: ".1f", columns[11]: ".3f"})


def _spread(interval: dict[str, float] | None, scale: float = 1.0) -> list[float] | None:
    """Value and standard error of an interval of 95%."""
    if interval is None:
        return None
    return [scale * interval["value"], scale * (interval["high"] - interval["low"]) / (2 * 1.96)]


def _over_seeds(values: Sequence[list[float] | None]) -> report.Cell:
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if len(known) == 0:
        return None
    if len(known) == 1:
        return Estimate(*known[0].tolist())
    return Estimate(known[:, 0].mean().item(), known[:, 0].std().item() / len(known) ** 0.5)


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
    ceilings = sorted({round(one.results["information_ceiling"], 2) for one in found})
    page.section("Results").table(table)
    page.text(
        f"log p(x): importance sampling, {settings.S:,} draws for each of {settings.n_likelihood:,} test images; it "
        "is too low, by more where fewer draws carry the weight. bound: the evidence lower bound. I(x; z): bounds from "
        f"below, which cannot exceed {', '.join(map(str, ceilings))} nats here, and from above. KNN and NMI: of draws "
        f"of z1 and z2, {settings.n_embedded:,} training images at most."
    )
    page.section("Course of training")
    for model in dict.fromkeys(one.point.model.partition("-")[0] for one in found):
        rows = {one.point.title: runs.read_metrics(one.path) for one in found if one.point.model.startswith(model)}
        labels = {"validation_reconstruction": "reconstruction (nats)", "validation_kl": "KL (nats)"}
        page.figure(curves(rows, tuple(labels), "epoch", "epoch", labels), f"Course of {model}")
    page.section("Reconstructions and samples").text("Test images and their reconstructions; then draws of the model.")
    for one in found:
        for name in ("reconstructions", "samples"):
            file = one.path / "images" / f"{name}.png"
            if file.exists():
                with Image.open(file) as picture:
                    page.image(np.asarray(picture.convert("RGB")), f"{name}, {one.point.title}", one.point.title)
    page.section("Settings").code(config.to_yaml(settings))
    if command:
        page.section("Command").code(command)
    return [*table.write(folder, "table").values(), page.write(folder / "index.html")]


__all__ = ["Finished", "Measured", "measure", "read_results", "run_sweep", "sweep_table", "write_report"]
