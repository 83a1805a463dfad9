"""Training of image models, for every family and loss; after the code of Livne, Swersky and Fleet (arXiv 1910.03175).

Each draw is that of the whole batch, of which a process takes its rows: so a run over several processes does what one
process does, but for rounding and for what a batch norm has seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import config, loop, norms, optimizers, runs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images import datasets, networks, objectives, pixel_sampling
from mi_ml_gen.mim.images.base import ImageModel, Latents, ModelSpec, PriorNoise
from mi_ml_gen.mim.images.networks import PixelHVAE
from mi_ml_gen.mim.images.objectives import OBJECTIVES, Objective, Outcome, Sampled
from mi_ml_gen.mim.images.sets import ImageSets
from mi_ml_gen.mim.images.settings import MimImageConfig

SAVE_EVERY = 100
"""Steps after which a state may be saved within an epoch."""
BEST, LAST = "best.safetensors", "last.safetensors"


class MimImageRecord(NamedTuple):
    """What a training came to."""

    path: Path
    """The run folder, with best.safetensors, the model of the lowest validation loss, and last.safetensors."""
    best_epoch: int
    best_loss: float
    """Lowest validation loss, in nats."""
    epochs: int
    """Epochs that were trained."""
    reason: str
    """Why training ended."""


def train_mim_image(
    settings: MimImageConfig, sets: ImageSets | None = None, path: str | Path | None = None, progress: bool = True
) -> MimImageRecord:
    """Train one model; the same call goes on with an interrupted run.

    sets: loaded from the settings where they are not given. path: the run folder (default: settings.folder).
    Raises UsageError for settings that make no sense or differ from the folder's, NonFiniteError when a loss is no
    finite number, Preempted when a signal asked to stop (the state is saved).
    """
    # --- Data, model and optimiser
    device = runtime.resolve_device("cpu" if settings.no_cuda else settings.device)
    runtime.setup_distributed(device)
    runtime.set_precision(settings.precision)
    sets = load_sets(settings) if sets is None else sets
    sets = sets.to(device)
    check_sizes(settings, sets)
    objective = OBJECTIVES[settings.objective]
    model = build(settings, sets).to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms.synchronise(model)
    optimizer = make_optimizer(settings, model)
    steps_per_epoch = len(sets.train) // settings.batch_size  # what is left over is not used in that epoch
    course = loop.Course(
        totals=torch.zeros(len(Outcome._fields), device=device),  # sums over the steps of this epoch
        kept=kept_draws(settings, model, device),
    )

    # --- Run folder
    path = Path(path) if path is not None else settings.folder
    described = config.to_dict(settings)
    with loop.Session.open(path, described, **config.resuming(MimImageConfig)) as session:
        session.resume(course, model=model, optimizer=optimizer)
        steps = session.steps(
            settings.epochs * steps_per_epoch, "image", per_step=settings.batch_size,
            title=f"{settings.model_name} {settings.dataset_name}", progress=progress,
        )  # fmt: skip
        for step in steps if not Standing.of(session.rows, settings).is_over else ():
            epoch, in_epoch = step // steps_per_epoch + 1, step % steps_per_epoch
            beta = settings.beta(epoch)
            if in_epoch == 0 or step == session.first:
                order = epoch_order(settings, len(sets.train), epoch, device)

            # --- A step
            model.train()
            rows = order[in_epoch * settings.batch_size : (in_epoch + 1) * settings.batch_size]
            own = runtime.own_rows(settings.batch_size)
            x = sets.draw(sets.train, rows, stream(settings, "pixels", step, device))[own]
            noise = model.noise(settings.batch_size, stream(settings, "noise", step, device))
            sampled = None
            if objective.samples and beta >= 1:
                if in_epoch % settings.keeps_draws == 0:
                    draw_from_model(settings, model, course.kept, step, device)
                sampled = kept_as_sampled(settings, model, course.kept)
            with runtime.autocast(device, settings.precision):
                outcome = objectives.batch_loss(
                    model, objective, x, noise.rows(own), beta, sampled,
                    views_of(settings, objective, x, step, device), settings.contrast_weight, settings.temperature,
                    settings.score_function, settings.as_published,
                )  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            outcome.loss.backward()
            runtime.average_gradients(model)
            optimizer.step()
            session.watch("loss", outcome.loss)
            course.totals += torch.stack([part.detach() for part in outcome])

            # --- An epoch's end: validation, the best model, early stopping
            is_epoch_end = in_epoch == steps_per_epoch - 1
            if is_epoch_end:
                trained = runtime.all_reduce_mean(course.totals) / steps_per_epoch
                course.totals.zero_()
                end_epoch(settings, session, model, sets, objective, epoch, trained, device)
            session.end_of_step(save=is_epoch_end or session.every(SAVE_EVERY))

        # --- The result
        session.check()
        standing = Standing.of(session.rows, settings)
        reason = f"all {settings.epochs} epochs are done"
        if standing.is_over:
            reason = f"{standing.stale} epochs were no better than epoch {standing.best_epoch}"
        record = MimImageRecord(path, standing.best_epoch, standing.best_loss, len(session.rows), reason)
        runtime.on_main(lambda: finish(session, settings, model, record))
    return record


class Standing(NamedTuple):
    """How far a run is, by its rows of metrics."""

    best_epoch: int
    """0 before the first epoch has ended."""
    best_loss: float
    stale: int
    """Epochs since then, counted from the end of the warm-up."""
    is_over: bool
    """Whether these were too many."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], settings: MimImageConfig) -> Standing:
        best_epoch, best_loss, stale = 0, math.inf, 0
        for row in rows:
            if row["validation_loss"] < best_loss:
                best_epoch, best_loss, stale = row["epoch"], row["validation_loss"], 0
            else:
                stale = stale + 1 if row["epoch"] >= settings.warmup else 0
        return cls(best_epoch, best_loss, stale, stale > settings.early_stopping_epochs)


