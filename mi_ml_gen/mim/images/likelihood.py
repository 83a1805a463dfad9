"""The likelihood of images under a model by importance sampling, and the variational bound (Burda et al., arXiv
1509.00519; Livne, Swersky and Fleet, arXiv 1910.03175, section 5).

    found = log_likelihood(model, images, n_draws=5000)
    found.mean, found.bound, found.bits_per_dimension      # with standard errors

With log w = log p(x|z) + log p(z) - log q(z|x) at S draws z ~ q(z|x), log p(x) is estimated as log mean w and bounded
by mean log w. Both are computed for many images and draws at once: the encoder sees each image once, the prior's
pseudo-inputs are encoded once, no graph is kept, and logarithms are added up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import NonFiniteError, UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.mim.images.base import Components, Drawn, Features, ImageModel, Latents
from mi_ml_gen.mim.images.densities import SMALLEST_PROB
from mi_ml_gen.mim.images.layers import Dense, PointwiseConv
from mi_ml_gen.report.tables import Estimate

N_DRAWS = 5000
"""For each image, as published."""
FLOATS_AT_ONCE = {"cuda": 2**28}
"""Numbers of the decoder's largest layer that are in work at a time; 2^22 on other devices, which fits into caches."""
FEW_DRAWS = 10.0
"""Effective draws below which an image's estimate rests on so few that it may be far too low."""


class Measurable(Protocol):
    """What a model must offer: `ImageModel`, or anything like it."""

    def noise(self, n: int, rng: torch.Generator) -> Latents: ...
    def features(self, x: Tensor) -> Features: ...
    def q_z(self, seen: Features, noise: Latents) -> Drawn: ...
    def components(self) -> Components | None: ...
    def log_p_lower(self, z: Latents) -> Tensor | float: ...
    def log_p_top(self, z: Tensor, components: Components | None) -> Tensor: ...
    def log_p_x(self, x: Tensor, z: Latents) -> Tensor: ...


@dataclass(frozen=True)
class LogLikelihood:
    """What was found for each of n images, float64 on the CPU, in nats."""

    nats: Tensor
    """(n,): log mean w. Its expectation is below log p(x), by about half its variance."""
    errors: Tensor
    """(n,): standard error of `nats` from the draws of z alone, by the delta method; nan for one draw. It is never
    above 1, so it is too small for an image with few effective draws."""
    bounds: Tensor
    """(n,): mean log w, of which the expectation is the evidence lower bound."""
    reconstruction: Tensor
    """(n,): mean log p(x|z); the bound is this minus the KL divergence."""
    effective_draws: Tensor
    """(n,): (sum w)^2 / sum w^2, from 1 to n_draws."""
    n_draws: int
    n_dimensions: int
    """Pixels times channels."""

    @property
    def mean(self) -> Estimate:
        """Mean of `nats`, with its standard error over images, which holds the error of the draws too."""
        return _over_images(self.nats)

    @property
    def bound(self) -> Estimate:
        return _over_images(self.bounds)

    @property
    def kl(self) -> Estimate:
        """Mean KL divergence of q(z|x) from p(z), from the draws."""
        return _over_images(self.reconstruction - self.bounds)

    @property
    def bits_per_dimension(self) -> Estimate:
        found = self.mean
        unit = self.n_dimensions * math.log(2)
        return Estimate(-found.value / unit, found.spread / unit)

    @property
    def draws_error(self) -> float:
        """Standard error of the mean from the draws of z alone."""
        return self.errors.square().sum().sqrt().item() / len(self.errors)

    @property
    def n_uncertain(self) -> int:
        """Images whose estimate rests on fewer than FEW_DRAWS effective draws."""
        return int((self.effective_draws < FEW_DRAWS).sum())


def of_few_draws(found: Iterable[Mapping[str, Any]]) -> str:
    """How many estimates rest on few draws, as a sentence; empty where there are none. found: of each model, what
    `evaluation.likelihood_values` gives."""
    counts = [(own["n_uncertain"], own["n_images"]) for own in found]
    n_uncertain, n_images = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if not n_images:
        return ""
    return (
        f"{n_uncertain:,} of the {n_images:,} estimates of log p(x) rest on fewer than {FEW_DRAWS:.0f} effective "
        "draws, and are too low."
    )


def _over_images(values: Tensor) -> Estimate:
    n = len(values)
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(n) if n > 1 else math.nan)


