"""The data of the MIM experiments, by name: toy distributions, PCA coefficients of Fashion-MNIST, MNIST.

    data = datasets.load("toy4")
    items = data.draw_epoch(rng)            # a whole epoch at once: items.x (10,000, 2), shuffled, fresh
    data.test.x, data.test.labels           # always the same test set
    data.anchor.log_prob(x)                 # log P(x), where the distribution is known

Where the published code departs from what the paper means, `as_published=True` does as the code did: toy test
sets are drawn anew in every epoch (`draw_test`), and the PCA of the test images is fitted to the test images,
so that training and test coefficients have different bases.
"""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.data.idx import DATA_VARIABLE, LabelledImages, fashion_mnist
from mi_ml_gen.mim import toy

N_TOY_ITEMS = 10_000
"""Items of a toy epoch, and of a toy test set."""
DARKEST, BRIGHTEST = 1e-3, 1 - 1e-3
"""Pixels are kept within these."""
SIDE_PX = 28
KNOWN = ("toyN", "toy-N", "toyN_D", "toyTEXT", "mnist", "pca-fashion-mnistK")
MNIST_PLACES = (Path("/usr/share/datasets/mnist"), Path("data/mnist"), Path("data/MNIST/raw"))


class Items(NamedTuple):
    """Data items: x (n, d) float32, what the encoder sees instead of x (n, d) or None, labels (n,) int64."""

    x: Tensor
    x_in: Tensor | None
    labels: Tensor


class Dataset(ABC):
    """What an experiment knows of its data.

    name: as given to `load`. text: one line about it. x_dim: numbers of an item. binary: whether they are
    probabilities of Bernoulli variables, within [DARKEST, BRIGHTEST]. n_train: items of an epoch. test: the
    fixed test set. anchor: P(x), with `log_prob`, or None where the distribution is unknown.
    """

    name: str
    text: str
    x_dim: int
    binary: bool = False
    n_train: int
    test: Items
    anchor: toy.Mixture | None = None

    @abstractmethod
    def draw_epoch(self, rng: torch.Generator) -> Items:
        """All training items of one epoch, shuffled."""

    def draw_test(self, rng: torch.Generator) -> Items:
        """The test set of one epoch: the fixed one, but for toy distributions under `as_published`."""
        return self.test


def load(
    name: str,
    *,
    as_published: bool = False,
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = "cpu",
) -> Dataset:
    """The data set `name`, one of KNOWN (capital Toy for the self-supervised form of a toy distribution).

    root: the folder of the idx files, for MNIST and Fashion-MNIST. device: where the items will lie. The same
    generator gives the same items on every device if it lives on the CPU itself.
    Raises UsageError for names that mean nothing or nothing possible, and where the files are not found.
    """
    device = runtime.resolve_device(device)
    if name[:3] in ("toy", "Toy") and name[3:]:
        return ToyDataset(name, toy.mixture(name[3:]).to(device), name[0] == "T", as_published)
    if name == "mnist":
        return MnistDataset(name, _mnist("train", root), _mnist("test", root), device)
    if found := re.fullmatch(r"pca-fashion-mnist(-?\d+)", name):
        n_components = int(found[1])
        if not 1 <= n_components <= SIDE_PX**2:
            raise UsageError(f"{name}: {n_components} components; must be 1 to {SIDE_PX**2}, as in pca-fashion-mnist20")
        return PcaDataset(name, n_components, None if root is None else str(root), as_published, device)
    raise UsageError(
        f"data set {name!r} is unknown{nearest(name, KNOWN, 'data set')}; N modes, D dimensions, K components: "
        f"toy4, toy-4, toy4_20, toyMIM, Toy4, mnist, pca-fashion-mnist20"
    )


# --- toy distributions -----------------------------------------------------------------------------------------------


