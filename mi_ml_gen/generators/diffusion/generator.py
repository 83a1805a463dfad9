"""A diffusion model as a generator with several latent variables: a chunk is the noise of a block of steps.

The noise z is the starting noise, then the fresh noise of each step of a stochastic sampler, flat. With all of it
given, the sampler is a function: images can be decoded again, and a walker can change the noise of some steps only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mi_ml_gen.core import config as settings
from mi_ml_gen.core.config import option
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import ImagePair, ImageVariants, MultiLatentGenerator, Use, load_exactly
from mi_ml_gen.generators.diffusion import processes, sampler
from mi_ml_gen.generators.diffusion.network import UNet
from mi_ml_gen.generators.diffusion.processes import Process
from mi_ml_gen.generators.diffusion.settings import UNetConfig
from mi_ml_gen.latents import Chunks, LatentLayout


@dataclass(frozen=True)
class DiffusionUse(Use):
    steps: int = option(20, at_least=1, help="steps of the sampler, each of which runs the network once")
    block: int = option(4, at_least=1, help="noises that are one chunk; the last chunk may have fewer")
    eta: float = option(1.0, above=0, at_most=1, help="fresh noise of each step: 1 as in DDPM, near 0 almost none")
    scale: float = option(1.0, above=0, help="factor of the noise; 1.137 gives noise truncated at 2 a variance of 1")


class Diffusion(MultiLatentGenerator):
    """A U-Net with the stochastic sampler of its noise process; latents are the noise itself.

    Images of the network are in [-1, 1].
    """

    use_fields: ClassVar[type] = DiffusionUse
    family: ClassVar[str] = "diffusion"

    def __init__(
        self, network: UNetConfig, process: Process, name: str = "diffusion", use: Mapping[str, Any] | None = None
    ):
        super().__init__()
        self.settings, self.process, self.name = network, process, name
        self.resolution = network.sample_size
        self.unet = UNet(network)
        self.how = DiffusionUse()
        self._use(settings.given(DiffusionUse, use or {}))

    def config(self) -> dict[str, Any]:
        return {"network": self.settings.to_file(), "process": self.process.to_file(), "use": asdict(self.how)}

    def _use(self, given: dict[str, Any]) -> None:
        how = DiffusionUse(**(asdict(self.how) | given))
        with torch.device("cpu"):
            steps = self.process.steps(how.steps, how.eta)
        n_noises, shape = sampler.noises_of(steps), self.settings.shape
        if how.block > n_noises:
            raise UsageError(f"--g_use block={how.block}: {how.steps} steps of {self.name} have {n_noises} noises, the "
                             "starting noise among them; give at most as many")  # fmt: skip
        starts = range(0, n_noises, how.block)
        counts = [min(how.block, n_noises - start) for start in starts]
        assert all(step.fresh > 0 for step in steps[:-1]), "a step without noise before the last one"
        self.how, self.steps = how, [step._replace(fresh=how.scale * step.fresh) for step in steps]
        self.layout = LatentLayout.of_shapes([(count * shape[0], *shape[1:]) for count in counts])
        self.noise_dim = self.layout.dim

    def decode(self, latents: Tensor, rng: torch.Generator | None = None) -> Tensor:
        return self._images(self.synthesize(latents))

    def synthesize(self, latents: Tensor) -> Tensor:
        """Latents (n, layout.dim) -> images (n, colours, side, side), in [-1, 1] or near it."""
        noise = self._noise(latents)
        return sampler.run(self.unet, self.steps, noise[0], noise[1:])

    def decode_pair(
        self, anchor: Tensor, positive: Tensor, chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImagePair:
        """As decoding both, but the steps before the first perturbed chunk run once."""
        pair = self.decode_variants(anchor, [positive], chunks, rng)
        return ImagePair(pair.anchor, pair.variants[0])

    def decode_variants(
        self, anchor: Tensor, variants: Sequence[Tensor], chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImageVariants:
        """As decoding all, but the steps before the first perturbed chunk run once, for the anchors."""
        first = chunks.start * self.how.block  # the first noise that may differ
        with torch.no_grad():
            noise = self._noise(anchor)
            shared = self._before(noise, first)
            anchor_image = self._images(self._from(shared, noise, first))
        noise = self._noise(torch.cat(list(variants)))
        if shared is not None:
            shared = shared.repeat(len(variants), 1, 1, 1)
        images = self._images(self._from(shared, noise, first))
        return ImageVariants(anchor_image, list(images.chunk(len(variants))))

    def _before(self, noise: Sequence[Tensor], first: int) -> Tensor | None:
        """What the sampler has made before noise number `first` comes, (n, c, h, w); None for the starting noise."""
        if first == 0:
            return None
        x = sampler.run(self.unet, self.steps[: first - 1], noise[0], noise[1:first])
        return sampler.mean_after(self.unet, self.steps[first - 1], x)

    def _from(self, before: Tensor | None, noise: Sequence[Tensor], first: int) -> Tensor:
        """The result of the sampler that gets noise number `first` and later ones after `before`."""
        x = noise[first] if before is None else before + self.steps[first - 1].fresh * noise[first]
        return sampler.run(self.unet, self.steps[first:], x, noise[first + 1 :])

    def _noise(self, latents: Tensor) -> list[Tensor]:
        """Flat latents as the noises of the sampler, (n, colours, side, side) each."""
        start, *others = latents.unflatten(1, (-1, *self.settings.shape)).unbind(1)
        return [start if self.how.scale == 1 else self.how.scale * start, *others]

    def _images(self, x: Tensor) -> Tensor:
        """(n, colours, side, side) in [-1, 1] -> (n, 3, side, side) in [0, 1]."""
        return (x / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)


def build(config: dict[str, Any], state: Mapping[str, Tensor], name: str) -> Diffusion:
    """The generator of a configuration and a state dict in our own layout; half precision becomes float32."""
    try:
        network, process = UNetConfig.from_file(config["network"]), processes.from_file(config["process"])
        with torch.device("meta"):
            generator = Diffusion(network, process, name, config.get("use"))
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptCheckpointError(f"diffusion configuration: {error}") from None
    return load_exactly("diffusion", generator, state)
