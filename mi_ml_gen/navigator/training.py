"""The navigator: minimax training of a walker against a critic (Serez et al., 2025, section 4; after COP-Gen).

The critic minimises InfoNCE on pairs (image of the anchor, image of the positive), so log(candidates) - InfoNCE
approaches the mutual information of the pair from below; the walker maximises the same loss through the frozen
generator, so the pair comes to share as little information as possible.

How long to train, and which checkpoint to keep, is decided by `should_stop` and `select_checkpoint`, whose rules
docs/navigator.md explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mi_ml_gen import delta
from mi_ml_gen.core import config, loop, norms, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.infonce import infonce_bound
from mi_ml_gen.navigator.keeping import at_hand, remove_others
from mi_ml_gen.navigator.marginals import marginal_divergence, n_compared
from mi_ml_gen.navigator.selection import (
    SMOOTHING_STEPS,
    Selection,
    answer,
    finding_of,
    select_checkpoint,
    should_stop,
    summary,
)
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.setup import prepare
from mi_ml_gen.navigator.step import Step
from mi_ml_gen.walkers import pictures
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import learned_walker
from mi_ml_gen.walkers.spec import load_walker

LOG_INTERVAL = 16
"""Steps between lines of metrics, which are also the only reads of the device's values."""


class NavigatorResult(NamedTuple):
    """Where a run ended."""

    path: Path
    """The run folder; walker.safetensors and walker.json in it are the selected walker."""
    selection: Selection
    samples: int
    reason: str
    """Why training stopped."""
    summary: dict[str, Any]
    """The content of summary.json; empty on all processes but the first."""


