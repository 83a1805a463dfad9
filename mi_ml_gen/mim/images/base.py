"""What all image models have in common: an encoder q(z|x), a prior p(z), a decoder p(x|z), for whatever loss.

Images are (n, C, H, W) in [0, 1]. All log-densities are summed over dimensions and leave out -1/2 log 2 pi of each
latent dimension, as published: it cancels in log p(z) - log q(z|x).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.hub.sharing import Shared
from mi_ml_gen.mim.images import densities
from mi_ml_gen.mim.images.layers import Activation, Dense, clamp_log_var

HIDDEN = 300
"""Units of the affine layers."""
MEAN_MARGIN = 1 / 512
"""Means of pixels that are not binary stay this far from 0 and 1."""

Inputs = Literal["binary", "gray", "continuous"]
Prior = Literal["standard", "vampprior"]

latent_log_var = clamp_log_var(-6.0, 2.0)
pixel_log_var = clamp_log_var(-4.5, 0.0)


@dataclass(frozen=True)
class ModelSpec:
    """All from which a model's layers follow."""

    family: str
    shape: tuple[int, int, int]
    """Channels, height and width of the images."""
    kind: Inputs = "binary"
    """Of the pixels: binary ones are Bernoulli, others discretised logistic with 256 levels."""
    z1_size: int = 40
    z2_size: int = 40
    """Of the upper latent; no matter for the family vae."""
    prior: Prior = "vampprior"
    number_components: int = 500
    """Pseudo-inputs of the VampPrior, and pseudo-latents of q(x)."""
    q_x_prior: Literal["marginal", "vampprior"] = "marginal"
    """vampprior: q(x) is a mixture of decoders at learned latents."""
    as_published: bool = False
    """Masks of the autoregressive decoder, and the bounds of pseudo-latents."""

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)


class Latents(NamedTuple):
    """Latents of n images, or anything of their shapes: noise, means, logarithms of variances."""

    z1: Tensor
    """(n, z1_size): next to the image."""
    z2: Tensor | None = None
    """(n, z2_size): above z1; None in the family vae."""

    @property
    def top(self) -> Tensor:
        """The one that has the prior: z2 where there is one."""
        return self.z1 if self.z2 is None else self.z2

    @property
    def flat(self) -> Tensor:
        """z1 and z2 beside each other, (n, z1_size + z2_size): the published embedding."""
        return self.z1 if self.z2 is None else torch.cat((self.z1, self.z2), 1)

    def repeat(self, n: int) -> Latents:
        """Each row n times: row i * n + k is row i."""
        return self.mapped(lambda z: z.repeat_interleave(n, 0))

    def rows(self, rows: slice | Tensor) -> Latents:
        return self.mapped(lambda z: z[rows])

    def mapped(self, change: Activation) -> Latents:
        """Both parts changed."""
        return Latents(change(self.z1), None if self.z2 is None else change(self.z2))


class Features(NamedTuple):
    """What q(z|x) needs of images, computed once for any number of draws."""

    mean: Tensor
    """(n, d): of q of the top latent."""
    log_var: Tensor
    lower: Tensor | None = None
    """(n, h): what q(z1|x, z2) has of x."""

    def repeat(self, n: int) -> Features:
        """Each row n times: row i * n + k is row i."""
        return self.mapped(lambda part: part.repeat_interleave(n, 0))

    def rows(self, rows: slice | Tensor) -> Features:
        return self.mapped(lambda part: part[rows])

    def mapped(self, change: Activation) -> Features:
        """Each part changed."""
        return Features(change(self.mean), change(self.log_var), None if self.lower is None else change(self.lower))


class Drawn(NamedTuple):
    """Draws z ~ q(z|x), and where they came from."""

    z: Latents
    mean: Latents
    log_var: Latents
    log_q: Tensor
    """(n,): log q(z|x)."""


class PriorNoise(NamedTuple):
    """What draws from the prior are made of."""

    normals: Latents
    """Standard normal."""
    picked: Tensor | None = None
    """(n,) int64: the components of the VampPrior that they come from."""

    def rows(self, rows: slice | Tensor) -> PriorNoise:
        return PriorNoise(self.normals.rows(rows), None if self.picked is None else self.picked[rows])


