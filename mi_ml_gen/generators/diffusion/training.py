"""Training of a diffusion model or a flow: a network learns to predict noise, velocity or flow at random times."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from mi_ml_gen.core import config, loop, optimizers, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages, held
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.processes import PROCESSES, TRAINING_STEPS, Objective
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.generators.epoch_images import EpochImages
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png

LOG_INTERVAL = 50
"""Steps between lines of metrics, which are also the only reads of the device's values."""


def stored_images(settings: DiffusionTrainConfig, split: str = "train") -> HeldImages:
    """The images that --data_path names, of the network's size and number of colours, in memory.

    Raises what `load_source` raises.
    """
    source = held(load_source(settings.data, split, settings.resolution))
    n_colours = settings.network().in_channels
    if n_colours == source.images.shape[1]:
        return source
    images = source.images.expand(-1, n_colours, -1, -1) if n_colours == 3 else _grey(source.images)
    return HeldImages(source.name, images, source.labels, source.classes)


def _grey(images: Tensor) -> Tensor:
    """(n, 3, side, side) uint8 -> (n, 1, side, side) uint8, the mean of the colours."""
    parts = [part.float().mean(1, keepdim=True).round().to(torch.uint8) for part in images.split(1024)]
    return torch.cat(parts)


class TrainingImages(EpochImages):
    """The training images in [-1, 1]."""

    def __init__(self, images: Tensor, settings: DiffusionTrainConfig, device: torch.device):
        mirror = "diffusion mirror" if settings.flip else None
        super().__init__(images, settings.batch_size, device, settings.seed, "diffusion order", mirror)

    def batch(self, step: int) -> Tensor:
        """This process's part of a step's batch, (n, colours, side, side) in [-1, 1]: a function of seed and step."""
        return self.at(step, runtime.own_rows(self.batch_size)).float().div(127.5).sub(1)


def train_diffusion(settings: DiffusionTrainConfig, images: Tensor, progress: bool = True) -> Path:
    """Train a network on images (n, colours, side, side), uint8, of the settings' size and colours.

    Gives the run folder, whose generator.safetensors holds the averaged network. The same settings resume, with the
    results of an uninterrupted run. Under torchrun the processes share each batch, and do what one does with all of
    it, up to the order of sums (and to dropout, whose draws are each process's own). Raises NonFiniteError, Preempted,
    and UsageError for fewer images than a batch takes, a batch that the processes cannot share, and a folder that
    holds a run of other settings.
    """
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    architecture = settings.network()
    if tuple(images.shape[1:]) != architecture.shape:
        raise UsageError(f"images {list(images.shape[1:])}: the network has {list(architecture.shape)}")
    if len(images) < settings.batch_size:
        raise UsageError(f"--batch_size {settings.batch_size}: there are only {len(images)} images")
    if settings.batch_size % (n_processes := runtime.world_size()):
        raise UsageError(f"--batch_size {settings.batch_size}: must be a multiple of the {n_processes} processes")
    # --- Network
    runtime.set_precision(settings.precision)
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    process = PROCESSES[settings.objective]()
    assert isinstance(process, Objective)
    generator = Diffusion(architecture, process, settings.run_name, _use(settings))
    generator.unet.start_at_zero()
    generator = generator.to(device).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(generator).requires_grad_(False).eval()
    network = generator.unet
    optimizer = optimizers.Adam(network.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=device.type == "cuda")
    data = TrainingImages(images, settings, device)
    shown = TruncatedNormal().sample((80, generator.noise_dim), runtime.stream(settings.seed, "shown", 0, 0, device))

    # --- Run folder
    path = config.inside(settings.save_folder, settings.run_name)
    course = loop.Course(elapsed_s=0.0, total=torch.zeros((), device=device))  # loss since the last row of metrics
    with loop.Session.open(path, config.to_dict(settings), **config.resuming(DiffusionTrainConfig)) as session:
        session.resume(course, network=network, average=average.unet, optimizer=optimizer)
        started_s = time.monotonic() - course.elapsed_s
        for step in session.steps(settings.steps, title=settings.run_name, progress=progress):
            # --- Noisy images at random times, which cover [0, 1] evenly (Kingma et al., 2021, appendix I.1)
            rng = runtime.stream(settings.seed, "diffusion noise", step, 0, device)
            clean = data.batch(step)
            size, own = settings.batch_size, runtime.own_rows(settings.batch_size)  # drawn for the whole batch
            first = runtime.uniform((1,), rng)
            t = ((first + torch.arange(size, device=device) / size) % 1)[own]
            noise = runtime.normal((size, *architecture.shape), rng)[own]
            alpha, sigma = process.path(t[:, None, None, None])

            # --- Loss and step
            if settings.dropout:  # which draws from torch's own generator
                draws = runtime.stream(settings.seed, "diffusion dropout", step, runtime.rank())
                torch.manual_seed(draws.initial_seed())
            with runtime.autocast(device, settings.precision):
                prediction = network(alpha * clean + sigma * noise, TRAINING_STEPS * t)
            loss = (prediction - process.target(clean, noise, alpha, sigma)).square().mean()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * min(1.0, (step + 1) / max(1, settings.warmup_steps))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            runtime.average_gradients(network)
            norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip, foreach=True)
            optimizer.step()
            _update_average(average.unet, network, _ema_decay(settings, step))

            # --- What a person wants to see, and what must survive
            session.watch("loss", loss)
            session.watch("gradient", norm)
            course.total += loss.detach()
            course.elapsed_s = time.monotonic() - started_s
            if session.every(LOG_INTERVAL):
                mean = runtime.all_reduce_mean(course.total / LOG_INTERVAL).item()
                session.log(loss=mean, gradient_norm=norm.item(), elapsed_s=round(course.elapsed_s, 1))
                session.show(loss=f"{mean:.4f}")
                course.total.zero_()
            save = session.every(settings.save_every) or session.is_last
            if save:
                session.check()
                _save_samples(average, shown, session.run.images / f"samples_{session.done:08d}.png")
            session.end_of_step(save=save)

        # --- The result
        session.check()
        average.use(_use(settings))
        result = session.run.path / "generator.safetensors"
        runtime.on_main(lambda: save_generator(result, average, steps=str(session.done)))
    return path


def _use(settings: DiffusionTrainConfig) -> dict[str, float]:
    return {"steps": settings.sampler_steps, "block": settings.block, "scale": settings.scale}


def _ema_decay(settings: DiffusionTrainConfig, step: int) -> float:
    """Of the averaged weights: that of the half-life, and less in the first steps, so that it forgets the start."""
    return min(0.5 ** (settings.batch_size / settings.ema_halflife), (1 + step) / (10 + step))


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


@torch.no_grad()
def _save_samples(average: Diffusion, z: Tensor, path: Path) -> None:
    """An 8 x 10 grid of the averaged network."""
    if runtime.is_main():
        save_png(path, image_grid(average.decode(average.latents(z)), n_columns=10))