class ToyDataset(Dataset):
    """Draws of a mixture; `anchor` is the mixture itself, labels are its components.

    self_supervised: the encoder sees another draw of the same component; not so in the test set.
    """

    anchor: toy.Mixture

    def __init__(self, name: str, distribution: toy.Mixture, self_supervised: bool, as_published: bool) -> None:
        self.name, self.anchor, self.x_dim = name, distribution, distribution.dim
        self.self_supervised, self.as_published = self_supervised, as_published
        self.n_train = N_TOY_ITEMS
        pairs = ", the encoder sees another draw of the component" if self_supervised else ""
        self.text = f"{distribution.n_components} Gaussians in {distribution.dim} dimensions{pairs}"
        self.test = self._draw(runtime.stream(0, f"mim test set {name.lower()}", 0, 0))

    def draw_epoch(self, rng: torch.Generator) -> Items:
        x, x_in, labels = self._draw(rng)
        if self.self_supervised:
            x_in = self.anchor.draw_from(labels, rng)
        return Items(x, x_in, labels)

    def draw_test(self, rng: torch.Generator) -> Items:
        return self._draw(rng) if self.as_published else self.test

    def _draw(self, rng: torch.Generator) -> Items:
        x, labels = self.anchor.draw(N_TOY_ITEMS, rng)
        return Items(x, None, labels)


# --- images -------------------------------------------------------------------------------------------------


class MnistDataset(Dataset):
    """MNIST as 784 probabilities. Training images are augmented and dequantised (`augment`)."""

    binary = True
    x_dim = SIDE_PX**2

    def __init__(self, name: str, train: LabelledImages, test: LabelledImages, device: torch.device) -> None:
        self.name, self.n_train = name, len(train)
        self.text = f"{len(train):,} images of {SIDE_PX} x {SIDE_PX} px, augmented"
        self._images, self._labels = train.images.to(device), train.labels.to(device)
        plain = (test.images.to(device).flatten(1) / 255).clamp(DARKEST, BRIGHTEST)
        self.test = Items(plain, None, test.labels.to(device))

    def draw_epoch(self, rng: torch.Generator) -> Items:
        order = _shuffled(self.n_train, rng, self._images.device)
        return Items(augment(self._images[order], rng).flatten(1), None, self._labels[order])


class PcaDataset(Dataset):
    """The first K principal coefficients of Fashion-MNIST. Training images are augmented and dequantised
    before projection, test images are not."""

    def __init__(self, name: str, n_components: int, root: str | None, as_published: bool, device: torch.device):
        train, test = _fashion("train", root), _fashion("test", root)
        self._basis = pca("train", root).first(n_components).to(device)
        test_basis = pca("test", root).first(n_components).to(device) if as_published else self._basis
        self.name, self.x_dim, self.n_train = name, n_components, len(train)
        self.text = f"{n_components} coefficients, {100 * self._basis.share:.1f}% of the variance"
        self._images, self._labels = train.images.to(device), train.labels.to(device)
        self.test = Items(test_basis.project(test.images.to(device) / 255), None, test.labels.to(device))

    def draw_epoch(self, rng: torch.Generator) -> Items:
        order = _shuffled(self.n_train, rng, self._images.device)
        parts = [self._basis.project(augment(self._images[part], rng)) for part in order.split(_CHUNK)]
        return Items(torch.cat(parts), None, self._labels[order])


_CHUNK = 4096  # images at a time: what is in work then stays in the caches


@dataclass(frozen=True)
class Basis:
    """Principal components of images: mean (784,), axes (784, K) with orthonormal columns of falling
    variance, variances (K,), and the variance of all pixels together."""

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total_variance: float

    @property
    def share(self) -> float:
        """Of the variance, what these components hold: 0 to 1."""
        return self.variances.sum().item() / self.total_variance

    def first(self, n_components: int) -> Basis:
        return Basis(self.mean, self.axes[:, :n_components], self.variances[:n_components], self.total_variance)

    def to(self, device: torch.device) -> Basis:
        return Basis(self.mean.to(device), self.axes.to(device), self.variances.to(device), self.total_variance)

    def project(self, images: Tensor) -> Tensor:
        """Images (n, 28, 28) in [0, 1] -> coefficients (n, K)."""
        return (images.flatten(1) - self.mean) @ self.axes


@lru_cache(maxsize=2)
def pca(split: str, root: str | None) -> Basis:
    """All principal components of the Fashion-MNIST images of a split, plain, in [0, 1]. The sign of each is
    such that its largest entry is positive."""
    images = _fashion(split, root).images.flatten(1)
    n, dim = images.shape
    # Exact sums over whole numbers: products of bytes add up to less than 2^24 over 256 rows.
    second = torch.zeros(dim, dim, dtype=torch.float64)
    for part in images.split(256):
        part = part.float()
        second += (part.T @ part).double()
    mean = images.double().mean(0)
    covariance = (second - n * torch.outer(mean, mean)) / (n - 1) / 255**2
    variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0), axes.flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * largest.sign()
    return Basis((mean / 255).float(), axes.float(), variances.float(), covariance.trace().item())


