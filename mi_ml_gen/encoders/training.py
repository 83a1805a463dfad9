"""Training an encoder on views of generated or stored images (Serez et al., 2025, sections 5 and 6)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mi_ml_gen.core import config, graphs, loop, norms, optimizers, runs, runtime
from mi_ml_gen.core.errors import CollapseError, UsageError
from mi_ml_gen.core.resnet import SMALL_IMAGE_PX
from mi_ml_gen.core.schedules import LearningRate, peak_rate, warmup_steps
from mi_ml_gen.data.loading import check_source, load_source
from mi_ml_gen.data.source import ImageSource
from mi_ml_gen.encoders.base import Architecture, Encoder, Gradients, accumulate_gradients
from mi_ml_gen.encoders.loading import save_encoder
from mi_ml_gen.encoders.monitor import Health, KnnMonitor, health
from mi_ml_gen.encoders.registry import METHODS
from mi_ml_gen.encoders.settings import NOTHING_TO_TRAIN_ON, EncoderConfig
from mi_ml_gen.generators.anchors import anchor_distribution
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.hub.assets import Artifact, parse
from mi_ml_gen.hub.fetching import where_it_lies
from mi_ml_gen.probe.features import Extraction
from mi_ml_gen.report.figures import curves
from mi_ml_gen.report.images import pair_grid, save_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.views import ahead
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.views.records import view_record
from mi_ml_gen.views.sampler import GeneratedImages, PairSource, StoredImages, Views, ViewSampler, stored_images
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.origins import warn_of_differences

logger = logging.getLogger(__name__)

LOG_INTERVAL = 50
"""Steps between lines of metrics, which are also the only reads of the device's values."""
COLLAPSED_ROWS = 3
"""Lines of metrics in a row that must say so before a collapse is announced."""
N_SHOWN = 8
"""Pairs in a grid of views."""


class EncoderResult(NamedTuple):
    """Where a run ended."""

    path: Path
    """The run folder; encoder.safetensors in it is the trained encoder, which `load_encoder` reads."""
    samples: int
    knn_accuracy: float | None
    """Of the trained encoder, where there was a labelled set."""