def train_navigator(
    settings: NavigatorConfig,
    generator: MultiLatentGenerator | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> NavigatorResult:
    """Train a walker on some chunks of a generator; the same settings resume an interrupted run.

    generator: loaded from the settings where it is not given, else moved to their device. path: the run folder
    (default: settings.folder). Raises UsageError for settings that make no sense or differ from the folder's,
    NonFiniteError when a loss or delta is no finite number, Preempted when a signal asked to stop (the state is saved).
    """
    # --- Networks
    if settings.walkers != 1:
        raise UsageError(f"--walkers {settings.walkers}: train_navigator trains one; several.train_several trains more")
    setup = prepare(settings, generator, path)
    device, generator, chunks, distribution = setup.device, setup.generator, setup.chunks, setup.distribution
    augment, independent = setup.augment, setup.independent
    walker = learned_walker(generator, chunks).to(device)
    critic: nn.Module = norms.synchronise(Critic(augment.crop_size, width=settings.critic_width))
    critic = critic.to(device).to(memory_format=torch.channels_last).train()
    optimizer_walk = setup.optimizer(walker, settings.lr_walk)
    optimizer_mi = setup.optimizer(critic, settings.lr_MI)
    parts = Step(setup, walker, critic)

    # --- Run folder
    n_pairs = setup.pairs_per_step if settings.negatives == "global" else settings.batch_size
    course = loop.Course(
        totals=torch.zeros(2, device=device),  # sums of loss and delta since the last row of metrics
        finished=None,  # why a stopping rule ended the run
    )
    with loop.Session.open(setup.path, setup.recorded, **config.resuming(NavigatorConfig)) as session:
        run = session.run
        session.resume(course, walker=walker, critic=critic, optimizer_walk=optimizer_walk, optimizer_mi=optimizer_mi)
        shown = distribution.sample((8, generator.noise_dim), runtime.stream(settings.seed, "shown", 0, 0, device))
        steps = session.steps(setup.n_steps, "pair", setup.pairs_per_step, f"chunks {chunks}", progress)
        for step in steps if course.finished is None else ():
            # --- Noise of the anchors
            rng = runtime.stream(settings.seed, "pairs", step, runtime.rank(), device)
            z = distribution.sample((settings.batch_size, generator.noise_dim), rng)

            # --- Critic: minimise InfoNCE of the pairs' views
            told = parts.critic(z, step, rng)
            runtime.average_gradients(critic)
            optimizer_mi.step()

            # --- Walker: maximise InfoNCE
            moves = parts.walker()
            for parameter, gradient in zip(walker.parameters(), moves.gradients, strict=True):
                parameter.grad = gradient
            runtime.average_gradients(walker)
            optimizer_walk.step()

            # --- Counters stay on the device
            course.totals += torch.stack(told)
            session.watch("InfoNCE", told.loss, moves.loss)
            session.watch("delta", told.delta)

            # --- Now and then: a row of metrics, a walker, a picture; and should this end?
            save = session.passes(settings.save_freq) or session.is_last
            if session.every(LOG_INTERVAL) or save:
                totals = runtime.all_reduce_mean(course.totals).tolist()
                row = next_row(session.rows, session.done, *totals)
                bound = infonce_bound(row["loss"], n_pairs, settings.temp).nats
                rate = round(session.per_s, 2)
                session.log(samples=session.samples, **row, bound_nats=bound, saved=save, pairs_per_s=rate)
                session.show(loss=f"{row['smoothed_loss']:.3f}", delta=f"{row['smoothed_delta']:.3f}")
                course.totals.zero_()
            if save:
                session.check()
                if runtime.is_main():
                    about = dict(samples=session.samples, **setup.trained_on)
                    save_walker(run.path / "walkers" / walker_name(session.samples), walker, **about)
                    remove_others(session.rows, settings.keep, partial(walker_file, run.path))
                    n_saved = sum(row["saved"] for row in session.rows)
                    if session.is_last or n_saved % settings.image_freq == 0:
                        pictures.save_pairs(run.images / f"pairs_{session.samples:09d}.png", generator, walker, shown)
                        pictures.save_curves(run.images / "curves.png", session.rows)
                course.finished = should_stop(session.rows, settings, independent.mean)
                if course.finished is not None:
                    session.end()
            session.end_of_step(save=save)

        # --- The selected walker
        rows = session.rows
        reason = course.finished or f"all {settings.num_samples:,} samples are done"
        saved = runtime.on_main(lambda: at_hand(rows, partial(walker_file, run.path)))
        selection = select_checkpoint(saved, independent.mean)
        outcome: dict[str, Any] = {}
        if runtime.is_main():
            chosen = load_walker(walker_file(run.path, selection.samples))
            about = dict(samples=selection.samples, rule=selection.reason, **setup.trained_on)
            save_walker(run.path / "walker", chosen, **about)
            pictures.save_pairs(run.images / "selected.png", generator, chosen.to(device), shown)
            pictures.save_curves(run.images / "curves.png", rows)
            n_draws = delta.quick_draws(generator)
            measured = delta.estimate_delta(generator, chosen, n_draws, distribution, settings.seed, device)
            outcome = summary(rows, selection, independent, n_pairs, settings.temp, reason)
            outcome |= answer(rows, chosen, measured, independent, course.finished is not None, run.path)
            if (n := n_compared(rows[-1]["samples"])) is not None:
                differ = marginal_divergence(generator, chosen, distribution, n, settings.seed)
                outcome["marginals"] = differ._asdict()
            finding = finding_of(outcome)
            outcome |= {"bound_verdict": str(finding.verdict), "bound_verdict_because": finding.reason}
            run.write_json("summary.json", outcome)
        runtime.barrier()
    return NavigatorResult(setup.path, selection, rows[-1]["samples"], reason, outcome)


def walker_name(samples: int) -> str:
    """File name, without suffix, of the walker saved after so many samples."""
    return f"w_{samples:09d}"


def walker_file(folder: Path, samples: int) -> Path:
    """The walker that a run, of one walker, has saved after so many samples."""
    return folder / "walkers" / f"{walker_name(samples)}.safetensors"


def next_row(rows: Sequence[dict[str, Any]], step: int, loss: float, length: float) -> dict[str, float]:
    """Loss and delta of the next row of metrics, from their sums since the last one, with their smoothed values."""
    n = step - (rows[-1]["step"] if rows else 0)
    keep = 0.0
    if rows:  # an exponential mean over the steps seen so far, without pull to the first row
        keep = (1 - 0.5 ** ((step - n) / SMOOTHING_STEPS)) / (1 - 0.5 ** (step / SMOOTHING_STEPS))
        keep *= 0.5 ** (n / SMOOTHING_STEPS)
    row: dict[str, float] = {}
    for name, total in (("loss", loss), ("delta", length)):
        mean = total / n
        before = rows[-1][f"smoothed_{name}"] if rows else mean
        row |= {name: mean, f"smoothed_{name}": keep * before + (1 - keep) * mean}
    return row