@lru_cache(maxsize=4)
def _fashion(split: str, root: str | None) -> LabelledImages:
    return fashion_mnist(split, root)


def _mnist(split: str, root: str | os.PathLike[str] | None) -> LabelledImages:
    """MNIST has the files of Fashion-MNIST, by the same names, in another folder."""
    named = os.environ.get(DATA_VARIABLE)
    places = [Path(root)] if root is not None else [*([Path(named) / "mnist"] if named else []), *MNIST_PLACES]
    for place in places:
        if any(place.glob("train-images-idx3-ubyte*")):
            return fashion_mnist(split, place)
    raise UsageError(
        f"MNIST: train-images-idx3-ubyte[.gz] not found in {', '.join(map(str, places))}; fetch the four files "
        f"into one of these folders, or into mnist/ of the folder that {DATA_VARIABLE} names"
    )


def _shuffled(n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    return runtime.drawn(lambda place: torch.randperm(n, generator=rng, device=place), rng, device)


# --- augmentation -------------------------------------------------------------------------------------------

MOST_DEGREES, MOST_SHIFT, SCALES, MOST_SHEAR_DEGREES = 10.0, 0.1, (0.8, 1.2), 5.0


class Affine(NamedTuple):
    """For each of n images: angle and shear along x in radians, shift in whole pixels (n, 2), scale."""

    angle: Tensor
    shift_px: Tensor
    scale: Tensor
    shear: Tensor

    @classmethod
    def draw(cls, n: int, rng: torch.Generator) -> Affine:
        u = runtime.uniform((5, n), rng)
        even = 2 * u - 1
        low, high = SCALES
        return cls(
            angle=even[0] * math.radians(MOST_DEGREES),
            shift_px=(even[1:3].T * (MOST_SHIFT * SIDE_PX)).round(),
            scale=low + (high - low) * u[3],
            shear=even[4] * math.radians(MOST_SHEAR_DEGREES),
        )


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images uint8 (n, 28, 28) -> float32 in [DARKEST, BRIGHTEST]: with probability 1/2 an affine map, then
    (pixel + u) / 256 with u uniform in [0, 1), which makes whole numbers continuous."""
    n, device = len(images), images.device
    moved = runtime.uniform((n,), rng, device) < 0.5
    maps = Affine(*(values.to(device) for values in Affine.draw(n, rng)))
    index = moved.nonzero()[:, 0]
    images = images.index_copy(0, index, affine(images[index], Affine(*(values[index] for values in maps))))
    noise = runtime.uniform(images.shape, rng, device)
    return noise.add_(images).div_(256).clamp_(DARKEST, BRIGHTEST)


def affine(images: Tensor, maps: Affine) -> Tensor:
    """Images (n, h, w) rotated, sheared, scaled about their centre and shifted; the nearest pixel, black
    outside. The map of torchvision's `affine`."""
    n, height, width = images.shape
    cos, sin, tan = maps.angle.cos(), maps.angle.sin(), maps.shear.tan()
    # forward: scale R [[1, -tan], [0, 1]]; its inverse takes a pixel of the result to where it comes from
    across = torch.stack([cos - sin * tan, sin + cos * tan], 1) / maps.scale[:, None]  # -> source column
    down = torch.stack([-sin, cos], 1) / maps.scale[:, None]  # -> source row
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) - (height - 1) / 2,
        torch.arange(width, device=images.device) - (width - 1) / 2,
        indexing="ij",
    )
    target = torch.stack([x.flatten(), y.flatten()])  # (2, h w), from the centre
    rest = maps.shift_px[:, None, :]  # (n, 1, 2)
    column = (across @ target - (across[:, None] * rest).sum(2)).add_((width - 1) / 2).round_()  # (n, h w)
    row = (down @ target - (down[:, None] * rest).sum(2)).add_((height - 1) / 2).round_()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row * width + column).long().clamp_(0, height * width - 1)
    return (images.flatten(1).gather(1, place) * inside).view(n, height, width)
