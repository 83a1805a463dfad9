"""Losses of MIM and what it is held against, as functions of the four log-probabilities of a pair (x, z).

With a = log p(x|z), b = log q(x), c = log p(z), d = log q(z|x), the fields of `Terms`. Every loss is one number for
each pair, in nats, to be averaged over the batch. beta in [0, 1] is the warm-up. Paper: Livne, Swersky and Fleet,
arXiv 1910.03175.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class LogProbs(Protocol):
    """a, b, c and d; `mi_ml_gen.mim.model.Terms` is one."""

    @property
    def x_given_z(self) -> Tensor: ...

    @property
    def q_x(self) -> Tensor: ...

    @property
    def p_z(self) -> Tensor: ...

    @property
    def z_given_x(self) -> Tensor: ...


Loss = Callable[[LogProbs, float], Tensor]


def vae(t: LogProbs, beta: float = 1.0) -> Tensor:
    """Negative evidence bound: -a + beta (d - c)."""
    return beta * (t.z_given_x - t.p_z) - t.x_given_z


def vae_plus_entropy(t: LogProbs, beta: float = 1.0) -> Tensor:
    """The VAE with the entropy of its encoding distribution added, against collapse: VAE - (d + b)."""
    return vae(t, beta) - (t.z_given_x + t.q_x)


def auto_encoder(t: LogProbs, beta: float = 0.0) -> Tensor:
    """Reconstruction alone: -a; the VAE at beta 0, which `beta` cannot change."""
    return -t.x_given_z


def auto_encoder_plus_entropy(t: LogProbs, beta: float = 0.0) -> Tensor:
    """The auto-encoder with entropy added: -a - (d + b)."""
    return -t.x_given_z - (t.z_given_x + t.q_x)


def a_mim(t: LogProbs, beta: float = 1.0) -> Tensor:
    """Asymmetric MIM: the cross entropy of the mean of both distributions, -1/2 [a + c + beta (d + b)].

    On pairs of the encoding distribution. On those of the decoding distribution it is the other half of S-MIM; see
    `symmetric`.
    """
    return -0.5 * (t.x_given_z + t.p_z + beta * (t.z_given_x + t.q_x))


def mim_minus_entropy(t: LogProbs, beta: float = 1.0) -> Tensor:
    """MIM with the entropy of the mixture of both distributions taken away: A-MIM + log(1/2 e^(a+c) + 1/2 e^(b+d)).

    Its expectation over that mixture is the mean divergence KL of the mixture from both distributions.
    """
    mixture = torch.logaddexp(t.x_given_z + t.p_z, t.q_x + t.z_given_x) - math.log(2)
    return a_mim(t, beta) + mixture


def symmetric(data: Tensor, sampled: Tensor, beta: float = 1.0) -> Tensor:
    """S-MIM: the data half and, on draws from the decoder, the sampling half: data + beta sampled.

    A sum and not a mean, as the reference has it; so the learning rate means the same with and without it.
    """
    return data + beta * sampled


def with_score(loss: Tensor, x_given_z: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """The loss on draws x ~ p(x|z) that carry no gradient, with the score-function term: its gradient gains
    (loss - baseline) * grad log p(x|z), its value stays.

    Unbiased where x is what was drawn, and where a draw's baseline does not depend on it; the reference takes
    probabilities in the place of draws, and no baseline.
    """
    weight = loss.detach() - baseline
    return loss + weight * (x_given_z - x_given_z.detach())
