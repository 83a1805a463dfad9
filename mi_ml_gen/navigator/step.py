"""What a step of the navigator computes on the device, in two parts: between them the critic's optimiser steps.

With `--cuda_graphs` both parts are recorded on the GPU and replayed (`core.graphs`), because the host may need longer
to launch their kernels than the GPU to run them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen import delta
from mi_ml_gen.core import fixed, graphs, runtime
from mi_ml_gen.generators.base import ImagePair
from mi_ml_gen.information.infonce import infonce_loss
from mi_ml_gen.navigator.parts import Parts
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.setup import Setup
from mi_ml_gen.views.augment import ViewParameters
from mi_ml_gen.walkers.learned import LearnedWalker

logger = logging.getLogger(__name__)


class Told(NamedTuple):
    """What the first part of a step says, as scalars on the device."""

    loss: Tensor
    """The critic's InfoNCE, before its step."""
    delta: Tensor
    """Mean length of the perturbations."""


class Moves(NamedTuple):
    """What the second part of a step says."""

    loss: Tensor
    """The walker's loss: minus the InfoNCE of the critic after its step."""
    gradients: list[Tensor]
    """Of the walker's parameters, in their order."""


class Step:
    """The two parts of a step, for one walker and one critic.

        told = step.critic(z, rng)      # the critic's parameters have their gradients
        moves = step.walker()           # the walker's gradients, by the critic as it is now

    Views and images are made once, in the first part.
    """

    def __init__(self, setup: Setup, walker: LearnedWalker, critic: nn.Module) -> None:
        self.setup, self.settings = setup, setup.settings
        self._walker, self._critic = walker, critic
        self._decode_pair: Callable[..., ImagePair] = setup.generator.decode_pair
        self._score: Callable[..., Tensor] = critic
        if self.settings.compile:
            self._decode_pair = runtime.compiled(self._decode_pair)
            self._score = runtime.compiled(self._score)
            setup.augment.view = runtime.compiled(setup.augment.view)  # type: ignore[method-assign]
        self._left: tuple[Tensor, Parts | None] | None = None  # the views, and their parts; from one half to the other
        self._rng: torch.Generator | None = None
        self._number = 0
        self._first: Callable[..., Told] = self._critic_part
        self._second: Callable[[], Moves] = self._walker_part
        if self.settings.cuda_graphs and may_be_recorded(setup):
            recorded = graphs.Recorded(
                self._critic_part, "a step of the navigator", critic.parameters(), then=self._walker_part
            )
            self._first, self._second = recorded, recorded.after

    def critic(self, z: Tensor, step: int, rng: torch.Generator) -> Told:
        """Pairs of the noise z (n, noise_dim), their images and views, and the critic's loss with its gradients.

        rng: draws the views, and what decoding draws. step: its number, for the random streams of parts.
        """
        drawn = self.setup.augment.draw_pair(len(z), rng, self.setup.device)
        self._rng, self._number = rng, step
        self._critic.zero_grad(set_to_none=True)
        return self._first(z, {} if drawn is None else drawn.tensors())

    def walker(self) -> Moves:
        """The gradients that raise the loss of the critic; none of the critic's or the generator's is computed."""
        return self._second()

    def _critic_part(self, z: Tensor, drawn: dict[str, Tensor]) -> Told:
        setup, settings, device = self.setup, self.settings, self.setup.device
        parameters = ViewParameters.of_tensors(drawn)
        pair = self._walker(setup.generator, z, self._rng)
        parts: Parts | None = None
        with runtime.autocast(device, settings.precision):
            if settings.micro_batches == 1:
                images = self._decode_pair(pair.anchor, pair.positive, setup.chunks, self._rng)
                both = torch.cat([images.anchor.float(), images.positive.float()])
                views = setup.augment.view(both, parameters)
            else:
                of_part = partial(part_stream, settings.seed, self._number, device)
                size = math.ceil(settings.batch_size / settings.micro_batches)
                autocast = partial(runtime.autocast, device, settings.precision)
                parts = Parts(pair, setup.chunks, size, self._decode_pair, of_part, setup.augment, parameters, autocast)
                views = parts.views()
            views = views.contiguous(memory_format=torch.channels_last)
            loss = infonce(self._score(views.detach()), settings)
        loss.backward()
        self._left = views, parts
        lengths = delta.pair_delta(setup.generator, pair, (setup.chunks,)).detach().mean()
        return Told(loss.detach(), lengths)

    def _walker_part(self) -> Moves:
        assert self._left is not None
        (views, parts), self._left = self._left, None
        parameters = list(self._walker.parameters())
        with runtime.autocast(self.setup.device, self.settings.precision), fixed.without_gradients(self._critic):
            views = views if parts is None else views.requires_grad_()
            loss = -infonce(self._score(views), self.settings)
        if parts is None:
            gradients = torch.autograd.grad(loss, parameters)
        else:
            gradients = parts.gradients(torch.autograd.grad(loss, views)[0], parameters)
        return Moves(loss.detach(), list(gradients))


def may_be_recorded(setup: Setup) -> bool:
    """Whether CUDA graphs are possible here; a warning says why they are not."""
    why = graphs.why_not(setup.device)
    if why is None and setup.generator.draws_to_decode():  # a replay would give the same noise each time
        why = f"{setup.generator.name} draws noise while it decodes"
    if why is not None and runtime.is_main():
        logger.warning("--cuda_graphs: %s, so no step is recorded", why)
    return why is None


def part_stream(seed: int, step: int, device: torch.device, part: int) -> torch.Generator:
    """Of the images of one part of a step: a family may draw for each image."""
    return runtime.stream(seed, f"pairs: part {part}", step, runtime.rank(), device)


def infonce(features: Tensor, settings: NavigatorConfig) -> Tensor:
    """Loss of features (2 n, d), anchors before positives; over all processes' pairs when negatives are global."""
    paired = torch.stack(features.chunk(2), dim=1)  # (n, 2, d)
    if settings.negatives == "global":
        paired = runtime.gather(paired)
    return infonce_loss(paired, settings.temp)


__all__ = ["Moves", "Step", "Told", "infonce", "may_be_recorded"]
