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
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from mi_ml_gen import config, delta, pictures, runs, runtime, walkers
from mi_ml_gen.config import option
from mi_ml_gen.critic import Critic
from mi_ml_gen.errors import Preempted, UsageError
from mi_ml_gen.generators import ImagePair, MultiLatentGenerator, bundled, load_generator
from mi_ml_gen.information import infonce_bound, infonce_loss
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.views import Augment, policy_from_flags
from mi_ml_gen.walkers import NonlinearWalker, save_walker

LOG_INTERVAL = 16
"""Steps between lines of metrics, which are also the only reads of the device's values."""
SMOOTHING_STEPS = 16
"""Half-life of the smoothed loss and delta, in steps."""


@dataclass
class NavigatorConfig:
    """What `scripts/train_navigator.py` takes; the defaults are the paper's."""

    generator: str = option(help="bigbigan, tiny-bigbigan, linear-gaussian ...")
    chunks: str = option(help='which chunks to perturb: "1_6" is 1 to 5, the first included, the last excluded')
    g_path: str | None = option(None, help="weights of the generator, where none are bundled")
    g_use: list[str] = option([], help="its use, KEY=VALUE ...: psi=0.7 crop=256 size=128 label=3 noise_mode=random")
    num_samples: int = option(1_024_000, at_least=1, help="anchors to train on, over all processes")
    save_freq: int = option(2048, at_least=1, help="samples between saved walkers")
    save_folder: str = option("./walker_runs", help="folder of run folders")
    run_name: str = option("0", help="first part of the run folder's name; the same command resumes it")

    mean: float = option(0.0, help="mean of the anchors' noise")
    std: float = option(1.0, above=0, help="standard deviation of the anchors' noise")
    truncation: float = option(2.0, above=0, help="bound of the anchors' noise, in standard deviations")
    simclr_aug: bool = option(False, help="views: crop, flip, colour and grayscale at random")
    removeCrop: bool = option(False, help="views: as --simclr_aug, but the centre crop")
    removeColor: bool = option(False, help="views: as --simclr_aug, but no colour changes")
    img_size: int | None = option(None, at_least=8, help="side of the decoded images (default: the generator's own)")

    batch_size: int = option(64, at_least=2, help="pairs a step, of each process")
    lr_walk: float = option(8e-5, above=0, help="learning rate of the walker")
    lr_MI: float = option(5e-5, above=0, help="learning rate of the critic")
    weight_decay: float = option(0.0, at_least=0, help="of both optimisers")
    beta1: float = option(0.5, at_least=0, below=1, help="of both Adams")
    beta2: float = option(0.999, at_least=0, below=1, help="of both Adams")
    temp: float = option(0.1, above=0, help="temperature of InfoNCE")
    negatives: Literal["local", "global"] = option("local", help="candidates: of each process, or of all")
    critic_width: int = option(64, at_least=4, help="channels of the critic's first stage; 64 is ResNet-18")

    early_stopping_min_steps: int = option(100_000, at_least=0, help="samples before any rule may stop the run")
    early_stopping_threshold: float | None = option(
        2.5, above=0, help="stop once the smoothed loss is above it (none: never)"
    )
    patience: int | None = option(
        200_000, at_least=1, help="stop when the smoothed loss has not risen for so many samples (none: never)"
    )

    seed: int = option(0, at_least=0, help="of weights and all draws")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", help="arithmetic of generator and critic")
    compile: bool = option(False, help="compile generator and critic with torch.compile")
    state_interval_s: float = option(60.0, at_least=0, help="least seconds between saved states, for resuming")
    image_freq: int = option(16, at_least=1, help="saved walkers between grids of pairs")

    @classmethod
    def preset(cls, generator: str | None) -> str | None:
        """The bundled settings (a name for `config.load`) for a generator: those of the small ones, for the
        generators that come with the package; for all others None, the defaults, which are the paper's."""
        return "navigator/small" if generator in bundled() else None

    @property
    def law(self) -> TruncatedNormal:
        return TruncatedNormal(self.mean, self.std, self.truncation)

    @property
    def policy(self) -> str:
        return policy_from_flags(self.simclr_aug, self.removeCrop, self.removeColor)

    @property
    def folder(self) -> Path:
        return Path(self.save_folder) / f"{self.run_name}_{self.generator}_{self.chunks}_{self.policy}"


FREE = ("num_samples", "g_path", "device", "compile", "state_interval_s", "image_freq", "save_folder", "run_name",
        "early_stopping_min_steps", "early_stopping_threshold", "patience")  # fmt: skip
