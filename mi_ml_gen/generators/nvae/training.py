"""Training of an NVAE (Vahdat and Kautz, 2020, section 3.2 and appendix A), without averaged weights, as there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mi_ml_gen.core import config, loop, optimizers, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import held
from mi_ml_gen.generators.epoch_images import EpochImages
from mi_ml_gen.generators.nvae import objective
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.likelihood import LogisticMixture
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.nvae.train_settings import NVAETrainConfig
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.report.images import image_grid, pair_grid, save_png

SHOWN_TEMPERATURES = (0.7, 1.0)


def stored_images(reference: str, architecture: NVAEConfig, split: str = "train") -> Tensor:
    """The images that `load_source` knows by this reference, (n, colours, side, side) uint8, as the network sees them.

    Raises what `load_source` raises.
    """
    n_colours, side, _ = architecture.resolution
    images = held(load_source(reference, split, side)).images
    if n_colours == 1 and images.shape[1] == 3:
        return images.float().mean(1, keepdim=True).round().to(torch.uint8)
    return images.expand(-1, n_colours, -1, -1)


class TrainingImages(EpochImages):
    """The training images in [0, 1]."""

    def __init__(self, images: Tensor, settings: NVAETrainConfig, device: torch.device):
        mirror = "nvae mirror" if settings.flip else None
        super().__init__(images, settings.cumulative_bs, device, settings.seed, "nvae order", mirror)

    def batch(self, step: int) -> Tensor:
        """This process's part of a step's batch in [0, 1]: a function of the seed and the step."""
        batch = self.at(step, runtime.own_rows(self.batch_size)).float() / 255
        return batch.contiguous(memory_format=torch.channels_last)


def posterior_noise(settings: NVAETrainConfig, step: int, device: torch.device) -> list[Tensor]:
    """This process's part of the noise of a step, one tensor a group; one draw for the whole batch."""
    rng = runtime.stream(settings.seed, "nvae noise", step, 0, device)
    size, own = settings.cumulative_bs, runtime.own_rows(settings.cumulative_bs)
    shapes = settings.architecture().latent_shapes

    def draw(shape: Sequence[int]) -> Tensor:
        return runtime.drawn(lambda place: torch.randn(size, *shape, generator=rng, device=place)[own], rng)

    return [draw(shape) for shape in shapes]


