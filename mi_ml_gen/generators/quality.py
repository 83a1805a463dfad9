"""How far a generator's images are from real ones, in the features of any network.

Every figure stands beside its floor: what as many real training images get against the held-out ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.features.base import FeatureNetwork
from mi_ml_gen.features.distances import Distance, Frechet, fewest_images, frechet, kernel
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import NoiseDistribution, TruncatedNormal
from mi_ml_gen.report.tables import Table

VALUES_AT_ONCE = 2**22
"""Numbers of noise that are decoded at a time, which bounds the memory."""
IMAGES_AT_ONCE = 500
"""Images that are drawn by one random stream; a change would change what is drawn."""


def samples(
    generator: MultiLatentGenerator,
    n: int,
    seed: int,
    distribution: NoiseDistribution | None = None,
    device: torch.device | None = None,
) -> Iterator[Tensor]:
    """n generated images in parts (m, 3, resolution, resolution) in [0, 1], a function of the seed.

    distribution: of the noise (default: a standard normal truncated at 2).
    """
    distribution = distribution or TruncatedNormal()
    at_once = max(1, min(IMAGES_AT_ONCE, VALUES_AT_ONCE // generator.noise_dim))
    for i in range(0, n, IMAGES_AT_ONCE):
        rng = runtime.stream(seed, "quality", i, 0, device or "cpu")
        z = distribution.sample((min(IMAGES_AT_ONCE, n - i), generator.noise_dim), rng)
        for latents in generator.latents(z).split(at_once):
            yield generator.decode(latents, rng)


@dataclass(frozen=True)
class FeatureQuality:
    """Distances of a generator's images from held-out real ones; `floor_...` is what training images get."""

    features: str
    """Of which network, in words."""
    n_features: int
    n: int
    """Images on each side."""
    kernel: Distance
    floor_kernel: Distance
    frechet: Frechet | None
    """None where there are too few images for so many features."""
    floor_frechet: Frechet | None

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"features": self.features, "n_features": self.n_features, "n_images": self.n}
        for name in ("frechet", "floor_frechet"):
            value = getattr(self, name)
            found[name] = value and value.plain
            found[f"{name}_corrected"] = value and list(value.corrected)
        return found | {"kernel": list(self.kernel), "floor_kernel": list(self.floor_kernel)}

    def to_table(self) -> Table:
        """A line for each distance."""

        def row(name: str, value: Distance, floor: Distance) -> list[Any]:
            return [name, value.value, _interval(value), floor.value, _interval(floor)]

        rows = [row("kernel (KID)", self.kernel, self.floor_kernel)]
        if self.frechet is not None and self.floor_frechet is not None:
            rows.append(row("Fréchet, without its bias", self.frechet.corrected, self.floor_frechet.corrected))
            rows.append(["Fréchet, as usual", self.frechet.plain, None, self.floor_frechet.plain, None])
            missing = ""
        else:
            missing = f" A Fréchet distance of {self.n_features} features needs {fewest_images(self.n_features):,}."
        caption = (
            f"Distances from held-out real images in {self.n_features:,} features of {self.features}, lower is better; "
            f"{self.n:,} images on each side.{missing} The floor is what as many real training images get. Intervals: "
            f"95%, over ten groups of the images."
        )
        return Table(["distance", "generated", "interval", "floor", "interval of it"], rows, caption)


def _interval(distance: Distance) -> str:
    return f"{distance.low:.4g} to {distance.high:.4g}"


@torch.no_grad()
def measure_in_features(
    generator: MultiLatentGenerator,
    network: FeatureNetwork,
    train: HeldImages,
    held_out: HeldImages,
    n: int,
    seed: int,
    distribution: NoiseDistribution | None = None,
    progress: bool = False,
) -> FeatureQuality:
    """Hold n generated images, and n real training images as the floor, against n held-out ones; all the images that
    there are where there are fewer.

    Where the real images are grey, generated ones are averaged over colour. Network and generator are on one device.
    Raises UsageError for fewer images than a kernel distance needs.
    """
    n = min(n, train.n_images, held_out.n_images)
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    is_grey = bool((held_out.images == held_out.images[:, :1]).all())
    bar = Bar(total=3 * n, desc="features", unit="image", disable=not progress)

    def features(parts: Iterator[Tensor]) -> Tensor:
        found = []
        for images in parts:
            images = images.to(device)
            images = images.mean(1, keepdim=True) if is_grey else images
            found.append(network(images.expand(-1, 3, -1, -1)).cpu().double())
            bar.update(len(images))
        return torch.cat(found)

    def stored(source: HeldImages, name: str) -> Iterator[Tensor]:
        order = torch.randperm(source.n_images, generator=runtime.stream(seed, name, 0, 0))[:n]
        return (source.batch(part).float() / 255 for part in order.split(IMAGES_AT_ONCE))

    with bar:
        real = features(stored(held_out, "quality held out"))
        floor = features(stored(train, "quality floor"))
        fake = features(samples(generator, n, seed, distribution, device))
    is_enough = n >= fewest_images(real.shape[1])
    return FeatureQuality(
        network.title,
        real.shape[1],
        n,
        kernel(real, fake),
        kernel(real, floor),
        frechet(real, fake) if is_enough else None,
        frechet(real, floor) if is_enough else None,
    )
