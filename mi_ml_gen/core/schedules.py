"""The learning rate over a training: linear warm-up, then a cosine down to a tenth of the peak.

The rule of the published encoders: peak = base_lr * images a step / 256 (all processes together), the first tenth
of the epochs rises from 0, the rest falls to peak / 10. The value of a step is set before that step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mi_ml_gen.core.errors import UsageError

FINAL_SHARE = 0.1
"""Share of the peak that the cosine ends at (and never quite reaches: the last step comes before the end)."""


@dataclass(frozen=True)
class LearningRate:
    """The rate of every step of a training.

    peak: the highest rate. n_steps: steps of the whole training. warmup_steps: steps of the linear rise from 0,
    none where it is 0. decay: whether it falls; without decay it is `peak` throughout, warm-up or not.
    """

    peak: float
    n_steps: int
    warmup_steps: int = 0
    decay: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.n_steps:
            raise UsageError(
                f"warm-up of {self.warmup_steps} steps: must lie within the {self.n_steps} of the training"
            )

    def at(self, step: int) -> float:
        """The rate of step 0, 1, ..., n_steps - 1."""
        if not self.decay:
            return self.peak
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.n_steps - self.warmup_steps)
        final = self.peak * FINAL_SHARE
        return self.peak + (final - self.peak) * (1 - (1 + math.cos(math.pi * done)) / 2)


def peak_rate(base_lr: float, images_per_step: int) -> float:
    """The peak for a number of images a step, counted over all processes (Goyal et al. 2017, linear scaling)."""
    return base_lr * images_per_step / 256


def warmup_steps(n_epochs: int, steps_per_epoch: int) -> int:
    """Steps of a warm-up: max_epochs // 10 epochs, as published, or a tenth of all steps where that is none.

    (The published code fails with a warm-up in fewer than ten epochs.)
    """
    return (n_epochs // 10) * steps_per_epoch or n_epochs * steps_per_epoch // 10


__all__ = ["LearningRate", "peak_rate", "warmup_steps"]
