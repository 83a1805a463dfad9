"""The U-Net that predicts noise, velocity or image from a noisy image and a time (Ho et al., 2020, appendix B).

It has the architecture of `UNet2DModel` of diffusers with down, up and middle blocks of its plain and its attending
kind, and parameters of the same names, so that published weights fit. Beyond it, `patch` > 1 lets the network work on
squares of pixels as channels, which makes it as many times cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ml_gen.core.fixed import Conv2d
from mi_ml_gen.generators.diffusion.settings import UNetConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "mish": F.mish}


class UNet(nn.Module):
    """Noisy images and times to a prediction of the images' shape."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.settings = config
        widths, squares = config.block_out_channels, config.patch**2
        time_dim = config.time_embedding_dim or 4 * widths[0]
        self.conv_in = Conv2d(config.in_channels * squares, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time_dim, config)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        skips = [before]  # channels of what goes across, in the order in which it is made
        for i, (width, kind) in enumerate(zip(widths, config.down, strict=True)):
            is_last = i == len(widths) - 1
            inputs = [before, *[width] * (config.layers_per_block - 1)]
            self.down_blocks.append(Level(inputs, width, time_dim, kind, None if is_last else Halving, config))
            skips += [width] * (config.layers_per_block + (not is_last))
            before = width
        self.mid_block = Middle(before, time_dim, config) if config.middle else None
        self.up_blocks = nn.ModuleList()
        for i, (width, kind) in enumerate(zip(reversed(widths), config.up, strict=True)):
            n_layers = config.layers_per_block + 1
            inputs = [(before if j == 0 else width) + skips.pop() for j in range(n_layers)]
            resize = None if i == len(widths) - 1 else Doubling
            self.up_blocks.append(Level(inputs, width, time_dim, kind, resize, config))
            before = width
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, before, config.norm_eps)
        self.conv_out = Conv2d(before, config.in_channels * squares, 3, padding=1)

    def start_at_zero(self) -> None:
        """Let the residual branches and the output begin at zero, before training."""
        for module in self.modules():
            if isinstance(module, Residual):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, Attention):
                nn.init.zeros_(module.to_out[0].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (n, colours, side, side), time (n,) or (1,) for all -> (n, colours, side, side), in the dtype of x.

        Times are those of the training steps, 0 to 1000 as a rule.
        """
        config = self.settings
        h = 2 * x - 1 if config.center_input_sample else x
        h = F.pixel_unshuffle(h, config.patch) if config.patch > 1 else h
        time = self.time_embedding(time)
        h = self.conv_in(h)
        skips = [h]
        for block in _levels(self.down_blocks):
            for layer in block.layers():
                h = layer(h, time)
                skips.append(h)
            if block.resize is not None:
                h = block.resize(h)
                skips.append(h)
        if self.mid_block is not None:
            h = self.mid_block(h, time)
        for block in _levels(self.up_blocks):
            for layer in block.layers():
                h = layer(torch.cat([h, skips.pop()], dim=1), time)
            if block.resize is not None:
                h = block.resize(h)
        h = self.conv_out(F.silu(self.conv_norm_out(h)))
        return (F.pixel_shuffle(h, config.patch) if config.patch > 1 else h).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, through two layers (Vaswani et al., 2017, section 3.5)."""

    def __init__(self, width: int, dim: int, config: UNetConfig):
        super().__init__()
        self.width, self.settings = width, config
        self.linear_1 = nn.Linear(width, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, time: Tensor) -> Tensor:
        """(n,) -> (n, dim)."""
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=time.device) / (half - self.settings.freq_shift)
        angles = time.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
        parts = [angles.cos(), angles.sin()] if self.settings.flip_sin_to_cos else [angles.sin(), angles.cos()]
        h = self.linear_1(torch.cat(parts, dim=1).to(self.linear_1.weight.dtype))
        return self.linear_2(F.silu(h))


