"""Log-densities of the image models, summed over all axes but the first: (n, ...) -> (n,), in nats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_PROB = 1e-5
"""Probabilities of pixels are kept this far from 0 and 1."""
BINS = 256
"""Brightness levels of a pixel that is not binary."""
BIN_FLOOR = 1e-7
"""Added to the probability of a level."""


def summed(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def log_normal_diag(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, exp(log_var)) without the constant -1/2 log 2 pi of each dimension, as published."""
    return summed(-0.5 * (log_var + (x - mean).square() * torch.exp(-log_var)))


def log_normal_standard(x: Tensor) -> Tensor:
    """log N(x; 0, 1) without the same constant."""
    return summed(-0.5 * x.square())


def log_bernoulli(x: Tensor, mean: Tensor) -> Tensor:
    """log Bernoulli(x; mean); x may lie between 0 and 1."""
    mean = mean.clamp(SMALLEST_PROB, 1 - SMALLEST_PROB)
    return summed(x * torch.log(mean) + (1 - x) * torch.log1p(-mean))


def log_logistic_256(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-probability of the brightness levels floor(256 x) under logistic densities of scale exp(log_var).

    A level is the bin [k / 256, (k + 1) / 256). Kingma et al. (arXiv 1606.04934), appendix.
    """
    scale = torch.exp(log_var)
    low = (torch.floor(x * BINS) / BINS - mean) / scale
    high = low + 1 / (BINS * scale)
    return summed(torch.log(functional.sigmoid(high) - functional.sigmoid(low) + BIN_FLOOR))