@torch.no_grad()
def log_likelihood(
    model: Measurable,
    images: Tensor,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    floats_at_once: int | None = None,
    progress: bool = False,
) -> LogLikelihood:
    """Estimate log p(x) of images (n, C, H, W) on the model's device.

    The noise of image i is a function of (seed, i): how much is worked on at once changes rounding alone. A model with
    batch norms must be in evaluation mode. floats_at_once: see FLOATS_AT_ONCE. Raises UsageError for no images or
    draws, NonFiniteError where a weight is nan or all weights of an image are 0.
    """
    if len(images) == 0 or n_draws < 1:
        raise UsageError(f"likelihood of {len(images)} images with {n_draws} draws: there must be at least one of both")
    device = images.device
    per_row = _floats_of_a_row(model, images)
    rows = max(1, (floats_at_once or FLOATS_AT_ONCE.get(device.type, 2**22)) // per_row)
    n_images, n_at_once = max(1, rows // n_draws), min(n_draws, rows)
    log_p_top = top_density(model)
    found: list[Tensor] = []
    bar = Bar(total=len(images), desc="likelihood", unit="image", disable=not progress)
    with bar:
        for start, x in zip(range(0, len(images), n_images), images.split(n_images), strict=True):
            seen = model.features(x)
            noise = _noise(model, len(x), n_draws, seed, start, device)
            parts = []
            for part in range(0, n_draws, n_at_once):
                own = _columns(noise, slice(part, part + n_at_once))
                parts.append(_log_weights(model, x, seen, own, log_p_top))
            log_w, log_p_x = (torch.cat(values, 1) for values in zip(*parts, strict=True))
            found.append(_summary(log_w, log_p_x).cpu())
            bar.update(len(x))
    table = torch.cat(found, 1)
    nats, errors, bounds, reconstruction, effective = table
    is_wrong = ~torch.stack([nats, bounds, reconstruction, effective]).isfinite().all(0)
    if is_wrong.any():
        index = int(is_wrong.nonzero()[0, 0])
        raise NonFiniteError(f"the likelihood of image {index} is no finite number: its weights are nan or all 0")
    return LogLikelihood(nats, errors, bounds, reconstruction, effective, n_draws, images[0].numel())


def _noise(model: Measurable, n: int, n_draws: int, seed: int, start: int, device: torch.device) -> Latents:
    """Normal numbers (n, n_draws, d), those of each image from its own stream."""
    streams = [runtime.stream(seed, "importance draws", start + i, 0, device) for i in range(n)]
    z1, z2 = zip(*(model.noise(n_draws, rng) for rng in streams), strict=True)
    return Latents(torch.stack(z1), None if z2[0] is None else torch.stack(z2))


def _columns(noise: Latents, columns: slice) -> Latents:
    """Some of the draws of each image, (n, s, d)."""
    return Latents(noise.z1[:, columns], None if noise.z2 is None else noise.z2[:, columns])


def _log_weights(
    model: Measurable, x: Tensor, seen: Features, noise: Latents, log_p_top: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """log w and log p(x|z), float64 (n, s), of images x (n, C, H, W) at noise (n, s, d)."""
    n, s = noise.z1.shape[:2]
    drawn = model.q_z(seen.repeat(s), noise.mapped(lambda z: z.flatten(0, 1)))
    log_p_x = runtime.in_float64(_log_p_x(model, x, drawn.z))
    log_w = log_p_x + log_p_top(drawn.z.top) + model.log_p_lower(drawn.z) - drawn.log_q
    return log_w.view(n, s), log_p_x.view(n, s)


def _summary(log_w: Tensor, log_p_x: Tensor) -> Tensor:
    """(5, n): what `LogLikelihood` has of each image, from (n, S) in float64."""
    n_draws = log_w.shape[1]
    total = log_w.logsumexp(1)
    squares = (2 * log_w).logsumexp(1)
    effective = (2 * total - squares).exp().clamp(1, n_draws)
    errors = ((n_draws / effective - 1) / n_draws).sqrt()  # of log mean w, by the delta method
    if n_draws == 1:
        errors = torch.full_like(errors, math.nan)
    return torch.stack([total - math.log(n_draws), errors, log_w.mean(1), log_p_x.mean(1), effective])


def top_density(model: Measurable) -> Callable[[Tensor], Tensor]:
    """log p of the top latent (n, d) as a function, float64 (n,); the pseudo-inputs are encoded here, once.

    A mixture of K Gaussians is three matrix products in place of n K d differences.
    """
    components = model.components()
    if components is None:
        return lambda z: runtime.in_float64(model.log_p_top(z, None))
    mean, log_var = (runtime.in_float64(part) for part in components)
    precision = torch.exp(-log_var)
    constant = -0.5 * (log_var + mean.square() * precision).sum(1) - math.log(len(mean))

    def log_p(z: Tensor) -> Tensor:
        z = runtime.in_float64(z)
        exponent = torch.addmm(constant, z.square(), precision.T, alpha=-0.5).addmm_(z, (mean * precision).T)
        return exponent.logsumexp(1)

    return log_p


def _log_p_x(model: Measurable, x: Tensor, z: Latents) -> Tensor:
    """log p(x|z) of images x (n, C, H, W) at n * s latents, those of an image beside one another: (n * s,)."""
    s = len(z.z1) // len(x)
    head = getattr(model, "p_x_mean", None)
    if isinstance(model, ImageModel) and model.binary and isinstance(head, (Dense, PointwiseConv)):
        if not model.is_autoregressive:
            return _log_bernoulli(head, model.hidden(z), x)
        return _log_bernoulli(head, model.hidden(z, x.repeat_interleave(s, 0)), x)
    return model.log_p_x(x.repeat_interleave(s, 0), z)


_LIMIT = math.log((1 - SMALLEST_PROB) / SMALLEST_PROB)


def _log_bernoulli(head: Dense | PointwiseConv, hidden: Tensor, x: Tensor) -> Tensor:
    """`densities.log_bernoulli` from logits: x . logits, one matrix product, minus the sum of log(1 + exp(logits))."""
    logits = (head.linear if isinstance(head, Dense) else head.conv)(hidden).flatten(1)
    logits.clamp_(-_LIMIT, _LIMIT)
    n = len(x)
    inner = torch.bmm(logits.view(n, -1, logits.shape[1]), x.flatten(1)[:, :, None])
    return inner.flatten() - functional.softplus(logits).sum(1)


def _floats_of_a_row(model: Measurable, images: Tensor) -> int:
    """Numbers in the widest layer of the decoder, for one draw."""
    channels, height, width = images.shape[1:]
    parts = model.modules() if isinstance(model, ImageModel) else ()
    widest = max((part.out_channels for part in parts if isinstance(part, torch.nn.Conv2d)), default=0)
    return height * width * max(2 * widest, 3 * channels)


__all__ = ["LogLikelihood", "Measurable", "log_likelihood", "of_few_draws", "top_density"]