class Residual(nn.Module):
    """Norm, activation, convolution, twice, with the time in between; scaled by 1 / `scale` with its input."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, config: UNetConfig, scale: float = 1.0):
        super().__init__()
        self.scale, self.dropout, self.activation = scale, config.dropout, ACTIVATIONS[config.act_fn]
        self.is_scaled_by_time = config.resnet_time_scale_shift == "scale_shift"
        self.norm1 = nn.GroupNorm(config.norm_num_groups, c_in, config.norm_eps)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, c_out * (2 if self.is_scaled_by_time else 1))
        self.norm2 = nn.GroupNorm(config.norm_num_groups, c_out, config.norm_eps)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (n, c_in, h, w), time (n or 1, time_dim) -> (n, c_out, h, w)."""
        h = self.conv1(self.activation(self.norm1(x)))
        time = self.time_emb_proj(self.activation(time))[:, :, None, None]
        if self.is_scaled_by_time:
            gain, offset = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + gain) + offset
        else:
            h = self.norm2(h + time)
        h = F.dropout(self.activation(h), self.dropout, self.training)
        h = self.conv2(h)
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return x + h if self.scale == 1 else (x + h) / self.scale


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, width: int, config: UNetConfig, groups: int | None, scale: float = 1.0):
        """groups: of the norm before it; None: no norm."""
        super().__init__()
        self.n_heads, self.scale = width // (config.attention_head_dim or width), scale
        self.group_norm = nn.GroupNorm(groups, width, config.norm_eps) if groups is not None else nn.Identity()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> the same."""
        height = x.shape[2]
        rows = self.group_norm(x).flatten(2).transpose(1, 2)  # (n, pixels, width)

        def heads(part: nn.Module) -> Tensor:
            return part(rows).unflatten(2, (self.n_heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads(self.to_q), heads(self.to_k), heads(self.to_v))
        h = self.to_out[0](mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (height, -1))
        return x + h if self.scale == 1 else (x + h) / self.scale


class Level(nn.Module):
    """The layers of one side of images, and the change of the side after them."""

    def __init__(
        self, inputs: list[int], width: int, time_dim: int, kind: str, resize: type[nn.Module] | None,
        config: UNetConfig,
    ):  # fmt: skip
        super().__init__()
        self.resnets = nn.ModuleList(Residual(c_in, width, time_dim, config) for c_in in inputs)
        if kind == "attention":
            self.attentions = nn.ModuleList(Attention(width, config, config.norm_num_groups) for _ in inputs)
        if resize is not None:
            setattr(self, f"{'down' if resize is Halving else 'up'}samplers", nn.ModuleList([resize(width, config)]))

    def layers(self) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """Each layer in turn, as a function of maps and time."""
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        return [_then(*both) for both in zip(self.resnets, attentions, strict=True)]

    @property
    def resize(self) -> nn.Module | None:
        found = getattr(self, "downsamplers", None) or getattr(self, "upsamplers", None)
        return None if found is None else found[0]


def _levels(blocks: nn.ModuleList) -> list[Level]:
    return [block for block in blocks if isinstance(block, Level)]


def _then(residual: nn.Module, attention: nn.Module | None) -> Callable[[Tensor, Tensor], Tensor]:
    if attention is None:
        return residual
    return lambda x, time: attention(residual(x, time))


class Middle(nn.Module):
    """Two residual blocks at the smallest side, with attention between them where the network has it."""

    def __init__(self, width: int, time_dim: int, config: UNetConfig):
        super().__init__()
        scale = config.mid_block_scale_factor
        self.resnets = nn.ModuleList(Residual(width, width, time_dim, config, scale) for _ in range(2))
        if config.middle_attention:
            added = config.resnet_time_scale_shift == "default"
            groups = config.attn_norm_num_groups or (config.norm_num_groups if added else None)
            self.attentions = nn.ModuleList([Attention(width, config, groups, scale)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.resnets[0](x, time)
        h = self.attentions[0](h) if hasattr(self, "attentions") else h
        return self.resnets[1](h, time)


class Halving(nn.Module):
    """A convolution of stride 2. Padding 0 means a row and a column of zeros at the far edges only."""

    def __init__(self, width: int, config: UNetConfig):
        super().__init__()
        self.conv = Conv2d(width, width, 3, stride=2, padding=config.downsample_padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Doubling(nn.Module):
    """Each pixel to a square of four, and a convolution."""

    def __init__(self, width: int, config: UNetConfig):
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
