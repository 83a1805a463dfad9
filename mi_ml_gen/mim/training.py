"""Training of MIM models, one seed or several at once; after Livne, Swersky and Fleet (arXiv 1910.03175), section 4.

Several seeds are trained as one model whose parameters have a leading axis (`MIM.stack`). Each seed has its own initial
parameters, data and noise, each from streams of its own, its own best model and its own early stop, and leaves the
stack when it stops; its result is that of a run by itself, but for the rounding of the matrix products.

Noise is drawn for blocks of steps, a stream a block, so that a run resumes at any block as if it had not been
interrupted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import config, loop, optimizers, runs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import write_with_hash
from mi_ml_gen.mim import datasets, losses
from mi_ml_gen.mim.datasets import Dataset, Items
from mi_ml_gen.mim.distributions import Noise, Rng
from mi_ml_gen.mim.evaluate import N_KSG, Statistics, evaluate, published_ksg
from mi_ml_gen.mim.losses import Loss
from mi_ml_gen.mim.model import MIM, check_modes
from mi_ml_gen.mim.settings import MimConfig
from mi_ml_gen.report.text import csv_text

Parameters = dict[str, Tensor]

BLOCK_STEPS = 16
"""Steps between looks at signals; their noise is one stream."""
TEST_ROWS = 512
"""Test items at a time: what is in work then stays in a processor's caches."""


class MimRecord(NamedTuple):
    """What the training of one seed came to."""

    seed: int
    path: Path
    """The folder with its best.safetensors and results.csv."""
    statistics: Statistics | None
    """Of the best model; None where it was not asked for."""
    best_epoch: int
    best_loss: float
    """Lowest test loss, from the end of the warm-up on."""
    epochs: int
    """Epochs that were trained."""
    reason: str
    """Why training ended."""


# --- schedules and losses -----------------------------------------------------------------------------------


def noam(epoch: int, lr: float, warmup: int, decay: bool = True, min_lr: float = 0.0) -> float:
    """Learning rate of an epoch: linear up to `lr` at epoch `warmup`, then falling as its inverse square root
    (Vaswani et al. 2017, section 5.3). Without decay it stays at `lr`."""
    if epoch >= warmup and not decay:
        return max(min_lr, lr)
    return max(min_lr, lr * math.sqrt(warmup) * min(epoch * warmup**-1.5, max(epoch, 1) ** -0.5))


def beta_at(epoch: int, warmup: int) -> float:
    """Warm-up of the losses: linear up to 1 at epoch `warmup`."""
    return min(1.0, epoch / warmup)


def loss_of(settings: MimConfig) -> Loss:
    """The loss that the flags name. Raises UsageError for flags that exclude each other."""
    if settings.ae_loss and settings.mim_loss:
        raise UsageError("--ae-loss --mim-loss: choose one of them")
    if settings.mim_samp and not settings.mim_loss:
        raise UsageError("--mim-samp: the sampling half belongs to MIM; give --mim-loss too")
    if settings.mim_loss:
        return losses.mim_minus_entropy if settings.inv_H_loss else losses.a_mim
    if settings.ae_loss:
        return losses.auto_encoder_plus_entropy if settings.inv_H_loss else losses.auto_encoder
    return losses.vae_plus_entropy if settings.inv_H_loss else losses.vae


def batch_loss(
    model: MIM, x: Tensor, rng: Rng, loss: Loss, beta: float, sampling: bool, x_in: Tensor | None = None
) -> Tensor:
    """Mean loss of a batch x (n, x_dim) or (S, n, x_dim), with the sampling half where asked for: () or (S,)."""
    if not sampling:
        return loss(model.data_half(x, rng, x_in), beta).mean(-1)
    data, sampled = model.both_halves(x, rng, x_in)
    per_draw = loss(sampled, beta)
    if model.binary:  # draws of coins carry no gradient
        per_draw = losses.with_score(per_draw, sampled.x_given_z)
    return losses.symmetric(loss(data, beta).mean(-1), per_draw.mean(-1), beta)


