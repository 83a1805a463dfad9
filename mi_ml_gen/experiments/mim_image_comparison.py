"""MIM, cMIM and contrastive learning on images, side by side (Livne, arXiv 2509.21511): one encoder, one data set, one
budget, nine ways to train.

    VAE, A-MIM, S-MIM, cMIM     an encoder and a decoder
    A-MIM, q(x) = p(x|z)        cMIM without its contrastive term
    InfoNCE + MIM               the same with InfoNCE of two views: the baseline with positive pairs
    SimCLR, SimSiam, BYOL       the encoder alone, on two views

Each cell, a method and a seed, is a run folder of its own, so that an interrupted comparison goes on, and methods and
seeds can be added. Several processes, and several commands on machines that share the folder, divide the cells.

    FOLDER/config.yaml                      the settings that all cells share
           cells/cmim_seed0/results.json    what was measured; images/*.png
           cells/cmim_seed0.failed.json     why a cell failed (`core/cells.py`)
           table.*  embeddings.*  cells.csv  index.html

Measured on the test images: accuracy of ridge regression (a linear probe in closed form, its penalty chosen on
validation images), of nearest neighbours, and the agreement of clusters with classes, of embeddings from the encoder
and from the decoder's states; and the likelihood, where there is one.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.core import config, loop, optimizers, runs, runtime
from mi_ml_gen.core.cells import Cells, Done
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.schedules import LearningRate
from mi_ml_gen.core.workers import side_by_side
from mi_ml_gen.experiments.mim_image_learners import (
    Draws,
    Generative,
    Learner,
    augmentation,
    make_learner,
    needs_views,
)
from mi_ml_gen.experiments.mim_image_settings import Cell, MimComparisonConfig
from mi_ml_gen.mim.images.base import ImageModel
from mi_ml_gen.mim.images.clustering import cluster_agreement
from mi_ml_gen.mim.images.datasets import load
from mi_ml_gen.mim.images.likelihood import log_likelihood
from mi_ml_gen.mim.images.sets import Images, ImageSets
from mi_ml_gen.probe.accuracy import Evaluation, evaluate_scores
from mi_ml_gen.probe.features import Features, frozen
from mi_ml_gen.probe.readouts import fit_ridge, knn_scores
from mi_ml_gen.report.images import image_grid, save_png

logger = logging.getLogger(__name__)

RESULTS = "results.json"
LOG_INTERVAL = 50
SHARED = ("seeds", "methods", "workers", "device", "data_path", "save_folder", "state_interval_s")
"""Settings that may change when a comparison goes on."""
ENCODED_AT_ONCE = 1000
FLOATS_OF_GPU = 2**28
"""Numbers of a decoder's largest layer that all workers together have in work."""
N_SHOWN = 16


# --- one cell -----------------------------------------------------------------------------------------------


