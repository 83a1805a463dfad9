"""Densities of a MIM model: diagonal Gaussian, Bernoulli, mixtures of either, and the layers that give them.

Any leading axes are allowed everywhere: (n, d) for one model, (S, n, d) for S models stacked along a leading axis. A
mixture keeps its components stacked along an axis of its own, (..., K, d), and costs one logsumexp, so nothing here
loops over samples, components or models. Priors have a batch axis of length 1.

Noise comes from `rng`: a torch.Generator, or anything with `normal(shape)` and `uniform(shape)`, such as `Noise`, which
gives each of the stacked models the numbers of its own stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.stacked import StackedLinear

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


# --- noise --------------------------------------------------------------------------------------------------


class NoiseSource(Protocol):
    """What gives standard normal and uniform [0, 1) numbers of a shape."""

    def normal(self, shape: Sequence[int]) -> Tensor: ...

    def uniform(self, shape: Sequence[int]) -> Tensor: ...


Rng = torch.Generator | NoiseSource


class Noise:
    """Numbers for S stacked models, (S, ...), each from the generator of its model.

    They are drawn in blocks of `block` numbers a model, which costs one call where many small ones are asked for;
    what a model gets depends on its generator, `block` and the order of requests, not on the other models.
    """

    def __init__(self, generators: Sequence[torch.Generator], block: int = 1 << 15) -> None:
        assert generators and block >= 1
        self._generators = list(generators)
        self._block = block
        empty = torch.empty(len(self._generators), 0, device=runtime.wanted_on(generators[0]))
        self._pools: dict[Any, Tensor] = {torch.randn: empty, torch.rand: empty}

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers of `shape`, whose first axis is that of the models."""
        return self._take(torch.randn, shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers of [0, 1) of `shape`, whose first axis is that of the models."""
        return self._take(torch.rand, shape)

    def _take(self, draw: Any, shape: Sequence[int]) -> Tensor:
        assert shape[0] == len(self._generators), f"{tuple(shape)} for {len(self._generators)} models"
        n = math.prod(shape[1:])
        pool = self._pools[draw]
        if pool.shape[1] < n:
            size = max(self._block, n)
            fresh = [draw(size, generator=rng, device=rng.device) for rng in self._generators]
            pool = torch.cat([pool, runtime.to_device(torch.stack(fresh), pool.device)], dim=1)
        self._pools[draw] = pool[:, n:]
        return pool[:, :n].reshape(tuple(shape))


def draw_normal(rng: Rng, shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal numbers on the device and of the type of `like`."""
    if isinstance(rng, torch.Generator):
        return runtime.normal(shape, rng, like.device, like.dtype)
    return rng.normal(shape).to(like.device, like.dtype)


def draw_uniform(rng: Rng, shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform numbers of [0, 1) on the device and of the type of `like`."""
    if isinstance(rng, torch.Generator):
        return runtime.uniform(shape, rng, like.device, like.dtype)
    return rng.uniform(shape).to(like.device, like.dtype)


def _repeated(tensor: Tensor, n: int | None, axis: int) -> Tensor:
    """The batch axis, of length 1 in a prior, made n long (a view); as it is where n is None."""
    if n is None:
        return tensor
    assert tensor.shape[axis] == 1, f"only a prior can be drawn from n times, not a batch of {tensor.shape[axis]}"
    shape = list(tensor.shape)
    shape[axis] = n
    return tensor.expand(shape)


# --- distributions ------------------------------------------------------------------------------------------


class Distribution(Protocol):
    """A batch of densities over vectors; see the classes below."""

    @property
    def mean(self) -> Tensor: ...

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of (..., d), summed over the last axis: (...)."""
        ...

    def rsample(self, rng: Rng, n: int | None = None) -> Tensor:
        """One draw for each of the batch, or n draws from a prior: (..., n, d)."""
        ...

    def sample_with_log_prob(self, rng: Rng, n: int | None = None) -> tuple[Tensor, Tensor]:
        """A draw and its log-density."""
        ...


class Gaussian:
    """Independent normals. loc, std: (..., d)."""

    reparameterised = True

    def __init__(self, loc: Tensor, std: Tensor) -> None:
        self.loc, self.std = loc, std
        self._log_scale: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.std

    @property
    def log_scale(self) -> Tensor:
        """Sum of the log standard deviations, and the constant: (...)."""
        if self._log_scale is None:
            self._log_scale = self.std.log().sum(-1) + self.std.shape[-1] * HALF_LOG_2PI
        return self._log_scale

    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * ((value - self.loc) / self.std).square().sum(-1) - self.log_scale

    def rsample(self, rng: Rng, n: int | None = None) -> Tensor:
        loc, std = _repeated(self.loc, n, -2), _repeated(self.std, n, -2)
        return torch.addcmul(loc, std, draw_normal(rng, loc.shape, loc))

    def sample_with_log_prob(self, rng: Rng, n: int | None = None) -> tuple[Tensor, Tensor]:
        """A draw and its log-density, which is a function of noise and scale alone: (value - loc) / std is the noise.

        Value and all gradients are those of log_prob(rsample()), with less work and without the rounding of a division
        by a tiny standard deviation.
        """
        loc, std = _repeated(self.loc, n, -2), _repeated(self.std, n, -2)
        return Gaussian(loc, std).at(draw_normal(rng, loc.shape, loc))

    def at(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The draw that standard normal noise (..., d) makes, and its log-density."""
        return torch.addcmul(self.loc, self.std, noise), -0.5 * noise.square().sum(-1) - self.log_scale

    def rows(self, start: int, stop: int) -> Gaussian:
        """Those of the batch axis from start to stop."""
        part = Gaussian(self.loc[..., start:stop, :], self.std[..., start:stop, :])
        part._log_scale = self.log_scale[..., start:stop]
        return part

    def with_component_axis(self) -> Gaussian:
        """The batch axis turned into the components of one mixture: (..., K, d) -> (..., 1, K, d)."""
        return Gaussian(self.loc.unsqueeze(-3), self.std.unsqueeze(-3))

    def pick(self, index: Tensor) -> Gaussian:
        """Component `index` (...) of components (..., K, d)."""
        return Gaussian(_gather(self.loc, index), _gather(self.std, index))


class Bernoulli:
    """Independent coins. probs: (..., d) inside (0, 1); values may be grey, between 0 and 1.

    `relaxed` gives the probabilities where a draw is asked for, with gradient, as the reference does.
    """

    def __init__(self, probs: Tensor, relaxed: bool = False) -> None:
        self.probs, self.relaxed = probs, relaxed
        self._logs: tuple[Tensor, Tensor] | None = None

    @property
    def reparameterised(self) -> bool:
        return self.relaxed

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def stddev(self) -> Tensor:
        return (self.probs * (1 - self.probs)).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._logs is None:
            self._logs = self.probs.log(), (-self.probs).log1p()
        log_one, log_zero = self._logs
        return (value * log_one + (1 - value) * log_zero).sum(-1)

    def rsample(self, rng: Rng, n: int | None = None) -> Tensor:
        """Zeros and ones, without gradient; where relaxed, the probabilities."""
        probs = _repeated(self.probs, n, -2)
        if self.relaxed:
            return probs
        return (draw_uniform(rng, probs.shape, probs) < probs.detach()).to(probs.dtype)

    def sample_with_log_prob(self, rng: Rng, n: int | None = None) -> tuple[Tensor, Tensor]:
        value = self.rsample(rng, n)
        return value, self.log_prob(value)

    def with_component_axis(self) -> Bernoulli:
        """The batch axis turned into the components of one mixture: (..., K, d) -> (..., 1, K, d)."""
        return Bernoulli(self.probs.unsqueeze(-3), self.relaxed)

    def pick(self, index: Tensor) -> Bernoulli:
        """Component `index` (...) of components (..., K, d)."""
        return Bernoulli(_gather(self.probs, index), self.relaxed)


class Mixture:
    """A mixture of K Gaussians or Bernoullis.

    log_weights: (..., K), normalised here. components: parameters (..., K, d).
    """

    def __init__(self, log_weights: Tensor, components: Gaussian | Bernoulli) -> None:
        self.log_weights = log_weights.log_softmax(-1)
        self.components = components

    @property
    def reparameterised(self) -> bool:
        return self.components.reparameterised

    @property
    def mean(self) -> Tensor:
        return (self._weights * self.components.mean).sum(-2)

    @property
    def stddev(self) -> Tensor:
        squares = self.components.stddev.square() + self.components.mean.square()
        return ((self._weights * squares).sum(-2) - self.mean.square()).clamp_min(0).sqrt()

    @property
    def _weights(self) -> Tensor:
        return self.log_weights.exp().unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self.log_weights + self.components.log_prob(value.unsqueeze(-2)), -1)

    def rsample(self, rng: Rng, n: int | None = None) -> Tensor:
        """A draw. Of Gaussians it carries the exact path-wise gradient, also that of the weights (`mixture_path`)."""
        if isinstance(self.components, Bernoulli) and self.components.relaxed:
            return _repeated(self.mean, n, -2)
        log_weights = _repeated(self.log_weights, n, -2)
        shape = log_weights.shape[:-1]
        edges = log_weights.detach().exp().cumsum(-1)  # (..., K)
        u = draw_uniform(rng, (*shape, 1), edges) * edges[..., -1:]  # rounding may leave the last edge beside 1
        index = (u >= edges).sum(-1).clamp_max(edges.shape[-1] - 1)
        value = self.components.pick(index).rsample(rng)
        if isinstance(self.components, Bernoulli) or not torch.is_grad_enabled():
            return value
        return mixture_path(value.detach(), log_weights, self.components.loc, self.components.std)

    def sample_with_log_prob(self, rng: Rng, n: int | None = None) -> tuple[Tensor, Tensor]:
        value = self.rsample(rng, n)
        return value, self.log_prob(value)


def _gather(parameter: Tensor, index: Tensor) -> Tensor:
    """Entry index (..., n) along the component axis of (..., n or 1, K, d): (..., n, d)."""
    parameter = parameter.expand(*index.shape, *parameter.shape[-2:])
    where = index[..., None, None].expand(*index.shape, 1, parameter.shape[-1])
    return parameter.gather(-2, where).squeeze(-2)


def mixture_path(value: Tensor, log_weights: Tensor, loc: Tensor, std: Tensor) -> Tensor:
    """`value` (..., d), a draw from a Gaussian mixture, with the gradient of a draw by inverse distribution functions.

    Coordinate j, given those before it, is where the one-dimensional mixture of the components' marginals, weighted by
    how well they explain the coordinates before, reaches a fixed quantile F_j; so dz_j = -dF_j / p_j (Graves 2016,
    arXiv 1607.05690). Value unchanged. log_weights: (..., K); loc, std: (..., K, d), broadcast over the batch.
    """
    path: list[Tensor] = []
    log_w = log_weights
    for j in range(value.shape[-1]):  # each coordinate depends on those before
        mu, sigma = loc[..., j], std[..., j]  # (..., K)
        weights = log_w.softmax(-1)
        v = value[..., j : j + 1]
        standard = (v - mu) / sigma
        quantile = (weights * torch.special.ndtr(standard)).sum(-1)
        density = (weights * (-0.5 * standard.square() - HALF_LOG_2PI).exp() / sigma).sum(-1).detach()
        step = (quantile.detach() - quantile) / density.clamp_min(torch.finfo(density.dtype).tiny)
        path.append(v.squeeze(-1) + step)
        log_w = log_w - 0.5 * ((path[-1].unsqueeze(-1) - mu) / sigma).square() - sigma.log()
    return torch.stack(path, -1)


def truncated(log_weights: Tensor) -> Tensor:
    """Normalised log-weights (..., K) where those below mean minus standard deviation count for nothing.

    What the reference does to its learned mixture prior at every call; not in the paper.
    """
    if log_weights.shape[-1] == 1:
        return torch.zeros_like(log_weights)
    edge = log_weights.mean(-1, keepdim=True) - log_weights.std(-1, keepdim=True)
    return torch.where(log_weights < edge, log_weights - 1e5, log_weights).log_softmax(-1)


# --- layers -------------------------------------------------------------------------------------------------


class _Layer(nn.Module):
    """A density given features, from `parts` numbers for each of its dimensions; a mixture of K where n_components > 0.

    A subclass makes the density of these numbers, or of those of each component.
    """

    def __init__(
        self,
        n_in: int,
        dim: int,
        floor: float,
        n_components: int,
        parts: int,
        n_models: int | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.dim, self.floor, self.n_components = dim, floor, n_components
        per_component = parts * dim + (1 if n_components else 0)
        self.linear = StackedLinear(n_in, per_component * max(1, n_components), n_models, rng)

    def forward(self, features: Tensor) -> Gaussian | Bernoulli | Mixture:
        """(..., n, in) -> a batch (..., n)."""
        out = self.linear(features)
        if not self.n_components:
            return self.density(out)
        out, log_weights = out.split([out.shape[-1] - self.n_components, self.n_components], -1)
        return Mixture(log_weights, self.density(out.unflatten(-1, (self.n_components, -1))))

    def density(self, out: Tensor) -> Gaussian | Bernoulli:
        """Numbers (..., parts * dim) -> a batch (...)."""
        raise NotImplementedError


class GaussianLayer(_Layer):
    """A diagonal Gaussian given features; a mixture of K of them where n_components > 0.

    std = exp(linear) + floor; with `fixed`, the floor alone (what makes an auto-encoder's encoder).
    """

    def __init__(
        self,
        n_in: int,
        dim: int,
        floor: float,
        n_components: int = 0,
        fixed: bool = False,
        n_models: int | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_in, dim, floor, n_components, 1 if fixed else 2, n_models, rng)
        self.fixed = fixed

    def density(self, out: Tensor) -> Gaussian:
        if self.fixed:
            return Gaussian(out, torch.full_like(out, self.floor))
        loc, log_scale = out.split(self.dim, -1)
        return Gaussian(loc, log_scale.exp() + self.floor)


class BernoulliLayer(_Layer):
    """Coins given features, probabilities within [floor, 1 - floor]; a mixture where n_components > 0."""

    def __init__(
        self,
        n_in: int,
        dim: int,
        floor: float,
        n_components: int = 0,
        relaxed: bool = False,
        n_models: int | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_in, dim, floor, n_components, 1, n_models, rng)
        self.relaxed = relaxed

    def density(self, out: Tensor) -> Bernoulli:
        return Bernoulli(_probabilities(out, self.floor), self.relaxed)


def _probabilities(logits: Tensor, floor: float) -> Tensor:
    # Where the floor is finer than the type's spacing below 1, the spacing is the floor: log(1 - p) must stay finite.
    floor = max(floor, torch.finfo(logits.dtype).eps)
    return logits.sigmoid().clamp(floor, 1 - floor)


class GaussianPrior(nn.Module):
    """A learned Gaussian, or a learned mixture of K where n_components > 0. Batch axis of length 1.

    Initial values as in the reference: loc ~ N(0, 1), log std ~ 1e-3 N(0, 1); equal weights.
    """

    def __init__(
        self,
        dim: int,
        floor: float,
        n_components: int = 0,
        truncate: bool = False,
        n_models: int | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.floor, self.truncate = floor, truncate
        lead = () if n_models is None else (n_models,)
        shape = (*lead, 1, n_components, dim) if n_components else (*lead, 1, dim)
        self.loc = nn.Parameter(torch.randn(shape, generator=rng))
        self.log_scale = nn.Parameter(1e-3 * torch.randn(shape, generator=rng))
        self.log_weights = nn.Parameter(torch.zeros(*lead, 1, n_components)) if n_components else None

    def forward(self) -> Gaussian | Mixture:
        gaussian = Gaussian(self.loc, self.log_scale.exp() + self.floor)
        return gaussian if self.log_weights is None else _mixture(self.log_weights, gaussian, self.truncate)


class BernoulliPrior(nn.Module):
    """Learned coins, or a learned mixture of K sets of them where n_components > 0. Batch axis of length 1."""

    def __init__(
        self,
        dim: int,
        floor: float,
        n_components: int = 0,
        relaxed: bool = False,
        truncate: bool = False,
        n_models: int | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.floor, self.relaxed, self.truncate = floor, relaxed, truncate
        lead = () if n_models is None else (n_models,)
        shape = (*lead, 1, n_components, dim) if n_components else (*lead, 1, dim)
        self.logits = nn.Parameter(torch.randn(shape, generator=rng))
        self.log_weights = nn.Parameter(torch.zeros(*lead, 1, n_components)) if n_components else None

    def forward(self) -> Bernoulli | Mixture:
        coins = Bernoulli(_probabilities(self.logits, self.floor), self.relaxed)
        return coins if self.log_weights is None else _mixture(self.log_weights, coins, self.truncate)


def _mixture(log_weights: Tensor, components: Gaussian | Bernoulli, truncate: bool) -> Mixture:
    return Mixture(truncated(log_weights) if truncate else log_weights, components)


def equal_mixture(conditional: Gaussian | Bernoulli | Mixture) -> Mixture:
    """The equally weighted mixture of a batch of K densities: a VampPrior (Tomczak and Welling, arXiv 1705.07120),
    where they belong to K pseudo inputs. Batch (..., K) -> (..., 1); mixtures are flattened into one."""
    if isinstance(conditional, Mixture):
        log_weights = conditional.log_weights.flatten(-2).unsqueeze(-2)  # (..., 1, K J)
        parts = conditional.components
        if isinstance(parts, Gaussian):
            flat: Gaussian | Bernoulli = Gaussian(parts.loc.flatten(-3, -2), parts.std.flatten(-3, -2))
        else:
            flat = Bernoulli(parts.probs.flatten(-3, -2), parts.relaxed)
        return Mixture(log_weights, flat.with_component_axis())
    components = conditional.with_component_axis()
    shape = components.mean.shape[:-1]  # (..., 1, K)
    return Mixture(torch.zeros(shape, dtype=components.mean.dtype, device=components.mean.device), components)
