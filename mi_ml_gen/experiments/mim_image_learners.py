"""What the comparison of MIM with contrastive learning trains: one encoder, nine ways to train it.

Every method has the encoder of the image model, x -> the mean of q(z|x), as its backbone. MIM, VAE and their relatives
train it with its decoder; SimCLR, SimSiam and BYOL put their own heads on it. All see the same images in the same
order; a method of views sees two of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.encoders.base import Architecture, Encoder
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.experiments.mim_image_settings import GENERATIVE, MimComparisonConfig
from mi_ml_gen.mim.images.base import ImageModel, ModelSpec
from mi_ml_gen.mim.images.networks import build_model, start_pseudo_inputs
from mi_ml_gen.mim.images.objectives import OBJECTIVES, Sampled, batch_loss
from mi_ml_gen.mim.images.sets import ImageSets
from mi_ml_gen.views.augment import Augment

GRID = 4
"""Side of the grid that the decoder's states are averaged over."""
PROJECTIONS = {"simclr": (128, 128), "simsiam": (256, 64), "byol": (128, 128)}
"""Dimensions of the projections, and hidden units of the predictor."""


class Draws:
    """The images of one step: a function of (seed, step), whatever the method makes of them."""

    def __init__(self, sets: ImageSets, augment: Augment | None, rows: Tensor, seed: int, step: int) -> None:
        self.sets, self.augment, self.rows = sets, augment, rows
        self.device = sets.train.x.device
        self._key = seed, step

    def rng(self, name: str) -> torch.Generator:
        seed, step = self._key
        return runtime.stream(seed, f"comparison {name}", step, 0, self.device)

    def images(self) -> Tensor:
        """(n, C, H, W) in [0, 1]."""
        return self.sets.draw(self.sets.train, self.rows, self.rng("images"))

    def views(self) -> tuple[Tensor, Tensor]:
        """Two augmented views of each image, (n, C, H, W) each; binary ones are drawn from the augmented pixels, so
        that the encoder sees the kind of images that it will be tested on."""
        assert self.augment is not None, "see needs_views"
        rng = self.rng("views")
        pixels = self.sets.train.pixels(self.rows)
        found = []
        for _ in range(2):
            view = self.augment.view(pixels, self.augment.draw(len(pixels), rng, self.device)).clamp(0, 1)
            if self.sets.kind == "binary":
                view = (runtime.uniform(view.shape, rng, self.device) < view).float()
            found.append(view)
        return found[0], found[1]


def needs_views(method: str) -> bool:
    """Whether a method compares two views of each image."""
    return method not in GENERATIVE or OBJECTIVES[method].contrast == "views"


def augmentation(sets: ImageSets) -> Augment:
    """Random crops and mirroring; colours too where there are any. Raises UsageError for images that are not square."""
    channels, height, width = sets.shape
    if height != width:
        raise UsageError(f"{sets.name}: images of {height} x {width} px; the views need square ones")
    policy = "torchvision" if channels == 3 else "torchvision_no_color"
    return Augment(policy, height, height, normalize=False)


class Learner(nn.Module):
    """A method in training."""

    def loss(self, draws: Draws, beta: float) -> Tensor:
        """The scalar loss of a step; beta: the warm-up, 0 to 1."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What follows the optimiser's step."""

    def embeddings(self, x: Tensor) -> dict[str, Tensor]:
        """Embeddings (n, d) of images (n, C, H, W), by what they are read from; the first is the method's own."""
        raise NotImplementedError


class Generative(Learner):
    """An image model under one of the losses of `mim.images.objectives`."""

    def __init__(self, method: str, settings: MimComparisonConfig, sets: ImageSets, seed: int) -> None:
        super().__init__()
        self.objective = OBJECTIVES[method]
        self.settings = settings
        self.model = build_model(spec_of(settings, sets), runtime.stream(seed, "comparison weights", 0, 0))
        images = sets.train.pixels(slice(settings.number_components)).cpu() if settings.prior == "vampprior" else None
        rng = runtime.stream(seed, "comparison pseudo-inputs", 0, 0)
        start_pseudo_inputs(self.model, rng, sets.pseudo_mean, sets.pseudo_std, images)

    def loss(self, draws: Draws, beta: float) -> Tensor:
        x = draws.images()
        sampled = None
        if self.objective.samples and beta >= 1:
            rng = draws.rng("sampling half")
            noise = self.model.prior_noise(len(x), rng)
            with torch.no_grad():
                pixels = self.model.p_x(self.model.from_prior(noise, self.model.components()))
            sampled = Sampled(noise, pixels.draw(runtime.uniform(x.shape, rng, x.device)))
        return batch_loss(
            self.model, self.objective, x, self.model.noise(len(x), draws.rng("latents")), beta, sampled,
            draws.views() if self.objective.contrast == "views" else None,
            self.settings.contrast_weight, self.settings.temperature,
        ).loss  # fmt: skip

    def embeddings(self, x: Tensor) -> dict[str, Tensor]:
        latents = self.model.mean_latents(x)
        hidden = self.model.hidden(latents)
        found = of_encoder(self.model, x)
        if hidden.ndim == 4:
            found["decoder states, mean"] = hidden.mean((2, 3))
            found[f"decoder states, {GRID} x {GRID}"] = functional.adaptive_avg_pool2d(hidden, GRID).flatten(1)
        else:
            found["decoder states"] = hidden
        return found


