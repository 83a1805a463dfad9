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
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.data.resampling import resize, resizing_matrix
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator, check_state
from mi_ml_gen.generators.stylegan2.config import _DEFAULT_TAPS, RANDOM, StyleGAN2Config, StyleGAN2Use
from mi_ml_gen.generators.stylegan2.network import (
    MappingNetwork,
    NoiseSource,
    SynthesisNetwork,
    Window,
    _check_shape,
    _image,
    _stored_filter,
)
from mi_ml_gen.latents import Chunks, LatentLayout

# -----------------------------------------------------------------------------------------------------------
# The generator


class StyleGAN2(MultiLatentGenerator):
    """StyleGAN2's generator; latents are W+, one chunk of w_dim per layer."""

    rows: torch.Tensor | None
    """What resizes images, where the network is frozen; see `resampling.resizing_matrix`."""

    use_fields = StyleGAN2Use
    family: ClassVar[str] = "stylegan2"

    def __init__(self, config: StyleGAN2Config | None = None, name: str = "stylegan2"):
        super().__init__()
        self.settings: StyleGAN2Config = config or StyleGAN2Config()
        config = self.settings
        self.name = name
        self._label_was_chosen = config.label != 0
        self.layout = LatentLayout((config.w_dim,) * config.num_ws)
        self.noise_dim = config.z_dim
        self.resolution = config.size_px
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)
        self.register_buffer("rows", None, persistent=False)

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
        from mi_ml_gen.generators.stylegan2 import published as stylegan2_pickle

        config, state = stylegan2_pickle.read_stylegan2(path)
        return cls.from_tensors(config, state, name)

    def _use(self, given: dict[str, Any]) -> None:
        self.settings = replace(self.settings, **given)
        self._label_was_chosen = self._label_was_chosen or "label" in given
        self.resolution = self.settings.size_px
        self._hold_rows()

    def freeze(self) -> StyleGAN2:
        super().freeze()
        self._hold_rows()
        return self

    def _apply(self, function: Any, recurse: bool = True) -> StyleGAN2:
        super()._apply(function, recurse)
        if self.rows is not None:
            self._hold_rows()
        return self

    def _hold_rows(self) -> None:
        crop_px, size_px, kind = self.settings.crop_px, self.settings.size_px, self.settings.resampling_kind
        self.rows = None
        if crop_px != size_px:
            like = self.mapping.w_avg
            self.rows = resizing_matrix(kind, crop_px, size_px, like.dtype, like.device)

    def remarks(self) -> list[str]:
        n_classes = self.settings.c_dim
        if n_classes < 2 or self._label_was_chosen:
            return []
        return [
            f"{self.name} is a network of {n_classes} classes and no label was chosen: all its images are of class 0; "
            f"give --g_use label=random, or a class of 0 to {n_classes - 1} (label=0 says that class 0 is meant)"
        ]

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
        if labels is None:
            labels = self._labels(z)
        elif c_dim == 0:
            raise UsageError(f"{self.name} is not conditional: it takes no labels")
        if labels is None:
            return self.mapping(z)
        if labels.ndim == 1:
            labels = F.one_hot(labels, c_dim)
        _check_shape("labels", labels, (c_dim,))
        return self.mapping(z, labels)

    def _labels(self, z: torch.Tensor) -> torch.Tensor | None:
        """The classes (n,) that noise z (n, z_dim) has as configured; None for an unconditional network."""
        c_dim, label = self.settings.c_dim, self.settings.label
        if c_dim == 0:
            return None
        return _drawn_labels(z, c_dim) if label == RANDOM else torch.full((len(z),), int(label), device=z.device)

    def moved_latents(self, z: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """A perturbed sample keeps its class: the label is that of z, also where it is random."""
        return self.latents(moved, self._labels(z))

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
        labels = self._labels(z)
        difference = self.styles(moved, labels) - self.styles(z, labels)
        return torch.linalg.vector_norm(difference, dim=1) * math.sqrt(squared)

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
        image = resize(image, self.resolution, self.settings.resampling_kind, self.rows)
        image = ((image * 127.5 + 128) / 255).clamp(0, 1)  # the authors' bytes, not rounded: 0 becomes 128/255
        return image.expand(-1, 3, -1, -1)


def _drawn_labels(z: torch.Tensor, n_classes: int) -> torch.Tensor:
    """A class (n,) for each row of noise z (n, z_dim), uniform and, in effect, independent of what z does else.

    A hash of the bits of z as float32 (multiply and shift, modulo 2**64), so that the seed of z decides, and no state
    is kept.
    """
    bits = z.detach().float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    odd = (2 * torch.arange(1, bits.shape[1] + 1, device=z.device) + 1) * 0x9E3779B97F4A7C1
    mixed = (bits * odd).sum(1)
    for shift in (32, 29, 32):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * 0x5851F42D4C957F2D
    return ((mixed >> 32) & 0x7FFFFFFF) % n_classes


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


def published_network() -> StyleGAN2:
    """The network of LSUN Cars at 512 px, with random weights."""
    return StyleGAN2(StyleGAN2Config())
