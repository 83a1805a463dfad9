"""The StyleGAN2 network: mapping and synthesis (Karras et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.core import fixed, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.stylegan2.config import _DEFAULT_TAPS, _GAINS, NOISE_MODES, StyleGAN2Config

_SLOPE = 0.2
_NORM_EPS = 1e-8


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
    y = fixed.convolve(x, kernel, stride=2, padding=cut, transposed=True, groups=groups)
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


def _taps(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The low-pass filter with gain 4 as (taps, taps), turned for a correlation."""
    square = torch.outer(stored, stored) if stored.ndim == 1 else stored
    return (4 * square).to(dtype).flip(0, 1)


def _kernel(stored: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """The low-pass filter with gain 4 as a depthwise kernel (channels, 1, taps, taps), for a transposed convolution."""
    square = torch.outer(stored, stored) if stored.ndim == 1 else stored
    return (4 * square).to(dtype).expand(channels, 1, *square.shape)


def upsample(
    image: torch.Tensor, stored: torch.Tensor, held: Window, side: int, wanted: Window, taps: torch.Tensor | None = None
) -> torch.Tensor:
    """Double a plane of the given side: zeros between samples, then the low-pass filter with gain 4.

    `image` (n, C, h, h) is window `held` of the plane; returns window `wanted` of the doubled one. It works in the
    image's precision inside autocast too. taps: what `_taps` makes of the stored filter, from who holds it.
    """
    channels, n_taps = image.shape[1], stored.shape[-1]
    doubled = LowPass(n_taps).image(wanted)
    size = doubled.stop - doubled.start
    padding = n_taps - 1 + 2 * held.start - doubled.start
    taps = _taps(stored, image.dtype) if taps is None else taps
    whole = fixed.filtered(image, taps, 2, padding, size, size)
    if whole is not None:
        return whole
    kernel = _kernel(stored, channels, image.dtype)
    with torch.autocast(image.device.type, enabled=False):
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


class Modulation(NamedTuple):
    """What w (n, w_dim) makes of a layer, from who computed it for several layers at once."""

    scale: torch.Tensor
    """(n, in) of a convolution; the kernel (n, img_channels, in), in the maps' dtype, of a ToRGB."""
    norm: torch.Tensor | None = None
    """(n, out), with the gain of the activation."""


class Features(NamedTuple):
    """A window of feature maps: x (n, C, h, h) holds rows and columns `held`."""

    x: torch.Tensor
    held: Window


class SynthesisLayer(fixed.FixedWeights):
    """Modulated 3x3 convolution, noise, bias, activation (StyleGAN2, figure 2d); with `up`, twice the side.

    Per sample, each kernel is multiplied by the style along its inputs and normalised per output. Both act on
    channels, so the style scales the input and the norm the output of one convolution that all samples share.

    Frozen, it holds the sums of squares that the norm needs, the low-pass filter with its gain, and what constant noise
    and bias come to; in bf16 also the kernel.
    """

    follows = ("squares", "taps", "kernel", "offset", "noise_offset", "bias_offset")
    squares: torch.Tensor | None
    """(out, in)"""
    taps: torch.Tensor | None
    """(taps, taps), of the low-pass filter."""
    kernel: torch.Tensor | None
    """The weight in bfloat16, as the convolution reads it."""
    offset: torch.Tensor | None
    """(1, out, side, side), bfloat16: bias and constant noise together, of the whole plane."""
    noise_offset: torch.Tensor | None
    """(side, side)"""
    bias_offset: torch.Tensor | None
    """(out, 1, 1)"""
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

    def derive(self) -> dict[str, torch.Tensor]:
        made = {"squares": self._squares()}
        if self.up:
            made["taps"] = _taps(self.resample_filter, self.weight.dtype)
        gain = _GAINS[self.activation]
        made["bias_offset"] = self.bias[:, None, None] * gain
        if self.use_noise:
            made["noise_offset"] = self.noise_const * (self.noise_strength * gain)
        if self.in_bf16:
            layout = torch.channels_last if fixed.is_channels_last(self.weight) else torch.contiguous_format
            read = self.weight.transpose(0, 1) if self.up else self.weight
            made["kernel"] = read.bfloat16().contiguous(memory_format=layout)
            if self.use_noise:
                whole = (made["bias_offset"] + made["noise_offset"])[None].bfloat16()
                made["offset"] = whole.contiguous(memory_format=layout)
        return made

    def forward(
        self,
        features: Features,
        w: torch.Tensor,
        wanted: Window,
        noise: NoiseSource,
        gain: float = 1.0,
        modulation: Modulation | None = None,
    ) -> Features:
        """Features before the layer, w (n, w_dim) -> window `wanted` of those after it, times `gain`."""
        is_fixed = self.is_current()
        style, norm = modulation or self._modulation(w, is_fixed)
        assert norm is not None
        x = features.x
        x = fixed.scaled_activation(x, style[:, :, None, None], slope=None)
        x = self._convolve(x, features.held, wanted, is_fixed)
        # Activations are positively homogeneous: their gain may act before them, on the factors of addcmul.
        offset = self._offset(x, len(w), wanted, noise, gain, is_fixed)
        factor = (norm if gain == 1 else norm * gain)[:, :, None, None]
        slope = _SLOPE if self.activation == "lrelu" else None
        bound = None if self.conv_clamp is None else self.conv_clamp * gain
        return Features(fixed.scaled_activation(x, factor, offset, slope, bound, overwrite=True), wanted)

    def _modulation(self, w: torch.Tensor, is_fixed: bool) -> Modulation:
        with torch.autocast(w.device.type, enabled=False):
            style = self.affine(w)
            squares = self.squares if is_fixed and self.squares is not None else self._squares()
            norm = torch.rsqrt(style.square() @ squares.T + _NORM_EPS)
            return Modulation(style, norm * _GAINS[self.activation])

    def _squares(self) -> torch.Tensor:
        return self.weight.square().sum(dim=(2, 3))

    def _offset(
        self, x: torch.Tensor, n: int, wanted: Window, noise: NoiseSource, gain: float, is_fixed: bool
    ) -> torch.Tensor:
        """What is added to window `wanted` of maps like x before the activation: bias and noise."""
        plain = is_fixed and gain == 1
        if plain and noise.mode == "const" and self.offset is not None and x.dtype == self.offset.dtype:
            return self.offset[..., wanted.start : wanted.stop, wanted.start : wanted.stop]
        total = gain * _GAINS[self.activation]
        has_bias = plain and self.bias_offset is not None
        offset: torch.Tensor = self.bias_offset if has_bias else self.bias[:, None, None] * total  # type: ignore[assignment]
        if self.use_noise and plain and noise.mode == "const" and self.noise_offset is not None:
            offset = offset + self.noise_offset[wanted.start : wanted.stop, wanted.start : wanted.stop]
        elif self.use_noise and (drawn := noise.map(self, n, wanted)) is not None:
            offset = offset + drawn * (self.noise_strength * total)
        if fixed.is_channels_last(x):
            offset = offset.expand(1, *offset.shape) if offset.ndim == 3 else offset
            offset = offset.contiguous(memory_format=torch.channels_last)  # addcmul's result takes its layout
        return offset.to(x.dtype)

    def _convolve(self, x: torch.Tensor, held: Window, wanted: Window, is_fixed: bool) -> torch.Tensor:
        in_bf16 = is_fixed and fixed.working_dtype(x) == torch.bfloat16
        if not self.up:
            x, padding = _fit(x, held, Window(wanted.start - 1, wanted.stop + 1))
            weight = self.kernel if in_bf16 and self.kernel is not None else self.weight
            return fixed.convolve(x, weight, padding=padding)
        filtered = LowPass(self.resample_filter.shape[-1]).features(wanted)
        weight = self.kernel if in_bf16 and self.kernel is not None else self.weight.transpose(0, 1)
        x, padding = _transposed(x, held, self.resolution // 2, weight, filtered)
        side = x.shape[-1] + 2 * padding - self.resample_filter.shape[-1] + 1
        taps = self.taps if is_fixed and self.taps is not None else _taps(self.resample_filter, torch.float32)
        if (y := fixed.filtered(x, taps, 1, padding, side, side)) is not None:
            return y
        kernel = taps.to(x.dtype).expand(x.shape[1], 1, *taps.shape)
        return fixed.convolve(x, kernel, padding=padding, groups=x.shape[1])


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
            shape = (n, 1, layer.resolution, layer.resolution)
            drawn = runtime.normal(shape, self.rng, layer.noise_const.device).to(layer.noise_const.dtype)
        return drawn[..., wanted.start : wanted.stop, wanted.start : wanted.stop]


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels, not normalised (StyleGAN2, section 4)."""

    def __init__(self, inputs: int, config: StyleGAN2Config):
        super().__init__()
        self.conv_clamp = config.conv_clamp
        self.affine = FullyConnected(config.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(_normal(config.img_channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))

    def forward(
        self, features: Features, w: torch.Tensor, wanted: Window, modulation: Modulation | None = None
    ) -> torch.Tensor:
        """Features, w (n, w_dim) -> window `wanted` of the image contribution, (n, img_channels, h, h)."""
        x = features.x
        if modulation is not None:
            kernel = modulation.scale
        else:
            with torch.autocast(w.device.type, enabled=False):
                style = self.affine(w) / math.sqrt(self.weight.shape[1])
                kernel = self.weight[:, :, 0, 0] * style[:, None, :]  # (n, img_channels, in): no scaled copy of x
        y = fixed.channel_products(kernel.to(x.dtype), x)
        y, _ = _fit(y, features.held, wanted)  # three channels are cropped, not all of x
        y = y + self.bias[:, None, None]  # in the bias's dtype
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
    layer: SynthesisLayer | ToRGB
    run: Callable[[State, torch.Tensor, NoiseSource, Modulation | None], State]


class SynthesisBlock(fixed.FixedWeights):
    """The layers at one resolution: conv0 (doubles; absent at 4 px), conv1, and toRGB where there is one.

    Frozen, it holds the low-pass filter with its gain.
    """

    follows = ("taps",)
    taps: torch.Tensor | None
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

    def sources(self) -> list[torch.Tensor]:
        return [self.resample_filter]

    def derive(self) -> dict[str, torch.Tensor]:
        return {"taps": _taps(self.resample_filter, self.resample_filter.dtype)}

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

        def conv0(state: State, w: torch.Tensor, noise: NoiseSource, given: Modulation | None) -> State:
            assert state.features is not None
            shortcut = None
            if self.skip is not None:
                shortcut = self.skip(state.features, self.resolution // 2, plan.conv1) * math.sqrt(0.5)
            return State(self.conv0(state.features, w, plan.conv0, noise, modulation=given), state.image, shortcut)

        def conv1(state: State, w: torch.Tensor, noise: NoiseSource, given: Modulation | None) -> State:
            features = state.features
            if self.first:
                features = Features(self.const.expand(len(w), -1, -1, -1), Window(0, self.resolution))
            assert features is not None
            gain = 1.0 if state.shortcut is None else math.sqrt(0.5)
            x, held = self.conv1(features, w, plan.conv1, noise, gain, given)
            return State(Features(x if state.shortcut is None else x + state.shortcut, held), state.image)

        def torgb(state: State, w: torch.Tensor, noise: NoiseSource, given: Modulation | None) -> State:
            assert state.features is not None and self.torgb is not None and plan.image is not None
            image = self.torgb(state.features, w, plan.image, given)
            if state.image is not None:
                before, held = state.image
                taps = self.taps if self.is_current() else None
                image = image + upsample(before, self.resample_filter, held, self.resolution // 2, plan.image, taps)
            return State(state.features, Features(image, plan.image))

        if not self.first:
            yield Step(row - 1, self.conv0, conv0)
        yield Step(row, self.conv1, conv1)
        if self.torgb is not None:
            yield Step(row + 1, self.torgb, torgb)


class SynthesisNetwork(fixed.FixedWeights):
    """Styles (n, num_ws, w_dim) to an image (n, img_channels, side, side).

    Frozen on a GPU, where each launch counts, it holds the small matrices that make styles and norms of all layers, so
    that a few products do for all of them what would take some for each. Convolutions come first, then the ToRGB
    layers, each in its order; what has fewer channels than the widest is filled up with zeros. On the CPU nothing would
    be gained, and each layer sees to its own.
    """

    modulates_at_once_on = ("cuda",)

    follows = ("affine_weights", "affine_biases", "squares", "rgb_weights")
    affine_weights: torch.Tensor | None
    """(layers, w_dim, channels)"""
    affine_biases: torch.Tensor | None
    """(layers, 1, channels)"""
    squares: torch.Tensor | None
    """(convolutions, channels, channels): inputs, outputs."""
    rgb_weights: torch.Tensor | None
    """(ToRGB layers, 1, img_channels, channels)"""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.resolutions = config.resolutions
        self.gain = _GAINS[config.activation]
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(resolution, config))

    def convolutions(self) -> list[SynthesisLayer]:
        return [
            layer
            for block in self.blocks()
            for layer in ((block.conv1,) if block.first else (block.conv0, block.conv1))
        ]

    def torgbs(self) -> list[ToRGB]:
        return [block.torgb for block in self.blocks() if block.torgb is not None]

    def sources(self) -> list[torch.Tensor]:
        layers: list[SynthesisLayer | ToRGB] = [*self.convolutions(), *self.torgbs()]
        return [tensor for layer in layers for tensor in (layer.affine.weight, layer.affine.bias, layer.weight)]

    def derive(self) -> dict[str, torch.Tensor]:
        convolutions, torgbs = self.convolutions(), self.torgbs()
        layers: list[SynthesisLayer | ToRGB] = [*convolutions, *torgbs]
        if layers[0].weight.device.type not in self.modulates_at_once_on:
            return {}
        n = max(channels for layer in layers for channels in layer.weight.shape[:2])

        def filled(parts: list[torch.Tensor], *axes: int) -> torch.Tensor:
            """Stacked, the last axes brought to n."""
            fill = [tuple(x for axis in reversed(axes) for x in (0, n - part.shape[axis])) for part in parts]
            return torch.stack([F.pad(part, pad) for part, pad in zip(parts, fill, strict=True)])

        return {
            "affine_weights": filled([layer.affine.weight.T for layer in layers], -1),
            "affine_biases": filled([layer.affine.bias[None] for layer in layers], -1),
            "squares": filled([layer._squares().T for layer in convolutions], -2, -1),
            "rgb_weights": filled(
                [layer.weight[None, :, :, 0, 0] / math.sqrt(layer.weight.shape[1]) for layer in torgbs], -1
            ),
        }

    def modulations(self, steps: list[Step], ws: torch.Tensor) -> list[Modulation | None]:
        """What ws make of the layer of each step; None where each layer sees to its own."""
        if not self.is_current() or self.affine_weights is None or not steps:
            return [None] * len(steps)
        assert self.affine_biases is not None and self.squares is not None and self.rgb_weights is not None
        dtype = fixed.working_dtype(ws)
        is_conv = [isinstance(step.layer, SynthesisLayer) for step in steps]
        of_convs = [step for step, it_is in zip(steps, is_conv, strict=True) if it_is]
        of_torgbs = [step for step, it_is in zip(steps, is_conv, strict=True) if not it_is]
        # A convolution's place is its row; those of the steps are neighbours, and so are the ToRGB layers.
        at_convs = [step.row for step in of_convs]
        at_torgbs = [(step.row - 1) // 2 if len(self.rgb_weights) > 1 else 0 for step in of_torgbs]
        for_convs: list[Modulation] = []
        for_torgbs: list[Modulation] = []
        with torch.autocast(ws.device.type, enabled=False):
            places = [*at_convs, *(len(self.squares) + at for at in at_torgbs)]
            affine, rows = steps[0].layer.affine, ws.unbind(1)
            styles = torch.baddbmm(
                _rows_of(self.affine_biases, places),
                torch.stack([rows[step.row] for step in (*of_convs, *of_torgbs)]),
                _rows_of(self.affine_weights, places),
                beta=affine.lr_multiplier,
                alpha=affine.lr_multiplier / math.sqrt(affine.weight.shape[1]),
            )
            scales, of_rgb = styles.split([len(of_convs), len(of_torgbs)])
            if of_convs:
                norms = (scales.square() @ _rows_of(self.squares, at_convs)).add_(_NORM_EPS).rsqrt_() * self.gain
                for step, scale, norm in zip(of_convs, scales.unbind(), norms.unbind(), strict=True):
                    outputs, inputs = step.layer.weight.shape[:2]
                    for_convs.append(Modulation(_first(scale, inputs), _first(norm, outputs)))
            if of_torgbs:  # (layers, n, img_channels, channels)
                kernels = _rows_of(self.rgb_weights, at_torgbs) * of_rgb[:, :, None, :]
                for step, kernel in zip(of_torgbs, kernels.to(dtype).unbind(), strict=True):
                    for_torgbs.append(Modulation(_first(kernel, step.layer.weight.shape[1])))
        of_kind = {True: iter(for_convs), False: iter(for_torgbs)}
        return [next(of_kind[it_is]) for it_is in is_conv]

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
        for step, given in zip(steps, self.modulations(steps, ws), strict=True):
            state = step.run(state, ws[:, step.row], noise, given)
        return state

    def forward(self, ws: torch.Tensor, noise: NoiseSource, wanted: Window | None = None) -> torch.Tensor:
        steps = self.steps(wanted or Window(0, self.resolutions[-1]))
        return _image(self.run(steps, ws, noise))


def _rows_of(tensor: torch.Tensor, places: list[int]) -> torch.Tensor:
    """The rows at some places, without a copy where they are neighbours."""
    if places == list(range(places[0], places[-1] + 1)):
        return tensor[places[0] : places[-1] + 1]
    return torch.stack([tensor[place] for place in places])


def _first(x: torch.Tensor, n: int) -> torch.Tensor:
    """The first n of the last axis."""
    return x if x.shape[-1] == n else x[..., :n]


def _image(state: State) -> torch.Tensor:
    assert state.image is not None
    return state.image.x


def _check_shape(what: str, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        wanted = ", ".join(["n", *map(str, shape)])
        raise UsageError(f"{what} of shape {tuple(x.shape)}: must be ({wanted})")