class OnViews(Learner):
    """SimCLR, SimSiam or BYOL with the image model's encoder as their backbone."""

    def __init__(self, method: str, settings: MimComparisonConfig, sets: ImageSets, seed: int) -> None:
        super().__init__()
        dim, pred = PROJECTIONS[method]
        architecture = OfImageModel(dim=dim, pred=pred, spec=spec_of(settings, sets), seed=seed)
        self.encoder: Encoder
        if method == "simclr":
            self.encoder = SimCLR(architecture, settings.temperature)
        elif method == "simsiam":
            self.encoder = SimSiam(architecture)
        else:
            self.encoder = BYOL(architecture, settings.target_momentum)

    def loss(self, draws: Draws, beta: float) -> Tensor:
        return self.encoder.loss(self.encoder(*draws.views()).parts)

    def after_step(self) -> None:
        self.encoder.after_step()

    def embeddings(self, x: Tensor) -> dict[str, Tensor]:
        backbone: Any = self.encoder.backbone
        return of_encoder(backbone.network, x)


class EncoderMean(nn.Module):
    """Images (n, C, H, W) to the mean of q(z|x), (n, feature_dim): an image model without its decoder and prior."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        super().__init__()
        rng = runtime.stream(seed, "comparison weights", 0, 0)  # the same weights as the methods with a decoder
        self.network = build_model(replace(spec, prior="standard"), rng)
        for name, _ in list(self.network.named_children()):
            if not name.startswith("q_z") or name.endswith("logvar"):
                setattr(self.network, name, Unused())
        self.feature_dim = self.network.latent_size

    def forward(self, x: Tensor) -> Tensor:
        return self.network.encoder_mean(x)


class Unused(nn.Module):
    """Stands for a part that no method on views needs, such as the log-variances of q(z|x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


@dataclass(frozen=True)
class OfImageModel(Architecture):
    """An architecture whose backbone is an image model's encoder."""

    spec: ModelSpec | None = None
    seed: int = 0

    def backbone(self, zero_init_residual: bool = False) -> Any:
        assert self.spec is not None
        return EncoderMean(self.spec, self.seed)


def of_encoder(model: ImageModel, x: Tensor) -> dict[str, Tensor]:
    """What is read from the encoder: the means of both latents, of the upper one, and the layers before them."""
    latents = model.mean_latents(x)
    found = {"encoder mean": latents.flat}
    if model.has_two_levels:
        found["encoder mean, z2 alone"] = latents.top
    found["encoder, hidden layers"] = torch.cat(list(hidden_layers(model, x)), 1)
    return found


def hidden_layers(model: Any, x: Tensor) -> Iterator[Tensor]:
    """What the heads of q(z|x) have of x alone, (n, h) each."""
    flat = x if model.spec.family == "convhvae_2level" else x.flatten(1)
    names = ("q_z2_layers", "q_z1_layers_x") if model.has_two_levels else ("q_z_layers",)
    for name in names:
        yield getattr(model, name)(flat).flatten(1)


def spec_of(settings: MimComparisonConfig, sets: ImageSets) -> ModelSpec:
    return ModelSpec(
        settings.model_name, sets.shape, sets.kind, settings.z1_size, settings.z2_size, settings.prior,
        settings.number_components,
    )  # fmt: skip


def make_learner(method: str, settings: MimComparisonConfig, sets: ImageSets, seed: int) -> Learner:
    """A method at the start of its training; the encoder's weights are a function of the seed alone."""
    torch.manual_seed(seed)  # of the heads of the methods on views
    kind = Generative if method in GENERATIVE else OnViews
    return kind(method, settings, sets, seed)


__all__ = ["Draws", "Generative", "Learner", "OnViews", "augmentation", "make_learner", "needs_views"]
