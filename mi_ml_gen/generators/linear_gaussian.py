"""The linear Gaussian generator: x = sum over chunks of A_i z_i plus fresh observation noise, as an image.

It is the ground truth for everything here that measures information: under a Gaussian perturbation anchor and
positive are jointly Gaussian, and their mutual information has a closed form.  All of that holds for z ~
Normal(0, I) without truncation (a truncation of 6 or more makes no difference in float32; the usual 2 does), or for
the truncated z that `truncation` names.

The image may show x as it is, one number to a pixel of every tile, or through an invertible map that bends all numbers
into one another (`look="waves"`): such images look like nothing linear, and the information stays exact, because an
invertible map of each image leaves it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.generators.waves import Waves
from mi_ml_gen.information.closed_forms import binned_normal_information, solve
from mi_ml_gen.information.gaussian import JointGaussian
from mi_ml_gen.information.transforms import orthonormal
from mi_ml_gen.latents import Chunks, LatentLayout

Look = Literal["tiles", "waves"]

HALF_RANGE_STD = 5.0
"""Black and white stand this many standard deviations off mid-grey: 1 number in 1.7 million is clipped."""
_FARTHEST = 6.0
"""Normal scores of truncated noise end here: float32 has no digits left for the noise that would lie beyond."""


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
    """Chunks of the given sizes mixed into `observed_dim` numbers, which an image shows.

    sizes: of the chunks.  observed_dim: length of x, by default that of z.  noise: standard deviation of the
    fresh observation noise in every number of x.  gains: one factor per chunk, by default 1.  seed: of the
    mixing matrix A, whose columns are orthonormal (before the gains) where x is at least as long as z, and of the
    waves.  look: "tiles" shows each number by every t-th pixel of a channel, "waves" bends the numbers into one
    another by `bend` and shows them as smooth waves (`generators.waves`).  grey: all channels show the same.
    truncation: z follows a normal distribution truncated there, as walkers and encoders draw it (2), and is turned into
    untruncated normal scores first, so that the closed forms hold; a perturbation then means one of these scores.
    Raises `UsageError` for values out of range, and where the image is too small for x.
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
        look: Look = "tiles",
        bend: float = 1.0,
        grey: bool = False,
        truncation: float = math.inf,
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
        self.look, self.bend, self.grey = look, float(bend), bool(grey)
        self.truncation = float(truncation)
        if look not in get_args(Look):
            raise UsageError(f"look {look!r}: must be one of {', '.join(get_args(Look))}")
        if not self.truncation > 0:
            raise UsageError(f"truncation {truncation}: must be above 0; infinite for none")
        if self.observed_dim < 1 or not (math.isfinite(self.noise) and self.noise >= 0):
            raise UsageError(f"observed_dim {observed_dim} must be at least 1, noise {noise} finite and at least 0")
        if len(self.gains) != self.layout.n_chunks:
            raise UsageError(f"gains {list(self.gains)}: must be one for each of {self.layout.n_chunks} chunks")
        n_channels = 1 if self.grey else 3
        tile = math.ceil(math.sqrt(self.observed_dim / n_channels))
        if resolution < tile:
            raise UsageError(f"resolution {resolution} px: {self.observed_dim} numbers need at least {tile}")

        self.mixing: Tensor
        self.half_range: Tensor
        self.pattern: Tensor
        mixing = orthonormal(self.observed_dim, self.layout.dim, seed)
        mixing = mixing * torch.tensor(self.gains, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("mixing", mixing.float())
        std = (mixing.square().sum(1) + self.noise**2).sqrt()
        self.register_buffer("half_range", (HALF_RANGE_STD * std).float().clamp(min=1e-12), persistent=False)
        pattern = _pattern(self.observed_dim, tile, resolution, n_channels)
        self.register_buffer("pattern", pattern, persistent=False)
        self.waves = Waves(self.observed_dim, resolution, n_channels, bend, seed) if look == "waves" else None

    def config(self) -> dict[str, Any]:
        config = {
            "sizes": list(self.layout.sizes),
            "observed_dim": self.observed_dim,
            "noise": self.noise,
            "resolution": self.resolution,
            "gains": list(self.gains),
            "seed": self.seed,
        }
        if self.look != "tiles":
            config |= {"look": self.look, "bend": self.bend}
        if self.grey:
            config["grey"] = True
        if self.truncation < math.inf:
            config["truncation"] = self.truncation
        return config

    # images

    def synthesize(self, latents: Tensor) -> Tensor:
        """Latents (n, dim) -> x before its noise, (n, observed_dim)."""
        return self.scores(latents) @ self.mixing.T

    def scores(self, z: Tensor) -> Tensor:
        """Noise z (n, dim) of the generator's distribution -> standard normal numbers, each a monotone map of its own.

        Noise at the truncation or beyond it gives scores of -6 or 6.
        """
        if self.truncation == math.inf:
            return z
        beyond = _tail(self.truncation)
        tail = (torch.special.ndtr(-_wide(z).abs()) - beyond) / (1 - 2 * beyond)
        scores = -z.sign() * torch.special.ndtri(tail.clamp(min=_tail(_FARTHEST)))
        return scores.to(z.dtype)

    def noise_of(self, scores: Tensor) -> Tensor:
        """The z (n, dim) that has these standard normal `scores`."""
        if self.truncation == math.inf:
            return scores
        beyond = _tail(self.truncation)
        tail = beyond + torch.special.ndtr(-_wide(scores).abs()) * (1 - 2 * beyond)
        return (-scores.sign() * torch.special.ndtri(tail)).to(scores.dtype)

    def decode(self, latents: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Images of x with fresh noise from `rng`, drawn even where the latents are the same."""
        x = self.synthesize(latents)
        if self.noise > 0:
            x = x + self.noise * runtime.normal(x.shape, rng, x.device, x.dtype)
        return self.render(x)

    def render(self, x: Tensor) -> Tensor:
        """x (n, observed_dim) -> images; as tiles 0 is mid-grey, and beyond `HALF_RANGE_STD` it is clipped."""
        if self.waves is not None:
            return self.waves(x * (HALF_RANGE_STD / self.half_range))
        images = (x / self.half_range) @ self.pattern  # a product, not an index: its backward is deterministic
        return (0.5 + 0.5 * images).clamp(0, 1).view(-1, 3, self.resolution, self.resolution)

    def observe(self, images: Tensor) -> Tensor:
        """The x (n, observed_dim) that an image shows; undoes `render` but for clipping and rounding."""
        if self.waves is not None:
            return self.waves.inverse(images) * (self.half_range / HALF_RANGE_STD)
        shown = (2 * images.flatten(1) - 1) @ (self.pattern / self.pattern.sum(1, keepdim=True)).T
        return shown * self.half_range

    def first_weights(self, chunks: Chunks) -> Tensor:
        return self.mixing[:, self.walk_slice(chunks)]

    def early_features(self, latents: Tensor, chunks: Chunks) -> Tensor:
        """x before its noise."""
        return self.synthesize(latents)

    def draw_pair(
        self,
        n: int,
        perturbation: GaussianPerturbation,
        chunks: Chunks | None = None,
        rng: torch.Generator | None = None,
    ) -> ImagePair:
        """Images of n anchors, scores of z ~ Normal(0, I), and of their positives, perturbed on `chunks` (None:
        all)."""
        chunks = chunks or self.layout.all
        at = self.walk_slice(chunks)
        z = runtime.normal((n, self.noise_dim), rng, self.mixing.device)
        fresh = runtime.normal((n, at.stop - at.start), rng, self.mixing.device)
        moved = perturbation.scale * z[:, at] + perturbation.mean + perturbation.std * fresh
        positive = torch.cat([z[:, : at.start], moved, z[:, at.stop :]], 1)
        anchor, positive = (self.latents(self.noise_of(scores)) for scores in (z, positive))
        return self.decode_pair(anchor, positive, chunks, rng)

    def clip_probability(self, latent_std: float = 1.0) -> float:
        """Probability that a number of x is clipped (the worst one), for latents of this deviation; waves clip none."""
        if self.waves is not None:
            return 0.0
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
        return self._joint(scale, shift, variance)

    def _joint(self, scale: Tensor, shift: Tensor, variance: Tensor) -> JointGaussian:
        """Of z and of scale z + shift + sqrt(variance) n, each (dim,)."""
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

    def shared_information(self, redrawn: Chunks) -> float:
        """I(image; image with `redrawn` drawn anew) in nats: what the other chunks say about the image.

        0 where all chunks are drawn anew. Raises `UsageError` where it is infinite.
        """
        return self.mutual_information(GaussianPerturbation.stationary(0.0), redrawn)

    def carried_information(self, chunks: Chunks) -> float:
        """I(image; image with all but `chunks` drawn anew) in nats: what `chunks` alone say about the image."""
        kept = torch.zeros(self.layout.dim, dtype=torch.float64)
        kept[self.walk_slice(chunks)] = 1.0
        return self._joint(kept, torch.zeros_like(kept), 1 - kept).mutual_information

    def labels(self, z: Tensor, n_classes: int = 4, chunk: int = 0) -> Tensor:
        """Classes 0 to n_classes - 1 of noise z (n, dim), equally likely: the bin of the first number of a chunk."""
        _check_classes(n_classes)
        score = self.scores(z)[:, self.layout.slice(Chunks(chunk, chunk + 1)).start].double()
        return (torch.special.ndtr(score) * n_classes).long().clamp(0, n_classes - 1)

    def class_information(self, redrawn: Chunks | None = None, n_classes: int = 4, chunk: int = 0) -> float:
        """I(`labels`; image with `redrawn` drawn anew) in nats; None: the image itself.

        x is normal with the number that the label bins, so all that it says about the label is its regression on x,
        and the information is that of a pair of normal numbers of which one is binned. It is 0 where `redrawn` holds
        the label's chunk, and the same as for the image itself elsewhere.
        """
        _check_classes(n_classes)
        at = self.layout.slice(Chunks(chunk, chunk + 1)).start
        if redrawn is not None and redrawn.start <= chunk < redrawn.stop:
            return 0.0
        cov = self.joint(GaussianPerturbation()).cov_x
        column = self.mixing.cpu().double()[:, at]
        explained = (column @ torch.linalg.lstsq(cov, column[:, None]).solution[:, 0]).item()
        return binned_normal_information(math.sqrt(min(max(explained, 0.0), 1.0)), n_classes)

    def log_ratio(self, pair: ImagePair, perturbation: GaussianPerturbation, chunks: Chunks | None = None) -> Tensor:
        """log p(a, b) / (p(a) p(b)) of each pair of images (n,): the optimal critic's score."""
        a, b = (self.observe(images).cpu() for images in pair)
        return self.joint(perturbation, chunks).log_ratio(a, b)

    def stationary_perturbation(self, nats: float, chunks: Chunks | None = None) -> GaussianPerturbation:
        """The stationary perturbation of `chunks` (None: all) that leaves this much information, to 1e-9.

        Raises `UsageError` where what the other chunks share or the observation noise puts it out of reach.
        """
        correlation = solve(
            lambda value: self.mutual_information(GaussianPerturbation.stationary(value), chunks),
            nats,
            0.0,
            1.0,
        )
        return GaussianPerturbation.stationary(correlation)

    def additive_perturbation(self, nats: float, chunks: Chunks | None = None) -> GaussianPerturbation:
        """As `stationary_perturbation`, for noise added to the chunks, which widens the distribution of the
        positives."""
        log_std = solve(
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

        return cls(noise=math.exp(solve(information, nats, 10.0, -10.0)), **settings)


def gaussian_waves() -> LinearGaussian:
    """The generator `linear-gaussian-waves`: images of 16 px that bend, four chunks that say unequal amounts, and noise
    truncated at 2, as walkers draw it. docs/generators.md has its information, range by range."""
    return LinearGaussian(
        (2, 2, 2, 2), noise=0.4, resolution=16, gains=(1.0, 0.7, 0.5, 1.4), name="linear-gaussian-waves",
        look="waves", truncation=2.0,
    )  # fmt: skip


def build(config: dict[str, Any], state: Mapping[str, Tensor], name: str) -> LinearGaussian:
    """The generator of a configuration and a state dict."""
    try:
        generator = LinearGaussian(**config, name=name)
        generator.load_state_dict(dict(state))
    except (TypeError, UsageError, RuntimeError) as error:
        raise CorruptCheckpointError(f"linear-gaussian file: {' '.join(str(error).split())}") from None
    return generator


def _tail(score: float) -> float:
    """Probability that a standard normal number lies above `score`."""
    return 0.5 * math.erfc(score / math.sqrt(2))


def _wide(values: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return values if values.device.type == "mps" else values.double()


def _check_classes(n_classes: int) -> None:
    if n_classes < 2:
        raise UsageError(f"{n_classes} classes: must be at least 2")


def _pattern(observed_dim: int, tile: int, resolution: int, n_channels: int) -> Tensor:
    """(observed_dim, 3 * resolution**2), 1 where a number shows: one channel (or all, where n_channels is 1), one place
    of a tile that repeats.

    Repeated everywhere, so that the corner of the image that a convolution sees does not matter.
    """
    pattern = torch.zeros(observed_dim, 3, resolution, resolution)
    for k in range(observed_dim):
        row, column = divmod(k // n_channels, tile)
        channel = slice(None) if n_channels == 1 else k % 3
        pattern[k, channel, row::tile, column::tile] = 1
    return pattern.flatten(1)
