"""The generator of BigBiGAN (Donahue and Simonyan, 2019), a BigGAN whose latent chunks enter at successive blocks.

Chunk 0 feeds the first linear layer; chunk i >= 1 modulates both normalisations of residual block i - 1. The
published 128 px network has six chunks of 20. Every width, resolution and number of chunks follows from
`BigBiGANConfig`, so that the small bundled generator is the same class.

What a trained network keeps constant is folded when a file is read: the spectral norm of each layer into its
weight, the embedding of the one class that is ever used into the modulations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.checkpoints import reading as checkpoints
from mi_ml_gen.core import fixed, products
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import ImagePair, ImageVariants, MultiLatentGenerator, check_state
from mi_ml_gen.latents import Chunks, LatentLayout

# Output channels of each block in units of `width`, first block first (BigGAN, Table 4; the first entry also sets
# the channels of the first feature map).
_MULTIPLIERS = {32: (4, 4, 4), 64: (16, 8, 4, 2), 128: (16, 8, 4, 2, 1), 256: (16, 8, 8, 4, 2, 1)}


@dataclass(frozen=True)
class BigBiGANConfig:
    """Sizes of a BigBiGAN generator; the defaults are the published network's."""

    resolution: int = 128
    """Output height and width: bottom_width doubled once per block."""
    width: int = 96
    """Channels of the last block, "ch" in BigGAN."""
    multipliers: tuple[int, ...] | None = None
    """Output channels of each block in units of `width`; None: BigGAN's for the resolution."""
    stem_multiplier: int | None = None
    """Channels of the first feature map in units of `width`; None: those of the first block."""
    chunk_dim: int = 20
    """Length of each latent chunk; there is one chunk more than there are blocks."""
    attention_resolution: int | None = 64
    """Resolution after whose block self-attention sits; None: no attention."""
    bottom_width: int = 4
    norm_eps: float = 1e-4
    output_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        multipliers = self.multipliers or _MULTIPLIERS.get(self.resolution)
        if multipliers is None:
            raise UsageError(f"resolution {self.resolution}: give multipliers, or one of {sorted(_MULTIPLIERS)}")
        object.__setattr__(self, "multipliers", tuple(multipliers))
        object.__setattr__(self, "stem_multiplier", self.stem_multiplier or multipliers[0])
        if self.bottom_width * 2 ** len(multipliers) != self.resolution:
            raise UsageError(
                f"resolution {self.resolution}: {len(multipliers)} blocks starting at {self.bottom_width} px "
                f"give {self.bottom_width * 2 ** len(multipliers)} px"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the first feature map and after each block."""
        assert self.multipliers is not None and self.stem_multiplier is not None
        return tuple(self.width * m for m in (self.stem_multiplier, *self.multipliers))


class ModulatedNorm(nn.Module):
    """Batch normalisation whose gain and bias are affine in a latent chunk.

    In training mode statistics are the batch's, and the stored ones follow with `momentum`.
    """

    stored_mean: torch.Tensor
    stored_var: torch.Tensor

    def __init__(self, channels: int, chunk_dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.momentum = 0.1
        self.gain = nn.Linear(chunk_dim, channels)
        self.bias = nn.Linear(chunk_dim, channels)
        nn.init.ones_(self.gain.bias)
        nn.init.zeros_(self.bias.bias)
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """The statistics' normalisation with gain and bias of the chunk, in training mode."""
        gain, bias = self.gain(chunk)[:, :, None, None], self.bias(chunk)[:, :, None, None]
        x = F.batch_norm(x, self.stored_mean, self.stored_var, training=True, momentum=self.momentum, eps=self.eps)
        return torch.addcmul(bias, x, gain)

    def factors(self, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset of each map, (n, channels) both, where the statistics are the stored ones."""
        scale = self.gain(chunk) * torch.rsqrt(self.stored_var + self.eps)
        return scale, self.bias(chunk) - self.stored_mean * scale

    def affine(self, ahead: torch.Tensor | float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix (2 channels, chunk_dim) and constant (2 channels,) that give scale and offset from a chunk.

        ahead: what (channels,) was to be added to the maps before the norm, and was not.
        """
        rate = torch.rsqrt(self.stored_var + self.eps)
        gain, bias = self.gain.weight * rate[:, None], self.gain.bias * rate
        mean = self.stored_mean - ahead
        matrix = torch.cat([gain, self.bias.weight - mean[:, None] * gain])
        return matrix, torch.cat([bias, self.bias.bias - mean * bias])


class UpsampledConv(fixed.Conv2d):
    """A 3x3 convolution of the input doubled by nearest neighbour.

    Frozen, the doubling is folded into the kernel: each output parity sees only 2x2 distinct inputs, so a 4x4
    transposed convolution of stride 2 with summed taps gives the same result with 16 / 36 of the products. On a CPU
    wide layers need 9 / 36 (`core.products`).
    """

    follows = ("folded", *fixed.Conv2d.follows)
    form = products.DOUBLINGS
    folded: torch.Tensor | None

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def derive(self) -> dict[str, torch.Tensor]:
        """The folded kernel, in bf16 its copy alone: both would take half as much memory again as all weights. Where
        there are matrices they stand for it."""
        if matrices := self._matrices():
            return matrices
        folded = self._folded()
        return self._halved(folded) if self.in_bf16 else {"folded": folded}

    def _folded(self) -> torch.Tensor:
        w = self.weight.flip(2, 3).transpose(0, 1)  # (in, out, 3, 3), as a transposed convolution reads it
        padded = F.pad(w, (1, 1, 1, 1))  # convolve with the 2x2 ones of the doubling: 3 + 2 - 1 = 4 taps
        folded = padded[..., :-1, :-1] + padded[..., 1:, :-1] + padded[..., :-1, 1:] + padded[..., 1:, 1:]
        layout = torch.channels_last if fixed.is_channels_last(self.weight) else torch.contiguous_format
        return folded.contiguous(memory_format=layout)

    def _as_trained(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # which would double in float32
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self._conv_forward(x, self.weight, bias)

    def _by_taps(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if weight is self.weight:
            weight = self._folded() if self.folded is None else self.folded
            if self.matrices is not None and not torch.compiler.is_compiling():  # where they do not fit
                self.folded = weight
        return fixed.convolve(x, weight, bias, stride=2, padding=1, transposed=True)


class Block(fixed.FixedWeights):
    """Residual block that doubles the resolution (BigGAN, appendix B)."""

    follows = ("matrix", "constant", "biases")
    matrix: torch.Tensor | None
    constant: torch.Tensor | None
    biases: torch.Tensor | None
    """(out_channels,), of the two last convolutions together."""

    def __init__(self, in_channels: int, out_channels: int, config: BigBiGANConfig):
        super().__init__()
        self.norm1 = ModulatedNorm(in_channels, config.chunk_dim, config.norm_eps)
        self.conv1 = UpsampledConv(in_channels, out_channels)
        self.norm2 = ModulatedNorm(out_channels, config.chunk_dim, config.norm_eps)
        self.conv2 = fixed.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = fixed.Conv2d(in_channels, out_channels, 1)

    def sources(self) -> list[torch.Tensor]:  # the convolutions look after their own weights
        of_norms = [tensor for norm in (self.norm1, self.norm2) for tensor in (*norm.parameters(), *norm.buffers())]
        return [*of_norms, *(conv.bias for conv in (self.conv1, self.conv2, self.shortcut) if conv.bias is not None)]

    def derive(self) -> dict[str, torch.Tensor]:
        """For bf16 both norms' factors as one affine map of the chunk, which takes conv1's bias along, and what the
        other biases come to; float32 keeps the order of its roundings."""
        if not self.in_bf16:
            return {}
        assert self.conv1.bias is not None and self.conv2.bias is not None and self.shortcut.bias is not None
        matrices, constants = zip(self.norm1.affine(), self.norm2.affine(ahead=self.conv1.bias), strict=True)
        biases = (self.conv2.bias + self.shortcut.bias).bfloat16()
        return {"matrix": torch.cat(matrices), "constant": torch.cat(constants), "biases": biases}

    def forward(self, x: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        if self.training:
            h = self.conv1(torch.relu(self.norm1(x, chunk)))
            h = self.conv2(torch.relu(self.norm2(h, chunk)))
        elif self._in_bf16(x):  # where the biases of the convolutions are in what follows them
            first, second = self._factors(chunk, torch.bfloat16)
            h = self.conv1(fixed.scaled_activation(x.to(torch.bfloat16), *first), with_bias=False)
            h = self.conv2(fixed.scaled_activation(h, *second), with_bias=False)
            return fixed.add_doubled(h, self.shortcut(x, with_bias=False), self.biases)
        else:
            first, second = self._factors(chunk, fixed.working_dtype(x))
            h = self.conv1(fixed.scaled_activation(x.to(first[0].dtype), *first))
            h = self.conv2(fixed.scaled_activation(h, *second, overwrite=True))
        # A 1x1 convolution commutes with the doubling and is four times cheaper before it.
        return fixed.add_doubled(h, self.shortcut(x))

    def _in_bf16(self, x: torch.Tensor) -> bool:
        return fixed.working_dtype(x) == torch.bfloat16 and self.is_current() and self.matrix is not None

    def _factors(self, chunk: torch.Tensor, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Scale and offset (n, channels, 1, 1) of both norms, computed in the weights' dtype whatever autocast says;
        where nothing is held for bf16 they come in the maps' dtype, so that they do not bring the maps to float32."""
        norms = (self.norm1, self.norm2)
        with torch.autocast(chunk.device.type, enabled=False):
            chunk = chunk.to(self.norm1.gain.weight.dtype)
            if dtype == torch.bfloat16 and self.is_current() and self.matrix is not None:
                both = F.linear(chunk, self.matrix, self.constant)[:, :, None, None]
                sizes = [len(norm.stored_mean) for norm in norms for _ in range(2)]
                parts = both.split(sizes, dim=1)
                return [(parts[0], parts[1]), (parts[2], parts[3])]
            factors = [norm.factors(chunk) for norm in norms]
        return [(scale.to(dtype)[:, :, None, None], offset.to(dtype)[:, :, None, None]) for scale, offset in factors]


class OutputNorm(fixed.FixedWeights, nn.BatchNorm2d):
    """The last batch normalisation and the ReLU after it. Frozen, it holds both factors of the stored statistics for
    bf16; float32 keeps the order of its roundings."""

    follows = ("scale", "offset")
    scale: torch.Tensor | None
    offset: torch.Tensor | None

    def derive(self) -> dict[str, torch.Tensor]:
        if not self.in_bf16:
            return {}
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        offset = self.bias - self.running_mean * scale
        return {"scale": scale[None, :, None, None], "offset": offset[None, :, None, None]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and self.is_current() and self.scale is not None and self.offset is not None:
            return fixed.scaled_activation(x, self.scale, self.offset)
        return F.relu(nn.BatchNorm2d.forward(self, x), inplace=True)


class SelfAttention(nn.Module):
    """Self-attention over positions (SAGAN, section 3), keys and values pooled 2x2."""

    def __init__(self, channels: int):
        super().__init__()
        self.theta = fixed.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = fixed.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = fixed.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = fixed.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.theta(x).flatten(2).transpose(1, 2)  # (n, positions, c / 8)
        key = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)  # (n, positions / 4, c / 8)
        value = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)  # (n, positions / 4, c / 2)
        # One head, as an axis of its own: with three axes torch 2.6 keeps all attention weights.
        attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]
        attended = attended.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(attended)


class BigBiGAN(MultiLatentGenerator):
    """BigBiGAN's generator; latents are the noise itself."""

    family: ClassVar[str] = "bigbigan"

    def __init__(self, config: BigBiGANConfig | None = None, name: str = "bigbigan"):
        super().__init__()
        self.settings = config = config or BigBiGANConfig()
        self.name = name
        self.resolution = config.resolution
        channels = config.channels
        self.layout = LatentLayout((config.chunk_dim,) * len(channels))
        self.noise_dim = self.layout.dim

        self.stem = nn.Linear(config.chunk_dim, channels[0] * config.bottom_width**2)
        self.blocks = nn.ModuleList()
        self.attention = nn.ModuleDict()  # keyed by the index of the block that it follows
        for i, (c_in, c_out) in enumerate(pairwise(channels)):
            self.blocks.append(Block(c_in, c_out, config))
            if config.bottom_width * 2 ** (i + 1) == config.attention_resolution:
                self.attention[str(i)] = SelfAttention(c_out)
        self.out_norm = OutputNorm(channels[-1], eps=config.output_norm_eps)
        self.out_conv = fixed.Conv2d(channels[-1], 3, 3, padding=1)

    def config(self) -> dict[str, Any]:
        return asdict(self.settings)

    # The network in stages: stage 0 is the linear map of chunk 0, stage i the block that chunk i modulates. A
    # perturbation of chunks from k on leaves the first k stages as they are.

    def _stage(self, i: int, h: torch.Tensor | None, chunk: torch.Tensor) -> torch.Tensor:
        if h is None:
            width = self.settings.bottom_width
            dtype = fixed.working_dtype(chunk)
            with torch.autocast(chunk.device.type, enabled=False):
                h = self.stem(chunk.to(self.stem.weight.dtype)).to(dtype)
            return h.view(-1, self.settings.channels[0], width, width)
        h = self.blocks[i - 1](h, chunk)
        return self.attention[str(i - 1)](h) if str(i - 1) in self.attention else h

    def _stages(self, latents: torch.Tensor, h: torch.Tensor | None, start: int, stop: int) -> torch.Tensor | None:
        for i, chunk in enumerate(latents.split(list(self.layout.sizes), dim=1)):
            if start <= i < stop:
                h = self._stage(i, h, chunk)
        return h

    def _head(self, h: torch.Tensor) -> torch.Tensor:
        h = self.out_conv(self.out_norm(h))
        return torch.tanh(h.float() if h.dtype == torch.bfloat16 else h)  # the image's last rounding is float32's

    def first_weights(self, chunks: Chunks) -> torch.Tensor:
        """Of chunk 0 the linear layer, of chunk i the gains and biases of block i - 1; one block of a matrix each."""
        found = []
        for i in range(chunks.start, chunks.stop):
            if i == 0:
                found.append(self.stem.weight)
                continue
            block = self.blocks[i - 1]
            assert isinstance(block, Block)
            layers = [layer for norm in (block.norm1, block.norm2) for layer in (norm.gain, norm.bias)]
            found.append(torch.cat([layer.weight for layer in layers]))
        return torch.block_diag(*found)

    def early_features(self, latents: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """The feature maps after the last of the chunks has entered."""
        h = self._stages(latents, None, 0, chunks.stop)
        assert h is not None
        return h

    def synthesize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, layout.dim) -> (n, 3, resolution, resolution) in (-1, 1)."""
        h = self._stages(latents, None, 0, self.layout.n_chunks)
        assert h is not None
        return self._head(h)

    def decode(self, latents: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        return _to_unit_range(self.synthesize(latents))

    def decode_pair(
        self, anchor: torch.Tensor, positive: torch.Tensor, chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImagePair:
        """As decoding both, but the stages below the first perturbed chunk run once."""
        n_chunks = self.layout.n_chunks
        with torch.no_grad():
            shared = self._stages(anchor, None, 0, chunks.start)
            h = self._stages(anchor, shared, chunks.start, n_chunks)
            assert h is not None
            anchor_image = _to_unit_range(self._head(h))
        h = self._stages(positive, shared, chunks.start, n_chunks)
        assert h is not None
        return ImagePair(anchor_image, _to_unit_range(self._head(h)))

    def decode_variants(
        self,
        anchor: torch.Tensor,
        variants: Sequence[torch.Tensor],
        chunks: Chunks,
        rng: torch.Generator | None = None,
    ) -> ImageVariants:
        """As `MultiLatentGenerator.decode_variants`, but the stages below the first perturbed chunk run once."""
        n_chunks, n = self.layout.n_chunks, len(variants)
        with torch.no_grad():
            shared = self._stages(anchor, None, 0, chunks.start)
            h = self._stages(anchor, shared, chunks.start, n_chunks)
            assert h is not None
            anchor_image = _to_unit_range(self._head(h))
        repeated = None if shared is None else shared.repeat(n, 1, 1, 1)
        h = self._stages(torch.cat(list(variants)), repeated, chunks.start, n_chunks)
        assert h is not None
        return ImageVariants(anchor_image, list(_to_unit_range(self._head(h)).chunk(n)))


def _to_unit_range(output: torch.Tensor) -> torch.Tensor:
    return ((output + 1) / 2).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------------
# The published file


def from_published(
    state: Mapping[str, torch.Tensor], config: BigBiGANConfig | None = None, name: str = "bigbigan"
) -> BigBiGAN:
    """Build the generator from the flat state dict of `BigBiGAN_x1.pth`, or of the same network at other sizes.

    `config` may leave the sizes to the file (None); they are then read off the tensors' shapes. Raises
    CorruptCheckpointError when keys or shapes are not exactly those of the network.
    """
    config = config or _config_of(state)
    generator = BigBiGAN(config, name)
    remaining = dict(state)

    def take(key: str) -> torch.Tensor:
        if key not in remaining:
            raise CorruptCheckpointError(f"BigBiGAN state dict: {key} is missing")
        return remaining.pop(key)

    def normalised(key: str) -> torch.Tensor:
        """A layer's weight over its spectral norm: one power step from the stored left singular vector."""
        weight = take(f"{key}.weight")
        take(f"{key}.sv0")  # a log of the last singular value, which plays no part
        matrix, u = weight.flatten(1).double(), take(f"{key}.u0").double()
        if u.shape != (1, matrix.shape[0]):
            raise CorruptCheckpointError(f"BigBiGAN state dict: {key}.u0 has shape {tuple(u.shape)}")
        v = F.normalize(u @ matrix, dim=1, eps=1e-4)
        sigma = (v @ matrix.T).norm()
        return (weight.double() / sigma).to(weight.dtype)

    def layer(ours: str, theirs: str, bias: bool = True) -> None:
        folded[f"{ours}.weight"] = normalised(theirs)
        if bias:
            folded[f"{ours}.bias"] = take(f"{theirs}.bias")

    def modulation(ours: str, theirs: str, offset: float) -> None:
        """The class embedding's columns act as a constant: they become the bias."""
        matrix = normalised(theirs)
        folded[f"{ours}.weight"] = matrix[:, len(embedding) :].clone()
        folded[f"{ours}.bias"] = offset + (matrix[:, : len(embedding)].double() @ embedding).to(matrix.dtype)

    folded: dict[str, torch.Tensor] = {}
    embedding = take("shared.weight")[0].double()  # the class index is always 0
    layer("stem", "linear")
    for i in range(len(generator.blocks)):
        ours, theirs = f"blocks.{i}", f"blocks.{i}.0"
        for norm in ("1", "2"):
            modulation(f"{ours}.norm{norm}.gain", f"{theirs}.bn{norm}.gain", offset=1.0)
            modulation(f"{ours}.norm{norm}.bias", f"{theirs}.bn{norm}.bias", offset=0.0)
            for statistic in ("stored_mean", "stored_var"):
                folded[f"{ours}.norm{norm}.{statistic}"] = take(f"{theirs}.bn{norm}.{statistic}")
        layer(f"{ours}.conv1", f"{theirs}.conv1")
        layer(f"{ours}.conv2", f"{theirs}.conv2")
        layer(f"{ours}.shortcut", f"{theirs}.conv_sc")
        if str(i) in generator.attention:
            for part in ("theta", "phi", "g", "o"):
                layer(f"attention.{i}.{part}", f"blocks.{i}.1.{part}", bias=False)
            folded[f"attention.{i}.gamma"] = take(f"blocks.{i}.1.gamma")
    folded["out_norm.weight"] = take("output_layer.0.gain")
    folded["out_norm.bias"] = take("output_layer.0.bias")
    folded["out_norm.running_mean"] = take("output_layer.0.stored_mean")
    folded["out_norm.running_var"] = take("output_layer.0.stored_var")
    folded["out_norm.num_batches_tracked"] = torch.tensor(0)
    layer("out_conv", "output_layer.2")
    if remaining:
        raise CorruptCheckpointError(f"BigBiGAN state dict: unknown keys {', '.join(sorted(remaining)[:5])}")
    load_exactly(generator, folded)
    return generator


def is_published(root: Any) -> bool:
    """Whether a parsed checkpoint has the layout that `from_published` reads."""
    names = {"shared.weight", "linear.weight", "output_layer.2.weight"}
    return type(root) is dict and names <= checkpoints.without_wrappers(root).keys()


def read_published(path: Path) -> BigBiGAN:
    """The generator in a published file such as `BigBiGAN_x1.pth`, whatever its sizes."""
    try:
        return from_published(checkpoints.without_wrappers(checkpoints.read_state_dict(path)))
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(error if str(path) in str(error) else f"{path}: {error}") from None


def latent_space() -> BigBiGAN:
    """The published network without weights, for its latents, which are the noise itself; it cannot decode."""
    with torch.device("meta"):
        return BigBiGAN()


def build(config: dict[str, Any], state: Mapping[str, torch.Tensor], name: str) -> BigBiGAN:
    """The generator of a configuration and a state dict in our own layout."""
    try:
        generator = BigBiGAN(BigBiGANConfig(**config), name)
    except (TypeError, UsageError) as error:
        raise CorruptCheckpointError(f"BigBiGAN configuration: {error}") from None
    load_exactly(generator, state)
    return generator


def load_exactly(generator: BigBiGAN, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict in our own layout, in its own floating dtype; keys and shapes must match exactly."""
    check_state("BigBiGAN", generator.state_dict(), state)
    if state["stem.weight"].dtype == torch.float64:
        generator.double()
    generator.load_state_dict(state)


def _config_of(state: Mapping[str, torch.Tensor]) -> BigBiGANConfig:
    """Sizes of a published state dict, read off its shapes."""
    try:
        n_blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        last = state["output_layer.2.weight"].shape[1]
        width = math.gcd(*(state[f"blocks.{i}.0.conv1.weight"].shape[0] for i in range(n_blocks)), last)
        attention = [i for i in range(n_blocks) if f"blocks.{i}.1.gamma" in state]
        return BigBiGANConfig(
            resolution=4 * 2**n_blocks,
            width=width,
            multipliers=tuple(state[f"blocks.{i}.0.conv1.weight"].shape[0] // width for i in range(n_blocks)),
            stem_multiplier=state["blocks.0.0.conv1.weight"].shape[1] // width,
            chunk_dim=state["linear.weight"].shape[1],
            attention_resolution=4 * 2 ** (attention[0] + 1) if attention else None,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptCheckpointError(f"not a BigBiGAN state dict: {error}") from None