def learning_rate(settings: NVAETrainConfig, step: int, steps_per_epoch: int) -> float:
    """A linear rise during the warm-up, then a cosine from `base_lr` to `min_lr`."""
    n_steps, n_warmup = int(settings.epochs * steps_per_epoch), int((settings.warmup_epochs or 0) * steps_per_epoch)
    if step < n_warmup:
        return settings.base_lr * (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    return settings.min_lr + (settings.base_lr - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2


def train_nvae(settings: NVAETrainConfig, images: Tensor, progress: bool = True) -> Path:
    """Train an NVAE on images (n, colours, side, side), uint8, of the configuration's resolution.

    Gives the run folder, whose generator.safetensors `load_generator("nvae", path)` reads. The same settings resume,
    with the results of an uninterrupted run. Raises UsageError for settings that do not fit together or a folder of
    another run, NonFiniteError, and Preempted.
    """
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    architecture = settings.architecture()
    if tuple(images.shape[1:]) != architecture.resolution:
        raise UsageError(f"resolution {list(architecture.resolution)}: the images have {list(images.shape[1:])}")
    if settings.cumulative_bs % runtime.world_size() or settings.cumulative_bs > len(images):
        raise UsageError(
            f"--cumulative_bs {settings.cumulative_bs}: must be a multiple of the {runtime.world_size()} processes, "
            f"and at most the {len(images)} images"
        )
    # --- Network
    runtime.set_precision(settings.precision)
    torch.manual_seed(settings.seed)  # initial weights; every later draw names its stream
    generator = NVAE(architecture, settings.name).to(device).to(memory_format=torch.channels_last).train()
    network = generator.autoencoder
    spectral = objective.SpectralNorms(network, runtime.stream(settings.seed, "nvae singular vectors", 0, 0)).to(device)
    alpha = objective.balancing(architecture).to(device)
    optimizer = optimizers.Adamax(
        network.parameters(), lr=settings.base_lr, weight_decay=settings.weight_decay, eps=settings.eps
    )
    data = TrainingImages(images, settings, device)
    n_steps = int(settings.epochs * data.steps_per_epoch)

    # --- Run folder
    path = config.inside(settings.save_folder, settings.run_name or settings.name)
    course = loop.Course(elapsed_s=0.0)
    with loop.Session.open(path, config.to_dict(settings), **config.resuming(NVAETrainConfig)) as session:
        session.resume(course, network=network, spectral=spectral, optimizer=optimizer)
        started_s = time.monotonic() - course.elapsed_s
        for step in session.steps(n_steps, title=settings.name, progress=progress):
            # --- Objective
            batch = data.batch(step)
            with runtime.autocast(device, settings.precision):
                out = network(batch, posterior_noise(settings, step, device))
            logits = out.logits.float()
            mixture = LogisticMixture.of(logits, settings.num_logistic_mixtures, architecture.resolution[0])
            reconstruction = -mixture.log_prob(batch * 2 - 1)
            beta = objective.warm_up(
                step, n_steps, settings.kl_anneal_portion, settings.kl_const_portion, settings.kl_const_coeff
            )
            weight = _regularisation_weight(settings, beta)
            norms = spectral() + objective.largest_gains(network)
            kl = objective.balanced_kl(out.kl, beta, alpha)
            loss = reconstruction.mean() + kl + weight * norms

            # --- Step
            rate = learning_rate(settings, step, data.steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            runtime.average_gradients(network)
            optimizer.step()

            # --- What a person wants to see, and what must survive
            session.watch("loss", loss)
            course.elapsed_s = time.monotonic() - started_s
            if session.every(settings.log_every) or session.is_last:
                nats, kls = runtime.all_reduce_mean([reconstruction.mean(), out.kl.mean(0)])
                row = session.log(
                    reconstruction_nats=nats,
                    kl_nats=kls,
                    bits_per_dimension=objective.bits_per_dimension(nats + kls.sum(), architecture),
                    regularisation=norms,
                    beta=beta,
                    lr=rate,
                    elapsed_s=round(course.elapsed_s, 1),
                )
                session.show(bpd=f"{row['bits_per_dimension']:.3f}", kl=f"{sum(row['kl_nats']):.0f}")
            save = session.every(settings.save_every) or session.is_last
            if save:
                session.check()
                _save_grids(generator, batch, settings, session.run.images, session.done)
            session.end_of_step(save=save)

        # --- The result
        session.check()
        runtime.on_main(lambda: save_generator(session.run.path / "generator.safetensors", generator))
    return path


def _regularisation_weight(settings: NVAETrainConfig, beta: float) -> float:
    """lambda; annealed, it moves on a logarithmic scale with beta."""
    if not settings.weight_decay_norm_anneal or settings.weight_decay_norm == 0:
        return settings.weight_decay_norm
    start, end = math.log(settings.weight_decay_norm_init), math.log(settings.weight_decay_norm)
    return math.exp((1 - beta) * start + beta * end)


@torch.no_grad()
def _save_grids(generator: NVAE, batch: Tensor, settings: NVAETrainConfig, folder: Path, step: int) -> None:
    """Samples at two temperatures, and images of the last batch above their reconstructions."""
    if not runtime.is_main():
        return
    generator.eval()
    z = torch.randn(40, generator.noise_dim, generator=runtime.stream(settings.seed, "nvae shown", 0, 0))
    z, before = z.to(batch.device), generator.temperature
    samples = [generator.use({"temperature": t}).decode(generator.latents(z)) for t in SHOWN_TEMPERATURES]
    generator.use({"temperature": before})
    save_png(folder / f"samples_{step:08d}.png", image_grid(torch.cat(samples), n_columns=20))
    real = batch[:40].expand(-1, 3, -1, -1)
    save_png(folder / f"reconstructions_{step:08d}.png", pair_grid(real, generator.reconstruct(real), n_columns=20))
    generator.train()