"""Settings that may differ when a run is resumed."""


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
    with runs.RunFolder.open(path, described, free=FREE) as run, runs.Preemption() as preemption:
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
        guard = runtime.FiniteGuard()
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
            chosen = walkers.load_walker(run.path / "walkers" / f"{walker_name(selection.samples)}.safetensors")
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


class Selection(NamedTuple):
    """The checkpoint that a run is represented by."""

    samples: int
    reason: str


RISE = 0.8
"""Share of the loss's rise from its trough that the selected walker must have reached for good."""


def select_checkpoint(rows: Sequence[dict[str, Any]], independent: float) -> Selection:
    """The saved walker to keep, from rows of metrics; a rule in place of a look at the curves.

    The critic first learns to tell the pairs (the loss falls to a trough), then the walker takes information away
    (it rises). Kept is the earliest walker after the trough from which on the smoothed loss never again lies below
    80% of the rise to its last value: what is gained later is little, and is paid for with a longer perturbation; a
    critic that stumbles for a moment counts for nothing. Walkers whose delta, smoothed or not (it may grow faster than
    a mean follows), exceeds `independent`, the length between independent draws, have left what the generator knows
    and are out.
    """
    saved = [row for row in rows if row["saved"]]
    if not saved:
        raise UsageError("no walker has been saved yet")
    within = [row for row in saved if max(row["delta"], row["smoothed_delta"]) <= independent]
    if not within:
        return Selection(
            saved[0]["samples"], "every walker perturbs further than independent draws lie apart: the first"
        )
    trough = min(range(len(within)), key=lambda i: within[i]["smoothed_loss"])
    after = within[trough:]
    lasting = list(accumulate((row["smoothed_loss"] for row in reversed(after)), min))[::-1]  # least from here on
    low, high = lasting[0], lasting[-1]
    chosen = next(row for row, loss in zip(after, lasting, strict=True) if loss >= low + RISE * (high - low))
    reason = f"the first that keeps {RISE:.0%} of the loss's rise from its trough, {low:.3f}, to {high:.3f}"
    return Selection(chosen["samples"], reason)


def should_stop(rows: Sequence[dict[str, Any]], settings: NavigatorConfig, independent: float) -> str | None:
    """Why a run should end after the last of these rows, or None. Nothing stops it before the least of samples."""
    saved = [row for row in rows if row["saved"]]
    now = rows[-1]
    if now["samples"] <= settings.early_stopping_min_steps:
        return None
    threshold = settings.early_stopping_threshold
    if threshold is not None and now["smoothed_loss"] > threshold:
        return f"the smoothed loss {now['smoothed_loss']:.3f} is above the threshold {threshold:g}"
    if settings.patience is None:
        return None
    if now["smoothed_delta"] > 1.25 * independent:
        return f"delta {now['smoothed_delta']:.3f} is beyond 1.25 times that of independent draws, {independent:.3f}"
    trough = min(range(len(saved)), key=lambda i: saved[i]["smoothed_loss"])
    peak = max(saved[trough:], key=lambda row: row["smoothed_loss"])
    if now["samples"] - peak["samples"] >= settings.patience:
        return f"the smoothed loss has not risen for {now['samples'] - peak['samples']:,} samples"
    return None


def near(rows: Sequence[dict[str, Any]], samples: int, window: int = 2 * SMOOTHING_STEPS) -> dict[str, float]:
    """Means of loss and bound over the rows within `window` steps before and after a checkpoint."""
    step = min(rows, key=lambda row: abs(row["samples"] - samples))["step"]
    close = [row for row in rows if abs(row["step"] - step) <= window]
    return {key: sum(row[key] for row in close) / len(close) for key in ("loss", "bound_nats")}


def summary(
    rows: Sequence[dict[str, Any]],
    selection: Selection,
    independent: delta.DeltaEstimate,
    n_pairs: int,
    temperature: float,
    reason: str,
) -> dict[str, Any]:
    """What a run came to, as plain values: the content of summary.json."""
    at = near(rows, selection.samples)
    bound = infonce_bound(at["loss"], n_pairs, temperature)
    return {
        "selected_samples": selection.samples,
        "selected_because": selection.reason,
        "stopped_because": reason,
        "trained_samples": rows[-1]["samples"],
        "infonce": at["loss"],
        "bound_nats": bound.nats,
        "ceiling_nats": bound.ceiling_nats,
        "bound_is_saturated": bound.saturated,
        "independent_delta": independent.mean,
        "n_candidates": 2 * n_pairs - 1,
        "chance_infonce": bound.ceiling_nats * temperature / 0.07,
    }