def train_encoder(
    settings: EncoderConfig,
    generator: MultiLatentGenerator | None = None,
    source: ImageSource | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    on_row: Callable[[Mapping[str, Any]], object] | None = None,
) -> EncoderResult:
    """Train an encoder; the same settings resume an interrupted run.

    generator, source: loaded from the settings where they are not given; a given generator is moved to the settings'
    device. path: the run folder (default: settings.folder). on_row: called with each line of metrics, in the main
    process. Raises UsageError for settings that make no sense or differ from the folder's, NonFiniteError when the loss
    is no finite number, CollapseError when the features collapse and the settings say so, Preempted when a signal asked
    to stop (the state is saved).
    """
    # --- Views and network
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    runtime.set_precision(settings.precision)
    config.validate(settings)
    path = Path(path) if path is not None else settings.folder
    sampler = view_sampler(settings, generator, source, device, path)
    judge = knn_monitor(settings, sampler)
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    encoder = build_encoder(settings, sampler.augment.crop_size)
    norms.synchronise(encoder)
    encoder = encoder.to(device).to(memory_format=torch.channels_last).train()
    run_encoder: Callable[..., Any] = encoder
    if settings.compile:
        run_encoder = runtime.compiled(run_encoder)
        sampler.augment.view = runtime.compiled(sampler.augment.view)  # type: ignore[method-assign]
        if isinstance(sampler.origin, GeneratedImages):
            sampler.origin.compile()

    def gradients(first: torch.Tensor, second: torch.Tensor) -> Gradients:
        context = runtime.autocast(device, settings.precision)
        return accumulate_gradients(encoder, first, second, settings.micro_batches, context, run_encoder)

    if settings.cuda_graphs:
        why_not = graphs.why_not(device)
        if why_not is None:
            sampler.record()
            gradients = graphs.Recorded(gradients, f"the step of {settings.encoder}", encoder.parameters())  # type: ignore[assignment]
        elif runtime.is_main():
            logger.warning("--cuda_graphs: %s, so no step is recorded", why_not)

    # --- Steps and learning rates
    steps_per_epoch = epoch_length(settings, sampler.origin)
    n_steps = settings.max_epochs * steps_per_epoch
    peak = peak_rate(settings.base_lr, settings.cumulative_bs)
    warm_up = warmup_steps(settings.max_epochs, steps_per_epoch) if settings.warmup else 0
    rate = LearningRate(peak, n_steps, warm_up, settings.decay)
    optimizer = optimizers.SGD(
        encoder.parameter_groups(), lr=peak, momentum=settings.momentum, weight_decay=settings.weight_decay
    )

    # --- Run folder
    described = config.to_dict(settings) | {"n_processes": runtime.world_size()}
    described |= view_record(path, settings.policy)
    solved: list[dict[str, Any]] = []
    if isinstance(sampler.origin, GeneratedImages):
        described |= fingerprint_record(path, sampler.origin.generator)
        solved = budget.solved(sampler.origin.walker)
    course = loop.Course(total=torch.zeros((), device=device))  # sum of the loss since the last row of metrics
    with (
        ahead.views_of_steps(sampler, n_steps, settings.views_ahead) as views_of,
        loop.Session.open(path, described, **config.resuming(EncoderConfig)) as session,
    ):
        run = session.run
        if solved:
            run.write_json(budget.RECORD, solved)
        session.resume(course, encoder=encoder, optimizer=optimizer)
        for step in session.steps(n_steps, "image", settings.cumulative_bs, settings.encoder, progress):
            # --- Views, loss, gradients
            views = views_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss, features = gradients(*views)
            runtime.average_gradients(encoder)

            # --- Step
            for group in optimizer.param_groups:
                group["lr"] = peak if group["fix_lr"] else rate.at(step)
            optimizer.step()
            encoder.after_step()

            # --- Counters stay on the device
            course.total += loss
            session.watch("loss", loss)
            epoch = session.done // steps_per_epoch  # finished ones
            ends_epoch = session.every(steps_per_epoch)

            # --- Now and then: a grid of views, a row of metrics, an encoder
            if step % (steps_per_epoch * settings.save_freq) == 0 and runtime.is_main():
                save_views(run.images / f"views_{epoch:04d}.png", sampler.augment, views)
            if session.every(LOG_INTERVAL) or ends_epoch:
                session.check()
                watched = runtime.all_reduce_mean(torch.cat([course.total[None], health(features)])).tolist()
                row = next_row(session.rows, session.done, rate.at(step), *watched)
                if judge is not None and ends_epoch and (epoch % settings.knn_freq == 0 or session.is_last):
                    row["knn_accuracy"] = judge.accuracy(encoder.backbone)
                row = session.log(epoch=epoch, samples=session.samples, **row, images_per_s=round(session.per_s, 2))
                course.total.zero_()
                if on_row is not None and runtime.is_main():
                    on_row(row)
                session.show(loss=f"{row['loss']:.3f}", rank=f"{row['effective_rank']:.1f}")
                announce_collapse(session.rows, settings)
            if ends_epoch and (epoch % settings.save_freq == 0 or session.is_last):
                session.check()
                if runtime.is_main():
                    about = description(settings, sampler.augment, epoch, session.done)
                    save_encoder(run.path / "encoders" / f"e_{epoch:04d}.safetensors", encoder, **about)
                    if not session.is_last:
                        report_run(run, settings, session.rows)
            session.end_of_step(save=ends_epoch)

        # --- The trained encoder
        is_new = session.first < n_steps or not (run.path / "encoder.safetensors").exists()
        if is_new and runtime.is_main():
            about = description(settings, sampler.augment, settings.max_epochs, n_steps)
            run.write_json("summary.json", summary(session.rows))
            report_run(run, settings, session.rows)
            save_encoder(run.path / "encoder.safetensors", encoder, **about)  # last: where it is, all is there
        runtime.barrier()
    return EncoderResult(path, n_steps * settings.cumulative_bs, session.rows[-1].get("knn_accuracy"))


def view_sampler(
    settings: EncoderConfig,
    generator: MultiLatentGenerator | None = None,
    source: ImageSource | None = None,
    device: torch.device | None = None,
    folder: Path | None = None,
) -> ViewSampler:
    """The views that the settings name. folder: of the run, whose record of solved budgets is used. Raises UsageError
    where they name none, or both kinds of images."""
    device = torch.device("cpu") if device is None else device
    n_here, left = divmod(settings.cumulative_bs, runtime.world_size())
    if left or n_here % settings.micro_batches or n_here // settings.micro_batches < 2:
        raise UsageError(
            f"--cumulative_bs {settings.cumulative_bs}: must divide into {runtime.world_size()} processes and "
            f"{settings.micro_batches} parts each, of at least 2 samples"
        )
    is_generated = generator is not None or settings.generator is not None
    if is_generated and (source is not None or settings.data_path is not None):
        raise UsageError("--generator and --data_path: the views come from one of them; leave the other out")
    origin: PairSource
    if is_generated:
        if generator is None:
            assert settings.generator is not None
            generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
        if settings.img_size not in (None, generator.resolution):
            raise UsageError(f"--img_size {settings.img_size}: {generator.name} decodes to {generator.resolution} px")
        generator = generator.to(device)
        distribution = anchor_distribution(settings, generator)
        walker = budget.walker_by(
            settings.Tz, generator, distribution, settings.seed, device, folder=folder, whole_nats=settings.budget
        )
        if runtime.is_main():
            warn_of_differences(walker, generator, distribution)
        origin = GeneratedImages(generator, walker, distribution, settings.decode_at_once)
    else:
        if settings.Tz is not None and settings.Tz not in config.NOTHING:
            raise UsageError("--Tz: perturbs latents of a generator; give --generator, or leave it out")
        if settings.budget is not None:
            raise UsageError("--budget: is for the perturbation of a generator's latents; give --generator and --Tz")
        origin = stored_images(source if source is not None else _load_source(settings, settings.data_path))
    return ViewSampler(
        origin, settings.policy, n_here, settings.seed, device, settings.crop_size, settings.precision,
        mixture=settings.mixture,
    )  # fmt: skip


