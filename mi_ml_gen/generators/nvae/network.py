"""The autoencoder of NVAE (Vahdat and Kautz, 2020), with the parameter names of the checkpoints of NVAE-from-scratch.

    encoder:  image -> features of every group, fine to coarse
    decoder:  a constant -> group 0:0 -> ... -> the last group -> parameters of the output distribution

Each group draws its latent variable z from a normal distribution that depends on the groups before it, and mixes z
into the feature map. The encoder's distributions are given relative to these (section 3.2, the residual normal
distribution). Where the checkpoints differ from the authors' own code (NVlabs/NVAE), this follows the checkpoints.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ml_gen.core import fixed, runtime
from mi_ml_gen.data.resampling import resize
from mi_ml_gen.generators.nvae.likelihood import n_parameters
from mi_ml_gen.generators.nvae.settings import Group, NVAEConfig

RESIDUAL_WEIGHT = 0.1
BN_MOMENTUM = 0.05
BN_EPS = 1e-5
CLAMP = 5.0


# ----------------------------------------------------------------------------------------------------------------------
# Layers


class Polar(nn.Module):
    """A convolution's weight as a length per filter, and a direction (weight normalisation)."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.original0 = nn.Parameter(_filter_norms(weight.detach()))
        self.original1 = nn.Parameter(weight.detach().clone())

    def forward(self) -> Tensor:
        return self.original1 * (self.original0 / _filter_norms(self.original1))

    @torch.no_grad()
    def fold(self) -> None:
        """Make the direction the weight itself: the same function, and nothing left to compute."""
        self.original1.copy_(self())
        self.original0.copy_(_filter_norms(self.original1))


def _filter_norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)