def end_epoch(
    settings: MimImageConfig,
    session: loop.Session,
    model: ImageModel,
    sets: ImageSets,
    objective: Objective,
    epoch: int,
    trained: Tensor,
    device: torch.device,
) -> None:
    """Validate, write a row of metrics, keep the model where it is the best one, and end a run that gets no better.

    trained: the means of `Outcome` over the steps of the epoch.
    """
    session.check()
    found = validate(settings, model, sets, objective, device)
    session.watch("validation loss", found.loss)
    session.log(
        epoch=epoch, beta=settings.beta(epoch),
        **{f"train_{name}": value for name, value in zip(Outcome._fields, trained, strict=True)},
        **{f"validation_{name}": value for name, value in found._asdict().items() if name != "sampled"},
        images_per_s=session.per_s,
    )  # fmt: skip
    standing = Standing.of(session.rows, settings)
    session.show(best=f"{standing.best_loss:.2f}", epoch=epoch)
    if standing.best_epoch == epoch:
        about = dict(epoch=epoch, validation_loss=standing.best_loss, dataset=settings.dataset_name)
        about |= dict(seed=settings.seed, objective=objective.name)
        runtime.on_main(lambda: networks.save_model(session.run.path / BEST, model, **about))
    if standing.is_over:
        session.end()


@torch.no_grad()
def validate(
    settings: MimImageConfig, model: ImageModel, sets: ImageSets, objective: Objective, device: torch.device
) -> Outcome:
    """The loss of the validation images at beta 1 without a sampling half, and its parts, as means over images.

    Noise is the same in every epoch, so that epochs differ by their models alone. The processes share the batches.
    """
    model.eval()
    with runtime.autocast(device, settings.precision):
        components = model.components()
    sums = runtime.in_float64(torch.zeros(len(Outcome._fields), device=device))
    for index, rows in own_batches(len(sets.validation), settings.test_batch_size):
        x = sets.validation.pixels(rows)
        noise = model.noise(len(x), stream(settings, "validation", index, device))
        views = views_of(settings, objective, x, index, device, "validation views")
        with runtime.autocast(device, settings.precision):
            outcome = objectives.batch_loss(
                model, objective, x, noise, 1.0, None, views, settings.contrast_weight, settings.temperature,
                components=components, alone=True,
            )  # fmt: skip
        sums += runtime.in_float64(torch.stack(list(outcome))) * len(x)
    sums = runtime.all_reduce_mean(sums) * runtime.world_size()
    return Outcome(*(sums / len(sets.validation)).unbind())


