"""A linear Gaussian VAE whose likelihood, divergence and information are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.images.base import Components, Drawn, Features, Latents
from mi_ml_gen.mim.images.densities import log_normal_diag, log_normal_standard, summed


class LinearModel:
    """x ~ N(W z, s^2 I), z ~ N(0, I) of d dimensions, and a factorised q(z|x) = N(A x, v); images (n, 1, h, w).

    W has orthogonal columns, so that the true posterior is factorised as well. exact: whether q is that posterior, else
    it is wider by half.
    """

    def __init__(self, exact: bool, d: int = 3, shape: tuple[int, int] = (4, 2), noise: float = 0.6, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        self.shape, self.d, self.s2 = shape, d, noise**2
        n_x = shape[0] * shape[1]
        basis = torch.linalg.qr(torch.randn(n_x, d, generator=rng, dtype=torch.float64))[0]
        self.gains = torch.linspace(0.7, 1.6, d, dtype=torch.float64)
        self.W = basis * self.gains
        v = self.s2 / (self.gains.square() + self.s2)
        self.A = self.W.T / (self.gains.square() + self.s2)[:, None]
        self.log_var = (v if exact else 1.5 * v).log()

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        z = torch.randn(n, self.d, generator=rng, dtype=torch.float64)
        noise = torch.randn(n, len(self.W), generator=rng, dtype=torch.float64)
        return (z @ self.W.T + self.s2**0.5 * noise).reshape(n, 1, *self.shape)

    # what is known

    def log_marginal(self, x: Tensor) -> Tensor:
        covariance = self.W @ self.W.T + self.s2 * torch.eye(len(self.W), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(self.W), dtype=torch.float64), covariance)
        return normal.log_prob(x.flatten(1))

    def kl(self, x: Tensor) -> Tensor:
        """Of q(z|x) from p(z)."""
        mean, variance = x.flatten(1) @ self.A.T, self.log_var.exp()
        return 0.5 * (variance + mean.square() - 1 - self.log_var).sum(1)

    def information(self) -> float:
        """I(x; z) under q(z|x) and the model's own p(x), nats."""
        covariance = self.W @ self.W.T + self.s2 * torch.eye(len(self.W), dtype=torch.float64)
        of_means = self.A @ covariance @ self.A.T
        total = of_means + torch.diag(self.log_var.exp())
        return 0.5 * (torch.linalg.slogdet(total)[1] - self.log_var.sum()).item()

    def rate(self) -> float:
        """The mean of `kl` under the model's own p(x), nats."""
        covariance = self.W @ self.W.T + self.s2 * torch.eye(len(self.W), dtype=torch.float64)
        squares = (self.A @ covariance @ self.A.T).diagonal()
        return 0.5 * (self.log_var.exp() + squares - 1 - self.log_var).sum().item()

    # what is measured

    def noise(self, n: int, rng: torch.Generator) -> Latents:
        return Latents(runtime.normal((n, self.d), rng).double())

    def features(self, x: Tensor) -> Features:
        mean = x.flatten(1) @ self.A.T
        return Features(mean, self.log_var.expand_as(mean))

    def q_z(self, seen: Features, noise: Latents) -> Drawn:
        z = seen.mean + (0.5 * seen.log_var).exp() * noise.z1
        log_q = log_normal_diag(z, seen.mean, seen.log_var)
        return Drawn(Latents(z), Latents(seen.mean), Latents(seen.log_var), log_q)

    def log_q(self, seen: Features, z: Latents) -> Tensor:
        return log_normal_diag(z.z1, seen.mean, seen.log_var)

    def components(self) -> Components | None:
        return None

    def log_p_lower(self, z: Latents) -> float:
        return 0.0

    def log_p_top(self, z: Tensor, components: Components | None) -> Tensor:
        return log_normal_standard(z)

    def log_p_x(self, x: Tensor, z: Latents) -> Tensor:
        distance = x.flatten(1) - z.z1 @ self.W.T
        return summed(-0.5 * (distance.square() / self.s2 + math.log(2 * math.pi * self.s2)))