class Components(NamedTuple):
    """The VampPrior's mixture: the encoder's Gaussians of the pseudo-inputs, equally likely."""

    mean: Tensor
    """(K, d)."""
    log_var: Tensor


class Pixels(NamedTuple):
    """p(x|z): the parameters of n images."""

    mean: Tensor
    """(n, C, H, W) in [0, 1]."""
    log_var: Tensor | None
    """Logarithm of the logistic scale, as published it is called a log-variance; None for binary pixels."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z), (n,)."""
        if self.log_var is None:
            return densities.log_bernoulli(x, self.mean)
        return densities.log_logistic_256(x, self.mean, self.log_var)

    def log_prob_of_pairs(self, x: Tensor) -> Tensor:
        """log p(x_i|z_k) of n images and the K latents of this, (n, K): of binary pixels by two matrix products."""
        if self.log_var is None:
            return densities.log_bernoulli_of_pairs(x, self.mean)
        k = len(self.mean)
        parts = []
        for own in x.split(16):  # all pairs at once would take gigabytes
            mean, log_var = (part.repeat(len(own), 1, 1, 1) for part in (self.mean, self.log_var))
            parts.append(densities.log_logistic_256(own.repeat_interleave(k, 0), mean, log_var).reshape(len(own), k))
        return torch.cat(parts)

    def draw(self, uniforms: Tensor) -> Tensor:
        """Images, from uniform numbers in [0, 1) of their shape: 0 or 1, or the middle (k + 1/2) / 256 of a level."""
        if self.log_var is None:
            return (uniforms < self.mean).to(self.mean.dtype)
        u = uniforms.clamp(1e-6, 1 - 1e-6)
        value = self.mean + torch.exp(self.log_var) * (torch.log(u) - torch.log1p(-u))
        levels = densities.BINS
        return ((value * levels).floor().clamp(0, levels - 1) + 0.5) / levels


