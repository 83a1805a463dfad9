"""The image models: encoders q(z|x), decoders p(x|z) and priors p(z), for whatever loss they are trained with.

    vae               one latent z1, affine layers
    hvae_2level       two latents, z2 above z1; affine layers
    convhvae_2level   the same with convolutions
    pixelhvae_2level  convolutions, and an autoregressive decoder (`mi_ml_gen.mim.images.pixelcnn`)

Tomczak and Welling (arXiv 1705.07120), section 3 and appendix; Livne, Swersky and Fleet (arXiv 1910.03175), section 5.
Images are (n, C, H, W) in [0, 1]. All log-densities are summed over dimensions and leave out -1/2 log 2 pi of each
latent dimension, as published: it cancels in log p(z) - log q(z|x).

    model = build_model(ModelSpec("convhvae_2level", (1, 28, 28), "binary"), rng)
    seen = model.features(x)                       # once, for any number of draws
    drawn = model.q_z(seen, model.noise(len(x), rng))
    log_w = model.log_p_x(x, drawn.z) + model.log_prior(drawn.z, model.components()) - drawn.log_q
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime, weights
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.weights import Kind, register_kind
from mi_ml_gen.mim.images.base import HIDDEN, MEAN_MARGIN, ImageModel, latent_log_var, pixel_log_var
from mi_ml_gen.mim.images.base import Components as Components
from mi_ml_gen.mim.images.base import Drawn as Drawn
from mi_ml_gen.mim.images.base import Features as Features
from mi_ml_gen.mim.images.base import Latents as Latents
from mi_ml_gen.mim.images.base import ModelSpec as ModelSpec
from mi_ml_gen.mim.images.base import Pixels as Pixels
from mi_ml_gen.mim.images.base import PriorNoise as PriorNoise
from mi_ml_gen.mim.images.layers import Dense, GatedConv, GatedDense, PointwiseConv, start_weights
from mi_ml_gen.mim.images.pixelcnn import N_FEATURES, pixel_cnn

FILTERS = 64
"""Channels of the decoder's convolutions."""
CODE_CHANNELS = 6
"""Channels of what a convolutional encoder flattens, at a quarter of the side."""
ENCODER_CHANNELS, ENCODER_STRIDES = (32, 32, 64, 64, CODE_CHANNELS), (1, 2, 1, 2, 1)
TOP_KERNELS, LOWER_KERNELS = (7, 3, 5, 3, 3), (3, 3, 3, 3, 3)
PSEUDO_LATENT_MEAN, PSEUDO_LATENT_STD = 0.05, 0.01


class VAE(ImageModel):
    """One latent, affine gated layers."""

    has_two_levels = False

    def _layers(self) -> None:
        spec = self.spec
        self.q_z_layers = gated(spec.pixels, HIDDEN, HIDDEN)
        self.q_z_mean = nn.Linear(HIDDEN, spec.z1_size)
        self.q_z_logvar = Dense(HIDDEN, spec.z1_size, latent_log_var)
        self.p_x_layers = gated(spec.z1_size, HIDDEN, HIDDEN)

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return heads(self.q_z_layers(x.flatten(1)), self.q_z_mean, self.q_z_logvar)

    def _hidden(self, z: Latents, x: Tensor | None) -> Tensor:
        return self.p_x_layers(z.z1)


