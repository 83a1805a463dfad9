"""Trains the network that answers all questions of a map (`information/shared_critic.py`), in a run folder of its own.

Images are decoded block by block, and each is trained on a few times before it makes room: decoding costs about as much
as a step. The bounds on validation groups show whether they still rose when the training ended. The run folder
`critic/` in that of the map holds states and metrics, so an interrupted training goes on.
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
GROUPS = 128
"""Groups of a step, and so candidates."""
IMAGES = 4096
"""The most images of a step: large groups come in smaller numbers."""
FEWEST_GROUPS = 32
FIRST_BLOCKS = 4
"""Blocks at hand at the first step."""
KEPT_VALUES = 2**26
"""Values of the images at hand, at most, a byte each."""
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
    window: _Window | None = None
    with loop.Session.open(path, described, **config.resuming(MapConfig)) as session:
        session.resume(critic=critic, average=average, optimizer=optimizer)
        steps = session.steps(n_steps, unit="step", title="critic of the map", progress=progress)
        for step in steps:
            if window is None:
                window = _Window(block, device, lambda: session.stop_if_asked("what was trained is saved"))
            images = window.batch(step, settings.seed)
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
    return Trained(average, looks, rows[-1]["step"], n_blocks(rows[-1]["step"]))


class _Window:
    """The newest blocks, and the groups of each step from among them. What a step gets depends on its number alone, so
    an interrupted training goes on exactly; it then decodes the blocks at hand again."""

    def __init__(self, block: Block, device: torch.device, stop: Callable[[], object]) -> None:
        self._block, self._device, self._stop = block, device, stop
        self._held: Tensor | None = None
        self._n = 0
        """Blocks that were decoded, those counted that a resumed training has no use for."""

    def batch(self, step: int, seed: int) -> Tensor:
        """uint8 (n_groups, n_places, 3, side, side), on the device."""
        held = self._up_to(n_blocks(step + 1))
        n_groups = _n_groups(held.shape[2])
        at_hand = min(self._n, len(held)) * held.shape[1]
        rng = runtime.stream(seed, "map: critic order", step, 0)
        chosen = torch.randperm(at_hand, generator=rng)[:n_groups].to(self._device)
        return held.flatten(0, 1)[chosen]

    def _up_to(self, n: int) -> Tensor:
        """Decode what is missing of the first n blocks and has a place; block i stands at place i % n_places."""
        if self._held is None:
            first = self._block(0).to(self._device)
            n_places = max(FIRST_BLOCKS, KEPT_VALUES // first.numel())
            self._held = first.new_zeros(n_places, *first.shape)
            self._n = max(0, n - n_places)
        for i in range(self._n, n):
            if n - self._n > 1:  # at the beginning, when there is nothing to save
                self._stop()
            self._held[i % len(self._held)] = self._block(i).to(self._device)
        self._n = n
        return self._held


def _n_groups(n_places: int) -> int:
    """Groups of a step."""
    return max(FEWEST_GROUPS, min(GROUPS, IMAGES // n_places))


def n_blocks(n_steps: int) -> int:
    """Blocks that so many steps need."""
    return FIRST_BLOCKS + n_steps - 1
