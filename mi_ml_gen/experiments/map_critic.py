"""Trains the network that answers all questions of a map (`information/shared_critic.py`), in a run folder of its own.

Every step has images of its own: a network that sees a pair again learns it by heart. The bounds on validation groups
show whether they still rose when the training ended. The run folder `critic/` in that of the map holds states and
metrics, so an interrupted training goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.core import config, loop, optimizers, runtime
from mi_ml_gen.core.schedules import LearningRate
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.information.canonical import Whitening
from mi_ml_gen.information.image_critic import follow
from mi_ml_gen.information.shared_critic import Question, SharedCritic

Block = Callable[[int], Tensor]
"""The uint8 images (n_groups, n_places, 3, side, side) of block 0, 1, ...; always the same of one number."""

LR = 2e-3
"""The highest learning rate of Adam. It rises in the first steps, then falls as a cosine, for noise of the weights
costs most where little information is left."""
RISE = 20
"""Steps of its rise, at most."""
BLOCKS = 2
"""Blocks of a step; the groups of them all are its candidates."""
LOOKS = 16
"""How often the validation groups are looked at, at equal distances."""


@dataclass(frozen=True)
class Trained:
    """The critic of a map, and how it came about."""

    critic: SharedCritic
    course: tuple[tuple[float, ...], ...]
    """Validation bounds at each look, oldest first, one for each question."""
    n_steps: int
    n_blocks: int
    """Blocks that were decoded."""


def train_map_critic(
    path: Path,
    described: Mapping[str, Any],
    questions: Sequence[Question],
    whitening: Whitening,
    block: Block,
    validation: Tensor,
    settings: MapConfig,
    exchangeable: bool,
    device: torch.device,
    progress: bool = True,
) -> Trained:
    """Train in the run folder `path`, or go on there, or read what is finished there.

    described: settings of the map, which the folder records. validation: uint8 groups (n, n_places, 3, side, side) of
    independent draws. Raises Preempted at a signal, when the state is saved; NonFiniteError where the loss is none.
    """
    seed = int(runtime.stream(settings.seed, "map: critic weights", 0, 0).initial_seed() % 2**63)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = SharedCritic(whitening, questions, validation.shape[-1], settings.critic_width, exchangeable)
    critic = critic.to(device).train()
    average = copy.deepcopy(critic).eval().requires_grad_(False)
    optimizer = optimizers.Adam(critic.parameters(), lr=LR, betas=(0.9, 0.99))
    rate = LearningRate(LR, settings.critic_steps, min(RISE, settings.critic_steps // 10))
    n_steps = settings.critic_steps
    look_every = max(1, round(n_steps / LOOKS))
    with loop.Session.open(path, described, **config.resuming(MapConfig)) as session:
        session.resume(critic=critic, average=average, optimizer=optimizer)
        steps = session.steps(n_steps, unit="step", title="critic of the map", progress=progress)
        for step in steps:
            images = torch.cat([block(BLOCKS * step + i) for i in range(BLOCKS)])
            for group in optimizer.param_groups:
                group["lr"] = rate.at(step)
            losses = critic.losses(critic(images))
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
            follow(average, critic, session.done)
            session.watch("matching loss", losses)
            if session.every(look_every) or session.is_last:
                bounds = average.bounds(average.see(validation))
                session.log(nats=bounds, steps_per_s=round(session.per_s, 3))
                session.show(nats=f"{sum(bounds) / len(bounds):.3f}")
            if session.is_last:
                average.settle(average.see(validation))
            session.end_of_step(save=True)
        rows = session.rows
    looks = tuple(tuple(row["nats"]) for row in rows)
    return Trained(average, looks, rows[-1]["step"], BLOCKS * rows[-1]["step"])
