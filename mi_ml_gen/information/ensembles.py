"""Small networks that are trained on pairs, three of each at once: what tells whether an estimate is stable.

Every estimator that trains something trains three members side by side, as one batch of matrix products:

| member | initial weights and order of the pairs | training pairs |
| --- | --- | --- |
| 0 | seed | all |
| 1 | another seed | all |
| 2 | a third seed | half of them |

The estimate is the mean of members 0 and 1, on held-out pairs that no member saw. Their difference is what the seed
does, and the distance of member 2 is what the number of pairs does, on the same held-out pairs. Weights are averages
over the last steps, the best on validation pairs is kept, and training stops when no member improves any more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mi_ml_gen.core import optimizers, runtime
from mi_ml_gen.core.progress import Bar

N_MEMBERS = 3
FULL = slice(0, 2)
"""The members that were trained on all training pairs."""
HALF = 2
"""The one that was trained on half of them."""
AVERAGED_OVER = 0.99
"""Each step the averaged weights keep this share of themselves."""
MOST_GRADIENT = 10.0
WORTHWHILE_NATS = 1e-3
"""An improvement by less does not keep a training going."""


class Split(NamedTuple):
    """Disjoint places of pairs."""

    train: Tensor
    valid: Tensor
    test: Tensor

    @classmethod
    def of(cls, n: int, seed: int) -> Split:
        """60% for training, 15% to choose the step at which training stops, 25% for the estimate."""
        order = torch.randperm(n, generator=runtime.stream(seed, "split", 0, 0))
        n_train, n_valid = int(0.6 * n), int(0.15 * n)
        return cls(*order.tensor_split([n_train, n_train + n_valid]))

    def of_member(self, member: int) -> Tensor:
        return self.train[: len(self.train) // 2] if member == HALF else self.train


class Linear(nn.Module):
    """A layer for each member: (members, n, n_in) -> (members, n, n_out). mask: (n_in, n_out) of 0 and 1."""

    mask: Tensor | None

    def __init__(
        self, n_in: int, n_out: int, rng: torch.Generator, gain: float = 1.0, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        fan_in = n_in if mask is None else mask.sum(0).clamp_min(1)
        weight = torch.randn(N_MEMBERS, n_in, n_out, generator=rng) * (gain / torch.as_tensor(fan_in).float().sqrt())
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(N_MEMBERS, 1, n_out))
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.mask is None else self.weight * self.mask
        return torch.baddbmm(self.bias, x, weight)


class Mlp(nn.Module):
    """Hidden layers with SiLU, for each member: (members, n, n_in) -> (members, n, n_out). last_gain 0 starts at 0."""

    def __init__(
        self, n_in: int, n_out: int, hidden: int, rng: torch.Generator, n_hidden: int = 2, last_gain: float = 1.0
    ) -> None:
        super().__init__()
        widths = [n_in] + [hidden] * n_hidden
        self.layers = nn.ModuleList(Linear(*sizes, rng, math.sqrt(2)) for sizes in itertools.pairwise(widths))
        self.last = Linear(hidden, n_out, rng, last_gain)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = functional.silu(layer(x))
        return self.last(x)


@dataclass
class Course:
    """What training showed. curve: held-out values (evaluations, members), higher is better, from before the first
    step on. best: the highest of each member (members,)."""

    curve: list[list[float]] = field(default_factory=list)
    n_steps: int = 0
    best: list[float] = field(default_factory=lambda: [-math.inf] * N_MEMBERS)

    @property
    def of_full(self) -> list[float]:
        """The mean curve of the members that saw all training pairs."""
        return [sum(values[FULL]) / 2 for values in self.curve]

    def up_to_best(self) -> list[float]:
        """`of_full` with what came after its best value at the best: early stopping keeps the best weights, so
        over-fitting afterwards is no decline of the estimate."""
        return list(itertools.accumulate(self.of_full, max))


@dataclass(frozen=True)
class Training:
    """How long and how fast members are trained."""

    n_steps: int = 2000
    batch_size: int = 256
    lr: float = 2e-3
    most_every: int = 50
    """Most steps between two evaluations on the validation pairs; there are at least 20 of them."""
    patience: int = 6
    """Evaluations without an improvement of any member, after which training stops."""


def fit(
    model: nn.Module,
    batch_loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    valid_value: Callable[[nn.Module], Tensor],
    split: Split,
    training: Training,
    seed: int,
    device: torch.device,
    title: str,
    progress: bool,
) -> Course:
    """Train all members; `model` then holds each member's best averaged weights on the validation pairs.

    batch_loss: (model, rows (members, batch) of the pairs, random numbers) -> loss (members,). valid_value: value
    (members,) on the validation pairs, higher is better, the same draws at each call. Every parameter has the members
    as its first axis.
    """
    model.to(device)
    parameters = dict(model.named_parameters())
    averaged = {name: value.detach().clone() for name, value in parameters.items()}
    best = {name: value.clone() for name, value in averaged.items()}
    optimizer = optimizers.Adam(parameters.values(), lr=training.lr)
    course = Course()
    batches = _batches(split, min(training.batch_size, len(split.of_member(HALF))), seed)
    n_idle, every = 0, min(training.most_every, max(1, training.n_steps // 20))
    _look(model, averaged, best, valid_value, course)
    with Bar(total=training.n_steps, desc=title, unit="step", disable=not progress) as bar:
        for step in range(training.n_steps):
            # --- The step
            rng = runtime.stream(seed, f"{title} noise", step, 0, device)
            loss = batch_loss(model, next(batches).to(device), rng)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            _clip(parameters.values())
            optimizer.step()
            keep = min(AVERAGED_OVER, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(averaged.values()), [p.detach() for p in parameters.values()], 1 - keep)
            bar.update()

            # --- Now and then a look at the validation pairs
            if (step + 1) % every == 0:
                n_idle = 0 if _look(model, averaged, best, valid_value, course) else n_idle + 1
                bar.set_postfix(nats=f"{course.of_full[-1]:.3f}")
                if n_idle >= training.patience:
                    break
        course.n_steps = step + 1
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(best[name])
    model.eval().requires_grad_(False)
    return course


def _look(
    model: nn.Module,
    averaged: dict[str, Tensor],
    best: dict[str, Tensor],
    valid_value: Callable[[nn.Module], Tensor],
    course: Course,
) -> bool:
    """Evaluate the averaged weights, and keep each member's where they are its best. Whether any member improved by
    what is worth going on for."""
    with torch.no_grad():
        values = valid_value(_With(model, averaged)).tolist()
        course.curve.append(values)
        gains = [value - before for value, before in zip(values, course.best, strict=True)]
        for member, gain in enumerate(gains):
            if gain > 0:
                course.best[member] = values[member]
                for name, value in averaged.items():
                    best[name][member] = value[member]
    return any(gain > WORTHWHILE_NATS for gain in gains)


class _With(nn.Module):
    """A model with other weights, called and asked in the same way."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that it is no part of this module
        self._weights = weights

    def forward(self, *arguments: Tensor) -> Tensor:
        return functional_call(self._model[0], self._weights, arguments)


def _clip(parameters: Iterable[Tensor]) -> None:
    """Bound the length of each member's gradient."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (MOST_GRADIENT / length.clamp_min(1e-12)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def _batches(split: Split, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Rows (members, batch) without end; every member goes through its own training pairs in its own order."""

    def rows(member: int) -> Iterator[Tensor]:
        own, n_passes = split.of_member(member), 0
        while True:
            order = torch.randperm(len(own), generator=runtime.stream(seed, f"order {member}", n_passes, 0))
            for chunk in own[order].split(batch_size):
                if len(chunk) == batch_size:
                    yield chunk
            n_passes += 1

    members = [rows(member) for member in range(N_MEMBERS)]
    while True:
        yield torch.stack([next(member) for member in members])