def _load_source(settings: EncoderConfig, reference: str | None, img_size: int | None = None) -> ImageSource:
    if reference is None:
        raise UsageError(NOTHING_TO_TRAIN_ON)
    size = img_size or settings.img_size
    return load_source(
        reference, image_size=size, framing=settings.framing, loader=settings.loader, skip_bad=settings.skip_bad,
        n_workers=settings.workers,
    )  # fmt: skip


def knn_monitor(settings: EncoderConfig, sampler: ViewSampler) -> KnnMonitor | None:
    """The labelled set that an encoder is judged by along the way: the one that is named, else the stored images
    themselves where they have labels."""
    how = Extraction(sampler.device, settings.precision)
    if settings.knn_data is not None:
        return KnnMonitor(_load_source(settings, settings.knn_data, sampler.origin.image_size), how)
    if isinstance(sampler.origin, StoredImages) and (labels := sampler.origin.source.labels) is not None:
        source = sampler.origin.source
        if len(labels.unique()) > 1:
            return KnnMonitor(source, how)
        logger.warning("%s: all images are of one class, so no kNN accuracy is measured", source.name)
    return None


def check_inputs(settings: EncoderConfig) -> list[str]:
    """What --dry-run says: whether the generator or the stored images are there, a line for each, before any training.

    A generator is loaded unless its weights are still to be fetched; of stored images only names and tables are read.
    Raises as `load_generator` and `load_source`.
    """
    if settings.generator is not None:
        if settings.data_path is not None:
            raise UsageError("--generator and --data_path: the views come from one of them; leave the other out")
        lines = [_check_generator(settings)]
    elif settings.data_path is None:
        raise UsageError(NOTHING_TO_TRAIN_ON)
    else:
        lines = [check_source(settings.data_path, framing=settings.framing, loader=settings.loader)]
    if settings.knn_data is not None:
        lines.append(check_source(settings.knn_data, framing=settings.framing, loader=settings.loader))
    return lines


def _check_generator(settings: EncoderConfig) -> str:
    assert settings.generator is not None
    meant = None if settings.g_path is None or Path(settings.g_path).exists() else parse(settings.g_path)
    if meant is not None and not isinstance(meant, Path):
        here = where_it_lies(meant) if isinstance(meant, Artifact) else None
        if here is None:
            return f"generator: {settings.generator}, whose weights {settings.g_path} the run fetches first"
    generator = load_generator(settings.generator, settings.g_path, None, settings.g_use)
    return f"generator: {generator.name}, {generator.resolution} px, can be loaded"


def build_encoder(settings: EncoderConfig, view_px: int) -> Encoder:
    """A new encoder for views of view_px pixels; small ones get the stem that keeps the resolution."""
    is_small = view_px < SMALL_IMAGE_PX
    sizes = Architecture(
        settings.depth, settings.width, is_small, settings.dim, settings.pred, is_small and settings.halves
    )
    return METHODS[settings.encoder].from_settings(sizes, settings)


def epoch_length(settings: EncoderConfig, origin: PairSource) -> int:
    """Steps of an epoch: whole batches only. Raises UsageError where there is none."""
    if origin.n_images is not None and settings.samples_per_epoch is not None:
        raise UsageError("--samples_per_epoch: an epoch of stored images holds each image once; leave the flag out")
    n_samples = settings.samples_per_epoch if origin.n_images is None else origin.n_images
    if n_samples is None:
        raise UsageError("--samples_per_epoch must be given: generated images never run out")
    if n_samples < settings.cumulative_bs:
        raise UsageError(f"--cumulative_bs {settings.cumulative_bs}: an epoch has only {n_samples} samples")
    return n_samples // settings.cumulative_bs


