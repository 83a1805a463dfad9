"""Pictures of an image model: samples, reconstructions, pseudo-inputs, and its latents in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.images.base import ImageModel, Latents
from mi_ml_gen.mim.images.networks import PixelHVAE
from mi_ml_gen.mim.images.pixel_sampling import sample
from mi_ml_gen.report.figures import _dress, _new_figure, series_colors
from mi_ml_gen.report.images import image_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_COLUMNS = 10
N_SAMPLES = 50
MOST_POINTS = 3000
"""Latents in a picture of the plane."""
PAIRED = (
    "#3a6fb0", "#d07a2d", "#3c9468", "#c2504c", "#8262ab", "#96704f", "#d78fc4", "#5d646b", "#b0a52e", "#2ba8b8",
)  # fmt: skip
"""Colours of up to ten classes."""


@torch.no_grad()
def drawn_images(model: ImageModel, z: Latents, rng: torch.Generator) -> Tensor:
    """Images x ~ p(x|z), (n, C, H, W)."""
    shape = (len(z.z1), *model.spec.shape)
    uniforms = runtime.uniform(shape, rng, z.z1.device)
    return sample(model, z, uniforms) if isinstance(model, PixelHVAE) else model.p_x(z).draw(uniforms)


@torch.no_grad()
def samples_picture(model: ImageModel, seed: int = 0, n: int = N_SAMPLES) -> np.ndarray:
    """Draws of the model: the means of p(x|z) at z ~ p(z); of an autoregressive decoder images drawn from it."""
    rng = runtime.stream(seed, "sample picture", 0, 0, next(model.parameters()).device)
    z = model.sample_prior(n, rng)
    images = drawn_images(model, z, rng) if model.is_autoregressive else model.p_x(z).mean
    return image_grid(images.cpu(), n_columns=N_COLUMNS)


@torch.no_grad()
def reconstructions_picture(model: ImageModel, images: Tensor, seed: int = 0) -> np.ndarray:
    """Rows of images (n, C, H, W), each above the row of their reconstructions, the means of p(x|z) at one z ~ q(z|x).

    An autoregressive decoder sees the true pixels before each one.
    """
    rng = runtime.stream(seed, "reconstruction picture", 0, 0, images.device)
    images = images[: len(images) // N_COLUMNS * N_COLUMNS]
    mean = model.reconstruct(images, model.noise(len(images), rng))
    rows = zip(images.split(N_COLUMNS), mean.split(N_COLUMNS), strict=True)
    return image_grid(torch.cat([torch.cat(row) for row in rows]).cpu(), n_columns=N_COLUMNS)


@torch.no_grad()
def pseudo_inputs_picture(model: ImageModel, n: int = N_SAMPLES) -> np.ndarray | None:
    """The first pseudo-inputs of the VampPrior; None with the standard prior."""
    images = model.pseudo_inputs()
    return None if images is None else image_grid(images[:n].cpu(), n_columns=N_COLUMNS)


def plane(codes: Tensor, seed: int = 0) -> tuple[np.ndarray, str]:
    """Embeddings (n, d) in the plane, (n, 2), and how they got there: t-SNE where scikit-learn is installed (as
    published), else the first two principal components."""
    points = codes.cpu().double().numpy()
    points = points - points.mean(0)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        axes = np.linalg.svd(points, full_matrices=False)[2][:2]
        return points @ axes.T, "first two principal components"
    perplexity = min(30.0, max(2.0, (len(points) - 1) / 4))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points), "t-SNE"


def embedding_figure(codes: Tensor, labels: Tensor | None, classes: Sequence[str], title: str = "") -> Figure:
    """The first MOST_POINTS embeddings (n, d) in the plane, in the colours of their classes."""
    codes = codes[:MOST_POINTS]
    points, how = plane(codes)
    figure = _new_figure(6.2, 4.8, title)
    axes = figure.add_subplot()
    _dress(axes, how, "")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=5, color=PAIRED[0], linewidths=0)
        return figure
    own = labels[: len(codes)].cpu().numpy()
    colors = PAIRED if len(classes) <= len(PAIRED) else series_colors(len(classes))
    for i, name in enumerate(classes):
        axes.scatter(points[own == i, 0], points[own == i, 1], s=5, color=colors[i], linewidths=0, label=name)
    if len(classes) <= len(PAIRED):
        figure.legend(loc="outside right center", frameon=False, fontsize=9, markerscale=3)
    return figure


__all__ = [
    "drawn_images",
    "embedding_figure",
    "plane",
    "pseudo_inputs_picture",
    "reconstructions_picture",
    "samples_picture",
]
