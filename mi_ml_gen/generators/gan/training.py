"""Adversarial training of the small generators that the package ships.

One loop serves every family; what differs between them (network, loss, regularisation, what is done to the
averaged weights at the end) is a `Recipe` of recipes.py. The data are images, grey or in colour, of at most the
generator's size, padded with black.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.core import config, loop, optimizers, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.epoch_images import EpochImages
from mi_ml_gen.generators.gan.recipes import RECIPES, Recipe, augmented
from mi_ml_gen.generators.gan.settings import FASHION_MNIST, GanConfig
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.report.images import image_grid, save_png

LOG_INTERVAL = 50
"""Steps between lines of metrics, which are also the only reads of the device's values."""
R1_INTERVAL = 16
"""Steps between gradient penalties, which are weighted up by as much (Karras et al., 2020, section 4)."""


# -----------------------------------------------------------------------------------------------------------
# The loop


class RealImages(EpochImages):
    """The training images in [-1, 1], padded with black."""

    def __init__(self, images: torch.Tensor, resolution: int, batch_size: int, device: torch.device, seed: int):
        """images: uint8 (n, H, W), or (n, c, H, W) with c 1 or 3."""
        images = with_channels(images)
        height, width = images.shape[2:]
        top, left = (resolution - height) // 2, (resolution - width) // 2
        padded = F.pad(images, (left, resolution - width - left, top, resolution - height - top))
        super().__init__(padded, batch_size, device, seed, "real images")

    def batch(self, step: int) -> torch.Tensor:
        """The batch of a step, (batch_size, 3, side, side) in [-1, 1]: a function of seed and step."""
        images = self.at(step).float().div(127.5).sub(1)
        return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def with_channels(images: torch.Tensor) -> torch.Tensor:
    """Images (n, H, W), which are grey, as (n, 1, H, W); others as they are."""
    return images[:, None] if images.ndim == 3 else images


def train_generator(settings: GanConfig, images: torch.Tensor, progress: bool = True) -> Path:
    """Train a generator adversarially on images, uint8, grey (n, H, W) or with channels (n, 1 or 3, H, W), H and W at
    most the generator's.

    Gives the run folder, whose generator.safetensors holds the averaged generator. The same settings resume.
    Raises NonFiniteError, Preempted, and UsageError for fewer images than a batch takes, for a folder that holds a
    run of other settings, and under torchrun with several processes.
    """
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    if runtime.world_size() > 1:
        raise UsageError(f"--family {settings.family}: trains in one process; start it with python, not with torchrun")
    if len(images) < settings.batch_size:
        raise UsageError(f"--batch_size {settings.batch_size}: there are only {len(images)} images")
    settings = settings.resolved()
    assert settings.width is not None and settings.discriminator_width is not None and settings.run_name is not None
    assert settings.lr is not None and settings.lr_discriminator is not None
    # --- Networks
    runtime.set_precision(settings.precision)
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    n_channels = with_channels(images).shape[1]
    recipe = RECIPES[settings.family](settings.width, settings.discriminator_width, n_channels)
    if settings.dataset != FASHION_MNIST:
        recipe.generator.name = Path(settings.run_name).name
    generator = recipe.generator.to(device).to(memory_format=torch.channels_last).train()
    discriminator = recipe.discriminator.to(device).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(generator).requires_grad_(False)
    options: dict[str, Any] = dict(betas=recipe.betas, fused=device.type == "cuda")
    optimizer_g = optimizers.Adam(generator.parameters(), lr=settings.lr, **options)
    optimizer_d = optimizers.Adam(discriminator.parameters(), lr=settings.lr_discriminator, **options)
    ema_decay = 0.5 ** (settings.batch_size / settings.ema_halflife)
    real_images = RealImages(images, generator.resolution, settings.batch_size, device, settings.seed)
    shown = recipe.noise(80, runtime.stream(settings.seed, "shown", 0, 0, device))

    # --- Run folder
    path = config.inside(settings.save_folder, settings.run_name)
    course = loop.Course(elapsed_s=0.0)
    with loop.Session.open(path, config.to_dict(settings), **config.resuming(GanConfig)) as session:
        run = session.run
        session.resume(
            course, generator=generator, discriminator=discriminator, average=average, optimizer_g=optimizer_g,
            optimizer_d=optimizer_d,
        )  # fmt: skip
        started_s = time.monotonic() - course.elapsed_s
        for step in session.steps(settings.steps, title=settings.run_name, progress=progress):
            # --- Discriminator
            rng = runtime.stream(settings.seed, "noise", step, 0, device)
            real = real_images.batch(step)
            z = recipe.noise(settings.batch_size, rng)
            with runtime.autocast(device, settings.precision):
                fake = recipe.fakes(generator, z, rng)
                if settings.augment:
                    real, fake = augmented(real, rng), augmented(fake, rng)
                discriminator.requires_grad_(True)
                loss_d = recipe.discriminator_loss(discriminator(real), discriminator(fake.detach()))
            if recipe.r1_weight > 0 and step % R1_INTERVAL == 0:
                loss_d = loss_d + R1_INTERVAL * recipe.r1_weight / 2 * _gradient_penalty(discriminator, real)
            optimizer_d.zero_grad(set_to_none=True)
            loss_d.backward()
            optimizer_d.step()

            # --- Generator, against the discriminator just updated; the same fakes serve both
            with runtime.autocast(device, settings.precision):
                discriminator.requires_grad_(False)
                loss_g = recipe.generator_loss(discriminator(fake))
            optimizer_g.zero_grad(set_to_none=True)
            loss_g.backward()
            optimizer_g.step()
            _update_average(average, generator, ema_decay)

            # --- What a person wants to see, and what must survive
            session.watch("discriminator loss", loss_d)
            session.watch("generator loss", loss_g)
            course.elapsed_s = time.monotonic() - started_s
            if session.every(LOG_INTERVAL):
                losses = dict(loss_discriminator=loss_d.item(), loss_generator=loss_g.item())
                session.log(**losses, elapsed_s=round(course.elapsed_s, 1))
                session.show(**{name: f"{value:.2f}" for name, value in losses.items()})
            save = session.every(settings.save_every) or session.is_last
            if save:
                session.check()
                _save_samples(recipe, average, shown, settings.seed, run.images / f"samples_{session.done:08d}.png")
            session.end_of_step(save=save)

        # --- The result
        recipe.finish(average, settings.seed)
        session.check()
        save_generator(run.path / "generator.safetensors", average, settings.family)
    return path


def _gradient_penalty(discriminator: nn.Module, real: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of the logits' gradient on real images, in float32 (Mescheder et al., 2018)."""
    real = real.detach().requires_grad_(True)
    gradient = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)[0]
    return gradient.square().sum(dim=(1, 2, 3)).mean()


@torch.no_grad()
def _update_average(average: nn.Module, generator: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - decay)


@torch.no_grad()
def _save_samples(recipe: Recipe, average: MultiLatentGenerator, z: torch.Tensor, seed: int, path: Path) -> None:
    """An 8 x 10 grid of the averaged generator, without touching it."""
    network = copy.deepcopy(average)
    recipe.finish(network, seed, n_batches=4)
    network.freeze()
    save_png(path, image_grid(network.decode(network.latents(z)), n_columns=10))
