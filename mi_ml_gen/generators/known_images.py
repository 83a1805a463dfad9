"""Pairs of images of known information as tasks (`information/tasks.py`): the family "images", and any of your own."""

from __future__ import annotations

import math

import torch

from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.information.gaussian import Samples
from mi_ml_gen.information.tasks import Rng, Task, register_task
from mi_ml_gen.latents import Chunks


def image_task(
    generator: LinearGaussian, perturbation: GaussianPerturbation, chunks: Chunks | None = None, name: str = "images"
) -> Task:
    """Anchors and positives of a generator, perturbed on `chunks` (None: all), as flat images (n, d) in float64.

    d is the number of values of an image: one channel of a grey one, else three. Raises UsageError where the
    information is infinite.
    """
    n_channels = 1 if generator.grey else 3

    @torch.no_grad()
    def draw(n: int, rng: Rng) -> Samples:
        pair = generator.draw_pair(n, perturbation, chunks, rng)
        anchor, positive = (images[:, :n_channels].flatten(1).double() for images in pair)
        return Samples(anchor, positive)

    d = n_channels * generator.resolution**2
    parameters = {
        **generator.config(),
        "perturbation": dict(vars(perturbation)),
        "chunks": str(chunks or generator.layout.all),
    }
    return Task(name, generator.mutual_information(perturbation, chunks), d, d, draw, parameters)


@register_task("images", has_dim=lambda dim: dim >= 5)
def images(nats: float, dim: int) -> Task:
    """Grey images of waves that show `dim` numbers: as many values as fill a square."""
    generator = LinearGaussian(
        (1,) * dim, noise=0.01, resolution=math.ceil(math.sqrt(dim)), look="waves", grey=True, bend=0.5
    )
    perturbation = GaussianPerturbation.stationary(0.0) if nats == 0 else generator.stationary_perturbation(nats)
    return image_task(generator, perturbation)
