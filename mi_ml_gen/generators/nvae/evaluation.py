"""How well an NVAE describes images: reconstruction error, bits per dimension, and what each group contributes.

And the batch statistics of a temperature, which images at that temperature need.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.likelihood import LogisticMixture
from mi_ml_gen.generators.nvae.network import BN_MOMENTUM
from mi_ml_gen.generators.nvae.objective import bits_per_dimension

BATCH_SIZE = 100


@dataclass(frozen=True)
class NVAEQuality:
    """Measured on images that the network has not seen. An error is the standard error over the images."""

    n_images: int
    n_samples: int
    """Importance samples for each image."""
    bits_per_dimension: float
    """A bound from above on -log2 p(x) for each colour value, with the importance samples (Burda et al., 2016)."""
    bits_per_dimension_error: float
    bits_per_dimension_elbo: float
    """The looser bound that training minimises: reconstruction plus KL divergence."""
    l2: float
    """Mean squared error of the reconstruction, colours in [0, 1]."""
    l2_error: float
    kl_nats: tuple[float, ...]
    """KL divergence of each group, in decoding order: how much it tells about an image."""
    kl_errors: tuple[float, ...]
    """Their standard errors."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate_nvae(
    generator: NVAE,
    images: Tensor,
    n_samples: int = 1,
    seed: int = 0,
    progress: bool = False,
    batch_size: int = BATCH_SIZE,
) -> NVAEQuality:
    """Measure a frozen NVAE on images (n, 1 or 3, side, side), uint8, as `stored_images` gives them.

    batch_size: images at a time; the draws of the posteriors depend on it.
    Raises UsageError for images of another size.
    """
    if tuple(images.shape[1:]) != generator.settings.resolution or n_samples < 1:
        raise UsageError(
            f"images {list(images.shape[1:])}: {generator.name} describes {list(generator.settings.resolution)}"
        )
    bits, elbos, errors, kls = [], [], [], []
    for start in Bar(range(0, len(images), batch_size), disable=not progress, unit="batch"):
        batch = images[start : start + batch_size].to(next(generator.parameters()).device).float() / 255
        rng = runtime.stream(seed, "nvae evaluation", start, 0, batch.device)
        log_weights = []
        for sample in range(n_samples):
            noise = [runtime.normal((len(batch), *shape), rng) for shape in generator.settings.latent_shapes]
            out = generator.autoencoder(batch, noise, sampled_kl=True)
            log_weights.append(_mixture(generator, out.logits).log_prob(batch * 2 - 1) - out.kl.sum(1))
            if sample == 0:
                out = generator.autoencoder(batch, noise)
                kls.append(out.kl)
                elbos.append(out.kl.sum(1) - _mixture(generator, out.logits).log_prob(batch * 2 - 1))
        nats = math.log(n_samples) - runtime.in_float64(torch.stack(log_weights)).logsumexp(0)
        bits.append(bits_per_dimension(nats, generator.settings))
        mean = _mixture(generator, generator.autoencoder(batch, None).logits).mean() * 0.5 + 0.5
        errors.append((mean - batch).square().mean((1, 2, 3)))
    groups = runtime.in_float64(torch.cat(kls))  # (n, groups)
    per_image, l2 = torch.cat(bits), runtime.in_float64(torch.cat(errors))
    elbo = bits_per_dimension(runtime.in_float64(torch.cat(elbos)), generator.settings)
    return NVAEQuality(
        n_images=len(images),
        n_samples=n_samples,
        bits_per_dimension=per_image.mean().item(),
        bits_per_dimension_error=_standard_error(per_image),
        bits_per_dimension_elbo=elbo.mean().item(),
        l2=l2.mean().item(),
        l2_error=_standard_error(l2),
        kl_nats=tuple(groups.mean(0).tolist()),
        kl_errors=tuple(_standard_error(column) for column in groups.T),
    )


def _mixture(generator: NVAE, logits: Tensor) -> LogisticMixture:
    return LogisticMixture.of(logits, generator.settings.num_logistic_mixtures, generator.settings.resolution[0])


def _standard_error(values: Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


@torch.no_grad()
def estimate_statistics(
    generator: NVAE, temperature: float, n_batches: int = 500, batch_size: int = 100, seed: int = 0
) -> None:
    """Estimate the decoder's batch statistics on samples at a temperature, and keep them for its use.

    As the published code does it: the statistics of training follow `n_batches` of samples with the momentum of
    training, so that about the last 60 batches count. A generator without weights in training mode stays frozen.
    """
    generator.temperature = 1.0  # the noise below is scaled by hand
    if generator.statistics is not None:
        generator.write_statistics(generator.statistics[0])
    norms = generator.autoencoder.decoder_norms()
    assert all(norm.momentum == BN_MOMENTUM for norm in norms)
    base = generator.read_statistics()
    generator.autoencoder.decoder_tower.train()
    generator.autoencoder.postprocessing_block.train()
    for i in range(n_batches):
        rng = runtime.stream(seed, "nvae batch statistics", i, 0, base.device)
        z = runtime.normal((batch_size, generator.noise_dim), rng)
        generator.synthesize(temperature * z)  # temperature 1 on scaled noise is the temperature on the noise
    estimated = generator.read_statistics()
    generator.write_statistics(base)
    generator.set_statistics(temperature, estimated)
    generator.use({"temperature": temperature}).freeze()
