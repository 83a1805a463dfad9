"""The navigator: minimax training of a walker against a critic (Serez et al., 2025, section 4; after COP-Gen).

The critic minimises InfoNCE on pairs (image of the anchor, image of the positive), so log(candidates) - InfoNCE
approaches the mutual information of the pair from below; the walker maximises the same loss through the frozen
generator, so the pair comes to share as little information as possible.

How long to train, and which checkpoint to keep, is decided by `should_stop` and `select_checkpoint`, whose rules
docs/navigator.md explains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from mi_ml_gen import delta
from mi_ml_gen.core import config, loop, runs, runtime
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.infonce import infonce_bound, infonce_loss
from mi_ml_gen.navigator.selection import SMOOTHING_STEPS, Selection, select_checkpoint, should_stop, summary
from mi_ml_gen.navigator.settings import FREE, NavigatorConfig
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.walkers import pictures
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
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


def train_navigator(
    settings: NavigatorConfig,
    generator: MultiLatentGenerator | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> NavigatorResult:
    """Train a walker on some chunks of a generator; the same settings resume an interrupted run.

    generator: loaded from the settings where it is not given. path: the run folder (default: settings.folder).
    Raises UsageError for settings that make no sense or differ from the folder's, NonFiniteError when a loss or
    delta is no finite number, Preempted when a signal asked to stop (the state is saved).
    """
    # --- Networks
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    runtime.set_precision(settings.precision)
    if generator is None:
        generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    chunks = generator.chunks(settings.chunks)
    augment = _views(settings, generator).to(device)
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    walker = NonlinearWalker.on(generator, chunks).to(device)
    critic: nn.Module = Critic(augment.crop_size, width=settings.critic_width)
    if device.type == "cuda" and runtime.world_size() > 1:
        critic = nn.SyncBatchNorm.convert_sync_batchnorm(critic)
    critic = critic.to(device).to(memory_format=torch.channels_last).train()
    adam: dict[str, Any] = dict(betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay)
    adam["fused"] = device.type == "cuda"
    optimizer_walk = torch.optim.Adam(walker.parameters(), lr=settings.lr_walk, **adam)
    optimizer_mi = torch.optim.Adam(critic.parameters(), lr=settings.lr_MI, **adam)
    stateful: dict[str, Any] = dict(
        walker=walker, critic=critic, optimizer_walk=optimizer_walk, optimizer_mi=optimizer_mi
    )
    decode_pair: Callable[..., ImagePair] = generator.decode_pair
    score: Callable[..., torch.Tensor] = critic
    if settings.compile:
        from torch import _dynamo  # takes seconds to import

        _dynamo.config.suppress_errors = True  # what cannot be compiled here runs as it is
        decode_pair, score = torch.compile(generator.decode_pair), torch.compile(critic)

    # --- Scales that the course of training is held against
    pairs_per_step = settings.batch_size * runtime.world_size()
    n_steps = max(1, settings.num_samples // pairs_per_step)
    n_pairs = pairs_per_step if settings.negatives == "global" else settings.batch_size
    independent = delta.independent_delta(generator, chunks, law=settings.law, seed=settings.seed, device=device)
    course = Course(settings.save_freq, settings.temp, n_pairs, independent.mean)

    # --- Run folder
    path = Path(path) if path is not None else settings.folder
    described = config.to_dict(settings) | {"n_processes": runtime.world_size()}
    with runs.RunFolder.open(path, described, free=FREE) as run, loop.Preemption() as preemption:
        first = 0
        if (saved := run.load_latest()) is not None:
            first, state = saved
            for name, part in stateful.items():
                part.load_state_dict(state[name])
            course.load_state_dict(state["course"])
        course.rows = runtime.on_main(run.metrics)
        runtime.broadcast_module(walker)
        runtime.broadcast_module(critic)
        shown = settings.law.sample((8, generator.noise_dim), runtime.stream(settings.seed, "shown", 0, 0, device))
        guard = loop.FiniteGuard()
        totals = course.totals.to(device)  # sums of loss and delta since the last line of metrics
        started, started_at = time.monotonic(), first
        last_state = time.monotonic()
        reason = course.finished or f"all {settings.num_samples:,} samples are done"

        bar = tqdm(
            total=n_steps * pairs_per_step, initial=first * pairs_per_step, unit="pair", unit_scale=True,
            desc=f"chunks {chunks}", disable=not (progress and runtime.is_main()),
        )  # fmt: skip
        for step in range(first, n_steps) if course.finished is None else ():
            # --- A pair, its images, its views
            rng = runtime.stream(settings.seed, "pairs", step, runtime.rank(), device)
            z = settings.law.sample((settings.batch_size, generator.noise_dim), rng)
            pair = walker(generator, z, rng)
            with runtime.autocast(device, settings.precision):
                images = decode_pair(pair.anchor, pair.positive, chunks, rng)
                views = torch.cat([augment(images.anchor.float(), rng), augment(images.positive.float(), rng)])
                views = views.contiguous(memory_format=torch.channels_last)

                # --- Critic: minimise InfoNCE
                loss_critic = _infonce(score(views.detach()), settings)
            optimizer_mi.zero_grad(set_to_none=True)
            loss_critic.backward()
            runtime.average_gradients(critic)
            optimizer_mi.step()

            # --- Walker: maximise InfoNCE; no gradient of the critic's or the generator's weights is computed
            with runtime.autocast(device, settings.precision):
                loss_walker = -_infonce(score(views), settings)
            parameters = list(walker.parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss_walker, parameters), strict=True):
                parameter.grad = gradient
            runtime.average_gradients(walker)
            optimizer_walk.step()

            # --- Counters stay on the device
            lengths = delta.pair_delta(generator, pair, (chunks,)).detach().mean()
            totals += torch.stack([loss_critic.detach(), lengths])
            guard.watch("InfoNCE", loss_critic, loss_walker)
            guard.watch("delta", lengths)
            done = step + 1
            samples = done * pairs_per_step
            bar.update(pairs_per_step)

            # --- Now and then: a line of metrics, a walker, a state, a picture; and should this end?
            is_last = done == n_steps
            save = course.save_is_due(samples) or is_last
            if done % LOG_INTERVAL == 0 or save:
                guard.check(done, run.last_state)
                row = course.row(done, samples, runtime.all_reduce_mean(totals).tolist(), saved=save)
                totals.zero_()
                rate = (done - started_at) * pairs_per_step / (time.monotonic() - started)
                run.log(done, **row, pairs_per_s=round(rate, 2))
                bar.set_postfix(loss=f"{row['smoothed_loss']:.3f}", delta=f"{row['smoothed_delta']:.3f}")
            if save:
                if runtime.is_main():
                    about = dict(generator=settings.generator, samples=samples, seed=settings.seed)
                    save_walker(run.path / "walkers" / walker_name(samples), walker, **about)
                    if is_last or course.n_saved % settings.image_freq == 0:
                        pictures.save_pairs(run.images / f"pairs_{samples:09d}.png", generator, walker, shown)
                        pictures.save_curves(run.images / "curves.png", course.rows)
                if (stop := should_stop(course.rows, settings, independent.mean)) is not None:
                    course.finished, is_last = stop, True
                    reason = stop
            stop_now = runtime.broadcast_flag(preemption.requested)
            state_is_due = save and runtime.broadcast_flag(time.monotonic() - last_state >= settings.state_interval_s)
            if state_is_due or is_last or stop_now:
                guard.check(done, run.last_state)
                course.totals = totals.cpu()
                states = {name: part.state_dict() for name, part in stateful.items()}
                run.save_state(done, states | {"course": course.state_dict()})
                last_state = time.monotonic()
            if is_last:
                break
            if stop_now:
                raise Preempted(f"{path} is saved at {samples:,} samples; the same command goes on from there")
        bar.close()

        # --- The selected walker
        selection = select_checkpoint(course.rows, independent.mean)
        if runtime.is_main():
            chosen = load_walker(run.path / "walkers" / f"{walker_name(selection.samples)}.safetensors")
            about = dict(generator=settings.generator, samples=selection.samples, seed=settings.seed)
            save_walker(run.path / "walker", chosen, **about, rule=selection.reason)
            pictures.save_pairs(run.images / "selected.png", generator, chosen.to(device), shown)
            pictures.save_curves(run.images / "curves.png", course.rows)
            run.write_json("summary.json", summary(course.rows, selection, independent, n_pairs, settings.temp, reason))
        runtime.barrier()
    return NavigatorResult(path, selection, course.rows[-1]["samples"], reason)


def walker_name(samples: int) -> str:
    """File name, without suffix, of the walker saved after so many samples."""
    return f"w_{samples:09d}"


def _infonce(features: torch.Tensor, settings: NavigatorConfig) -> torch.Tensor:
    """Loss of features (2 n, d), anchors before positives; over all processes' pairs when negatives are global."""
    paired = torch.stack(features.chunk(2), dim=1)  # (n, 2, d)
    if settings.negatives == "global":
        paired = runtime.gather(paired)
    return infonce_loss(paired, settings.temp)


