"""NVAE as a generator: a chunk is the noise of one group, in the order in which the groups are decoded.

The noise z is standard normal. Group i turns its chunk into its latent variable, mean + temperature * sigma * noise,
where mean and sigma depend on the groups before it. Images are the means of the output distribution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mi_ml_gen.core.config import option
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator, Use, load_exactly
from mi_ml_gen.generators.nvae.likelihood import LogisticMixture
from mi_ml_gen.generators.nvae.network import AutoEncoder
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.latents import Chunks, LatentLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NVAEUse(Use):
    temperature: float = option(1.0, above=0, help="factor of sigma of every group")


class NVAE(MultiLatentGenerator):
    """NVAE's decoder as a generator, with its encoder for `encode`; latents are the noise itself."""

    use_fields: ClassVar[type] = NVAEUse
    family: ClassVar[str] = "nvae"

    statistics: Tensor | None

    def __init__(self, config: NVAEConfig | None = None, name: str = "nvae", temperatures: Sequence[float] = ()):
        """temperatures: those that batch statistics of their own are kept for, see `set_statistics`."""
        super().__init__()
        self.settings = config = config or NVAEConfig()
        self.name = name
        self.layout = LatentLayout.of_shapes(config.latent_shapes)
        self.noise_dim = self.layout.dim
        self.resolution = config.resolution[1]
        self.temperature = 1.0
        self.autoencoder = AutoEncoder(config)
        # Row 0: the statistics of training. Row i + 1: those of temperatures[i]. Without temperatures of their own,
        # the batch norms hold the only ones.
        self.temperatures = tuple(temperatures)
        rows = 1 + len(self.temperatures), sum(2 * norm.num_features for norm in self.autoencoder.decoder_norms())
        self.register_buffer("statistics", torch.zeros(rows) if temperatures else None)
        self.is_frozen = self.lacks_statistics = False

    def config(self) -> dict[str, Any]:
        how = {"temperature": self.temperature, "temperatures": list(self.temperatures)}
        return self.settings.to_file() | how

    def _use(self, given: dict[str, Any]) -> None:
        self.temperature = given["temperature"]
        if self.is_frozen:
            self.freeze()

    def freeze(self) -> NVAE:
        super().freeze()
        self._choose_statistics()
        self.autoencoder.fold()
        self.is_frozen = True
        return self

    # --- Batch statistics of a temperature. At a lower one the features are distributed otherwise than in training.

    @torch.no_grad()
    def set_statistics(self, temperature: float, statistics: Tensor) -> None:
        """Keep batch statistics (numbers,), as `read_statistics` gives them, for use at this temperature."""
        if self.statistics is None:
            self.statistics = self.read_statistics()[None]
        if temperature in self.temperatures:
            self.statistics[1 + self.temperatures.index(temperature)] = statistics
        else:
            self.temperatures = (*self.temperatures, temperature)
            self.statistics = torch.cat([self.statistics, statistics[None].to(self.statistics)])

    def read_statistics(self) -> Tensor:
        """Running means and variances of the decoder's batch norms as one vector."""
        norms = self.autoencoder.decoder_norms()
        return torch.cat([part for norm in norms for part in (norm.running_mean, norm.running_var)])  # type: ignore[misc]

    def write_statistics(self, statistics: Tensor) -> None:
        """The inverse of `read_statistics`."""
        norms = self.autoencoder.decoder_norms()
        parts = statistics.split([norm.num_features for norm in norms for _ in range(2)])
        for norm, mean, var in zip(norms, parts[::2], parts[1::2], strict=True):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)

    def _choose_statistics(self) -> None:
        if self.statistics is None:
            return
        known = self.temperature in self.temperatures
        self.write_statistics(self.statistics[1 + self.temperatures.index(self.temperature) if known else 0])
        self.lacks_statistics = not known

    def _warn(self) -> None:
        """Say once, when images are made, that the statistics are not those of the temperature."""
        if self.lacks_statistics:
            self.lacks_statistics = False
            logger.warning(
                "%s has batch statistics for temperature %s, not for %s; those of training are used "
                "(scripts/update_bn_stats.py estimates others)",
                self.name, ", ".join(map(str, self.temperatures)), self.temperature,
            )  # fmt: skip

    def synthesize(self, latents: Tensor) -> Tensor:
        """Latents (n, layout.dim) -> parameters of the output distribution, (n, ..., height, width)."""
        return self.autoencoder.decode(self._noise(latents), self.temperature)

    def decode(self, latents: Tensor, rng: torch.Generator | None = None) -> Tensor:
        return self._images(self.synthesize(latents))

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, resolution, resolution) in [0, 1] -> the noise z (n, noise_dim) that reconstructs them.

        It stands for the means of the posteriors, so `decode(latents(encode(images)))` is the reconstruction. A grey
        network sees the mean of the colours.
        """
        noise = self.autoencoder(self.as_seen(images), None, self.temperature).noise
        return torch.cat([part.flatten(1) for part in noise], 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (n, 3, resolution, resolution) in [0, 1] -> the same, from the means of the posteriors."""
        return self._images(self.autoencoder(self.as_seen(images), None).logits)

    def decode_pair(
        self, anchor: Tensor, positive: Tensor, chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImagePair:
        """As decoding both, but the groups before the first perturbed one are decoded once."""
        network, n_groups = self.autoencoder, self.layout.n_chunks
        with torch.no_grad():
            noise = self._noise(anchor)
            shared = network.stages(network.start(len(anchor)), noise, 0, chunks.start, self.temperature)
            # So are the cells of the first perturbed group, which come before its latent variable.
            prior = network.prior(chunks.start, shared)
            anchor_image = self._images(self._rest(noise, prior, chunks.start, n_groups))
        return ImagePair(anchor_image, self._images(self._rest(self._noise(positive), prior, chunks.start, n_groups)))

    def _rest(self, noise: list[Tensor], prior: Any, start: int, stop: int) -> Tensor:
        network = self.autoencoder
        z = prior.normal(noise[start]).at(noise[start], self.temperature)
        x = network.absorb(start, prior.features, z)
        return network.head(network.stages(x, noise, start + 1, stop, self.temperature))

    def _noise(self, latents: Tensor) -> list[Tensor]:
        """Flat latents as one tensor (n, channels, side, side) a group."""
        self._warn()
        parts = latents.split(list(self.layout.sizes), dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.settings.latent_shapes, strict=True)]

    def _images(self, parameters: Tensor) -> Tensor:
        """The mean of the output distribution, (n, 3, resolution, resolution) in [0, 1]."""
        mean = LogisticMixture.of(parameters, self.settings.num_logistic_mixtures, self.settings.resolution[0]).mean()
        return (mean * 0.5 + 0.5).expand(-1, 3, -1, -1)

    def as_seen(self, images: Tensor) -> Tensor:
        """Images (n, 3, resolution, resolution) in the colours of the network, (n, 1 or 3, ...)."""
        if images.shape[1:] != (3, self.resolution, self.resolution):
            side = self.resolution
            raise UsageError(f"images {tuple(images.shape)}: {self.name} encodes (n, 3, {side}, {side})")
        return images if self.settings.resolution[0] == 3 else images.mean(1, keepdim=True)


def build(config: dict[str, Any], state: Mapping[str, Tensor], name: str) -> NVAE:
    """The generator of a configuration and a state dict in our own layout; half precision becomes float32."""
    try:
        sizes = NVAEConfig.from_file(config["autoencoder"], config["resolution"])
        temperatures = [float(temperature) for temperature in config.get("temperatures", ())]
        with torch.device("meta"):
            generator = NVAE(sizes, name, temperatures)
        generator.use({"temperature": config.get("temperature", 1.0)})
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptCheckpointError(f"NVAE configuration: {error}") from None
    return load_exactly("NVAE", generator, state)
