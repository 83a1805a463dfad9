"""The generator of StyleGAN2 (Karras et al., 2020) in plain PyTorch, any resolution, width and architecture.

A mapping network turns the noise z into a style w; the synthesis network reads one style per layer. The
latents are those styles, W+: one chunk per layer, 16 of 512 at 512 px. Parameters have the names of published
PyTorch files (`mapping.fc0.weight`, `synthesis.b4.conv1.affine.weight`), stored before the gain of the
equalised learning rate.

The synthesis is written as a list of steps, each reading one row of W+, with the rows in ascending order. Two
savings follow from it. A perturbation of the rows from k on leaves the steps of earlier rows as they are, so
`decode_pair` runs those once. Each step may be asked for a window of its output only, so `decode` computes no
more than what reaches the crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.errors import CorruptCheckpointError, UsageError, nearest
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator, Use, check_state
from mi_ml_gen.latents import Chunks, LatentLayout
from mi_ml_gen.resampling import resize

NOISE_MODES = ("const", "random", "none")
_GAINS = {"lrelu": math.sqrt(2), "linear": 1.0}
_SLOPE = 0.2
_DEFAULT_TAPS = (1.0, 3.0, 3.0, 1.0)

# The paper's data pipeline for the cars: 512 px padded from 512 x 384, cut to 384, reduced to 128.
_CARS_RESOLUTION, _CARS_CROP = 512, 384
_DEFAULT_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Use(Use):
    """How the network is used: options that every file leaves open."""

    noise_mode: str = "const"
    """const: the stored maps; random: fresh ones at each call; none."""
    psi: float = 1.0
    """Truncation: w_avg + psi (w - w_avg); 1 leaves w as it is."""
    cutoff: int | None = None
    """Number of rows that truncation applies to; None: all."""
    label: int = 0
    """Class of a label-conditional network where the caller names none."""
    crop: int | None = None
    """Side of the centre crop that `decode` keeps, in pixels; None: 384 at 512 px (the paper's cars), else
    all."""
    size: int | None = None
    """Side of decoded images, in pixels; None: 128, or the crop where that is smaller."""
    resampling: str | None = None
    """corners: bilinear between corner pixels, unfiltered, as in the paper; antialias; None: corners for the
    paper's crop, antialias for all else."""


@dataclass(frozen=True)
class StyleGAN2Config(StyleGAN2Use):
    """What the network is, beside its use; the defaults are the LSUN cars network's (config f)."""

    z_dim: int = 512
    c_dim: int = 0
    """Number of classes of a label-conditional network; 0: unconditional."""
    w_dim: int = 512
    img_resolution: int = 512
    img_channels: int = 3
    mapping_layers: int = 8
    embed_features: int | None = None
    """Width of the label embedding; None: w_dim."""
    layer_features: int | None = None
    """Width of the mapping's hidden layers; None: w_dim."""
    mapping_activation: str = "lrelu"
    lr_multiplier: float = 0.01
    w_avg_beta: float | None = 0.995
    """Decay of the running mean of w, which training may follow."""
    channel_base: int = 32768
    channel_max: int = 512
    architecture: str = "skip"
    resample_filter: tuple[float, ...] = _DEFAULT_TAPS
    conv_clamp: float | None = None
    use_noise: bool = True
    activation: str = "lrelu"
    num_fp16_res: int = 0
    """Resolutions that the authors run in float16. For the record: precision is the caller's choice here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resample_filter", _taps(self.resample_filter))
        for name, least in _WHOLE.items():
            self._require(name, partial(_is_whole, least), f"a whole number of at least {least}")
        for name, least in _WHOLE_OR_NONE.items():
            right = partial(_is_whole_or_none, least)
            self._require(name, right, f"None or a whole number of at least {least}")
        for name, choices in _CHOICES.items():
            self._require(name, choices.__contains__, f"one of {', '.join(map(str, choices))}")
        side = self.img_resolution
        self._require("img_resolution", lambda v: v & (v - 1) == 0, "a power of two")
        self._require("channel_base", lambda v: v >= side, f"at least img_resolution, {side}")
        self._require("lr_multiplier", lambda v: _is_number(v) and v > 0, "a number above 0")
        self._require("conv_clamp", lambda v: v is None or (_is_number(v) and v > 0), "None or a number above 0")
        self._require("w_avg_beta", lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "None or in [0, 1]")
        self._require("psi", _is_number, "a finite number")
        self._require("cutoff", lambda v: (v or 0) <= self.num_ws, f"at most {self.num_ws}, the number of layers")
        self._require("label", lambda v: v < max(self.c_dim, 1), f"below the number of classes, {self.c_dim}")
        self._require("crop", lambda v: (v or 0) <= side, f"at most {side}, the side of the image")

    def _require(self, name: str, right: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if not right(value):
            raise UsageError(f"StyleGAN2 {name} {value}: must be {wanted}")

    @property
    def num_ws(self) -> int:
        """Rows of W+: two per resolution."""
        return 2 * int(math.log2(self.img_resolution)) - 2

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each block's output, in pixels: 4, 8, ..., img_resolution."""
        return tuple(2**k for k in range(2, int(math.log2(self.img_resolution)) + 1))

    def channels(self, resolution: int) -> int:
        """Feature maps of the block at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def crop_px(self) -> int:
        """Side of the centre crop in effect."""
        if self.crop is not None:
            return self.crop
        return _CARS_CROP if self.img_resolution == _CARS_RESOLUTION else self.img_resolution

    @property
    def size_px(self) -> int:
        """Side of decoded images in effect."""
        return self.size if self.size is not None else min(_DEFAULT_SIZE, self.crop_px)

    @property
    def resampling_kind(self) -> str:
        """The resampling in effect."""
        if self.resampling is not None:
            return self.resampling
        cars = self.img_resolution == _CARS_RESOLUTION and self.crop_px == _CARS_CROP
        return "corners" if cars else "antialias"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StyleGAN2Config:
        """The record of `config()` back again. Raises UsageError for an unknown key."""
        known = [field.name for field in fields(cls)]
        for key in values:
            _check_known(key, known, "StyleGAN2 option")
        return cls(**values)

    @classmethod
    def from_published(cls, kwargs: Mapping[str, Any], **use: Any) -> StyleGAN2Config:
        """From the keyword arguments in a published PyTorch file, in their nesting and with their defaults.

        `kwargs` has z_dim, c_dim, w_dim, img_resolution, img_channels and the mappings mapping_kwargs and
        synthesis_kwargs, which hold only what differs from the defaults. `use` may set fields of
        StyleGAN2Use. Raises UsageError for an option that is unknown or not supported here.
        """
        flat: dict[str, Any] = {"img_resolution": None, **use}
        for key, value in kwargs.items():
            _check_known(key, (*_PUBLISHED_TOP, "mapping_kwargs", "synthesis_kwargs"), "StyleGAN2 option")
            if key in _PUBLISHED_TOP:
                flat[key] = value.item() if isinstance(value, np.generic) else value
        for part, names in (
            ("mapping_kwargs", _PUBLISHED_MAPPING),
            ("synthesis_kwargs", _PUBLISHED_SYNTHESIS),
        ):
            for key, value in (kwargs.get(part) or {}).items():
                _check_known(key, names, f"StyleGAN2 option of {part}")
                if key == "kernel_size" and value != 3:
                    raise UsageError(f"StyleGAN2 kernel_size {value}: must be 3")
                if (field := names[key]) is not None:
                    flat[field] = value.item() if isinstance(value, np.generic) else value
        if "use_noise" in flat:
            flat["use_noise"] = bool(flat["use_noise"])
        return cls.from_dict(flat)


_PUBLISHED_TOP = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
_PUBLISHED_MAPPING: dict[str, str | None] = {
    "num_layers": "mapping_layers",
    "embed_features": "embed_features",
    "layer_features": "layer_features",
    "activation": "mapping_activation",
    "lr_multiplier": "lr_multiplier",
    "w_avg_beta": "w_avg_beta",
}
_PUBLISHED_SYNTHESIS: dict[str, str | None] = {
    "channel_base": "channel_base",
    "channel_max": "channel_max",
    "num_fp16_res": "num_fp16_res",
    "architecture": "architecture",
    "resample_filter": "resample_filter",
    "conv_clamp": "conv_clamp",
    "use_noise": "use_noise",
    "activation": "activation",
    "fp16_channels_last": None,  # a memory layout; it changes no value
    "kernel_size": None,
}


_WHOLE = {
    **dict.fromkeys(("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"), 1),
    **dict.fromkeys(("c_dim", "num_fp16_res", "label"), 0),
    "img_resolution": 4,
}
_WHOLE_OR_NONE = {"embed_features": 1, "layer_features": 1, "cutoff": 0, "crop": 1, "size": 1}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "img_channels": (1, 3),
    "mapping_activation": tuple(_GAINS),
    "activation": tuple(_GAINS),
    "architecture": ("skip", "orig", "resnet"),
    "use_noise": (True, False),
    "noise_mode": NOISE_MODES,
    "resampling": (None, "corners", "antialias"),
}


def _is_whole(least: int, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_whole_or_none(least: int, value: Any) -> bool:
    return value is None or _is_whole(least, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_known(key: str, known: Collection[str], what: str) -> None:
    if key not in known:
        raise UsageError(f"{what} {key}: unknown{nearest(str(key), known, 'option')}")


def _taps(values: Any) -> tuple[float, ...]:
    try:
        taps = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        taps = ()
    if not math.isfinite(sum(taps)) or sum(taps) == 0:
        raise UsageError(f"StyleGAN2 resample_filter {values}: must be a list of numbers whose sum is not 0")
    return taps


# -----------------------------------------------------------------------------------------------------------
# Windows and the low-pass filter


class Window(NamedTuple):
    """The rows (and, as all windows are square, the columns) start, ..., stop - 1 of a plane."""

    start: int
    stop: int

    def grown(self, margin: int, side: int) -> Window:
        """With `margin` more at both ends, within a plane of the given side."""
        return Window(max(self.start - margin, 0), min(self.stop + margin, side))

    def union(self, other: Window) -> Window:
        return Window(min(self.start, other.start), max(self.stop, other.stop))


def _fit(x: torch.Tensor, held: Window, wanted: Window) -> tuple[torch.Tensor, int]:
    """Make x, window `held` of a plane that is zero outside, ready for a convolution over `wanted`.

    Returns x and the zero padding that the convolution still has to add on all four sides: padding there
    costs no copy, so it is left to the convolution where it is the same on all sides.
    """
    before, after = held.start - wanted.start, wanted.stop - held.stop
    if before == after >= 0:
        return x, before
    if max(before, after) <= 0:
        side = held.stop - held.start
        return x[..., -before : side + after, -before : side + after], 0
    return F.pad(x, (before, after, before, after)), 0


def _sources(wanted: Window, n_taps: int, side: int) -> Window:
    """Inputs i of a stride-2 transposed convolution whose outputs 2 i, ..., 2 i + n_taps - 1 are wanted."""
    return Window(max((wanted.start - n_taps + 2) // 2, 0), min((wanted.stop - 1) // 2 + 1, side))


def _transposed(
    x: torch.Tensor, held: Window, side: int, kernel: torch.Tensor, wanted: Window, groups: int = 1
) -> tuple[torch.Tensor, int]:
    """Zeros between the samples of x, then true convolution with `kernel` (in, out, taps, taps).

    x holds window `held` of a plane of the given side. Returns the outputs in `wanted` and, like `_fit`,
    the padding left to the next convolution.
    """
    n_taps = kernel.shape[-1]
    needed = _sources(wanted, n_taps, side)
    x, _ = _fit(x, held, needed)
    reached = Window(2 * needed.start, 2 * (needed.stop - 1) + n_taps)
    before, after = wanted.start - reached.start, reached.stop - wanted.stop
    cut = before if before == after > 0 else 0  # the transposed convolution drops these without a copy
    y = F.conv_transpose2d(x, kernel, stride=2, padding=cut, groups=groups)
    return _fit(y, Window(reached.start + cut, reached.stop - cut), wanted)


class LowPass(NamedTuple):
    """Where the windows of upsampling with a filter of n_taps lie."""

    n_taps: int

    def image(self, wanted: Window) -> Window:
        """Outputs of the zero-interleaved full convolution that make up `wanted` of the doubled plane."""
        offset = self.n_taps - 1 - (self.n_taps + 1) // 2
        return Window(wanted.start + offset, wanted.stop + offset)

    def features(self, wanted: Window) -> Window:
        """Outputs of the stride-2 transposed 3x3 convolution that the filter reads for `wanted`."""
        start = wanted.start - ((self.n_taps + 1) // 2 - 1)
        return Window(start, start + (wanted.stop - wanted.start) + self.n_taps - 1)


def _stored_filter(taps: tuple[float, ...]) -> torch.Tensor:
    """The low-pass filter as files hold it: the outer product, or from 8 taps on the taps alone."""
    row = [tap / sum(taps) for tap in taps]
    return torch.tensor(row if len(taps) >= 8 else [[a * b for b in row] for a in row])


def _kernel(stored: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """The low-pass filter with gain 4 as a depthwise kernel (channels, 1, taps, taps)."""
    square = torch.outer(stored, stored) if stored.ndim == 1 else stored
    return (4 * square).to(dtype).expand(channels, 1, *square.shape)


def upsample(image: torch.Tensor, stored: torch.Tensor, held: Window, side: int, wanted: Window) -> torch.Tensor:
    """Double a plane of the given side: zeros between samples, then the low-pass filter with gain 4.

    `image` (n, C, h, h) is window `held` of the plane; returns window `wanted` of the doubled one.
    """
    channels = image.shape[1]
    kernel = _kernel(stored, channels, image.dtype)
    doubled = LowPass(stored.shape[-1]).image(wanted)
    y, padding = _transposed(image, held, side, kernel, doubled, groups=channels)
    return F.pad(y, (padding,) * 4) if padding else y


# -----------------------------------------------------------------------------------------------------------
# Layers


def _normal(*shape: int, std: float = 1.0) -> torch.Tensor:
    """Initial weights. On the meta device only the shape counts; drawing there takes seconds of imports."""
    weight = torch.empty(shape)
    return weight if weight.is_meta else weight.normal_(std=std)


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate: weight * lr / sqrt(inputs), bias * lr."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias: float = 0.0,
    ):
        super().__init__()
        self.activation, self.lr_multiplier = activation, lr_multiplier
        self.weight = nn.Parameter(_normal(outputs, inputs, std=1 / lr_multiplier))
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = self.lr_multiplier / math.sqrt(self.weight.shape[1])
        y = torch.addmm(self.bias, x, self.weight.T, beta=self.lr_multiplier, alpha=gain)
        if self.activation == "linear":
            return y
        return F.leaky_relu(y, _SLOPE, inplace=True) * _GAINS[self.activation]


def _normalised(x: torch.Tensor) -> torch.Tensor:
    """Rows scaled to a mean square of one."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class MappingNetwork(nn.Module):
    """z (n, z_dim), and labels (n, c_dim) of a conditional network, to w (n, w_dim)."""

    w_avg: torch.Tensor

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.w_avg_beta = config.w_avg_beta
        self.n_layers = config.mapping_layers
        embedding = 0
        if config.c_dim:
            embedding = config.embed_features or config.w_dim
            self.embed = FullyConnected(config.c_dim, embedding)
        hidden = config.layer_features or config.w_dim
        widths = [config.z_dim + embedding, *[hidden] * (self.n_layers - 1), config.w_dim]
        for i in range(self.n_layers):
            layer = FullyConnected(widths[i], widths[i + 1], config.mapping_activation, config.lr_multiplier)
            self.add_module(f"fc{i}", layer)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(z.device.type, enabled=False):
            x = _normalised(z.to(self.w_avg.dtype))
            if labels is not None:
                x = torch.cat([x, _normalised(self.embed(labels.to(x.dtype)))], dim=1)
            for i in range(self.n_layers):
                x = self.get_submodule(f"fc{i}")(x)
        return x

    @torch.no_grad()
    def track(self, w: torch.Tensor) -> None:
        """Move w_avg towards the mean of a training batch w (n, w_dim). Only training calls this."""
        if self.w_avg_beta is not None:
            self.w_avg.lerp_(w.detach().mean(dim=0).to(self.w_avg.dtype), 1 - self.w_avg_beta)


class Features(NamedTuple):
    """A window of feature maps: x (n, C, h, h) holds rows and columns `held`."""

    x: torch.Tensor
    held: Window


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, activation (StyleGAN2, figure 2d); with `up`, twice the side.

    Per sample, each kernel is multiplied by the style along its inputs and normalised per output. Both act on
    channels, so the style scales the input and the norm the output of one convolution that all samples share.
    """

    resample_filter: torch.Tensor
    noise_const: torch.Tensor

    def __init__(self, inputs: int, outputs: int, resolution: int, config: StyleGAN2Config, up: bool):
        super().__init__()
        self.resolution, self.up, self.use_noise = resolution, up, config.use_noise
        self.activation, self.conv_clamp = config.activation, config.conv_clamp
        self.affine = FullyConnected(config.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(_normal(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        # Where nothing is upsampled the filter is not used; files hold the default one there.
        self.register_buffer("resample_filter", _stored_filter(config.resample_filter if up else _DEFAULT_TAPS))
        if config.use_noise:
            self.register_buffer("noise_const", _normal(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(
        self, features: Features, w: torch.Tensor, wanted: Window, noise: NoiseSource, gain: float = 1.0
    ) -> Features:
        """Features before the layer, w (n, w_dim) -> window `wanted` of those after it, times `gain`."""
        with torch.autocast(w.device.type, enabled=False):
            style = self.affine(w)  # (n, in)
            norm = torch.rsqrt(style.square() @ self.weight.square().sum(dim=(2, 3)).T + 1e-8)  # (n, out)
        x = features.x
        x = self._convolve(x * style[:, :, None, None].to(x.dtype), features.held, wanted)
        # Activations are positively homogeneous: their gain may act before them, on the factors of addcmul.
        gain = gain * _GAINS[self.activation]
        offset = self.bias[:, None, None] * gain
        if self.use_noise and (drawn := noise.map(self, len(w), wanted)) is not None:
            offset = offset + drawn * (self.noise_strength * gain)
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            offset = offset.expand(1, *offset.shape) if offset.ndim == 3 else offset
            offset = offset.contiguous(memory_format=torch.channels_last)  # addcmul's result takes its layout
        factor = (norm * gain)[:, :, None, None].to(x.dtype)
        in_place = None if x.requires_grad or factor.requires_grad or offset.requires_grad else x
        x = torch.addcmul(offset.to(x.dtype), x, factor, out=in_place)
        if self.activation == "lrelu":
            x = F.leaky_relu(x, _SLOPE, inplace=True)
        if self.conv_clamp is not None:
            clamp = self.conv_clamp * gain / _GAINS[self.activation]
            x = x.clamp(-clamp, clamp)
        return Features(x, wanted)

    def _convolve(self, x: torch.Tensor, held: Window, wanted: Window) -> torch.Tensor:
        if not self.up:
            x, padding = _fit(x, held, Window(wanted.start - 1, wanted.stop + 1))
            return F.conv2d(x, self.weight, padding=padding)
        filtered = LowPass(self.resample_filter.shape[-1]).features(wanted)
        x, padding = _transposed(x, held, self.resolution // 2, self.weight.transpose(0, 1), filtered)
        kernel = _kernel(self.resample_filter, x.shape[1], x.dtype).flip(2, 3)  # true convolution
        return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


class NoiseSource:
    """Where a synthesis takes its noise maps from: `mode` as in StyleGAN2Config, `rng` for fresh ones."""

    def __init__(self, mode: str, rng: torch.Generator | None):
        if mode not in NOISE_MODES:
            raise UsageError(f"StyleGAN2 noise_mode {mode}: must be one of {', '.join(NOISE_MODES)}")
        self.mode, self.rng = mode, rng

    def map(self, layer: SynthesisLayer, n: int, wanted: Window) -> torch.Tensor | None:
        """A layer's noise: (h, h) for all of the batch or (n, 1, h, h), h the side of the window `wanted`."""
        if self.mode == "none":
            return None
        if self.mode == "const":
            drawn = layer.noise_const
        else:  # whole planes, so that the numbers do not depend on the crop
            drawn = torch.empty(n, 1, layer.resolution, layer.resolution, device=layer.noise_const.device)
            drawn = drawn.normal_(generator=self.rng).to(layer.noise_const.dtype)
        return drawn[..., wanted.start : wanted.stop, wanted.start : wanted.stop]


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels, not normalised (StyleGAN2, section 4)."""

    def __init__(self, inputs: int, config: StyleGAN2Config):
        super().__init__()
        self.conv_clamp = config.conv_clamp
        self.affine = FullyConnected(config.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(_normal(config.img_channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))

    def forward(self, features: Features, w: torch.Tensor, wanted: Window) -> torch.Tensor:
        """Features, w (n, w_dim) -> window `wanted` of the image contribution, (n, img_channels, h, h)."""
        x, _ = _fit(features.x, features.held, wanted)
        with torch.autocast(w.device.type, enabled=False):
            style = self.affine(w) / math.sqrt(self.weight.shape[1])
            kernel = self.weight[:, :, 0, 0] * style[:, None, :]  # (n, img_channels, in): no scaled copy of x
        y = torch.bmm(kernel.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
        y = y.to(self.bias.dtype) + self.bias[:, None, None]
        return y if self.conv_clamp is None else y.clamp(-self.conv_clamp, self.conv_clamp)


class Shortcut(nn.Module):
    """The resnet architecture's 1x1 convolution of a block's input, at twice the resolution."""

    resample_filter: torch.Tensor

    def __init__(self, inputs: int, outputs: int, config: StyleGAN2Config):
        super().__init__()
        self.weight = nn.Parameter(_normal(outputs, inputs, 1, 1))
        self.register_buffer("resample_filter", _stored_filter(config.resample_filter))

    def forward(self, features: Features, side: int, wanted: Window) -> torch.Tensor:
        y = F.conv2d(features.x, self.weight / math.sqrt(self.weight.shape[1]))
        return upsample(y, self.resample_filter, features.held, side, wanted)


# -----------------------------------------------------------------------------------------------------------
# Blocks and the synthesis network


class BlockPlan(NamedTuple):
    """Windows of one block's outputs: conv0, conv1, and the image after the block (None: no image yet)."""

    conv0: Window
    conv1: Window
    image: Window | None


class State(NamedTuple):
    """What the steps of a synthesis hand on: features, the image so far, and the open shortcut."""

    features: Features | None = None
    image: Features | None = None
    shortcut: torch.Tensor | None = None


class Step(NamedTuple):
    """One layer of the synthesis: the row of W+ that it reads, and what it does to the state."""

    row: int
    run: Callable[[State, torch.Tensor, NoiseSource], State]


class SynthesisBlock(nn.Module):
    """The layers at one resolution: conv0 (doubles; absent at 4 px), conv1, and toRGB where there is one."""

    resample_filter: torch.Tensor

    def __init__(self, resolution: int, config: StyleGAN2Config):
        super().__init__()
        self.resolution = resolution
        self.first = resolution == config.resolutions[0]
        last = resolution == config.resolutions[-1]
        channels = config.channels(resolution)
        self.register_buffer("resample_filter", _stored_filter(config.resample_filter))
        if self.first:
            self.const = nn.Parameter(_normal(channels, resolution, resolution))
        else:
            inputs = config.channels(resolution // 2)
            self.conv0 = SynthesisLayer(inputs, channels, resolution, config, up=True)
        self.conv1 = SynthesisLayer(channels, channels, resolution, config, up=False)
        self.torgb = ToRGB(channels, config) if last or config.architecture == "skip" else None
        self.skip: Shortcut | None = None
        if config.architecture == "resnet" and not self.first:
            self.skip = Shortcut(inputs, channels, config)

    def plan(self, image: Window | None, features: Window | None) -> BlockPlan:
        """Windows of the block's outputs, given those of the image and the features that are read later."""
        wanted = [window for window in (image, features) if window is not None]
        conv1 = wanted[0].union(wanted[-1])
        return BlockPlan(conv1.grown(1, self.resolution), conv1, image)

    def reads(self, plan: BlockPlan) -> tuple[Window, Window | None]:
        """Windows of the previous block's features and image that the planned windows need."""
        side, low_pass = self.resolution // 2, LowPass(self.resample_filter.shape[-1])
        features = _sources(low_pass.features(plan.conv0), 3, side)
        if self.skip is not None:
            features = features.union(_sources(low_pass.image(plan.conv1), low_pass.n_taps, side))
        image = None if plan.image is None else _sources(low_pass.image(plan.image), low_pass.n_taps, side)
        return features, image

    def steps(self, plan: BlockPlan) -> Iterator[Step]:
        """The block's layers in order, with the rows of W+ that they read (the last of b4 is row 1)."""
        row = 2 * int(math.log2(self.resolution)) - 4  # of conv1

        def conv0(state: State, w: torch.Tensor, noise: NoiseSource) -> State:
            assert state.features is not None
            shortcut = None
            if self.skip is not None:
                shortcut = self.skip(state.features, self.resolution // 2, plan.conv1) * math.sqrt(0.5)
            return State(self.conv0(state.features, w, plan.conv0, noise), state.image, shortcut)

        def conv1(state: State, w: torch.Tensor, noise: NoiseSource) -> State:
            features = state.features
            if self.first:
                features = Features(self.const.expand(len(w), -1, -1, -1), Window(0, self.resolution))
            assert features is not None
            gain = 1.0 if state.shortcut is None else math.sqrt(0.5)
            x, held = self.conv1(features, w, plan.conv1, noise, gain)
            return State(Features(x if state.shortcut is None else x + state.shortcut, held), state.image)

        def torgb(state: State, w: torch.Tensor, noise: NoiseSource) -> State:
            assert state.features is not None and self.torgb is not None and plan.image is not None
            image = self.torgb(state.features, w, plan.image)
            if state.image is not None:
                before, held = state.image
                image = image + upsample(before, self.resample_filter, held, self.resolution // 2, plan.image)
            return State(state.features, Features(image, plan.image))

        if not self.first:
            yield Step(row - 1, conv0)
        yield Step(row, conv1)
        if self.torgb is not None:
            yield Step(row + 1, torgb)


class SynthesisNetwork(nn.Module):
    """Styles (n, num_ws, w_dim) to an image (n, img_channels, side, side)."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.resolutions = config.resolutions
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(resolution, config))

    def blocks(self) -> list[SynthesisBlock]:
        return [self.get_submodule(f"b{resolution}") for resolution in self.resolutions]  # type: ignore[misc]

    def steps(self, wanted: Window) -> list[Step]:
        """All layers in order, each limited to what the window `wanted` of the final image needs."""
        steps: list[Step] = []
        features: Window | None = None
        image: Window | None = wanted
        for block in reversed(self.blocks()):
            plan = block.plan(image if block.torgb is not None else None, features)
            steps = [*block.steps(plan), *steps]
            features, image = block.reads(plan)
        return steps

    def run(self, steps: list[Step], ws: torch.Tensor, noise: NoiseSource, state: State | None = None) -> State:
        state = state or State()
        for step in steps:
            state = step.run(state, ws[:, step.row], noise)
        return state

    def forward(self, ws: torch.Tensor, noise: NoiseSource, wanted: Window | None = None) -> torch.Tensor:
        steps = self.steps(wanted or Window(0, self.resolutions[-1]))
        return _image(self.run(steps, ws, noise))


def _image(state: State) -> torch.Tensor:
    assert state.image is not None
    return state.image.x


# -----------------------------------------------------------------------------------------------------------
# The generator


class StyleGAN2(MultiLatentGenerator):
    """StyleGAN2's generator; latents are W+, one chunk of w_dim per layer."""

    use_fields = StyleGAN2Use

    def __init__(self, config: StyleGAN2Config | None = None, name: str = "stylegan2"):
        super().__init__()
        self.settings: StyleGAN2Config = config or StyleGAN2Config()
        config = self.settings
        self.name = name
        self.layout = LatentLayout((config.w_dim,) * config.num_ws)
        self.noise_dim = config.z_dim
        self.resolution = config.size_px
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    @classmethod
    def from_tensors(
        cls, config: StyleGAN2Config, state: Mapping[str, torch.Tensor], name: str = "stylegan2"
    ) -> StyleGAN2:
        """Build from a state dict, which is copied: as float64 if it is that, else as float32.

        Raises CorruptCheckpointError unless keys, shapes and low-pass filters are as configured, which is
        compared before any memory is taken for the network.
        """
        with torch.device("meta"):
            generator = cls(config, name)
        check_state("StyleGAN2", generator.state_dict(), state)
        for key in state:
            if key.endswith("resample_filter"):
                taps = _DEFAULT_TAPS if key.endswith("conv1.resample_filter") else config.resample_filter
                if not torch.allclose(state[key].cpu().float(), _stored_filter(taps), rtol=0, atol=1e-6):
                    raise CorruptCheckpointError(f"StyleGAN2 state dict: {key} is not made of the taps {list(taps)}")
        dtype = torch.float64 if state["mapping.w_avg"].dtype == torch.float64 else torch.float32
        copies = {
            key: torch.empty(value.shape, dtype=dtype, device=value.device).copy_(value) for key, value in state.items()
        }
        generator.load_state_dict(copies, assign=True)
        return generator

    @classmethod
    def from_file(cls, path: str | Path, name: str = "stylegan2") -> StyleGAN2:
        """Read a published pickle of either format, running nothing that is in it.

        Raises the errors of `stylegan2_pickle`.
        """
        from mi_ml_gen.generators import stylegan2_pickle  # the reader imports this module

        config, state = stylegan2_pickle.read_stylegan2(path)
        return cls.from_tensors(config, state, name)

    def _use(self, given: dict[str, Any]) -> None:
        self.settings = replace(self.settings, **given)
        self.resolution = self.settings.size_px

    def config(self) -> dict[str, Any]:
        return {**asdict(self.settings), "resample_filter": list(self.settings.resample_filter)}

    def walk_slice(self, chunks: Chunks) -> slice:
        """All of z, whatever the layers: a walker moves z, and the chosen rows of W+ take the result."""
        self.layout.slice(chunks)  # refuses chunks beyond the last layer
        return slice(0, self.noise_dim)

    def styles(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Noise z (n, z_dim) -> w (n, w_dim), before truncation.

        `labels`, of a conditional network: classes (n,) or their weights (n, c_dim); None: as configured.
        """
        _check_shape("z", z, (self.noise_dim,))
        c_dim = self.settings.c_dim
        if c_dim == 0:
            if labels is not None:
                raise UsageError(f"{self.name} is not conditional: it takes no labels")
            return self.mapping(z)
        if labels is None:
            labels = torch.full((len(z),), self.settings.label, device=z.device)
        if labels.ndim == 1:
            labels = F.one_hot(labels, c_dim)
        _check_shape("labels", labels, (c_dim,))
        return self.mapping(z, labels)

    def latents(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Noise z (n, z_dim) -> W+ (n, layout.dim), truncated as configured; the mapping runs once per z."""
        w = self.styles(z, labels)
        n_rows, n_cut = self.layout.n_chunks, self._n_truncated()
        if n_cut == 0:
            return w.repeat(1, n_rows)
        truncated = torch.lerp(self.mapping.w_avg, w, self.settings.psi)
        return torch.cat([truncated.repeat(1, n_cut), w.repeat(1, n_rows - n_cut)], dim=1)

    def distance(self, z: torch.Tensor, moved: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """As the base's, but from one row: all rows are w, some of them shortened to psi of their length."""
        self.layout.slice(chunks)  # refuses chunks beyond the last layer
        n_short = max(min(chunks.stop, self._n_truncated()) - chunks.start, 0)
        squared = self.settings.psi**2 * n_short + len(chunks) - n_short
        return torch.linalg.vector_norm(self.styles(moved) - self.styles(z), dim=1) * math.sqrt(squared)

    def _n_truncated(self) -> int:
        """Number of rows, from the first on, that truncation changes."""
        if self.settings.psi == 1:
            return 0
        return self.layout.n_chunks if self.settings.cutoff is None else self.settings.cutoff

    def synthesize(
        self, latents: torch.Tensor, rng: torch.Generator | None = None, noise_mode: str | None = None
    ) -> torch.Tensor:
        """W+ (n, layout.dim) -> (n, img_channels, img_resolution, img_resolution), about [-1, 1], unconfined.

        `noise_mode` overrides the configured one, `rng` draws the maps of "random".
        """
        return self.synthesis(self._rows(latents), NoiseSource(noise_mode or self.settings.noise_mode, rng))

    def decode(self, latents: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Any W+ (n, layout.dim) -> (n, 3, resolution, resolution) in [0, 1]: cropped, resized, rescaled."""
        noise = NoiseSource(self.settings.noise_mode, rng)
        return self._shown(self.synthesis(self._rows(latents), noise, self._crop()))

    def decode_pair(
        self, anchor: torch.Tensor, positive: torch.Tensor, chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImagePair:
        """As decoding both, but the layers before the first perturbed row run once."""
        if self.settings.noise_mode == "random":  # the two images differ in every layer's noise
            return super().decode_pair(anchor, positive, chunks, rng)
        noise = NoiseSource(self.settings.noise_mode, rng)
        steps = self.synthesis.steps(self._crop())
        shared = [step for step in steps if step.row < chunks.start]
        rest = steps[len(shared) :]  # rows ascend
        ws, ws_positive = self._rows(anchor), self._rows(positive)
        with torch.no_grad():
            state = self.synthesis.run(shared, ws, noise)
            anchor_image = self._shown(_image(self.synthesis.run(rest, ws, noise, state)))
        return ImagePair(anchor_image, self._shown(_image(self.synthesis.run(rest, ws_positive, noise, state))))

    def _rows(self, latents: torch.Tensor) -> torch.Tensor:
        """W+ flat, or as (n, num_ws, w_dim) already, -> (n, num_ws, w_dim) in the weights' dtype."""
        shape = (self.layout.n_chunks, self.settings.w_dim)
        if latents.shape[1:] != shape:
            _check_shape("latents", latents, (self.layout.dim,))
        return latents.reshape(-1, *shape).to(self.mapping.w_avg.dtype)

    def _crop(self) -> Window:
        start = (self.settings.img_resolution - self.settings.crop_px) // 2
        return Window(start, start + self.settings.crop_px)

    def _shown(self, image: torch.Tensor) -> torch.Tensor:
        """Cropped output (n, img_channels, crop, crop) -> images (n, 3, resolution, resolution) in [0, 1]."""
        image = resize(image, self.resolution, self.settings.resampling_kind)
        image = ((image * 127.5 + 128) / 255).clamp(0, 1)  # the authors' bytes, not rounded: 0 becomes 128/255
        return image.expand(-1, 3, -1, -1)


def _check_shape(what: str, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        wanted = ", ".join(["n", *map(str, shape)])
        raise UsageError(f"{what} of shape {tuple(x.shape)}: must be ({wanted})")


def build(config: dict[str, Any], state: Mapping[str, torch.Tensor], name: str = "stylegan2") -> StyleGAN2:
    """The generator of `config()` and its state dict."""
    try:
        settings = StyleGAN2Config.from_dict(config)
    except (TypeError, UsageError) as error:
        raise CorruptCheckpointError(f"StyleGAN2 configuration: {error}") from None
    return StyleGAN2.from_tensors(settings, state, name)


def read_published(path: str | Path) -> StyleGAN2:
    """The generator in a published pickle, used as the defaults have it."""
    return StyleGAN2.from_file(path)