def _views(settings: NavigatorConfig, generator: MultiLatentGenerator) -> Augment:
    if settings.img_size not in (None, generator.resolution):
        raise UsageError(
            f"--img_size {settings.img_size}: {generator.name} decodes to {generator.resolution} px; leave the flag out"
        )
    return Augment(settings.policy, generator.resolution)


# ---------------------------------------------------------------------------------------------------------------
# The course of training


@dataclass
class Course:
    """What the loop remembers of its own course; part of the saved state."""

    save_freq: int
    temperature: float
    n_pairs: int
    independent: float
    totals: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    """Sums of loss and delta since the last row."""
    finished: str | None = None
    """Why a stopping rule ended the run."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def n_saved(self) -> int:
        return sum(row["saved"] for row in self.rows)

    def save_is_due(self, samples: int) -> bool:
        """True at the first step at or beyond each multiple of save_freq."""
        last = max((row["samples"] for row in self.rows if row["saved"]), default=0)
        return samples // self.save_freq > last // self.save_freq

    def row(self, step: int, samples: int, totals: Sequence[float], saved: bool) -> dict[str, Any]:
        """The next row of metrics, from the sums of loss and delta since the last one."""
        n = step - (self.rows[-1]["step"] if self.rows else 0)
        loss, length = totals[0] / n, totals[1] / n
        smoothed_loss, smoothed_delta = loss, length
        if self.rows:
            # An exponential mean over the steps seen so far, without pull to the first row.
            keep = (1 - 0.5 ** ((step - n) / SMOOTHING_STEPS)) / (1 - 0.5 ** (step / SMOOTHING_STEPS))
            keep *= 0.5 ** (n / SMOOTHING_STEPS)
            smoothed_loss = keep * self.rows[-1]["smoothed_loss"] + (1 - keep) * loss
            smoothed_delta = keep * self.rows[-1]["smoothed_delta"] + (1 - keep) * length
        row = dict(
            samples=samples, loss=loss, smoothed_loss=smoothed_loss, delta=length, smoothed_delta=smoothed_delta,
            bound_nats=infonce_bound(loss, self.n_pairs, self.temperature).nats, saved=saved,
        )  # fmt: skip
        self.rows.append({"step": step, **row})
        return row

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals, "finished": self.finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals, self.finished = state["totals"], state["finished"]
