"""Several walkers of the same chunks, trained at once: what one walker cannot tell, how much depends on chance.

Each walker has its own initial weights and its own critic, so their outcomes are as independent as those of runs with
different seeds, and their spread is the spread over trainings. What they share is what costs most and depends on none
of them: the noise, the anchors' images, and one pass of the generator for the positives of all.

The rest differs from `training.py`, the published procedure with its one walker, in three points. The critics are those
of `image_critic.py`, and their loss has its candidates on the other side of the pairs only: a walker gains nothing by
positives that are merely recognised as such. A step of a walker and of its critic takes one pass and one backward pass,
in which the walker's gradients are reversed. And training ends when every walker has converged, by the rule of
`selection.convergence`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mi_ml_gen import delta
from mi_ml_gen.core import config, loop, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.information.image_critic import PairCritic
from mi_ml_gen.information.infonce import cross_side_cross_entropy
from mi_ml_gen.navigator.keeping import at_hand, remove_others
from mi_ml_gen.navigator.selection import (
    PLURALS,
    Selection,
    convergence,
    of_walker,
    select_checkpoint,
    several_answer,
)
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.setup import prepare
from mi_ml_gen.navigator.training import LOG_INTERVAL, next_row, walker_name
from mi_ml_gen.walkers import pictures
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import learned_walker
from mi_ml_gen.walkers.spec import load_walker

LEAST_SAVED = 20
"""Saved walkers before the rule of convergence may end a run: its fifths then hold at least four each."""

OF_ONE_WALKER = {"micro_batches": "--micro_batches", "temp": "--temperature", "compile": "--compile",
                 "cuda_graphs": "--cuda_graphs"}  # fmt: skip
"""Settings that only the published procedure knows, by their flags."""


class SeveralResult(NamedTuple):
    """Where a run of several walkers ended."""

    path: Path
    """The run folder: walker_0.safetensors and so on, each at its selected checkpoint, and walker.safetensors, the one
    whose delta is the median."""
    selections: list[Selection]
    samples: int
    reason: str
    summary: dict[str, Any]
    """The content of summary.json; empty on all processes but the first."""


def train_several(
    settings: NavigatorConfig,
    generator: MultiLatentGenerator | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> SeveralResult:
    """Train `settings.walkers` walkers on the same chunks; the same settings resume an interrupted run.

    Arguments and errors are those of `train_navigator`. A row of metrics holds the means over walkers under the usual
    names, and the walkers' own values as lists: losses, deltas, smoothed_losses, smoothed_deltas. Losses are
    cross-entropies in nats.
    """
    # --- Networks
    if settings.walkers < 2 or settings.negatives != "local":
        raise UsageError("--walkers: several walkers need at least 2 and --negatives local")
    for name, flag in OF_ONE_WALKER.items():
        if getattr(settings, name) != getattr(NavigatorConfig, name):
            raise UsageError(f"{flag}: is possible with one walker only; leave it out or give --walkers 1")
    setup = prepare(settings, generator, path)
    device, generator, chunks, distribution = setup.device, setup.generator, setup.chunks, setup.distribution
    augment, independent = setup.augment, setup.independent
    at = generator.layout.slice(chunks)
    n = settings.walkers
    own = [learned_walker(generator, chunks).to(device) for _ in range(n)]
    walkers = nn.ModuleList(own)  # one part of the state
    critics = nn.ModuleList(PairCritic(augment.crop_size, settings.critic_width) for _ in range(n)).to(device).train()
    optimizer_walk = setup.optimizer(walkers, settings.lr_walk)
    optimizer_mi = setup.optimizer(critics, settings.lr_MI)

    # --- Run folder
    ceiling_nats = torch.tensor(settings.batch_size).log().item()
    course = loop.Course(
        totals=torch.zeros(2, n, device=device),  # sums of losses and deltas since the last row of metrics
        finished=None,  # why a stopping rule ended the run
    )
    with loop.Session.open(setup.path, setup.recorded, **config.resuming(NavigatorConfig)) as session:
        run = session.run
        session.resume(course, walkers=walkers, critics=critics, optimizer_walk=optimizer_walk,
                       optimizer_mi=optimizer_mi)  # fmt: skip
        shown = distribution.sample((8, generator.noise_dim), runtime.stream(settings.seed, "shown", 0, 0, device))
        steps = session.steps(setup.n_steps, "anchor", setup.pairs_per_step, f"chunks {chunks}, {n} walkers", progress)
        for step in steps if course.finished is None else ():
            # --- Anchors, a positive of each by every walker, and their images
            rng = runtime.stream(settings.seed, "pairs", step, runtime.rank(), device)
            z = distribution.sample((settings.batch_size, generator.noise_dim), rng)
            pairs = [walker(generator, z, rng) for walker in own]
            anchor = pairs[0].anchor
            with runtime.autocast(device, settings.precision):
                images = generator.decode_variants(anchor, [pair.positive for pair in pairs], chunks, rng)
                anchors = augment(images.anchor.float(), rng)

                # --- Each critic minimises its loss, its walker maximises it
                losses = torch.stack(
                    [
                        _loss(critic, anchors, _Reversed.apply(augment(positive.float(), rng)))
                        for critic, positive in zip(critics, images.variants, strict=True)
                    ]
                )
            optimizer_mi.zero_grad(set_to_none=True)
            optimizer_walk.zero_grad(set_to_none=True)
            losses.sum().backward()
            runtime.average_gradients([*critics.parameters(), *walkers.parameters()])
            optimizer_mi.step()
            optimizer_walk.step()

            # --- Counters stay on the device
            moved = torch.stack([pair.positive.detach()[:, at] for pair in pairs]) - anchor.detach()[:, at]
            lengths = torch.linalg.vector_norm(moved, dim=2).mean(dim=1)
            course.totals += torch.stack([losses.detach(), lengths])
            session.watch("InfoNCE", losses)
            session.watch("delta", lengths)

            # --- Now and then: a row of metrics, the walkers, a picture; and should this end?
            save = session.passes(settings.save_freq) or session.is_last
            if session.every(LOG_INTERVAL) or save:
                totals = runtime.all_reduce_mean(course.totals).T.tolist()
                new = [next_row(of_walker(session.rows[-1:], i), session.done, *totals[i]) for i in range(n)]
                row: dict[str, Any] = {name: statistics.fmean(one[name] for one in new) for name in new[0]}
                row |= {plural: [one[name] for one in new] for name, plural in PLURALS.items()}
                rate = round(session.per_s, 2)
                bound = ceiling_nats - row["loss"]
                session.log(samples=session.samples, **row, bound_nats=bound, saved=save, pairs_per_s=rate)
                session.show(loss=f"{row['smoothed_loss']:.3f}", delta=f"{row['smoothed_delta']:.3f}")
                course.totals.zero_()
            if save:
                session.check()
                if runtime.is_main():
                    about = dict(samples=session.samples, **setup.trained_on)
                    for i, walker in enumerate(own):
                        save_walker(run.path / "walkers" / file_name(session.samples, i), walker, **about)
                        remove_others(session.rows, settings.keep, partial(walker_file_of, run.path, i))
                    if session.is_last:
                        pictures.save_curves(run.images / "curves.png", session.rows)
                course.finished = _finished(session.rows, settings, n)
                if course.finished is not None:
                    session.end()
            session.end_of_step(save=save)

        # --- The selected walkers
        rows = session.rows
        reason = course.finished or f"all {settings.num_samples:,} samples are done"
        saved = runtime.on_main(
            lambda: [at_hand(of_walker(rows, i), partial(walker_file_of, run.path, i)) for i in range(n)]
        )
        selections = [select_checkpoint(one, independent.mean) for one in saved]
        outcome: dict[str, Any] = {}
        if runtime.is_main():
            chosen = [
                load_walker(walker_file_of(run.path, i, one.samples)).to(device) for i, one in enumerate(selections)
            ]
            n_draws = delta.quick_draws(generator)
            measured = [
                delta.estimate_delta(generator, one, n_draws, distribution, settings.seed, device) for one in chosen
            ]
            median = sorted(range(n), key=lambda i: measured[i].mean)[n // 2]
            for i, (one, selection) in enumerate(zip(chosen, selections, strict=True)):
                about = dict(samples=selection.samples, rule=selection.reason, **setup.trained_on)
                save_walker(run.path / f"walker_{i}", one, **about)
                if i == median:
                    save_walker(run.path / "walker", one, **about)
                    pictures.save_pairs(run.images / "selected.png", generator, one, shown)
            pictures.save_curves(run.images / "curves.png", rows)
            outcome = several_answer(rows, selections, measured, independent, settings.batch_size, reason, median,
                                     chosen[0], run.path)  # fmt: skip
            run.write_json("summary.json", outcome)
        runtime.barrier()
    return SeveralResult(setup.path, selections, rows[-1]["samples"], reason, outcome)


def file_name(samples: int, walker: int) -> str:
    """File name, without suffix, of one of several walkers saved after so many samples."""
    return f"{walker_name(samples)}_{walker}"


def walker_file_of(folder: Path, walker: int, samples: int) -> Path:
    """One of several walkers that a run has saved after so many samples."""
    return folder / "walkers" / f"{file_name(samples, walker)}.safetensors"


class _Reversed(torch.autograd.Function):
    """The identity whose gradient has the other sign (Ganin and Lempitsky 2015): one backward pass serves both."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


def _loss(critic: nn.Module, anchors: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    a, b = critic(anchors, positives)
    return cross_side_cross_entropy(a.float() @ b.float().T)


def _finished(rows: Sequence[dict[str, Any]], settings: NavigatorConfig, n: int) -> str | None:
    """Why a run should end after the last of these rows, or None."""
    if sum(row["saved"] for row in rows) < LEAST_SAVED or settings.keep_going:
        return None
    if all(convergence(of_walker(rows, i), stopped_by_rule=False)[0] for i in range(n)):
        return "every walker's loss had stopped rising"
    return None
