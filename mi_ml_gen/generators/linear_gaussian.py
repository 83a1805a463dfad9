"""The linear Gaussian generator: x = sum over chunks of A_i z_i plus fresh observation noise, as an image.

It is the ground truth for everything here that measures information: under a Gaussian perturbation anchor and
positive are jointly Gaussian, and their mutual information has a closed form.  All of that holds for z ~
Normal(0, I) without truncation (a truncation of 6 or more makes no difference in float32; the usual 2 does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.information.gaussian import JointGaussian
from mi_ml_gen.latents import Chunks, LatentLayout

HALF_RANGE_STD = 5.0
"""Black and white stand this many standard deviations off mid-grey: 1 number in 1.7 million is clipped."""


@dataclass(frozen=True)
class GaussianPerturbation:
    """z -> scale z + mean + std n on the perturbed chunks, n ~ Normal(0, I) fresh.

    A random walker's additive noise has scale 1; it widens the distribution of the positives.  `stationary` keeps that
    distribution equal to the anchors', which is what makes symmetric InfoNCE a bound on the information alone.
    """

    std: float = 0.0
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.std >= 0 and math.isfinite(self.std + self.mean + self.scale)):
            raise UsageError(f"{self}: all finite, std at least 0")

    @classmethod
    def stationary(cls, correlation: float) -> GaussianPerturbation:
        """Each perturbed number keeps its distribution and this correlation, from 0 (drawn anew) to 1 (unchanged)."""
        if not 0 <= correlation <= 1:
            raise UsageError(f"correlation {correlation}: must lie within 0 and 1")
        return cls(std=math.sqrt(1 - correlation**2), scale=correlation)


class LinearGaussian(MultiLatentGenerator):
    """Chunks of the given sizes mixed into `observed_dim` numbers, each shown by every t-th pixel of a
    channel.

    sizes: of the chunks.  observed_dim: length of x, by default that of z.  noise: standard deviation of the
    fresh observation noise in every number of x.  gains: one factor per chunk, by default 1.  seed: of the
    mixing matrix A, whose columns are orthonormal (before the gains) where x is at least as long as z. Raises
    `UsageError` for values out of range, and where the image is too small for x.
    """

    family: ClassVar[str] = "linear-gaussian"

    def __init__(
        self,
        sizes: Sequence[int] = (2, 2, 2, 2),
        observed_dim: int | None = None,
        noise: float = 0.1,
        resolution: int = 8,
        gains: Sequence[float] | None = None,
        seed: int = 0,
        name: str = "linear-gaussian",
    ) -> None:
        super().__init__()
        self.name = name
        self.layout = LatentLayout(tuple(sizes))
        self.noise_dim = self.layout.dim
        self.resolution = resolution
        self.noise = float(noise)
        self.observed_dim = self.layout.dim if observed_dim is None else observed_dim
        self.gains = tuple(map(float, gains)) if gains is not None else (1.0,) * self.layout.n_chunks
        self.seed = seed
        if self.observed_dim < 1 or not (math.isfinite(self.noise) and self.noise >= 0):
            raise UsageError(f"observed_dim {observed_dim} must be at least 1, noise {noise} finite and at least 0")
        if len(self.gains) != self.layout.n_chunks:
            raise UsageError(f"gains {list(self.gains)}: must be one for each of {self.layout.n_chunks} chunks")
        tile = math.ceil(math.sqrt(self.observed_dim / 3))
        if resolution < tile:
            raise UsageError(f"resolution {resolution} px: {self.observed_dim} numbers need at least {tile}")

        self.mixing: Tensor
        self.half_range: Tensor
        self.pattern: Tensor
        mixing = _orthonormal(self.observed_dim, self.layout.dim, seed)
        mixing = mixing * torch.tensor(self.gains, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("mixing", mixing.float())
        std = (mixing.square().sum(1) + self.noise**2).sqrt()
        self.register_buffer("half_range", (HALF_RANGE_STD * std).float().clamp(min=1e-12), persistent=False)
        self.register_buffer("pattern", _pattern(self.observed_dim, tile, resolution), persistent=False)

    def config(self) -> dict[str, Any]:
        return {
            "sizes": list(self.layout.sizes),
            "observed_dim": self.observed_dim,
            "noise": self.noise,
            "resolution": self.resolution,
            "gains": list(self.gains),
            "seed": self.seed,
        }

    # images

    def synthesize(self, latents: Tensor) -> Tensor:
        """Latents (n, dim) -> x before its noise, (n, observed_dim)."""
        return latents @ self.mixing.T

    def decode(self, latents: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Images of x with fresh noise from `rng`, drawn even where the latents are the same."""
        x = self.synthesize(latents)
        if self.noise > 0:
            device = x.device if rng is None else rng.device
            x = x + self.noise * torch.randn(x.shape, generator=rng, device=device, dtype=x.dtype).to(x.device)
        return self.render(x)

    def render(self, x: Tensor) -> Tensor:
        """x (n, observed_dim) -> images; 0 is mid-grey, and beyond `HALF_RANGE_STD` it is clipped."""
        images = (x / self.half_range) @ self.pattern  # a product, not an index: its backward is deterministic
        return (0.5 + 0.5 * images).clamp(0, 1).view(-1, 3, self.resolution, self.resolution)

    def observe(self, images: Tensor) -> Tensor:
        """The x (n, observed_dim) that an image shows; undoes `render` but for clipping and rounding."""
        shown = (2 * images.flatten(1) - 1) @ (self.pattern / self.pattern.sum(1, keepdim=True)).T
        return shown * self.half_range

    def draw_pair(
        self,
        n: int,
        perturbation: GaussianPerturbation,
        chunks: Chunks | None = None,
        rng: torch.Generator | None = None,
    ) -> ImagePair:
        """Images of n anchors, z ~ Normal(0, I), and of their positives, perturbed on `chunks` (None:
        all)."""
        chunks = chunks or self.layout.all
        at = self.walk_slice(chunks)
        device = self.mixing.device if rng is None else rng.device
        z = torch.randn(n, self.noise_dim, generator=rng, device=device).to(self.mixing.device)
        fresh = torch.randn(n, at.stop - at.start, generator=rng, device=device).to(self.mixing.device)
        moved = perturbation.scale * z[:, at] + perturbation.mean + perturbation.std * fresh
        positive = torch.cat([z[:, : at.start], moved, z[:, at.stop :]], 1)
        return self.decode_pair(self.latents(z), self.latents(positive), chunks, rng)

    def clip_probability(self, latent_std: float = 1.0) -> float:
        """Probability that a number of x is clipped (the worst one), for latents of this deviation."""
        mixing, half_range = runtime.in_float64(self.mixing), runtime.in_float64(self.half_range)
        std = (mixing.square().sum(1) * latent_std**2 + self.noise**2).sqrt()
        return torch.special.erfc(half_range / std / math.sqrt(2)).max().item()

    # the truth

    def joint(self, perturbation: GaussianPerturbation, chunks: Chunks | None = None) -> JointGaussian:
        """The distribution of (x of the anchor, x of the positive)."""
        at = self.walk_slice(chunks or self.layout.all)
        scale = torch.ones(self.layout.dim, dtype=torch.float64)
        shift, variance = torch.zeros_like(scale), torch.zeros_like(scale)
        scale[at], shift[at], variance[at] = perturbation.scale, perturbation.mean, perturbation.std**2
        mixing = self.mixing.cpu().double()
        noise = self.noise**2 * torch.eye(self.observed_dim, dtype=torch.float64)
        return JointGaussian(
            mean_x=torch.zeros(self.observed_dim, dtype=torch.float64),
            mean_y=mixing @ shift,
            cov_x=mixing @ mixing.T + noise,
            cov_y=mixing @ torch.diag(scale**2 + variance) @ mixing.T + noise,
            cov_xy=mixing @ torch.diag(scale) @ mixing.T,
        )

    def mutual_information(self, perturbation: GaussianPerturbation, chunks: Chunks | None = None) -> float:
        """I(anchor; positive) in nats when `chunks` (None: all) are perturbed; the others, shared, count too.

        Raises `UsageError` where it is infinite (neither noise nor perturbation in some direction).
        """
        return self.joint(perturbation, chunks).mutual_information

    def log_ratio(self, pair: ImagePair, perturbation: GaussianPerturbation, chunks: Chunks | None = None) -> Tensor:
        """log p(a, b) / (p(a) p(b)) of each pair of images (n,): the optimal critic's score."""
        a, b = (self.observe(images).cpu() for images in pair)
        return self.joint(perturbation, chunks).log_ratio(a, b)

    def stationary_perturbation(self, nats: float, chunks: Chunks | None = None) -> GaussianPerturbation:
        """The stationary perturbation of `chunks` (None: all) that leaves this much information, to 1e-9.

        Raises `UsageError` where what the other chunks share or the observation noise puts it out of reach.
        """
        correlation = _solve(
            lambda value: self.mutual_information(GaussianPerturbation.stationary(value), chunks),
            nats,
            0.0,
            1.0,
        )
        return GaussianPerturbation.stationary(correlation)

    def additive_perturbation(self, nats: float, chunks: Chunks | None = None) -> GaussianPerturbation:
        """As `stationary_perturbation`, for noise added to the chunks, which widens the distribution of the
        positives."""
        log_std = _solve(
            lambda value: self.mutual_information(GaussianPerturbation(std=math.exp(value)), chunks),
            nats,
            10.0,
            -10.0,
        )
        return GaussianPerturbation(std=math.exp(log_std))

    @classmethod
    def with_information(
        cls,
        nats: float,
        perturbation: GaussianPerturbation | None = None,
        chunks: Chunks | None = None,
        **settings: Any,
    ) -> LinearGaussian:
        """A generator whose noise leaves this much information under `perturbation` (default: none)."""
        perturbation = perturbation or GaussianPerturbation()

        def information(log_noise: float) -> float:
            return cls(noise=math.exp(log_noise), **settings).mutual_information(perturbation, chunks)

        return cls(noise=math.exp(_solve(information, nats, 10.0, -10.0)), **settings)