class PseudoInputs(nn.Module):
    """K learned images in [0, 1]; column k of the weight is image k, as published."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.number_components, spec.pixels, bias=False)
        self.shape = spec.shape

    def forward(self) -> Tensor:
        """(K, C, H, W)."""
        return functional.hardtanh(self.linear.weight.T, 0.0, 1.0).reshape(-1, *self.shape)


def draw_normal(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * log_var) * noise


class ImageModel(Shared):
    """What all families have in common. A family has the four parts `_top`, `_lower`, `_p_lower` and `_hidden`."""

    is_autoregressive = False
    """Whether p(x|z) of a pixel needs the pixels before it."""
    has_two_levels = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self._layers()
        self._head()
        self.means = PseudoInputs(spec) if spec.prior == "vampprior" else None
        if spec.q_x_prior == "vampprior":
            if self.is_autoregressive:
                raise UsageError(f"--q_x_prior vampprior: {spec.family} cannot decode all pseudo-latents a step")
            self.pseudo_latents = nn.Parameter(torch.zeros(spec.number_components, self.latent_size))

    @property
    def binary(self) -> bool:
        return self.spec.kind == "binary"

    @property
    def latent_size(self) -> int:
        """Dimensions of all latents together."""
        return self.spec.z1_size + (self.spec.z2_size if self.has_two_levels else 0)

    def config(self) -> dict[str, Any]:
        """Plain values that `ModelSpec` is made of."""
        return dataclasses.asdict(self.spec) | {"shape": list(self.spec.shape)}

    # the parts of a family

    def _layers(self) -> None:
        """Make all layers but the decoder's head."""
        raise NotImplementedError

    def _head(self) -> None:
        """Make the decoder's head."""
        n_pixels = self.spec.pixels
        self.p_x_mean: nn.Module = Dense(HIDDEN, n_pixels, functional.sigmoid)
        if not self.binary:
            self.p_x_logvar: nn.Module = Dense(HIDDEN, n_pixels, pixel_log_var)

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(top latent | x)."""
        raise NotImplementedError

    def _lower_features(self, x: Tensor) -> Tensor | None:
        """What q(z1|x, z2) needs of x."""
        return None

    def _lower(self, seen: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z1|x, z2)."""
        raise NotImplementedError

    def _p_lower(self, z2: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of p(z1|z2)."""
        raise NotImplementedError

    def _hidden(self, z: Latents, x: Tensor | None) -> Tensor:
        """The decoder's last hidden layer, (n, units) or (n, channels, H, W)."""
        raise NotImplementedError

    # q(z|x)

    def noise(self, n: int, rng: torch.Generator) -> Latents:
        """Standard normal numbers for n draws of the latents; those of z2 come first."""
        z2 = runtime.normal((n, self.spec.z2_size), rng) if self.has_two_levels else None
        return Latents(runtime.normal((n, self.spec.z1_size), rng), z2)

    def features(self, x: Tensor) -> Features:
        return Features(*self._top(x), self._lower_features(x))

    def features_and_components(self, x: Tensor) -> tuple[Features, Components | None]:
        """`features` and `components` in one pass of the encoder."""
        if self.means is None:
            return self.features(x), None
        n = len(x)
        mean, log_var = self._top(torch.cat((x, self.means())))
        return Features(mean[:n], log_var[:n], self._lower_features(x)), Components(mean[n:], log_var[n:])

    def q_z(self, seen: Features, noise: Latents) -> Drawn:
        """Draws z ~ q(z|x) from standard normal noise: z2 first, then z1 given x and z2."""
        top = draw_normal(seen.mean, seen.log_var, noise.top)
        log_q = densities.log_normal_diag(top, seen.mean, seen.log_var)
        if seen.lower is None:
            return Drawn(Latents(top), Latents(seen.mean), Latents(seen.log_var), log_q)
        mean, log_var = self._lower(seen.lower, top)
        z1 = draw_normal(mean, log_var, noise.z1)
        log_q = log_q + densities.log_normal_diag(z1, mean, log_var)
        return Drawn(Latents(z1, top), Latents(mean, seen.mean), Latents(log_var, seen.log_var), log_q)

    def log_q(self, seen: Features, z: Latents) -> Tensor:
        """log q(z|x) at given latents, (n,)."""
        log_q = densities.log_normal_diag(z.top, seen.mean, seen.log_var)
        if seen.lower is None:
            return log_q
        return log_q + densities.log_normal_diag(z.z1, *self._lower(seen.lower, z.top))

    def encoder_mean(self, x: Tensor) -> Tensor:
        """Embeddings (n, latent_size) without noise: the mean of q(z1|x, z2) at z2 = the mean of q(z2|x), and that."""
        return self.mean_latents(x).flat

    def mean_latents(self, x: Tensor) -> Latents:
        """The latents of `encoder_mean`."""
        seen = self.features(x)
        return Latents(seen.mean) if seen.lower is None else Latents(self._lower(seen.lower, seen.mean)[0], seen.mean)

    # p(z)

    def pseudo_inputs(self) -> Tensor | None:
        """The VampPrior's images (K, C, H, W) in [0, 1]; None with the standard prior."""
        return None if self.means is None else self.means()

    def components(self) -> Components | None:
        """The VampPrior's mixture; None with the standard prior."""
        return None if self.means is None else Components(*self._top(self.means()))

    def log_p_top(self, z: Tensor, components: Components | None) -> Tensor:
        """log p of the top latent (n, d), (n,)."""
        if components is None:
            return densities.log_normal_standard(z)
        distances = (z[:, None] - components.mean).square() * torch.exp(-components.log_var)
        per_component = -0.5 * (components.log_var + distances).sum(2)
        return torch.logsumexp(per_component, 1) - math.log(len(components.mean))

    def log_p_lower(self, z: Latents) -> Tensor | float:
        """log p(z1|z2), (n,); 0 in the family vae."""
        return 0.0 if z.z2 is None else densities.log_normal_diag(z.z1, *self._p_lower(z.z2))

    def log_prior(self, z: Latents, components: Components | None) -> Tensor:
        """log p(z) = log p(z1|z2) + log p(z2), (n,)."""
        return self.log_p_lower(z) + self.log_p_top(z.top, components)

    def prior_noise(self, n: int, rng: torch.Generator, in_order: bool = False) -> PriorNoise:
        """What n draws z ~ p(z) are made of. in_order: take the VampPrior's first n pseudo-inputs, as published, not n
        random ones; then there are no more than K draws."""
        noise = self.noise(n, rng)
        if self.means is None:
            return PriorNoise(noise)
        n_components = self.spec.number_components
        if in_order:
            first = torch.arange(min(n, n_components), device=noise.top.device)
            return PriorNoise(noise.rows(slice(n_components)), first)
        picked = runtime.drawn(lambda place: torch.randint(n_components, (n,), generator=rng, device=place), rng)
        return PriorNoise(noise, picked)

    def from_prior(self, noise: PriorNoise, components: Components | None) -> Latents:
        """z ~ p(z) as a function of its noise: the top latent, then z1 given it; with gradients."""
        top = noise.normals.top
        if components is not None:
            assert noise.picked is not None
            top = draw_normal(components.mean[noise.picked], components.log_var[noise.picked], top)
        return self.complete(top, noise.normals.z1)

    @torch.no_grad()
    def sample_prior(
        self, n: int, rng: torch.Generator, components: Components | None = None, in_order: bool = False
    ) -> Latents:
        """Draws z ~ p(z) without gradients. components: of the VampPrior, where they are known already. in_order: see
        `prior_noise`."""
        components = self.components() if components is None else components
        return self.from_prior(self.prior_noise(n, rng, in_order), components)

    def complete(self, top: Tensor, noise: Tensor) -> Latents:
        """The latents with a given top one: z1 ~ p(z1|z2) from standard normal noise."""
        if not self.has_two_levels:
            return Latents(top)
        return Latents(draw_normal(*self._p_lower(top), noise), top)

    # p(x|z)

    @contextlib.contextmanager
    def with_running_statistics(self) -> Iterator[None]:
        """Within: batch norms, which an autoregressive decoder has, use their running statistics and do not change
        them; gradients are as ever."""
        was_training = self.training
        if self.is_autoregressive:
            self.eval()
        try:
            yield
        finally:
            if self.is_autoregressive:
                self.train(was_training)

    def hidden(self, z: Latents, x: Tensor | None = None) -> Tensor:
        """The decoder's last hidden layer, (n, units) or (n, channels, H, W). x: the image, whose earlier pixels an
        autoregressive decoder sees; others do without."""
        return self._hidden(z, x)

    def decoder_states(self, x: Tensor, z: Latents) -> Tensor:
        """Embeddings (n, h) read from the decoder: its last hidden layer, of a convolutional one the mean over pixels.

        The "informative embeddings" of Livne (arXiv 2509.21511), for decoders of images.
        """
        hidden = self.hidden(z, x)
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden

    def p_x(self, z: Latents, x: Tensor | None = None) -> Pixels:
        """The parameters of p(x|z), of an autoregressive decoder given the earlier pixels of x."""
        return self.pixels(self.hidden(z, x))

    def pixels(self, hidden: Tensor) -> Pixels:
        """The decoder's head. It works in full precision, whatever the layers before it had."""
        with runtime.full_precision(hidden.device):
            hidden = hidden.float() if hidden.dtype == torch.bfloat16 else hidden
            mean = self.p_x_mean(hidden).reshape(-1, *self.spec.shape)
            if self.binary:
                return Pixels(mean, None)
            log_var = self.p_x_logvar(hidden).reshape(-1, *self.spec.shape)
            return Pixels(mean.clamp(MEAN_MARGIN, 1 - MEAN_MARGIN), log_var)

    def log_p_x(self, x: Tensor, z: Latents) -> Tensor:
        """log p(x|z), (n,)."""
        return self.p_x(z, x).log_prob(x)

    def reconstruct(self, x: Tensor, noise: Latents) -> Tensor:
        """Mean images of p(x|z) at z ~ q(z|x), (n, C, H, W); autoregressive, with the true earlier pixels."""
        return self.p_x(self.q_z(self.features(x), noise).z, x).mean

    def log_q_x_mixture(self, x: Tensor) -> Tensor:
        """log q(x) where it is a mixture of decoders at learned latents (q_x_prior vampprior), (n,)."""
        flat: Tensor = self.pseudo_latents
        if self.spec.as_published:
            flat = functional.hardtanh(flat, 0.0, 1.0)
        z1 = self.spec.z1_size
        decoded = self.p_x(Latents(flat[:, :z1], flat[:, z1:] if self.has_two_levels else None))
        per_latent = decoded.log_prob_of_pairs(x)
        return torch.logsumexp(per_latent, 1) - math.log(len(flat))
