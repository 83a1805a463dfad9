"""Walkers that move along fixed directions of the noise, as GANSpace and SeFa find them without training.

    z + strength * sum_i a_i d_i     a_i fresh standard normal numbers, truncated at 2; d_i unit directions, r of them

GANSpace (Haerkoenen et al. 2020): the principal components of what an early layer makes of many draws, and for each the
direction of z that moves along it, by least squares (its section 3.2, for BigGAN). SeFa (Shen and Zhou 2021): the
eigenvectors of A^T A with the largest eigenvalues, A the first weights that act on the latents (its equation 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.runtime import stream
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers.base import PublishedSeed, Rng, Walker, _moved, chunks_of
from mi_ml_gen.walkers.registry import register_walker

N_DRAWS = 2000
"""Draws whose principal components GANSpace takes."""
_AT_ONCE = 100
_LARGEST_SIDE = 32
"""Feature maps that are larger are averaged down to this many pixels a side."""


@register_walker("directions")
class DirectionsWalker(Walker):
    """Adds `strength` times a random combination of fixed directions to the walk slice.

    chunks: what it perturbs, Chunks or text such as "1_6". directions: (r, width) for a walk slice of `width` numbers;
    each is scaled to length 1. strength: standard deviation (before the truncation at 2) along each. method: how the
    directions were found, for people.
    Raises UsageError for directions that are not finite or 0, and for a strength below 0.
    """

    directions: Tensor

    def __init__(self, chunks: Chunks | str, directions: Tensor, strength: float = 1.0, method: str = "given"):
        super().__init__()
        self.range = Chunks.of(chunks)
        self.noise = TruncatedNormal(0.0, float(strength), 2.0)
        self.method = method
        if directions.ndim != 2 or not (directions.isfinite().all() and (directions != 0).any(dim=1).all()):
            raise UsageError(
                f"directions of shape {tuple(directions.shape)}: must be (number, width), finite, none of them 0"
            )
        self.register_buffer("directions", functional.normalize(directions.double(), dim=1).float())

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(self, generator: MultiLatentGenerator, z: Tensor, rng: Rng) -> Iterator[tuple[Chunks, Tensor]]:
        at = self._walk_slice(generator)
        shape = (len(z), len(self.directions))
        if isinstance(rng, PublishedSeed):
            lengths = self.noise.sample_reference(shape, rng.seed).to(z)
        else:
            lengths = self.noise.sample(shape, rng, z.device).to(z.dtype)
        yield self.range, _moved(z, at, lengths @ self.directions.to(z))

    def check(self, generator: MultiLatentGenerator) -> None:
        super().check(generator)
        self._walk_slice(generator)

    def _walk_slice(self, generator: MultiLatentGenerator) -> slice:
        at = generator.walk_slice(self.range)
        if at.stop - at.start != self.directions.shape[1]:
            raise UsageError(
                f"directions of {self.directions.shape[1]} numbers on chunks {self.range} do not fit {generator.name}, "
                f"whose walk slice there has {at.stop - at.start}"
            )
        return at

    def config(self) -> dict[str, Any]:
        n_directions, width = self.directions.shape
        return {
            "kind": "directions", "chunks": str(self.range), "number": n_directions, "width": width,
            "strength": self.noise.std, "method": self.method,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DirectionsWalker:
        placeholder = torch.ones(int(config["number"]), int(config["width"]))
        return cls(chunks_of(config), placeholder, float(config["strength"]), str(config["method"]))


@torch.no_grad()
def ganspace_directions(generator: MultiLatentGenerator, chunks: Chunks | str, number: int, seed: int = 0) -> Tensor:
    """The directions (number, width of the walk slice) that GANSpace finds for chunks, float32, strongest first.

    The features are the generator's `early_features`; where it names none, its latents on the chunks, or, where those
    are the noise itself, its images. The walk slice is drawn N_DRAWS times, all other noise stays at its mean. seed:
    of the draws. Raises UsageError for more directions than the slice has numbers, and where the features ignore it.
    """
    chunks = generator.chunks(str(Chunks.of(chunks)), "chunks")
    at = generator.walk_slice(chunks)
    width = at.stop - at.start
    _check_number(number, min(width, N_DRAWS - 1), generator, chunks)
    parameter = next(iter([*generator.parameters(), *generator.buffers()]), torch.empty(0))
    z = torch.zeros(N_DRAWS, generator.noise_dim)
    z[:, at] = TruncatedNormal().sample((N_DRAWS, width), stream(seed, "ganspace", 0, 0))
    z = z.to(parameter.device)
    noise = stream(seed, "ganspace images", 0, 0)
    features = torch.cat([_features(generator, part, chunks, noise).cpu().double() for part in z.split(_AT_ONCE)])
    features = features - features.mean(0)
    values, vectors = torch.linalg.eigh(features @ features.T)  # as many as draws, however long the features are
    if values[-number] <= 1e-12 * max(values[-1].item(), 1e-30):
        raise UsageError(
            f"ganspace on chunks {chunks} of {generator.name}: its features change along fewer than {number} directions"
        )
    moved = z[:, at].cpu().double()
    directions = vectors[:, -number:].flip(1).T @ (moved - moved.mean(0))  # least squares: the vectors are orthonormal
    return _signed(functional.normalize(directions, dim=1)).float()


@torch.no_grad()
def sefa_directions(generator: MultiLatentGenerator, chunks: Chunks | str, number: int) -> Tensor:
    """The directions (number, width of the walk slice) that SeFa finds for chunks, float32, strongest first.

    Raises UsageError where the generator does not name its `first_weights`, and for more directions than they have.
    """
    chunks = generator.chunks(str(Chunks.of(chunks)), "chunks")
    weights = generator.first_weights(chunks).cpu().double()
    at = generator.walk_slice(chunks)
    assert weights.ndim == 2 and weights.shape[1] == at.stop - at.start, "first weights that do not meet the walk slice"
    _check_number(number, min(weights.shape), generator, chunks)
    return _signed(torch.linalg.svd(weights, full_matrices=False).Vh[:number]).float()


FINDERS: dict[str, Callable[[MultiLatentGenerator, Chunks, int], Tensor]] = {
    "ganspace": ganspace_directions,
    "sefa": sefa_directions,
}
"""By the word that stands for them in a T_z."""


def directions_walker(
    generator: MultiLatentGenerator, chunks: Chunks | str, method: str, number: int, strength: float = 1.0
) -> DirectionsWalker:
    """A walker along the first `number` directions that a method ("ganspace" or "sefa") finds for chunks, on the
    generator's device. Raises UsageError as the methods do."""
    if method not in FINDERS:
        raise UsageError(f"directions by {method}: must be one of {', '.join(FINDERS)}")
    chunks = Chunks.of(chunks)
    walker = DirectionsWalker(chunks, FINDERS[method](generator, chunks, number), strength, method)
    parameter = next(iter([*generator.parameters(), *generator.buffers()]), torch.empty(0))
    return walker.to(parameter.device)


def _features(generator: MultiLatentGenerator, z: Tensor, chunks: Chunks, rng: torch.Generator) -> Tensor:
    """(n, m)."""
    latents = generator.latents(z)
    features = generator.early_features(latents, chunks)
    if features is None and latents is not z:
        features = latents[:, generator.layout.slice(chunks)]
    if features is None:
        features = generator.decode(latents, rng)
    if features.ndim == 4 and max(features.shape[2:]) > _LARGEST_SIDE:
        features = functional.adaptive_avg_pool2d(features, _LARGEST_SIDE)
    return features.flatten(1)


def _check_number(number: int, most: int, generator: MultiLatentGenerator, chunks: Chunks) -> None:
    if not 1 <= number <= most:
        raise UsageError(f"{number} directions on chunks {chunks} of {generator.name}: must be 1 to {most}")


def _signed(directions: Tensor) -> Tensor:
    """Each with a positive largest number, so that its sign does not depend on the library."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()