class TwoLevels(ImageModel):
    """What the families with two latents share: the layers between z2 and z1."""

    def _lower_layers(self, linear: type[nn.Module], n_seen: int) -> None:
        spec = self.spec
        self.q_z1_layers_z2 = gated(spec.z2_size, n_seen)
        self.q_z1_layers_joint = gated(2 * n_seen, HIDDEN)
        self.q_z1_mean = linear(HIDDEN, spec.z1_size)
        self.q_z1_logvar = Dense(HIDDEN, spec.z1_size, latent_log_var)
        self.p_z1_layers = gated(spec.z2_size, HIDDEN, HIDDEN)
        self.p_z1_mean = linear(HIDDEN, spec.z1_size)
        self.p_z1_logvar = Dense(HIDDEN, spec.z1_size, latent_log_var)

    def _lower(self, seen: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.q_z1_layers_joint(torch.cat((seen, self.q_z1_layers_z2(z2).to(seen.dtype)), 1))
        return heads(joint, self.q_z1_mean, self.q_z1_logvar)

    def _p_lower(self, z2: Tensor) -> tuple[Tensor, Tensor]:
        return heads(self.p_z1_layers(z2), self.p_z1_mean, self.p_z1_logvar)


class HVAE(TwoLevels):
    """Two latents, affine gated layers."""

    def _layers(self) -> None:
        spec = self.spec
        self.q_z2_layers = gated(spec.pixels, HIDDEN, HIDDEN)
        self.q_z2_mean = nn.Linear(HIDDEN, spec.z2_size)
        self.q_z2_logvar = Dense(HIDDEN, spec.z2_size, latent_log_var)
        self.q_z1_layers_x = gated(spec.pixels, HIDDEN)
        self._lower_layers(nn.Linear, HIDDEN)
        self.p_x_layers_z1 = gated(spec.z1_size, HIDDEN)
        self.p_x_layers_z2 = gated(spec.z2_size, HIDDEN)
        self.p_x_layers_joint = gated(2 * HIDDEN, HIDDEN)

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return heads(self.q_z2_layers(x.flatten(1)), self.q_z2_mean, self.q_z2_logvar)

    def _lower_features(self, x: Tensor) -> Tensor:
        return self.q_z1_layers_x(x.flatten(1))

    def _hidden(self, z: Latents, x: Tensor | None) -> Tensor:
        return self.p_x_layers_joint(torch.cat((self.p_x_layers_z1(z.z1), self.p_x_layers_z2(z.z2)), 1))


class Convolutional(TwoLevels):
    """Two latents and convolutional encoders."""

    def _encoders(self) -> None:
        spec = self.spec
        channels, height, width = spec.shape
        n_code = CODE_CHANNELS * math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
        self.q_z2_layers = gated_convs(channels, TOP_KERNELS)
        self.q_z2_mean = Dense(n_code, spec.z2_size)
        self.q_z2_logvar = Dense(n_code, spec.z2_size, latent_log_var)
        self.q_z1_layers_x = gated_convs(channels, LOWER_KERNELS)
        self._lower_layers(Dense, n_code)

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return heads(self.q_z2_layers(x).flatten(1), self.q_z2_mean, self.q_z2_logvar)

    def _lower_features(self, x: Tensor) -> Tensor:
        return self.q_z1_layers_x(x).flatten(1)


class ConvHVAE(Convolutional):
    """Two latents, convolutional encoders and decoder."""

    def _layers(self) -> None:
        self._encoders()
        spec = self.spec
        channels = (spec.shape[0], *(FILTERS,) * 4)
        self.p_x_layers_z1 = gated(spec.z1_size, HIDDEN)
        self.p_x_layers_z2 = gated(spec.z2_size, HIDDEN)
        self.p_x_layers_joint_pre = gated(2 * HIDDEN, spec.pixels)
        self.p_x_layers_joint = nn.Sequential(
            *(GatedConv(n_in, n_out, 3) for n_in, n_out in itertools.pairwise(channels))
        )

    def _head(self) -> None:
        self.p_x_mean = PointwiseConv(FILTERS, self.spec.shape[0], functional.sigmoid)
        if not self.binary:
            self.p_x_logvar = PointwiseConv(FILTERS, self.spec.shape[0], pixel_log_var)

    def _hidden(self, z: Latents, x: Tensor | None) -> Tensor:
        joint = torch.cat((self.p_x_layers_z1(z.z1), self.p_x_layers_z2(z.z2)), 1)
        return self.p_x_layers_joint(self.p_x_layers_joint_pre(joint).reshape(-1, *self.spec.shape))


class PixelHVAE(Convolutional):
    """Two latents, convolutional encoders, autoregressive decoder."""

    is_autoregressive = True

    def _layers(self) -> None:
        self._encoders()
        spec = self.spec
        self.p_x_layers_z1 = gated(spec.z1_size, spec.pixels)
        self.p_x_layers_z2 = gated(spec.z2_size, spec.pixels)
        self.pixelcnn = pixel_cnn(spec.shape[0], 2 * spec.shape[0], spec.as_published)

    def _head(self) -> None:
        # As published: only the binary head has a bias.
        self.p_x_mean = PointwiseConv(N_FEATURES, self.spec.shape[0], functional.sigmoid, bias=self.binary)
        if not self.binary:
            self.p_x_logvar = PointwiseConv(N_FEATURES, self.spec.shape[0], pixel_log_var, bias=False)

    def maps(self, z: Latents) -> Tensor:
        """What the decoder sees of the latents: a map of pixels for each, (n, 2 C, H, W)."""
        parts = (self.p_x_layers_z1(z.z1), self.p_x_layers_z2(z.z2))
        return torch.cat([part.reshape(-1, *self.spec.shape) for part in parts], 1)

    def _hidden(self, z: Latents, x: Tensor | None) -> Tensor:
        if x is None:
            raise UsageError(f"{self.spec.family}: p(x|z) of a pixel needs the pixels before it; give x")
        maps = self.maps(z)
        return self.pixelcnn(torch.cat((x.to(maps.dtype), maps), 1))

    @torch.no_grad()
    def sample_plainly(self, z: Latents, uniforms: Tensor) -> Tensor:
        """Images x ~ p(x|z) by one whole pass of the decoder for each pixel, (n, C, H, W): slow, for comparison.

        uniforms: in [0, 1), of the images' shape; pixel (i, j) uses those at (i, j), whatever the order. The batch
        norms use their running statistics.
        """
        maps = self.maps(z)
        x = torch.zeros_like(uniforms)
        with self.with_running_statistics():
            for row in range(self.spec.shape[1]):
                for column in range(self.spec.shape[2]):
                    at = (..., slice(row, row + 1), slice(column, column + 1))
                    hidden = self.pixelcnn(torch.cat((x, maps), 1))[at]
                    x[at] = self._at_pixel(hidden).draw(uniforms[at])
        return x

    def _at_pixel(self, hidden: Tensor) -> Pixels:
        """The head on the states of one pixel, (n, features, 1, 1)."""
        mean = self.p_x_mean(hidden)
        if self.binary:
            return Pixels(mean, None)
        return Pixels(mean.clamp(MEAN_MARGIN, 1 - MEAN_MARGIN), self.p_x_logvar(hidden))


FAMILIES: dict[str, type[ImageModel]] = {
    "vae": VAE,
    "hvae_2level": HVAE,
    "convhvae_2level": ConvHVAE,
    "pixelhvae_2level": PixelHVAE,
}


def gated(*widths: int) -> nn.Sequential:
    """Affine gated layers of these widths, the input's first."""
    return nn.Sequential(*(GatedDense(n_in, n_out) for n_in, n_out in itertools.pairwise(widths)))


def gated_convs(n_in: int, kernels: tuple[int, ...]) -> nn.Sequential:
    """A convolutional encoder up to a quarter of the side."""
    channels = (n_in, *ENCODER_CHANNELS)
    return nn.Sequential(*map(GatedConv, channels, ENCODER_CHANNELS, kernels, ENCODER_STRIDES))


def heads(hidden: Tensor, mean: nn.Module, log_var: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of a Gaussian, in full precision, whatever the layers before had."""
    with runtime.full_precision(hidden.device):
        hidden = hidden.float() if hidden.dtype == torch.bfloat16 else hidden
        return mean(hidden), log_var(hidden)


# --- making, saving and loading -----------------------------------------------------------------------------


def build_model(spec: ModelSpec, rng: torch.Generator | None = None) -> ImageModel:
    """A model with weights drawn from `rng`; without it, weights that are to be loaded.

    The pseudo-inputs are not drawn; see `start_pseudo_inputs`. Raises UsageError for an unknown family.
    """
    if spec.family not in FAMILIES:
        raise UsageError(f"model {spec.family!r} is unknown{nearest(spec.family, FAMILIES, 'model')}")
    model = FAMILIES[spec.family](spec)
    if rng is not None:
        start_weights(model, rng)
        if spec.q_x_prior == "vampprior":
            noise = torch.randn(model.pseudo_latents.shape, generator=rng)
            model.pseudo_latents.data = PSEUDO_LATENT_MEAN + PSEUDO_LATENT_STD * noise
    return model


@torch.no_grad()
def start_pseudo_inputs(
    model: ImageModel, rng: torch.Generator, mean: float, std: float, images: Tensor | None = None
) -> None:
    """Draw the VampPrior's pseudo-inputs: normal ones, or training images (K, C, H, W) with noise of deviation 0.01."""
    if model.means is None:
        return
    weight = model.means.linear.weight
    noise = torch.randn(weight.shape, generator=rng)
    if images is None:
        weight.copy_(mean + std * noise)
        return
    if len(images) != weight.shape[1]:
        raise UsageError(f"pseudo-inputs: {weight.shape[1]} are wanted, {len(images)} images are given")
    weight.copy_(images.flatten(1).T + 0.01 * noise)


def save_model(path: str | Path, model: ImageModel, **about: Any) -> None:
    """Write a model's weights and configuration, with its hash beside. about: plain values to note."""
    kind = ImageModelFiles
    weights.write(path, kind.name, model.state_dict(), model.config(), about)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> ImageModel:
    """A model that `save_model` wrote, ready to be used (eval mode).

    Raises UsageError for a missing file, CorruptCheckpointError for one that is damaged or no image model.
    """
    return weights.load(path, ImageModelFiles.name).to(device)


@register_kind
class ImageModelFiles(Kind[ImageModel]):
    """Image models of MIM in files."""

    name = "mim_image"
    models = ImageModel
    file = "best.safetensors"
    about = "A latent-variable model of images (VAE or Mutual Information Machine): an encoder, a decoder and a prior."
    use = (
        "from mi_ml_gen.mim.images import load_model\n\n"
        'model = load_model("best.safetensors")\n'
        "embeddings = model.encoder_mean(images)  # (n, C, H, W) in [0, 1]\n"
    )
    citation = "livne2019mim"

    def build(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> ImageModel:
        values = dict(config)
        values["shape"] = tuple(values["shape"])
        model = build_model(ModelSpec(**values))
        model.load_state_dict(tensors)
        return model.eval()