# ---------------------------------------------------------------------------------------------------------------
# What is noticed and told


def next_row(rows: Sequence[Mapping[str, Any]], step: int, lr: float, loss: float, *state: float) -> dict[str, Any]:
    """The next row of metrics, from the sum of the loss since the last one and what `health` gives."""
    found = Health(*state)
    n = step - (rows[-1]["step"] if rows else 0)
    return dict(loss=loss / n, lr=lr, **found._asdict(), collapsed=found.collapsed)


def has_collapsed(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last rows all say so."""
    last = rows[-COLLAPSED_ROWS:]
    return len(last) == COLLAPSED_ROWS and all(row["collapsed"] for row in last)


def announce_collapse(rows: Sequence[Mapping[str, Any]], settings: EncoderConfig) -> None:
    """Say once that the features have collapsed, or raise CollapseError where the settings ask for that."""
    if not has_collapsed(rows):
        return
    row = rows[-1]
    what = (
        f"the features have collapsed at step {row['step']}: spread {row['feature_std']:.3g}, effective rank "
        f"{row['effective_rank']:.3g} over the last {COLLAPSED_ROWS} lines of metrics; a lower --base_lr may help"
    )
    if settings.abort_on_collapse:
        raise CollapseError(what)
    is_new = len(rows) == COLLAPSED_ROWS or not rows[-COLLAPSED_ROWS - 1]["collapsed"]
    if is_new and runtime.is_main():
        logger.warning("%s", what)


def description(settings: EncoderConfig, augment: Augment, epoch: int, step: int) -> dict[str, Any]:
    """What a saved encoder says of itself."""
    names = ("generator", "Tz", "data_path", "Tx", "seed")
    return {
        "image_size": augment.image_size,
        "crop_size": augment.crop_size,
        "epoch": epoch,
        "samples": step * settings.cumulative_bs,
    } | {name: value for name, value in config.to_dict(settings).items() if name in names}


# ---------------------------------------------------------------------------------------------------------------
# What is shown


@torch.no_grad()
def save_views(path: Path, augment: Augment, views: Views) -> Path:
    """The first pairs of a batch, one view above the other, without the normalisation."""
    first, second = ((half[:N_SHOWN] * augment.std + augment.mean).clamp(0, 1).cpu() for half in views)
    return save_png(path, pair_grid(first, second, n_columns=N_SHOWN, labels=("view 1", "view 2")))


CURVES = {
    "loss": "loss",
    "lr": "learning rate",
    "feature_std": "spread of the features",
    "effective_rank": "effective rank",
    "knn_accuracy": "kNN accuracy",
}


def report_run(run: runs.RunFolder, settings: EncoderConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    """images/curves.png and index.html, anew."""
    figure = curves(rows, tuple(CURVES), x="samples", x_label="samples", labels=CURVES)
    run.save_figure("curves.png", figure)
    last = rows[-1]
    lead = f"After {last['samples']:,} of {settings.max_epochs * last['samples'] // max(1, last['epoch']):,} samples."
    page = Page(f"Encoder: {settings.encoder}", lead)
    facts = {"loss": last["loss"], "spread of the features": last["feature_std"]}
    facts |= {"effective rank": last["effective_rank"]}
    knn = [row["knn_accuracy"] for row in rows if "knn_accuracy" in row]
    page.facts(facts | ({"kNN accuracy": knn[-1]} if knn else {}))
    page.section("Course").figure(figure, "Loss, learning rate, spread, effective rank and kNN accuracy over samples")
    page.section("Views")
    page.text("Pairs of views as the encoder saw them, the second below the first, from the start of training on.")
    grids = sorted(run.images.glob("views_*.png"))
    for grid in grids[:: max(1, len(grids) // 4)]:
        pixels = np.asarray(Image.open(grid).convert("RGB"))
        page.image(pixels, f"pairs of views, epoch {int(grid.stem.removeprefix('views_'))}", scale=2.0)
    page.section("Settings").code(config.to_yaml(settings))
    page.write(run.path / "index.html")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run came to, as plain values: the content of summary.json."""
    last = {key: value for key, value in rows[-1].items() if key not in ("step", "images_per_s")}
    knn = {row["epoch"]: row["knn_accuracy"] for row in rows if "knn_accuracy" in row}
    return last | {"knn_accuracy_by_epoch": knn, "ever_collapsed": any(row["collapsed"] for row in rows)}


__all__ = ["EncoderConfig", "EncoderResult", "build_encoder", "train_encoder", "view_sampler"]