@torch.no_grad()
def test_loss(
    model: MIM, items: Items, rng: Rng, loss: Loss, beta: float, sampling: bool, rows: int = TEST_ROWS
) -> Tensor:
    """Mean loss over all items (S, n, d), and as many draws of the sampling half; the mean of both halves: (S,)."""
    x_in = items.x if items.x_in is None else items.x_in
    parts = [
        batch_loss(model, x, rng, loss, beta, sampling, seen) * x.shape[-2]
        for x, seen in zip(items.x.split(rows, -2), x_in.split(rows, -2), strict=True)
    ]
    return torch.stack(parts).sum(0) / items.x.shape[-2] / (2 if sampling else 1)


# --- training -----------------------------------------------------------------------------------------------


def train_mim(settings: MimConfig, path: str | Path | None = None, progress: bool = True) -> MimRecord:
    """Train, measure and keep one model; see `train_seeds`. Of several seeds, the record of the first."""
    return train_seeds(settings, path=path, progress=progress)[0]


def train_seeds(
    settings: MimConfig,
    seeds: Sequence[int] | None = None,
    path: str | Path | None = None,
    dataset: Dataset | None = None,
    measure: bool = True,
    neighbours: bool = True,
    show: bool = False,
    progress: bool = True,
) -> list[MimRecord]:
    """Train one model a seed, all at once; the same call goes on with an interrupted run.

    seeds: default settings.seed, and settings.seeds of them. path: the run folder (default: settings.folder); of
    several seeds, each has its folder seed_N in it. dataset: loaded from the settings where it is not given.
    measure: evaluate each best model and write its results.csv; neighbours: with the KNN accuracies. show: pictures of
    the course and of the best models.
    Raises UsageError for settings that make no sense or differ from the folder's, NonFiniteError when a loss is no
    finite number, Preempted when a signal asked to stop (the state is saved).
    """
    # --- What is to be trained
    seeds = list(range(settings.seed, settings.seed + settings.seeds)) if seeds is None else list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {seeds}: must be different, and at least one")
    device = runtime.resolve_device("cpu" if settings.no_cuda else settings.device)
    runtime.set_precision("fp32")
    loss = loss_of(settings)
    check_modes(settings.p_z, settings.q_x, settings.p_z_gmm, settings.q_x_gmm, settings.learn_P_z)
    if dataset is None:
        dataset = datasets.load(
            settings.dataset, as_published=settings.as_published, root=settings.data_root, device=device
        )
    n_steps = dataset.n_train // settings.batch_size  # what is left over is not used, as in the reference
    if n_steps == 0:
        raise UsageError(f"--batch-size {settings.batch_size}: more than the {dataset.n_train} items of an epoch")
    model = MIM.stack([build(settings, dataset, seed) for seed in seeds]).to(device)
    optimizer = optimizers.Adam(model.parameters(), lr=settings.lr, fused=device.type in ("cpu", "cuda"))
    course = loop.Course(
        active=list(seeds),  # still in training, in the order of the stack
        own=[start_of_seed() for _ in seeds],
        totals=torch.zeros(len(seeds), device=device),  # sums of the training loss in this epoch
    )
    warmup = settings.warmup_steps
    normals_a_step = settings.batch_size * (3 * settings.z_dim + dataset.x_dim)

    # --- Run folder
    path = Path(path) if path is not None else settings.folder(seeds)
    settings = dataclasses.replace(settings, seed=seeds[0], seeds=len(seeds))
    described = config.to_dict(settings) | {"trained_seeds": seeds}
    with loop.Session.open(path, described, **config.resuming(MimConfig)) as session:
        run = session.run
        session.resume(course, model=Stack(model, optimizer), optimizer=optimizer)
        own_of = dict(zip(seeds, course.own, strict=True))
        steps = session.steps(
            settings.epochs * n_steps, "batch", title=f"{settings.loss_name} {settings.dataset}", progress=progress,
            bar_interval=settings.log_interval,
        )  # fmt: skip
        for step in steps if course.active else ():
            epoch, in_epoch = step // n_steps + 1, step % n_steps
            active = course.active

            # --- An epoch's data, one draw a seed
            if in_epoch == 0 or step == session.first:
                beta = 0.0 if settings.ae_loss else beta_at(epoch, warmup)
                sampling = settings.mim_samp and beta >= 1
                for group in optimizer.param_groups:
                    group["lr"] = noam(epoch, settings.lr, warmup)
                items = stacked([dataset.draw_epoch(runtime.stream(s, "mim data", epoch, 0, device)) for s in active])

            # --- A step; noise comes in blocks
            if in_epoch % BLOCK_STEPS == 0:
                block = epoch * -(-n_steps // BLOCK_STEPS) + in_epoch // BLOCK_STEPS
                streams = [runtime.stream(s, "mim noise", block, 0, device) for s in active]
                noise = Noise(streams, BLOCK_STEPS * normals_a_step)
            rows = slice(in_epoch * settings.batch_size, (in_epoch + 1) * settings.batch_size)
            x = items.x[:, rows]
            x_in = None if items.x_in is None else items.x_in[:, rows]
            batch = batch_loss(model, x, noise, loss, beta, sampling, x_in)
            optimizer.zero_grad(set_to_none=True)
            batch.sum().backward()  # the seeds share nothing: each gets the gradient of its own mean
            optimizer.step()
            course.totals += batch.detach()
            if in_epoch + 1 < n_steps:
                session.end_of_step(may_stop=(in_epoch + 1) % BLOCK_STEPS == 0)
                continue

            # --- Test, and one look at the device
            losses_now = epoch_test(model, dataset, settings, loss, epoch, active)
            for i, seed in enumerate(active):
                session.watch(f"the training loss of seed {seed}", course.totals[i])
                session.watch(f"the test loss of seed {seed}", losses_now[i])
            session.check()
            halves = 2 if settings.mim_samp and (sampling or settings.as_published) else 1
            train_now = (course.totals / n_steps / halves).tolist()
            test_now = losses_now.tolist()
            mi_now = epoch_information(model, dataset, settings, epoch, active)

            # --- The best models, and which seeds have stopped
            for i, seed in enumerate(active):
                own = own_of[seed]
                own.epochs = epoch
                if epoch >= warmup and (own.best_epoch == 0 or test_now[i] < own.best_loss):
                    own.best_epoch, own.best_loss = epoch, test_now[i]
                    own.best = parameters_of(model, i)
                if epoch >= warmup and epoch - own.best_epoch > warmup:
                    own.reason = f"no lower test loss for {epoch - own.best_epoch} epochs"
                lr = optimizer.param_groups[0]["lr"]
                row = dict(epoch=epoch, seed=seed, lr=lr, beta=beta, train_loss=train_now[i], test_loss=test_now[i])
                session.log(**row, best_epoch=own.best_epoch, **({"MI_ksg": mi_now[i]} if mi_now else {}))
            session.show(epoch=epoch, test=f"{sum(test_now) / len(test_now):.3f}", seeds=len(active))
            if settings.vis_progress:
                save_frames(run, model, dataset, epoch, active, n_seeds=len(seeds))
            going_on = [i for i, seed in enumerate(active) if not own_of[seed].reason]
            if len(going_on) < len(active):
                batch = torch.zeros(0)  # its graph would remember the shapes that the parameters had
                keep_members(model, optimizer, going_on)
                course.active = [active[i] for i in going_on]
            course.totals = torch.zeros(len(going_on), device=device)
            if not going_on:
                session.end()
            session.end_of_step(save=True)

        # --- The best models, measured; where training ended within the warm-up, the last ones
        for i, seed in enumerate(course.active):
            own_of[seed].best = own_of[seed].best or parameters_of(model, i)
        records = []
        for seed in seeds:
            record, best = finish(run, settings, dataset, own_of[seed], seed, len(seeds), measure, neighbours, device)
            records.append(record)
            if settings.vis_progress:
                animate_frames(record.path, record.epochs)
            if show:
                save_best(settings, dataset, best, record)
        if show:
            save_curves(run, seeds)
    return records


def build(settings: MimConfig, dataset: Dataset, seed: int) -> MIM:
    """The untrained model of one seed, on the CPU."""
    s = settings
    model = MIM(
        dataset.x_dim, s.z_dim, s.mid_dim, s.layers, s.act, s.min_logvar, dataset.binary, s.p_z, s.q_x, s.q_x_gmm,
        s.q_zx_gmm, s.p_z_gmm, s.p_xz_gmm, s.learn_P_z, fixed_std=s.ae_loss, as_published=s.as_published,
        anchor=dataset.anchor, rng=runtime.stream(seed, "mim parameters", 0, 0),
    )  # fmt: skip
    if s.p_z == "gmm-marginal":
        first = dataset.draw_epoch(runtime.stream(seed, "mim pseudo inputs", 0, 0, dataset.test.x.device))
        model.start_pseudo_inputs(first.x.cpu())
    return model


def epoch_test(
    model: MIM, dataset: Dataset, settings: MimConfig, loss: Loss, epoch: int, active: Sequence[int]
) -> Tensor:
    """Test loss of each seed, (S,): beta 1 (0 for AE), the sampling half always with --mim-samp.

    Items and noise are the same in every epoch, so that epochs differ by their models alone; as published, both are
    drawn anew, and what does not fill a batch is left out.
    """
    device = dataset.test.x.device
    noise_of = epoch if settings.as_published else 0
    noise = Noise([runtime.stream(s, "mim test noise", noise_of, 0, device) for s in active])
    if settings.as_published:
        items = stacked([dataset.draw_test(runtime.stream(s, "mim test data", epoch, 0, device)) for s in active])
        whole = items.x.shape[-2] // settings.batch_size * settings.batch_size or items.x.shape[-2]
        items = mapped(items, lambda part: part[:, :whole])
    else:
        items = mapped(dataset.test, lambda part: part.expand(len(active), *part.shape))
    beta = 0.0 if settings.ae_loss else 1.0
    return test_loss(model, items, noise, loss, beta, settings.mim_samp)


@torch.no_grad()
def epoch_information(
    model: MIM, dataset: Dataset, settings: MimConfig, epoch: int, active: Sequence[int]
) -> list[float]:
    """KSG estimates in nats, one a seed, in the epochs that --mi-interval names; otherwise none."""
    if settings.mi_interval == 0 or epoch % settings.mi_interval:
        return []
    x = dataset.test.x[:N_KSG]
    noise = Noise([runtime.stream(s, "mim test noise", 0, 1, x.device) for s in active])
    z = model.encode(x.expand(len(active), *x.shape)).rsample(noise)
    return [published_ksg(x, own).nats for own in z]


def parameters_of(model: MIM, index: int) -> Parameters:
    """A copy of the parameters of one model of a stack, on the CPU, by the names that a model by itself has."""
    return {name: value[index].detach().cpu().clone() for name, value in model.state_dict().items()}


def stacked(draws: Sequence[Items]) -> Items:
    """One epoch's items of several seeds: x (S, N, d) and so on."""
    x_in = [draw.x_in for draw in draws if draw.x_in is not None]
    return Items(
        torch.stack([draw.x for draw in draws]),
        torch.stack(x_in) if x_in else None,
        torch.stack([draw.labels for draw in draws]),
    )


def mapped(items: Items, change: Callable[[Tensor], Tensor]) -> Items:
    """Each part of the items changed, where it is there."""
    return Items(change(items.x), None if items.x_in is None else change(items.x_in), change(items.labels))


@torch.no_grad()
def keep_members(model: MIM, optimizer: torch.optim.Optimizer, members: Sequence[int]) -> None:
    """Take the other models out of a stack, and out of what the optimiser remembers of them, in place."""
    assert model.n_models is not None
    if len(members) == model.n_models:
        return
    for parameter in model.parameters():
        index = torch.tensor(list(members), device=parameter.device, dtype=torch.long)
        parameter.data = parameter.data[index]
        parameter.grad = None
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.ndim:
                optimizer.state[parameter][name] = value[index]
    model.resized(len(members))


# --- the course of a run ------------------------------------------------------------------------------------


def start_of_seed() -> loop.Course:
    """What the loop remembers of one seed."""
    return loop.Course(
        best_epoch=0,  # none yet
        best_loss=math.inf,
        best={},  # its parameters
        epochs=0,  # that were trained
        reason="",  # why it stopped early
    )


class Stack:
    """The stacked models as a part of the state: loaded, there are as many of them as were still in training."""

    def __init__(self, model: MIM, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer

    def state_dict(self) -> Parameters:
        return self._model.state_dict()

    def load_state_dict(self, state: Parameters) -> None:
        keep_members(self._model, self._optimizer, range(len(next(iter(state.values())))))
        self._model.load_state_dict(state)


# --- what a run leaves --------------------------------------------------------------------------------------


def finish(
    run: runs.RunFolder,
    settings: MimConfig,
    dataset: Dataset,
    own: loop.Course,
    seed: int,
    n_seeds: int,
    measure: bool,
    neighbours: bool,
    device: torch.device,
) -> tuple[MimRecord, MIM]:
    """Write one seed's best model, and measure it: best.safetensors, results.csv."""
    folder = member_folder(run.path, seed, n_seeds)
    epoch, lowest = (own.best_epoch, own.best_loss) if own.best_epoch else (own.epochs, math.nan)
    model = build(settings, dataset, seed)
    model.load_state_dict(own.best)
    model.save(folder / "best.safetensors", dataset=settings.dataset, seed=seed, epoch=epoch, loss=settings.loss_name)
    model.to(device)
    statistics = None
    if measure:
        rng = runtime.stream(seed, "mim evaluation", 0, 0, device)
        known = lowest if own.best_epoch else None
        statistics = evaluate(model, dataset, rng, epoch=epoch, loss=known, neighbours=neighbours)
        if runtime.is_main():
            write_with_hash(folder / "results.csv", results_csv(statistics).encode())
    reason = own.reason or f"all {settings.epochs} epochs are done"
    return MimRecord(seed, folder, statistics, epoch, lowest, own.epochs, reason), model


def results_csv(statistics: Statistics) -> str:
    """Rows of key and value, in the order of the published files."""
    return csv_text((name, repr(value)) for name, value in statistics.as_dict().items())


def member_folder(path: Path, seed: int, n_seeds: int) -> Path:
    """Where one seed's files are: the run folder itself, or seed_N in the folder of several."""
    return path if n_seeds == 1 else path / f"seed_{seed}"


def save_frames(
    run: runs.RunFolder, model: MIM, dataset: Dataset, epoch: int, active: Sequence[int], n_seeds: int
) -> None:
    """A picture of each seed's model after an epoch, into progress/."""
    from mi_ml_gen.mim import pictures

    for i, seed in enumerate(active):
        rng = runtime.stream(seed, "mim frame", 0, 0, dataset.test.x.device)
        frame = pictures.progress_frame(model.member(i), dataset, rng, title=f"epoch {epoch}")
        pictures.save_frame(member_folder(run.path, seed, n_seeds) / "progress" / f"{epoch:03d}.png", frame)


def animate_frames(folder: Path, n_epochs: int) -> None:
    """The animation of the pictures in progress/ up to the last epoch."""
    import numpy as np
    from PIL import Image

    from mi_ml_gen.mim import pictures

    names = [folder / "progress" / f"{epoch:03d}.png" for epoch in range(1, n_epochs + 1)]
    frames = [np.asarray(Image.open(name).convert("RGB")) for name in names if name.exists()]
    if frames:
        pictures.animate(folder / "progress", frames)


def save_best(settings: MimConfig, dataset: Dataset, model: MIM, record: MimRecord) -> None:
    """best.png: data with reconstructions above, latent space below; the flags ask for more of it."""
    from mi_ml_gen.mim import pictures

    title = f"{settings.loss_name}, epoch {record.best_epoch}"
    if settings.plot_x_recon_err and record.statistics is not None:
        title += f", error {record.statistics.x_recon_err:.3g}"
    rng = runtime.stream(record.seed, "mim frame", 0, 0, dataset.test.x.device)
    size = dict(n_shown=2000, width_px=640) if settings.show_detailed else {}
    pictures.save_frame(record.path / "best.png", pictures.progress_frame(model, dataset, rng, title, **size))


def save_curves(run: runs.RunFolder, seeds: Sequence[int]) -> None:
    """images/curves.png: the losses; images/information.png: mutual information, where it was estimated on the way."""
    from mi_ml_gen.report.figures import curves

    rows = run.metrics()
    labels = dict(train_loss="training loss (nats)", test_loss="test loss (nats)")
    of_seed = {f"seed {seed}": [row for row in rows if row["seed"] == seed] for seed in seeds}
    run.save_figure("curves.png", curves(of_seed, tuple(labels), "epoch", "epoch", labels))
    estimated = {name: [row for row in own if row.get("MI_ksg") is not None] for name, own in of_seed.items()}
    if any(len(own) > 1 for own in estimated.values()):
        labels = dict(MI_ksg="mutual information (nats)")
        run.save_figure("information.png", curves(estimated, tuple(labels), "epoch", "epoch", labels))