# --- the parts of a step ------------------------------------------------------------------------------------


def stream(settings: MimImageConfig, what: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one use at one step, the same in all processes."""
    return runtime.stream(settings.seed, f"mim image {what}", step, 0, device)


def own_batches(n: int, size: int) -> Iterator[tuple[int, slice]]:
    """Numbers and rows of this process's share of the batches of n images."""
    for index in range(runtime.rank(), -(-n // size), runtime.world_size()):
        yield index, slice(index * size, min(n, (index + 1) * size))


def epoch_order(settings: MimImageConfig, n: int, epoch: int, device: torch.device) -> Tensor:
    """The order of the training images in an epoch, int64 (n,)."""
    return runtime.to_device(torch.randperm(n, generator=stream(settings, "order", epoch)), device)


def views_of(
    settings: MimImageConfig,
    objective: Objective,
    x: Tensor,
    step: int,
    device: torch.device,
    what: str = "views",
) -> tuple[Tensor, Tensor] | None:
    """Two views of each image, where the objective compares views."""
    if objective.contrast != "views":
        return None
    rng = runtime.stream(settings.seed, f"mim image {what}", step, runtime.rank(), device)
    return objectives.shifted_views(x, rng), objectives.shifted_views(x, rng)


def kept_draws(settings: MimImageConfig, model: ImageModel, device: torch.device) -> loop.Course:
    """Room for this process's draws of the sampling half; a part of the run's course, as they may serve many steps."""
    if not OBJECTIVES[settings.objective].samples:
        return loop.Course()
    n = settings.batch_size // runtime.world_size()
    z2 = torch.zeros(n, model.spec.z2_size if model.has_two_levels else 0, device=device)
    picked = torch.zeros(n, dtype=torch.long, device=device)
    x = torch.zeros(n, *model.spec.shape, device=device)
    return loop.Course(z1=torch.zeros(n, model.spec.z1_size, device=device), z2=z2, picked=picked, x=x)


@torch.no_grad()
def draw_from_model(
    settings: MimImageConfig, model: ImageModel, kept: loop.Course, step: int, device: torch.device
) -> None:
    """New draws of the sampling half. An autoregressive decoder draws with the running statistics of its norms."""
    rng = stream(settings, "prior", step, device)
    n = settings.batch_size
    noise = model.prior_noise(n, rng, in_order=settings.as_published).rows(runtime.own_rows(n))
    kept.z1, kept.z2 = noise.normals.z1, kept.z2 if noise.normals.z2 is None else noise.normals.z2
    kept.picked = kept.picked if noise.picked is None else noise.picked
    if takes_means(settings, model):
        return
    uniforms = runtime.uniform((n, *model.spec.shape), rng)[runtime.own_rows(n)][: len(kept.z1)]
    kept.x = sample_images(model, model.from_prior(noise, model.components()), uniforms)


def takes_means(settings: MimImageConfig, model: ImageModel) -> bool:
    """Whether the sampling half has the decoder's mean images in the place of draws, as published."""
    return settings.as_published and not model.is_autoregressive


def kept_as_sampled(settings: MimImageConfig, model: ImageModel, kept: loop.Course) -> Sampled:
    z2 = kept.z2 if model.has_two_levels else None
    noise = PriorNoise(Latents(kept.z1, z2), None if model.means is None else kept.picked)
    return Sampled(noise, None if takes_means(settings, model) else kept.x)


def sample_images(model: ImageModel, z: Latents, uniforms: Tensor) -> Tensor:
    """Images x ~ p(x|z) from uniform numbers of their shape, (n, C, H, W)."""
    if isinstance(model, PixelHVAE):
        return pixel_sampling.sample(model, z, uniforms)
    return model.p_x(z).draw(uniforms)


# --- what a run is made of, and leaves ----------------------------------------------------------------------


def load_sets(settings: MimImageConfig) -> ImageSets:
    """The data set that the settings name, on the CPU. Raises as `datasets.load`."""
    sets = datasets.load(settings.dataset_name, settings.data_root, settings.seed)
    return sets.smaller(settings.n_train, settings.n_test)


def check_sizes(settings: MimImageConfig, sets: ImageSets) -> None:
    """Raise UsageError for batches that the images or the processes cannot fill."""
    n, size, world = len(sets.train), settings.batch_size, runtime.world_size()
    if size > n:
        raise UsageError(f"--batch_size {size}: more than the {n} training images")
    if size % world:
        raise UsageError(f"--batch_size {size}: must be a multiple of the {world} processes")
    if len(sets.validation) == 0:
        raise UsageError(f"{sets.name}: has no validation images")
    if settings.use_training_data_init and settings.prior == "vampprior" and settings.number_components > n:
        raise UsageError(f"--number_components {settings.number_components}: more than the {n} training images")
    published = settings.as_published and settings.prior == "vampprior" and settings.objective == "smim"
    if published and world > 1 and settings.number_components < size:
        raise UsageError("--as_published with fewer pseudo-inputs than images of a batch: use one process")


def spec_of(settings: MimImageConfig, sets: ImageSets) -> ModelSpec:
    return ModelSpec(
        settings.family, sets.shape, sets.kind, settings.z1_size, settings.z2_size, settings.prior,
        settings.number_components, settings.q_x_prior if OBJECTIVES[settings.objective].is_mim else "marginal",
        settings.as_published,
    )  # fmt: skip


def build(settings: MimImageConfig, sets: ImageSets) -> ImageModel:
    """The untrained model of a run, on the CPU."""
    model = networks.build_model(spec_of(settings, sets), stream(settings, "weights", 0))
    mean = sets.pseudo_mean if settings.pseudoinputs_mean is None else settings.pseudoinputs_mean
    std = sets.pseudo_std if settings.pseudoinputs_std is None else settings.pseudoinputs_std
    first = sets.train.pixels(slice(settings.number_components)).cpu() if settings.use_training_data_init else None
    networks.start_pseudo_inputs(model, stream(settings, "pseudo-inputs", 0), mean, std, first)
    return model


def make_optimizer(settings: MimImageConfig, model: ImageModel) -> torch.optim.Optimizer:
    lr, weight_decay = settings.lr, settings.weight_decay
    if settings.optimizer == "adamw":
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        return optimizers.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
    return optimizers.AdamNormGrad(model.parameters(), lr=lr, weight_decay=weight_decay)


def finish(session: loop.Session, settings: MimImageConfig, model: ImageModel, record: MimImageRecord) -> None:
    """last.safetensors, summary.json and the curves of the run."""
    networks.save_model(
        session.run.path / LAST, model, epoch=record.epochs, dataset=settings.dataset_name, seed=settings.seed,
        objective=settings.objective,
    )  # fmt: skip
    told = {name: value for name, value in record._asdict().items() if name != "path"}
    session.run.write_json("summary.json", told)
    save_curves(session.run, session.rows)


def save_curves(run: runs.RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """images/curves.png: losses, reconstruction and KL by epochs."""
    from mi_ml_gen.report.figures import curves

    labels = {
        "train_loss": "training loss (nats)", "validation_loss": "validation loss (nats)",
        "validation_reconstruction": "reconstruction (nats)", "validation_kl": "KL (nats)",
    }  # fmt: skip
    run.save_figure("curves.png", curves(list(rows), tuple(labels), "epoch", "epoch", labels))
