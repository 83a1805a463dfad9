"""Sizes of a diffusion model's network, and what its weights leave open. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mi_ml_gen.core.errors import UsageError

BLOCKS = ("plain", "attention")
ACTIVATIONS = ("silu", "relu", "gelu", "mish")
TIMES = ("default", "scale_shift")


def check_kinds(settings: Any) -> None:
    """Raise UsageError for a field of a dataclass that is of another kind than its default: what a file holds may be
    anything. Where the default is None, whole numbers and lists of numbers are taken."""
    for field in fields(settings):
        value, default = getattr(settings, field.name), field.default
        many = isinstance(value, list | tuple)
        items = list(value) if many else [value]
        example = default[0] if isinstance(default, tuple) else 0.0 if many else 1 if default is None else default
        right = value is None if default is None and value is None else all(_is_like(item, example) for item in items)
        if not right or (many and not (default is None or isinstance(default, tuple))):
            raise UsageError(f"{field.name} {str(value)[:80]}: must be of the kind of {default}")


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, int):
        return isinstance(value, int)
    if isinstance(example, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(example))


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a `network.UNet`. Raises UsageError where they do not fit together.

    The names are those of `UNet2DModel` of diffusers where it has the same size.
    """

    sample_size: int = 32
    """Height and width of an image, in pixels."""
    in_channels: int = 1
    """Colours of an image, 1 or 3."""
    patch: int = 1
    """Side of the squares of pixels that become the channels of one pixel before the first convolution."""
    block_out_channels: tuple[int, ...] = (32, 64, 64)
    """Channels of each level; every level but the last one halves the side."""
    layers_per_block: int = 1
    """Residual blocks of a level on the way down; there is one more on the way up."""
    down: tuple[str, ...] = ("plain", "plain", "attention")
    """Whether each level attends on the way down, one of BLOCKS, from the largest side on."""
    up: tuple[str, ...] = ("attention", "plain", "plain")
    """The same on the way up, from the smallest side on."""
    middle: bool = True
    """Whether there are two residual blocks at the smallest side, between down and up."""
    middle_attention: bool = True
    mid_block_scale_factor: float = 1.0
    attention_head_dim: int | None = None
    """Channels of an attention head; None: one head."""
    norm_num_groups: int = 8
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    resnet_time_scale_shift: str = "default"
    """How a residual block sees the time: added ("default"), or as scale and offset of its second norm."""
    time_embedding_dim: int | None = None
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    downsample_padding: int = 1
    center_input_sample: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_kinds(self)
        levels = len(self.block_out_channels)
        if not levels or len(self.down) != levels or len(self.up) != levels:
            raise UsageError(f"{levels} block_out_channels, {len(self.down)} down and {len(self.up)} up blocks: must "
                             "be equally many, and at least one")  # fmt: skip
        if unknown := {*self.down, *self.up} - set(BLOCKS):
            raise UsageError(f"block {min(unknown)}: must be one of {', '.join(BLOCKS)}")
        for name, known in (("act_fn", ACTIVATIONS), ("resnet_time_scale_shift", TIMES), ("in_channels", (1, 3))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} {value}: must be one of {', '.join(map(str, known))}")
        if min(self.sample_size, self.patch, self.layers_per_block, self.norm_num_groups) < 1:
            raise UsageError("sample_size, patch, layers_per_block and norm_num_groups: must be at least 1")
        if self.sample_size % (least := self.patch * 2 ** (levels - 1)):
            raise UsageError(f"sample_size {self.sample_size}: must be a multiple of {least}, for patch and levels")
        for width in self.block_out_channels:
            if width < 2 or width % self.norm_num_groups:
                raise UsageError(f"block_out_channels {width}: must be a multiple of {self.norm_num_groups} groups")
            if self.attention_head_dim is not None and width % self.attention_head_dim:
                raise UsageError(f"block_out_channels {width}: must be a multiple of the {self.attention_head_dim} "
                                 "channels of an attention head")  # fmt: skip
        if self.block_out_channels[0] % 2:
            raise UsageError(f"block_out_channels {self.block_out_channels[0]}: the first must be even")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Colours, height and width of an image."""
        return self.in_channels, self.sample_size, self.sample_size

    def to_file(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_file(cls, values: Mapping[str, Any]) -> UNetConfig:
        """The inverse of `to_file`. Raises UsageError or TypeError for what it does not write."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise UsageError(f"unknown key {min(unknown)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)
