"""How far the trained critic's bound stays from the truth, on a generator whose information is known.

For each of several mutual informations a critic is trained on pairs of the linear Gaussian generator, then measured
in evaluation mode on fresh draws, beside the critic that knows the distribution (`gaussian.optimal_scores`) on the same
draws. The levels go from much information to little, and each goes on from the critic of the level before: at
half a nat a critic that starts from nothing gets less far (docs/information.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import config, loop, optimizers, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments.settings import CalibrationConfig
from mi_ml_gen.generators.base import ImagePair
from mi_ml_gen.generators.linear_gaussian import HALF_RANGE_STD, GaussianPerturbation, LinearGaussian
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.estimate import MonteCarloMean
from mi_ml_gen.information.gaussian import JointGaussian, optimal_scores
from mi_ml_gen.information.infonce import candidate_cross_entropy, infonce_bound, infonce_loss
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import curves

LOG_INTERVAL = 10


@dataclass(frozen=True)
class Level:
    """One mutual information and the training steps [start, stop) that it gets."""

    nats: float
    start: int
    stop: int
    lr: float

    def learning_rate(self, step: int) -> float:
        """A linear rise over the first twentieth, then a cosine down to 0."""
        done, length = step - self.start, self.stop - self.start
        return self.lr * min(1.0, 20 * (done + 1) / length) * 0.5 * (1 + math.cos(math.pi * done / length))


class Measurement(NamedTuple):
    """Bounds at one mutual information and number of candidates."""

    nats: float
    """The truth."""
    n_candidates: int
    critic: MonteCarloMean
    optimal: MonteCarloMean
    ceiling_nats: float
    saturated: bool

    @property
    def ratio(self) -> float:
        """Share of the optimal critic's bound that the trained critic reaches."""
        return self.critic.nats / self.optimal.nats


class Problem(NamedTuple):
    """Pairs of known information."""

    generator: LinearGaussian
    perturbation: GaussianPerturbation
    joint: JointGaussian

    @classmethod
    def of(cls, generator: LinearGaussian, nats: float) -> Problem:
        """A perturbation that leaves the marginal distribution as it is, so that InfoNCE bounds the information
        alone."""
        perturbation = generator.stationary_perturbation(nats)
        return cls(generator, perturbation, generator.joint(perturbation))

    def draw(self, n: int, rng: torch.Generator) -> ImagePair:
        return self.generator.draw_pair(n, self.perturbation, rng=rng)


def levels(settings: CalibrationConfig) -> list[Level]:
    """From much information to little, one after the other."""
    result, start = [], 0
    for i, nats in enumerate(sorted(set(settings.nats), reverse=True)):
        n_steps = settings.n_steps_more if i else settings.n_steps
        result.append(Level(nats, start, start + n_steps, settings.lr_more if i else settings.lr))
        start += n_steps
    return result


def calibrate(settings: CalibrationConfig, progress: bool = True) -> list[Measurement]:
    """Train and measure; the same settings resume an interrupted run.

    Writes calibration.md, .csv, .json and images/calibration.png into the run folder.  Raises UsageError for
    settings that make no sense or differ from the folder's, NonFiniteError for a loss that is no finite
    number, Preempted when a signal asked to stop (the state is saved).
    """
    if not settings.nats or not settings.eval_pairs:
        raise UsageError("--nats and --eval_pairs: must hold at least one number each")
    device = runtime.resolve_device(settings.device)
    runtime.set_precision("fp32")
    generator = LinearGaussian(
        (settings.chunk_size,) * settings.n_chunks, noise=settings.noise, resolution=settings.resolution
    )
    generator.freeze().to(device)
    plan = levels(settings)
    problems = [Problem.of(generator, level.nats) for level in plan]
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    critic = Critic(settings.resolution, width=settings.critic_width, zero_init_residual=True).to(device)
    optimizer = optimizers.Adam(critic.parameters())

    described = config.to_dict(settings)
    with loop.Session.open(settings.save_folder, described, **config.resuming(CalibrationConfig)) as session:
        session.resume(critic=critic, optimizer=optimizer)
        for step in session.steps(plan[-1].stop, title="calibration", progress=progress):
            # --- The level that is trained at
            level, problem = next(both for both in zip(plan, problems, strict=True) if step < both[0].stop)
            if step == level.start:
                optimizer.state.clear()  # each level starts with a new Adam
            for group in optimizer.param_groups:
                group["lr"] = level.learning_rate(step)

            # --- The step
            rng = runtime.stream(settings.seed, "calibration", step, 0, device)
            loss = infonce_loss(_features(critic.train(), problem.draw(settings.batch_size, rng)), settings.temp)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            session.watch("InfoNCE", loss)

            # --- Now and then a row of metrics; at the end of a level its measurement
            ends_level = session.done == level.stop
            if session.every(LOG_INTERVAL) or ends_level:
                bound = infonce_bound(loss, settings.batch_size, settings.temp)
                session.log(loss=loss, bound_nats=bound.nats, level_nats=level.nats)
                session.show(nats=f"{level.nats:g}", bound=f"{bound.nats:.2f}")
            if ends_level:
                session.check()
                session.log(measured=[_as_row(m) for m in measure(critic, problem, level.nats, settings)])
            session.end_of_step(save=ends_level or session.every(settings.save_freq))

        measurements = [_from_row(row) for line in session.rows for row in line.get("measured", ())]
        measurements.sort(key=lambda m: (m.n_candidates, m.nats))
        calibration_table(measurements).write(session.run.path, "calibration")
        session.run.save_figure("calibration.png", figure(measurements))
    return measurements