def train_cell(
    settings: MimComparisonConfig, cell: Cell, sets: ImageSets, path: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train one cell, in its run folder, and measure it; the same call goes on with an interrupted one.

    Gives the results as plain values. sets: on the device. Raises UsageError for settings that make no sense or differ
    from the folder's, NonFiniteError when the loss is no finite number, Preempted when a signal asked to stop (the
    state is saved).
    """
    device = sets.train.x.device
    runtime.set_precision(settings.precision)
    learner = make_learner(cell.method, settings, sets, cell.seed)
    learner = learner.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    check_data(settings, sets)
    augment = augmentation(sets) if needs_views(cell.method) else None
    n_images = len(sets.train)
    per_epoch = n_images // settings.batch_size
    n_steps = settings.epochs * per_epoch
    rate = LearningRate(settings.lr, n_steps, min(n_steps, per_epoch) // 2)
    n_rising = settings.warmup * n_steps
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = optimizers.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, foreach=True)

    described = {name: value for name, value in config.to_dict(settings).items() if name not in SHARED}
    described |= {"method": cell.method, "seed": cell.seed}
    course = loop.Course(total=torch.zeros((), device=device), seconds=0.0)
    path = cell.folder(settings) if path is None else path
    with loop.Session.open(path, described, state_interval_s=settings.state_interval_s) as session:
        session.resume(course, learner=learner, optimizer=optimizer)
        began_s, before_s = time.monotonic(), course.seconds
        order = torch.empty(0, dtype=torch.int64)
        for step in session.steps(n_steps, "image", settings.batch_size, cell.title, progress):
            # --- The step
            epoch, place = divmod(step, per_epoch)
            if place == 0 or step == session.first:
                order = torch.randperm(n_images, generator=runtime.stream(cell.seed, "comparison order", epoch, 0))
            rows = order[place * settings.batch_size : (place + 1) * settings.batch_size].to(device)
            draws = Draws(sets, augment, rows, cell.seed, step)
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast(device, settings.precision):
                loss = learner.loss(draws, min(1.0, (step + 1) / max(1.0, n_rising)))
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = rate.at(step)
            optimizer.step()
            learner.after_step()

            # --- What is remembered and logged
            course.total += loss.detach()
            session.watch("loss", loss)
            if session.every(LOG_INTERVAL) or session.is_last:
                n = session.done - (session.rows[-1]["step"] if session.rows else 0)
                row = session.log(
                    epoch=session.done / per_epoch, images=session.samples, loss=course.total / n, lr=rate.at(step),
                    images_per_s=round(session.per_s, 1),
                )  # fmt: skip
                course.total.zero_()
                session.show(loss=f"{row['loss']:.3f}")
            course.seconds = before_s + time.monotonic() - began_s
            session.end_of_step(save=session.every(LOG_INTERVAL))

        # --- What it came to
        session.check()
        with frozen(learner):
            results = measure(learner, settings, sets, cell.seed)
            if isinstance(learner, Generative):
                save_pictures(session.run, learner.model, sets)
        n_parameters = sum(parameter.numel() for parameter in trained)
        return results | {"train_s": course.seconds, "n_parameters": n_parameters, "images_seen": session.samples}


@torch.no_grad()
def measure(learner: Learner, settings: MimComparisonConfig, sets: ImageSets, seed: int) -> dict[str, Any]:
    """Readouts of every embedding, and the likelihood where there is one; as plain values."""
    parts = {"train": sets.train, "validation": sets.validation, "test": sets.test}
    if settings.n_probe is not None:
        parts["train"] = sets.train.rows(slice(settings.n_probe))
    found = {name: embed(learner, sets, part, seed) for name, part in parts.items()}
    results: dict[str, Any] = {"embeddings": {}}
    for name, values in found["test"].items():
        results["embeddings"][name] = {"dimensions": values.shape[1]}
        if sets.n_classes:
            seen = {part: Features(found[part][name], labels_of(images)) for part, images in parts.items()}
            results["embeddings"][name] |= readouts(seen, sets.n_classes, sets.train.x.device)
    if isinstance(learner, Generative):
        x = sets.test.pixels(slice(settings.n_likelihood))
        at_once = FLOATS_OF_GPU // settings.workers if x.device.type == "cuda" else None
        likelihood = log_likelihood(learner.model, x, settings.S, seed, at_once)
        results["likelihood"] = {
            "nats": likelihood.mean.value,
            "nats_error": likelihood.mean.spread,
            "draws_error": likelihood.draws_error,
            "bound_nats": likelihood.bound.value,
            "bits_per_dimension": likelihood.bits_per_dimension.value,
            "kl_nats": likelihood.kl.value,
            "n_images": len(x),
            "n_draws": settings.S,
            "n_uncertain": likelihood.n_uncertain,
        }
    return results


def embed(learner: Learner, sets: ImageSets, images: Images, seed: int) -> dict[str, Tensor]:
    """All embeddings of a split, float32 on the CPU; binary training images are drawn once."""
    parts: list[dict[str, Tensor]] = []
    for step, rows in enumerate(torch.arange(len(images), device=images.x.device).split(ENCODED_AT_ONCE)):
        x = sets.draw(images, rows, runtime.stream(seed, "comparison probe images", step, 0, rows.device))
        parts.append({name: values.float().cpu() for name, values in learner.embeddings(x).items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def labels_of(images: Images) -> Tensor:
    assert images.labels is not None
    return images.labels.cpu()


def readouts(seen: Mapping[str, Features], n_classes: int, device: torch.device) -> dict[str, Any]:
    """Accuracy of ridge regression and of nearest neighbours, and the agreement of clusters, on the test images."""
    test = seen["test"]
    names = [""] * n_classes
    ridge = fit_ridge(seen["train"], seen["validation"], n_classes, device=device)
    votes = knn_scores(seen["train"], test.values, n_classes, device=device)
    clusters = cluster_agreement(test.values.to(device), test.labels)
    linear = evaluate_scores(ridge.linear.scores(test.values), test.labels, names)
    return {
        "ridge": _top1(linear) | {"penalty": ridge.penalty, "at_the_edge": ridge.at_the_edge},
        "knn": _top1(evaluate_scores(votes, test.labels, names)),
        "nmi": {"value": clusters.nmi, "low": clusters.low, "high": clusters.high},
    }


def _top1(found: Evaluation) -> dict[str, Any]:
    return {"value": found.top1.value, "low": found.top1.interval.low, "high": found.top1.interval.high}


@torch.no_grad()
def save_pictures(run: runs.RunFolder, model: ImageModel, sets: ImageSets) -> None:
    """images/reconstructions.png: test images above their means; images/samples.png: draws of the prior, as means."""
    x = sets.test.pixels(slice(N_SHOWN))
    rng = runtime.stream(0, "comparison pictures", 0, 0, x.device)
    mean = model.reconstruct(x, model.noise(len(x), rng))
    save_png(run.images / "reconstructions.png", image_grid(torch.cat([x, mean]).cpu(), n_columns=N_SHOWN))
    samples = model.p_x(model.sample_prior(2 * N_SHOWN, rng)).mean
    save_png(run.images / "samples.png", image_grid(samples.cpu(), n_columns=N_SHOWN))


# --- the queue of cells -------------------------------------------------------------------------------------


def run_comparison(settings: MimComparisonConfig, progress: bool = True) -> Iterator[Done]:
    """Train and measure what is missing, and give each cell as it ends.

    A cell that fails leaves the others alone; the same call tries it again. Raises UsageError where the folder was made
    with other settings, or the data set is not there or does not fit; Preempted when a signal asked to stop: what is
    trained is saved.
    """
    runtime.resolve_device(settings.device)
    sets = None
    if any(not (cell.folder(settings) / RESULTS).exists() for cell in settings.cells):
        sets = _load(settings)
        check_data(settings, sets)  # what is wrong with the data is said once, before anything is written
    queue = cells_of(settings)
    reopened = config.resuming(MimComparisonConfig) | {"free": SHARED}
    with queue.alone("folder"), runs.RunFolder.open(settings.save_folder, config.to_dict(settings), **reopened):
        pass  # the settings agree with the folder's
    waiting = queue.waiting([cell.name for cell in settings.cells])
    is_alone = settings.workers == 1
    start = functools.partial(worker, settings, progress and is_alone, sets if is_alone else None)
    for done in side_by_side(waiting, settings.workers, start, Done.lost):
        if done is not None:
            yield done


def cells_of(settings: MimComparisonConfig) -> Cells:
    folders = {cell.name: cell.folder(settings) for cell in settings.cells}
    folder = Path(settings.save_folder) / "cells"
    return Cells(folder, most_failures=10**6, file=lambda name: folders[name] / RESULTS)


def check_data(settings: MimComparisonConfig, sets: ImageSets) -> None:
    """Raise UsageError for images that are fewer than a batch, or that have no views where a method needs them."""
    if len(sets.train) < settings.batch_size:
        raise UsageError(f"--batch_size {settings.batch_size}: there are only {len(sets.train)} training images")
    if any(map(needs_views, settings.methods)):
        augmentation(sets)


def worker(
    settings: MimComparisonConfig, progress: bool, sets: ImageSets | None = None
) -> Callable[[str], Done | None]:
    """What a process does with the name of a cell; None where another process has it in work. sets: where they are
    loaded already."""
    sets = (_load(settings) if sets is None else sets).to(runtime.resolve_device(settings.device))
    queue = cells_of(settings)
    cells = {cell.name: cell for cell in settings.cells}

    def action(name: str) -> dict[str, Any]:
        return train_cell(settings, cells[name], sets, progress=progress)

    return lambda name: next(queue.work([name], action), None)


def _load(settings: MimComparisonConfig) -> ImageSets:
    return load(settings.dataset_name, settings.data_path).smaller(settings.n_train, settings.n_test)


__all__ = ["run_comparison", "train_cell"]
