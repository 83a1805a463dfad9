"""What the families of trained generators differ in: network, discriminator, loss, and the last touch.

`training.train_generator` is the loop that they share.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from mi_ml_gen.core import runtime
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.bigbigan import BigBiGAN, BigBiGANConfig, ModulatedNorm
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.latents import TruncatedNormal


@dataclass(frozen=True)
class Defaults:
    """Settings of `GanConfig` where the user gives none."""

    run_name: str
    width: int
    discriminator_width: int
    lr: float
    lr_discriminator: float


class Recipe(ABC):
    """What one family adds to the loop."""

    defaults: ClassVar[Defaults]
    generator: MultiLatentGenerator
    discriminator: nn.Module
    betas: tuple[float, float]
    r1_weight: float
    """Weight of the gradient penalty on real images (Mescheder et al., 2018), 0 for none."""

    @abstractmethod
    def __init__(self, width: int, discriminator_width: int, n_channels: int = 1):
        """n_channels: of the training images, 1 where they are grey."""

    def noise(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Noise (n, noise_dim), of the distribution that everything here draws it from."""
        return TruncatedNormal().sample((n, self.generator.noise_dim), rng)

    @abstractmethod
    def fakes(self, generator: Any, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Images (n, 3, 32, 32) in [-1, 1] for training; `rng` for what is random beside the noise z."""

    @abstractmethod
    def discriminator_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Of logits (n,) of real and of generated images."""

    @abstractmethod
    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        """Of logits (n,) of generated images."""

    @abstractmethod
    def finish(self, generator: Any, seed: int, n_batches: int = 100) -> None:
        """Make the averaged generator ready to be frozen; n_batches of noise for what has to be estimated."""


class BigBiGANRecipe(Recipe):
    """Hinge loss with a spectrally normalised discriminator (Miyato et al., 2018; BigGAN, section 3)."""

    defaults = Defaults("tiny-bigbigan", width=32, discriminator_width=32, lr=2e-4, lr_discriminator=4e-4)
    betas = (0.0, 0.99)
    r1_weight = 0.0

    def __init__(self, width: int, discriminator_width: int, n_channels: int = 1):
        self.generator = BigBiGAN(
            BigBiGANConfig(resolution=32, width=width, multipliers=(4, 2, 1), attention_resolution=16, chunk_dim=20),
            name="tiny-bigbigan",
        )
        for module in self.generator.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(module.weight)
        for module in self.generator.modules():  # modulations start near gain 1, bias 0
            if isinstance(module, ModulatedNorm):
                nn.init.normal_(module.gain.weight, std=0.1)
                nn.init.normal_(module.bias.weight, std=0.1)
        self.discriminator = Discriminator(discriminator_width, normalise=True)

    def fakes(self, generator: Any, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return generator.synthesize(z)

    def discriminator_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        return -fake.mean()

    @torch.no_grad()
    def finish(self, generator: Any, seed: int, n_batches: int = 100) -> None:
        """Standing statistics (BigGAN, appendix C.1): stored ones become averages over fresh batches."""
        norms = [m for m in generator.modules() if isinstance(m, ModulatedNorm | nn.BatchNorm2d)]
        before = [norm.momentum for norm in norms]
        generator.train()
        device = next(generator.parameters()).device
        for i in range(n_batches):
            for norm in norms:
                norm.momentum = 1 / (i + 1)
            generator.synthesize(self.noise(256, runtime.stream(seed, "standing statistics", i, 0, device)))
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


class StyleGANRecipe(Recipe):
    """Non-saturating logistic loss, R1, style mixing, fresh noise maps (Karras et al., 2020, appendix B)."""

    defaults = Defaults("tiny-stylegan", width=32, discriminator_width=32, lr=2e-3, lr_discriminator=2e-4)
    betas = (0.0, 0.99)
    r1_weight = 0.3
    mixing_probability = 0.9

    def __init__(self, width: int, discriminator_width: int, n_channels: int = 1):
        self.generator = StyleGAN2(
            StyleGAN2Config(
                z_dim=64, w_dim=64, mapping_layers=4, img_resolution=32, img_channels=n_channels,
                channel_base=32 * width, channel_max=3 * width,
            ),
            name="tiny-stylegan",
        )  # fmt: skip
        self.discriminator = Discriminator(discriminator_width, normalise=False)

    def fakes(self, generator: Any, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        ws = self.mixed_styles(generator, z, rng)
        images = generator.synthesize(ws.flatten(1), rng, noise_mode="random")
        return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def mixed_styles(self, generator: Any, z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Noise (n, z_dim) -> W+ (n, rows, w_dim); with the mixing probability, rows from a crossover on, at
        least one on either side, are the styles of other noise (Karras et al., 2019, section 3.1)."""
        n, n_rows = len(z), generator.layout.n_chunks
        w, other = generator.mapping(torch.cat([z, self.noise(n, rng)])).chunk(2)
        crossover = runtime.drawn(
            lambda place: torch.randint(1, n_rows, (n, 1, 1), generator=rng, device=place), rng, z.device
        )
        mixes = runtime.uniform((n, 1, 1), rng, z.device) < self.mixing_probability
        rows = torch.arange(n_rows, device=z.device)[:, None]
        return torch.where(mixes & (rows >= crossover), other[:, None], w[:, None])

    def discriminator_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        return F.softplus(-fake).mean()

    @torch.no_grad()
    def finish(self, generator: Any, seed: int, n_batches: int = 100) -> None:
        """w_avg becomes the mean style of the averaged mapping over fresh noise."""
        mapping, device = generator.mapping, next(generator.parameters()).device
        before = mapping.w_avg_beta
        for i in range(n_batches):
            mapping.w_avg_beta = 1 - 1 / (i + 1)
            mapping.track(mapping(self.noise(256, runtime.stream(seed, "mean style", i, 0, device))))
        mapping.w_avg_beta = before


RECIPES: dict[str, type[Recipe]] = {"bigbigan": BigBiGANRecipe, "stylegan2": StyleGANRecipe}
"""By the name of the family that `load_generator` knows."""


def augmented(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images (n, 3, h, w) in [-1, 1] with other colours, moved by up to an eighth, without a square of half the side.

    Differentiable, for real and for generated images alike, so that a discriminator cannot learn few training images
    by heart, and the generator does not learn the augmentation (Zhao et al., 2020, sections 3.2 and 4).
    """
    n, _, height, width = images.shape
    draws = runtime.uniform((n, 7), rng, images.device)
    with torch.autocast(images.device.type, enabled=False):
        x = images.float()
        brightness, saturation, contrast = (draw[:, None, None, None] for draw in draws[:, :3].T)
        x = x + (brightness - 0.5)
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * (contrast + 0.5)
        x = _shifts(draws[:, 3], height).transpose(1, 2)[:, None] @ x @ _shifts(draws[:, 4], width)[:, None]
        left_out = _near(draws[:, 5], height)[:, None, :, None] & _near(draws[:, 6], width)[:, None, None, :]
        return x.masked_fill(left_out, 0.0).contiguous(memory_format=torch.channels_last)


def _shifts(draws: torch.Tensor, size: int) -> torch.Tensor:
    """Matrices (n, size, size) that move rows of pixels by up to an eighth of them; what comes in is 0."""
    most = round(size / 8)
    by = (draws * (2 * most + 1)).floor().long() - most
    axis = torch.arange(size, device=draws.device)
    return (axis[:, None] + by[:, None, None] == axis).float()


def _near(draws: torch.Tensor, size: int) -> torch.Tensor:
    """(n, size): which pixels are within a quarter of the side from a pixel that is drawn."""
    axis = torch.arange(size, device=draws.device)
    return (axis - (draws[:, None] * size).floor()).abs() <= size // 4


class Discriminator(nn.Module):
    """Residual discriminator for 32 px: three halvings, then a judgement of the whole.

    The standard deviation over the batch is one more feature map before the last layer (Karras et al., 2018,
    section 3), so that a generator which repeats itself is seen.

    normalise: spectral norms, for the hinge loss. Without them weights start at their fan-in's scale, and the
    logits, which the logistic loss lets grow, are computed in float32.
    """

    def __init__(self, width: int, normalise: bool):
        super().__init__()
        self.normalise = normalise
        wrap: Callable[[nn.Module], nn.Module] = spectral_norm if normalise else _fan_in
        channels = [width, 2 * width, 4 * width, 4 * width]
        self.first = wrap(nn.Conv2d(3, channels[0], 3, padding=1))
        self.blocks = nn.ModuleList()
        for c_in, c_out in itertools.pairwise(channels):
            self.blocks.append(
                nn.ModuleDict(
                    {
                        "conv1": wrap(nn.Conv2d(c_in, c_in, 3, padding=1)),
                        "conv2": wrap(nn.Conv2d(c_in, c_out, 3, padding=1)),
                        "skip": wrap(nn.Conv2d(c_in, c_out, 1, bias=False)),
                    }
                )
            )
        self.last = wrap(nn.Conv2d(channels[-1] + 1, channels[-1], 3, padding=1))
        self.head = wrap(nn.Linear(channels[-1] * 16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) in [-1, 1] -> logits (n,)."""
        h = self.first(x)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            residual = block["conv1"](F.leaky_relu(h, 0.2))
            residual = block["conv2"](F.leaky_relu(F.avg_pool2d(residual, 2), 0.2))
            h = (residual + block["skip"](F.avg_pool2d(h, 2))) / math.sqrt(2)
        spread = h.float().var(0, unbiased=False).add(1e-8).sqrt().mean().to(h.dtype)
        h = torch.cat([h, spread.expand(len(h), 1, *h.shape[2:])], dim=1)
        h = F.leaky_relu(self.last(h), 0.2).flatten(1)
        if self.normalise:
            return self.head(h).squeeze(1).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.head(h.float()).squeeze(1)


def _fan_in(module: nn.Module) -> nn.Module:
    """Weights that keep the scale of what leaky ReLUs give them (He et al., 2015), biases zero."""
    assert isinstance(module, nn.Conv2d | nn.Linear)
    nn.init.kaiming_normal_(module.weight, a=0.2)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
