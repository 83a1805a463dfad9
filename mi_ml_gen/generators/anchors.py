"""Anchors that are real images: noise that a generator's encoder found for stored images, in place of random noise.

    distribution = anchor_distribution(settings, generator)       # of --anchors prior or real
    z = distribution.sample((64, generator.noise_dim), rng)

Only generators that define `encode` have such anchors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import batches
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import effective_use
from mi_ml_gen.generators.settings import NO_IMAGES, AnchorNoise
from mi_ml_gen.latents import NoiseDistribution

logger = logging.getLogger(__name__)

MAX_IMAGES = 10_000
"""The most images that are encoded; of a larger set a fixed random choice."""
MAX_VALUES = 2**27
"""The most numbers of noise that are held: 512 MB in float32."""
ENCODED_AT_ONCE = 2**22
"""Numbers of noise that are encoded at a time, which bounds the memory; at least one image, at most 256."""


class EncodedImages:
    """Noise of encoded images, (n_images, noise_dim), whose rows are drawn in place of random noise.

    data: the reference of the images, as `load_source` takes it.
    """

    def __init__(self, noise: Tensor, data: str) -> None:
        self.noise = noise
        self.data = data

    @property
    def n_distinct(self) -> int:
        """Number of images, so of different draws."""
        return len(self.noise)

    def sample(
        self, shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Rows (n, noise_dim) of encoded images, drawn at random: different images, while there are as many as n.

        device: where the result lies, by default where the encoded images are.
        """
        n, width = shape
        if width != self.noise.shape[1]:
            raise UsageError(f"noise of length {width}: the encoded images have {self.noise.shape[1]} numbers each")
        n_images = len(self.noise)

        def rows(place: torch.device) -> Tensor:
            if n > n_images:
                return torch.randint(n_images, (n,), generator=generator, device=place)
            return torch.randperm(n_images, generator=generator, device=place)[:n]

        return self.noise[runtime.drawn(rows, generator, self.noise.device)].to(device)

    def record(self) -> dict[str, Any]:
        """What a run or a walker's file says of its anchors."""
        return {"anchors": "real", "anchors_data": self.data}


def anchor_distribution(settings: AnchorNoise, generator: MultiLatentGenerator) -> NoiseDistribution:
    """What anchors are drawn from: the prior, or encoded images. Raises what `encoded_images` raises."""
    if settings.anchors == "prior":
        return settings.distribution
    if settings.anchors_data is None:
        raise UsageError(NO_IMAGES)
    return encoded_images(generator, settings.anchors_data)


_encoded: WeakKeyDictionary[MultiLatentGenerator, dict[tuple, EncodedImages]] = WeakKeyDictionary()


@torch.no_grad()
def encoded_images(generator: MultiLatentGenerator, data: str) -> EncodedImages:
    """The training images of a set, encoded by a frozen generator: all, or a fixed choice of MAX_IMAGES of them.

    A second call with the same generator, used in the same way, gives the same object.
    Raises UsageError for a generator that cannot encode, and what `load_source` raises.
    """
    if not generator.can_encode:
        raise UsageError(f"--anchors real: {generator.name} cannot encode images; use --anchors prior")
    device = next((tensor.device for tensor in generator.parameters()), torch.device("cpu"))
    known = _encoded.setdefault(generator, {})
    key = (data, device, tuple(sorted(effective_use(generator).items())))
    if key in known:
        return known[key]
    source = load_source(data, "train", generator.resolution)
    n = min(source.n_images, MAX_IMAGES, max(2, MAX_VALUES // generator.noise_dim))
    chosen = torch.randperm(source.n_images, generator=runtime.stream(0, "anchors: images", 0, 0))[:n].sort().values
    at_once = min(256, max(1, ENCODED_AT_ONCE // generator.noise_dim))
    noise = torch.empty(n, generator.noise_dim, device=device)
    done = 0
    for images in batches(source, chosen, at_once):
        z = generator.encode(images.to(device).float() / 255)
        if z.shape != (len(images), generator.noise_dim) or not z.isfinite().all():
            raise UsageError(
                f"--anchors real: {generator.name} encodes {len(images)} images to {tuple(z.shape)}; it must give "
                f"finite numbers, {(len(images), generator.noise_dim)}"
            )
        noise[done : done + len(z)] = z
        done += len(z)
    logger.info("anchors: %s of the %s images of %s, encoded by %s", n, source.n_images, data, generator.name)
    known[key] = EncodedImages(noise, data)
    return known[key]
