"""Log-densities of the image models, summed over all axes but the first: (n, ...) -> (n,), in nats.

As published (contract of the seed, section 2.3; Tomczak and Welling, arXiv 1705.07120), normal densities leave out
-1/2 log 2 pi for each dimension unless they are told to be `normalised`. The constant cancels in every difference of
log q(z|x) and log p(z), so bounds and likelihoods do not need it; entropies do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mi_ml_gen.core import runtime

SMALLEST_PROB = 1e-5
"""Probabilities of pixels are kept this far from 0 and 1."""
BINS = 256
"""Brightness levels of a pixel that is not binary."""
BIN_FLOOR = 1e-7
"""Added to the probability of a level."""
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def summed(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def log_normal_diag(x: Tensor, mean: Tensor, log_var: Tensor, normalised: bool = False) -> Tensor:
    """log N(x; mean, exp(log_var)), without the constant unless `normalised`."""
    return summed(-0.5 * (log_var + (x - mean).square() * torch.exp(-log_var)) - HALF_LOG_2PI * normalised)


def log_normal_standard(x: Tensor, normalised: bool = False) -> Tensor:
    """log N(x; 0, 1), without the constant unless `normalised`."""
    return summed(-0.5 * x.square() - HALF_LOG_2PI * normalised)


def log_bernoulli(x: Tensor, mean: Tensor) -> Tensor:
    """log Bernoulli(x; mean); x may lie between 0 and 1."""
    mean = mean.clamp(SMALLEST_PROB, 1 - SMALLEST_PROB)
    return summed(x * torch.log(mean) + (1 - x) * torch.log1p(-mean))


def log_bernoulli_of_pairs(x: Tensor, mean: Tensor) -> Tensor:
    """log Bernoulli(x_i; mean_k) of n images and K means of one shape, (n, K)."""
    with runtime.full_precision(x.device):
        x, mean = x.flatten(1), mean.flatten(1).clamp(SMALLEST_PROB, 1 - SMALLEST_PROB)
        return x @ torch.log(mean).T + (1 - x) @ torch.log1p(-mean).T


def log_logistic_256(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-probability of the brightness levels floor(256 x) under logistic densities of scale exp(log_var).

    A level is the bin [k / 256, (k + 1) / 256) (Kingma et al., arXiv 1606.04934, appendix). As published, the bins at
    the ends do not get the tails beyond them, so the probabilities of all levels add up to at most 1 (but for
    BIN_FLOOR each). With u = (k / 256 - mean) / scale and w = 1 / (256 scale), the bin has sigmoid(u + w) - sigmoid(u)
    = sigmoid(u + w) sigmoid(-u) (1 - exp(-w)); the latter does not cancel where both are near 0 or 1.
    """
    scale = torch.exp(log_var)
    low = (torch.floor(x * BINS) / BINS - mean) / scale
    width = 1 / (BINS * scale)
    share = torch.sigmoid(low + width) * torch.sigmoid(-low) * -torch.expm1(-width)
    return summed(torch.log(share + BIN_FLOOR))


__all__ = [
    "BINS",
    "log_bernoulli",
    "log_bernoulli_of_pairs",
    "log_logistic_256",
    "log_normal_diag",
    "log_normal_standard",
    "summed",
]
