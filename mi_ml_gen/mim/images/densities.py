"""Densities of the image models: pixels given latents, and latents.

Points are flat: the last axis holds the pixels or the latents, and every log-density is summed over it. Leading axes
broadcast, so (n, 1, d) images can stand against (n, S, d) parameters.

    pixels = Bernoulli(probs)                  # binary images
    pixels = Logistic(mean, log_var)            # grey and colour images in 256 steps
    pixels.log_prob(x)                         # (...,), nats
    pixels.sample(rng)                         # images, as the data are

As published (contract of the seed, section 2.3; Tomczak and Welling 2018, arXiv 1705.07120), normal densities leave out
-1/2 log 2 pi for each dimension unless they are told to be `normalised`. The constant cancels in every difference of
log q(z|x) and log p(z), so bounds and likelihoods do not need it; entropies do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import runtime

LEAST_PROBABILITY = 1e-5
"""Probabilities of pixels are clamped to [this, 1 - this] before their logarithm."""
N_STEPS = 256
"""Steps of a grey value or a colour, each of width 1/256."""
LEAST_LOGISTIC = 1e-7
"""Added to the probability of a step, so that its logarithm stays finite."""
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_bernoulli(x: Tensor, probs: Tensor) -> Tensor:
    """log p of binary pixels x (..., d), 0 or 1 (or grey values in [0, 1], as weights), under probs: (...,) nats."""
    probs = probs.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return (x * probs.log() + (1 - x) * (1 - probs).log()).sum(-1)


def log_normal_diag(z: Tensor, mean: Tensor, log_var: Tensor, normalised: bool = False) -> Tensor:
    """log N(z; mean, exp(log_var)) of z (..., d), diagonal: (...,) nats, without the constant unless `normalised`."""
    value = -0.5 * (log_var + (z - mean).square() * (-log_var).exp()).sum(-1)
    return value - z.shape[-1] * HALF_LOG_2PI if normalised else value


def log_normal_standard(z: Tensor, normalised: bool = False) -> Tensor:
    """log N(z; 0, I) of z (..., d): (...,) nats, without the constant unless `normalised`."""
    value = -0.5 * z.square().sum(-1)
    return value - z.shape[-1] * HALF_LOG_2PI if normalised else value


def log_logistic_256(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log probability of the steps, each of width 1/256, that x (..., d) in [0, 1) lies in: (...,) nats.

    log_var: the logarithm of the scale, under its published name. The steps at the ends do not get the tails beyond
    them, as published, so the probabilities of the 256 steps add up to at most 1 (but for LEAST_LOGISTIC each). With
    u = (floor(256 x) / 256 - mean) / scale and w = 1 / (256 scale), the step has sigmoid(u + w) - sigmoid(u), which is
    computed as sigmoid(u + w) sigmoid(-u) (1 - e^-w): the same number without its cancellation.
    """
    scale = log_var.exp()
    low = ((x * N_STEPS).floor() / N_STEPS - mean) / scale
    width = 1 / (N_STEPS * scale)
    share = torch.sigmoid(low + width) * torch.sigmoid(-low) * -torch.expm1(-width)
    return (share + LEAST_LOGISTIC).log().sum(-1)


class Bernoulli(NamedTuple):
    """Independent binary pixels. probs (..., d), the mean image."""

    probs: Tensor

    @property
    def mean(self) -> Tensor:
        return self.probs

    def log_prob(self, x: Tensor) -> Tensor:
        return log_bernoulli(x, self.probs)

    def sample(self, rng: torch.Generator) -> Tensor:
        """Pixels 0 or 1, the same numbers on every device."""
        uniform = runtime.uniform(self.probs.shape, rng, self.probs.device)
        return (uniform < self.probs).to(self.probs.dtype)


class Logistic(NamedTuple):
    """Independent pixels in 256 steps (`log_logistic_256`). mean, log_var (..., d), of one shape."""

    mean: Tensor
    log_var: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        return log_logistic_256(x, self.mean, self.log_var)

    def sample(self, rng: torch.Generator) -> Tensor:
        """The middle of the step that a draw falls in, from 1/512 to 1 - 1/512, as the data have it."""
        uniform = runtime.uniform(self.mean.shape, rng, self.mean.device)
        drawn = self.mean + self.log_var.exp() * torch.logit(uniform.to(self.mean.dtype), eps=1e-6)
        return ((drawn * N_STEPS).floor().clamp(0, N_STEPS - 1) + 0.5) / N_STEPS


__all__ = ["Bernoulli", "Logistic", "log_bernoulli", "log_logistic_256", "log_normal_diag", "log_normal_standard"]