def build(config: dict[str, Any], state: Mapping[str, Tensor], name: str) -> LinearGaussian:
    """The generator of a configuration and a state dict."""
    try:
        generator = LinearGaussian(**config, name=name)
        generator.load_state_dict(dict(state))
    except (TypeError, UsageError, RuntimeError) as error:
        raise CorruptCheckpointError(f"linear-gaussian file: {' '.join(str(error).split())}") from None
    return generator


def _orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float64 with orthonormal columns, or rows where there are fewer of them."""
    draw = torch.randn(
        max(rows, columns),
        min(rows, columns),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    q, r = torch.linalg.qr(draw)
    q = q * r.diagonal().sign()  # the one decomposition with a positive diagonal, whatever the library
    return q if rows >= columns else q.T


def _pattern(observed_dim: int, tile: int, resolution: int) -> Tensor:
    """(observed_dim, 3 * resolution**2), 1 where a number shows: one channel, one place of a tile that
    repeats.

    Repeated everywhere, so that the corner of the image that a convolution sees does not matter.
    """
    pattern = torch.zeros(observed_dim, 3, resolution, resolution)
    for k in range(observed_dim):
        row, column = divmod(k // 3, tile)
        pattern[k, k % 3, row::tile, column::tile] = 1
    return pattern.flatten(1)


def _solve(information: Callable[[float], float], nats: float, least: float, most: float) -> float:
    """Where the monotone `information` takes the value `nats`, by bisection between the two ends."""

    def above(value: float) -> bool:
        try:
            return information(value) > nats
        except UsageError:  # not positive definite in float64: as good as infinite
            return True

    if not math.isfinite(nats) or above(least) or not above(most):
        raise UsageError(f"{nats} nats: out of reach with these chunks and this noise")
    for _ in range(60):
        middle = 0.5 * (least + most)
        least, most = (least, middle) if above(middle) else (middle, most)
    return least