class NormedConv(nn.Module):
    """A weight-normalised convolution with bias that keeps the resolution, or divides it by the stride."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        plain = nn.Conv2d(c_in, c_out, kernel)
        assert plain.bias is not None
        self.bias = nn.Parameter(plain.bias.detach())
        self.parametrizations = nn.ModuleDict({"weight": Polar(plain.weight)})
        self.stride, self.padding = stride, kernel // 2
        self.folded = False

    @property
    def weight(self) -> Tensor:
        polar = self.parametrizations["weight"]
        assert isinstance(polar, Polar)
        return polar.original1 if self.folded else polar()

    def fold(self) -> None:
        """See `Polar.fold`; for networks whose weights stay as they are from now on."""
        if self.folded:
            return
        polar = self.parametrizations["weight"]
        assert isinstance(polar, Polar)
        polar.fold()
        self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        return fixed.convolve(x, self.weight, self.bias, self.stride, self.padding)


class MaskedConv(nn.Conv2d):
    """A convolution of which only some places of the kernel are used; the mask is stored with the weights."""

    mask: Tensor

    def __init__(self, c_in: int, c_out: int, kernel: int, kept: int, flip: bool, groups: int = 1):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2, groups=groups)
        places = (torch.arange(kernel * kernel) < kept).float().view(kernel, kernel)
        if flip:
            places = places.flip(0, 1)
        self.register_buffer("mask", places.expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding, groups=self.groups)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, of equal size each; on the CPU too.

    copies: how many equal copies of each pixel the input stands for. The variance that is remembered depends on it.
    """

    def __init__(self, channels: int, copies: int = 1):
        super().__init__(channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (self.copies == 1 and not runtime.is_distributed()):
            return super().forward(x)
        var, mean = torch.var_mean(x.float() if x.dtype == torch.bfloat16 else x, (0, 2, 3), correction=0)
        means, variances = runtime.gather(torch.stack([mean, var])[None]).unbind(1)  # (processes, channels)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        n = self.copies * x.numel() // x.shape[1] * len(means)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, BN_MOMENTUM)
            self.running_var.lerp_(var * n / (n - 1), BN_MOMENTUM)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(var + BN_EPS)
        return (x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) of each channel once the statistics stay as they are."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + BN_EPS)
        return scale, self.bias - self.running_mean * scale


class SqueezeExcitation(nn.Module):
    """Scale each channel by a function of all channels' means (Hu et al., 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.linear_1, self.linear_2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.linear_2(torch.relu(self.linear_1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class DownSkip(nn.Module):
    """The shortcut of a cell that halves the resolution and doubles the channels."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = NormedConv(c_in, c_out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(x))


class UpSkip(nn.Module):
    """The shortcut of a cell that doubles the resolution and halves the channels."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = NormedConv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 convolution commutes with the bilinear doubling, whose weights sum to one, and is cheaper before it.
        return resize(self.conv(x), 2 * x.shape[-1], "corners")


class Cell(nn.Module):
    """x -> skip(x) + 0.1 residual(x)."""

    skip_connection: nn.Module
    residual: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.skip_connection(x), self.residual(x), alpha=RESIDUAL_WEIGHT)


class EncoderCell(Cell):
    """Section 3.1.2, Fig. 3b: batch norm, SiLU and convolution, twice, then squeeze and excitation."""

    def __init__(self, channels: int, down: bool = False):
        super().__init__()
        c_out = 2 * channels if down else channels
        self.skip_connection = DownSkip(channels, c_out) if down else nn.Identity()
        self.residual = nn.Sequential(
            BatchNorm(channels),
            nn.SiLU(),
            NormedConv(channels, c_out, 3, stride=2 if down else 1),
            BatchNorm(c_out),
            nn.SiLU(),
            NormedConv(c_out, c_out, 3),
            SqueezeExcitation(c_out),
        )


class DecoderCell(Cell):
    """Section 3.1.1, Fig. 3a: a depthwise 5x5 convolution between an expansion and a projection of the channels.

    Folded, the batch norms are part of the convolutions beside them.
    """

    expand_weight: Tensor | None
    expand_bias: Tensor | None
    mix_weight: Tensor | None
    mix_bias: Tensor | None
    project_weight: Tensor | None
    project_bias: Tensor | None

    def __init__(self, channels: int, expansion: int, up: bool = False):
        super().__init__()
        c_out, hidden = channels // 2 if up else channels, expansion * channels
        copies = 4 if up else 1
        self.first = int(up)  # where the batch norm stands, after the doubling if there is one
        self.skip_connection = UpSkip(channels, c_out) if up else nn.Identity()
        self.residual = nn.Sequential(
            *([nn.UpsamplingNearest2d(scale_factor=2)] if up else []),
            BatchNorm(channels, copies),
            nn.Conv2d(channels, hidden, 1, bias=False),
            BatchNorm(hidden, copies),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False),
            BatchNorm(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            BatchNorm(c_out),
            SqueezeExcitation(c_out),
        )
        for name in ("expand", "mix", "project"):
            self.register_buffer(f"{name}_weight", None, persistent=False)
            self.register_buffer(f"{name}_bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.skip_connection(x), self._branch(x), alpha=RESIDUAL_WEIGHT)

    def _branch(self, x: Tensor) -> Tensor:
        """What comes before the depthwise convolution treats each pixel alike, so that doubling the pixels can wait
        until there, and costs a quarter."""
        assert isinstance(self.residual, nn.Sequential)
        double = self.residual[0] if self.first else nn.Identity()
        if self.training or self.expand_weight is None or self.mix_weight is None or self.project_weight is None:
            before, after = self.residual[self.first : self.first + 4], self.residual[self.first + 4 :]
            return after(double(before(x)))
        h = F.silu(fixed.convolve(x, self.expand_weight, self.expand_bias))
        with torch.autocast(h.device.type, enabled=False):  # which would double in float32
            h = double(h)
        h = fixed.convolve(h, self.mix_weight, self.mix_bias, padding=2, groups=len(self.mix_weight))
        return self.residual[-1](fixed.convolve(F.silu(h), self.project_weight, self.project_bias))

    @torch.no_grad()
    def fold(self) -> None:
        """Compute the folded convolutions from weights and statistics as they are now."""
        assert isinstance(self.residual, nn.Sequential)
        layers: list[Any] = list(self.residual[self.first :])
        norm_in, expand, norm_1, _, mix, norm_2, _, project, norm_3, _ = layers
        (scale_in, shift_in), (scale_1, shift_1) = norm_in.scale_and_shift(), norm_1.scale_and_shift()
        self.expand_weight = expand.weight * scale_in[:, None, None] * scale_1[:, None, None, None]
        self.expand_bias = shift_1 + scale_1 * (expand.weight[:, :, 0, 0] @ shift_in)
        for name, conv, norm in (("mix", mix, norm_2), ("project", project, norm_3)):
            scale, shift = norm.scale_and_shift()
            setattr(self, f"{name}_weight", conv.weight * scale[:, None, None, None])
            setattr(self, f"{name}_bias", shift)


class Combiner(nn.Module):
    """Mixes a latent variable, or another feature map, into a feature map."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = NormedConv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FlowCell(nn.Module):
    """z -> z - layers(z) with masked convolutions.

    As published, the last convolution's mask keeps nothing, so a cell subtracts its last bias: its volume does not
    change, and the KL divergence needs no log-determinant.
    """

    def __init__(self, channels: int, flip: bool):
        super().__init__()
        hidden = 6 * channels
        self.layers = nn.Sequential(
            MaskedConv(channels, hidden, 3, kept=5, flip=flip),
            nn.ELU(),
            MaskedConv(hidden, hidden, 5, kept=12, flip=flip, groups=hidden),
            nn.ELU(),
            MaskedConv(hidden, channels, 1, kept=0, flip=flip),
        )

    def forward(self, z: Tensor) -> Tensor:
        return z - self.layers(z)


class FlowBlock(nn.Module):
    """Two cells, the second one with the masks flipped."""

    def __init__(self, channels: int):
        super().__init__()
        self.cell1, self.cell2 = FlowCell(channels, flip=False), FlowCell(channels, flip=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.cell2(self.cell1(z))


# ----------------------------------------------------------------------------------------------------------------------
# Distributions of the latent variables


class Normal(NamedTuple):
    """Independent normals; `sigma` is positive."""

    mean: Tensor
    sigma: Tensor

    @classmethod
    def clamped(cls, mean: Tensor, log_sigma: Tensor) -> Normal:
        """From a network's output, both numbers softly kept within +-5."""
        return cls(_soft_clamp(mean), _soft_clamp(log_sigma).exp())

    def at(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """The value that a standard normal draw means here; the temperature scales sigma."""
        return self.mean + temperature * self.sigma * noise

    def noise_of(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """The inverse of `at`."""
        return (z - self.mean) / (temperature * self.sigma)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each number."""
        return -0.5 * self.noise_of(z).square() - 0.5 * math.log(2 * math.pi) - self.sigma.log()

    def kl_to(self, other: Normal) -> Tensor:
        """Kullback-Leibler divergence of each number, in nats."""
        ratio = self.sigma / other.sigma
        distance = (self.mean - other.mean) / other.sigma
        return 0.5 * distance.square() + 0.5 * ratio.square() - 0.5 - ratio.log()


def _soft_clamp(x: Tensor) -> Tensor:
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # of autocast; densities need more digits
    return CLAMP * torch.tanh(x / CLAMP)


class Prior(NamedTuple):
    """What the decoder knows before it draws the latent variable of a group."""

    features: Tensor
    """(n, channels, side, side), after the cells of the group."""
    mean: Tensor | float
    """Of the network, not clamped; 0 for group 0:0."""
    log_sigma: Tensor | float

    def normal(self, like: Tensor) -> Normal:
        """The prior; `like` gives the shape that group 0:0, a standard normal, leaves open."""
        if isinstance(self.mean, float):
            return Normal(torch.zeros_like(like), torch.ones_like(like))
        assert isinstance(self.log_sigma, Tensor)
        return Normal.clamped(self.mean, self.log_sigma)


class Posterior(NamedTuple):
    """What one pass of images through encoder and decoder gives."""

    logits: Tensor
    """Parameters of the output distribution, see likelihood.py."""
    kl: Tensor
    """(n, groups) in nats: how much each group tells about the image."""
    noise: list[Tensor]
    """What standard normal draw of each group's prior means the latent variable that was used."""


# ----------------------------------------------------------------------------------------------------------------------
# The network


def _named(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class AutoEncoder(nn.Module):
    """The whole of NVAE: encoder, decoder, and the samplers between them."""

    def __init__(self, config: NVAEConfig):
        super().__init__()
        self.config = c = config
        n_colours, z = c.resolution[0], c.num_latent_per_group
        deepest = c.channels(0)
        self.const_prior = nn.Parameter(torch.rand(1, deepest, c.side(0), c.side(0)))

        # Encoder, in the order in which features pass it
        self.preprocessing_block = _named(init_conv=NormedConv(n_colours, c.initial_channels, 3))
        for block in range(c.num_pre_post_process_blocks):
            channels, last = c.initial_channels * 2**block, c.num_pre_post_process_cells - 1
            cells: list[nn.Module] = [EncoderCell(channels, down=i == last) for i in range(last + 1)]
            self.preprocessing_block[f"block_{block}"] = _numbered("cell", cells)
        self.encoder_tower = nn.ModuleDict()
        for scale in reversed(range(c.num_scales)):
            floor = self.encoder_tower[f"scale_{scale}"] = nn.ModuleDict()
            for i in range(c.groups_per_scale[scale]):
                cells = [EncoderCell(c.channels(scale)) for _ in range(c.num_cells_per_group)]
                floor[f"group_{i}"] = _numbered("cell", cells)
            if scale > 0:
                floor["downsampling"] = EncoderCell(c.channels(scale), down=True)
        self.encoder_0 = nn.Sequential(nn.ELU(), NormedConv(deepest, deepest, 1), nn.ELU())

        # Samplers, flows, and what joins encoder and decoder
        self.enc_sampler, self.dec_sampler = nn.ModuleDict(), nn.ModuleDict()
        self.encoder_combiners, self.decoder_combiners = nn.ModuleDict(), nn.ModuleDict()
        self.nf_cells = nn.ModuleDict()
        for group in c.groups:
            channels = c.channels(group.scale)
            self.enc_sampler[f"sampler_{group}"] = NormedConv(channels, 2 * z, 3)
            self.decoder_combiners[f"combiner_{group}"] = Combiner(channels + z, channels)
            if group != Group(0, 0):
                self.dec_sampler[f"sampler_{group}"] = nn.Sequential(nn.ELU(), NormedConv(channels, 2 * z, 1))
                self.encoder_combiners[f"combiner_{group}"] = Combiner(channels, channels)
            if c.num_nf_cells is not None:
                self.nf_cells[f"nf_{group}"] = nn.Sequential(*(FlowBlock(z) for _ in range(c.num_nf_cells)))

        # Decoder
        self.decoder_tower = nn.ModuleDict()
        for scale in range(c.num_scales):
            floor = self.decoder_tower[f"scale_{scale}"] = nn.ModuleDict()
            for i in range(c.groups_per_scale[scale]):
                if (scale, i) != (0, 0):
                    cells = [DecoderCell(c.channels(scale), expansion=6) for _ in range(c.num_cells_per_group)]
                    floor[f"group_{i}"] = _numbered("cell", cells)
            if scale < c.num_scales - 1:
                floor["upsampling"] = DecoderCell(c.channels(scale), expansion=6, up=True)
        self.postprocessing_block = nn.ModuleDict()
        for block in range(c.num_pre_post_process_blocks):
            channels = c.initial_channels * 2 ** (c.num_pre_post_process_blocks - block)
            cells = [DecoderCell(channels, expansion=3, up=True)]
            cells += [DecoderCell(channels // 2, expansion=3) for _ in range(c.num_pre_post_process_cells - 1)]
            self.postprocessing_block[f"block_{block}"] = _numbered("cell", cells)
        n_out = n_parameters(c.num_logistic_mixtures, n_colours)
        self.to_logits = nn.Sequential(nn.ELU(), NormedConv(c.initial_channels, n_out, 3))

    def fold(self) -> None:
        """Fold what stays constant in a trained network; its function is the same."""
        for module in self.modules():
            if isinstance(module, (NormedConv, DecoderCell)):
                module.fold()

    def decoder_norms(self) -> list[BatchNorm]:
        """The batch norms that decoding passes, in a fixed order."""
        parts = (self.decoder_tower, self.postprocessing_block)
        return [module for part in parts for module in part.modules() if isinstance(module, BatchNorm)]

    # --- The decoder in stages: stage i is group i. Its prior needs the features after stage i - 1 alone.

    def start(self, n: int) -> Tensor:
        """The constant from which the decoder starts, (n, channels, side, side)."""
        return self.const_prior.expand(n, -1, -1, -1)

    def prior(self, i: int, x: Tensor) -> Prior:
        """The cells of group i, and the prior of its latent variable; x: the features after stage i - 1."""
        group = self.config.groups[i]
        if group == Group(0, 0):
            return Prior(x, 0.0, 0.0)
        x = self.decoder_tower[f"scale_{group.scale}"][f"group_{group.index}"](x)  # type: ignore[index]
        return Prior(x, *self.dec_sampler[f"sampler_{group}"](x).chunk(2, 1))

    def absorb(self, i: int, x: Tensor, z: Tensor) -> Tensor:
        """Mix the latent variable of group i into the features; the last group of a scale leads to the next scale."""
        group = self.config.groups[i]
        x = self.decoder_combiners[f"combiner_{group}"](torch.cat([x, z], 1))
        last_of_scale = group.index == self.config.groups_per_scale[group.scale] - 1
        if last_of_scale and group.scale < self.config.num_scales - 1:
            x = self.decoder_tower[f"scale_{group.scale}"]["upsampling"](x)  # type: ignore[index]
        return x

    def stages(self, x: Tensor, noise: list[Tensor], start: int, stop: int, temperature: float) -> Tensor:
        """Stages start to stop - 1, each with its own standard normal noise (n, latents, side, side)."""
        for i in range(start, stop):
            prior = self.prior(i, x)
            z = prior.normal(noise[i]).at(noise[i], temperature)
            x = self.absorb(i, prior.features, z)
        return x

    def head(self, x: Tensor) -> Tensor:
        """The features after the last stage -> parameters of the output distribution, (n, ..., height, width)."""
        for block in self.postprocessing_block.values():
            x = block(x)
        return self.to_logits(x)

    def decode(self, noise: list[Tensor], temperature: float = 1.0) -> Tensor:
        """Standard normal noise of every group -> parameters of the output distribution."""
        x = self.start(len(noise[0]))
        return self.head(self.stages(x, noise, 0, len(noise), temperature))

    # --- Encoder

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (n, colours, height, width) in [0, 1] -> the features of each group, in decoding order."""
        x = self.preprocessing_block["init_conv"]((images - 0.5) / 0.5)
        for block in range(self.config.num_pre_post_process_blocks):
            x = self.preprocessing_block[f"block_{block}"](x)
        found: dict[Group, Tensor] = {}
        for scale in reversed(range(self.config.num_scales)):
            tower = self.encoder_tower[f"scale_{scale}"]
            for i in range(self.config.groups_per_scale[scale]):
                # The same order as the decoder's within a scale, as in the checkpoints; the authors' code mirrors it.
                x = tower[f"group_{i}"](x)  # type: ignore[index]
                found[Group(scale, i)] = x
            if scale > 0:
                x = tower["downsampling"](x)  # type: ignore[index]
        found[Group(0, 0)] = self.encoder_0(x)
        return [found[group] for group in self.config.groups]

    def posterior(self, i: int, features: Tensor, prior: Prior) -> Normal:
        """The distribution of group i given the image: the prior's parameters plus what the encoder changes in them."""
        group = self.config.groups[i]
        if group != Group(0, 0):
            features = features + self.encoder_combiners[f"combiner_{group}"](prior.features)
        mean, log_sigma = self.enc_sampler[f"sampler_{group}"](features).chunk(2, 1)
        return Normal.clamped(prior.mean + mean, prior.log_sigma + log_sigma)

    def forward(
        self, images: Tensor, noise: list[Tensor] | None, temperature: float = 1.0, sampled_kl: bool = False
    ) -> Posterior:
        """Encode images (n, colours, height, width) in [0, 1], and decode what was encoded.

        noise: the standard normal draws with which the posteriors are sampled, one tensor a group; None takes their
        means. temperature: the one at which `Posterior.noise` will be decoded. sampled_kl: the KL divergences are
        log q(z) - log p(z) of the draw, not the integral over all draws; with a flow they always are.
        """
        features = self.features(images)
        x = self.start(len(images))
        kls, used = [], []
        for i, group in enumerate(self.config.groups):
            prior = self.prior(i, x)
            q = self.posterior(i, features[i], prior)
            p = prior.normal(q.mean)
            z = q.mean if noise is None else q.at(noise[i])
            drawn = z
            if self.config.num_nf_cells is not None:
                z, sampled_kl = self.nf_cells[f"nf_{group}"](z), True
            kl = q.log_prob(drawn) - p.log_prob(z) if sampled_kl else q.kl_to(p)
            kls.append(kl.sum((1, 2, 3)))
            used.append(p.noise_of(z, temperature))
            x = self.absorb(i, prior.features, z)
        return Posterior(self.head(x), torch.stack(kls, 1), used)


def _numbered(word: str, modules: list) -> nn.Sequential:
    """A sequence whose members are called word_0, word_1 and so on."""
    sequence = nn.Sequential()
    for i, module in enumerate(modules):
        sequence.add_module(f"{word}_{i}", module)
    return sequence