@torch.no_grad()
def measure(critic: torch.nn.Module, problem: Problem, nats: float, settings: CalibrationConfig) -> list[Measurement]:
    """Bounds of `critic`, in evaluation mode, and of the optimal critic on the same fresh draws."""
    critic.eval()
    device = problem.generator.mixing.device
    result = []
    for n_pairs in settings.eval_pairs:
        bounds, best = [], []
        for i in range(settings.n_eval_batches):
            pair = problem.draw(n_pairs, runtime.stream(settings.seed, f"measure {nats} {n_pairs}", i, 0, device))
            loss = infonce_loss(_features(critic, pair), settings.temp)
            bound = infonce_bound(loss, n_pairs, settings.temp)
            bounds.append(bound.nats)
            x, y = (problem.generator.observe(images).cpu().double() for images in pair)
            best.append(bound.ceiling_nats - candidate_cross_entropy(optimal_scores(problem.joint, x, y)).item())
        mean = MonteCarloMean.of(bounds)
        whole = infonce_bound((bound.ceiling_nats - mean.nats), n_pairs, 1.0, 1.0)
        optimal = MonteCarloMean.of(best)
        result.append(Measurement(nats, 2 * n_pairs - 1, mean, optimal, whole.ceiling_nats, whole.saturated))
    return result


def calibration_table(measurements: Sequence[Measurement]) -> report.Table:
    """One line per mutual information and number of candidates."""
    columns = [
        "I (nats)",
        "candidates",
        "ceiling",
        "optimal critic",
        "trained critic",
        "of optimal",
        "above I",
        "saturated",
    ]
    cells = [
        [
            m.nats,
            m.n_candidates,
            m.ceiling_nats,
            report.Estimate(*m.optimal),
            report.Estimate(*m.critic),
            m.ratio,
            "yes" if m.critic.nats - m.critic.standard_error_nats > m.nats else "no",
            "yes" if m.saturated else "no",
        ]
        for m in measurements
    ]
    formats = {"I (nats)": "g", "ceiling": ".2f", "of optimal": ".1%"}
    formats |= {"optimal critic": ".3f", "trained critic": ".3f"}
    caption = (
        "Bounds in nats, with standard errors. above I: by more than the standard error. saturated: the trained critic "
        "is within log 2 of the ceiling, so more candidates would show more."
    )
    return report.Table(columns, cells, caption, formats)


def figure(measurements: Sequence[Measurement]) -> Any:
    """Bounds over the true information, a panel for each number of candidates."""
    panels = {m.n_candidates: f"{m.n_candidates} candidates: bound (nats)" for m in measurements}
    lines: dict[str, list[dict[str, float]]] = {"the information": [], "optimal critic": [], "trained critic": []}
    for m in sorted(measurements, key=lambda m: m.nats):
        for line, value in zip(lines.values(), (m.nats, m.optimal.nats, m.critic.nats), strict=True):
            line.append({"nats": m.nats, panels[m.n_candidates]: value})
    return curves(lines, list(panels.values()), x="nats", x_label="mutual information (nats)", span=1)


def _features(critic: torch.nn.Module, pair: ImagePair) -> Tensor:
    """(n, 2, d), of images scaled to unit variance."""
    images = (torch.cat(pair) - 0.5) * (2 * HALF_RANGE_STD)
    return torch.stack(critic(images).chunk(2), dim=1)


def _as_row(m: Measurement) -> dict[str, Any]:
    return m._asdict() | {"critic": list(m.critic), "optimal": list(m.optimal)}


def _from_row(row: dict[str, Any]) -> Measurement:
    return Measurement(**row | {"critic": MonteCarloMean(*row["critic"]), "optimal": MonteCarloMean(*row["optimal"])})
