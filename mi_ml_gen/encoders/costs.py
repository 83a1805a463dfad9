"""What training an encoder will cost: see `core/costs.py`."""

from __future__ import annotations

import torch

from mi_ml_gen.core import costs, runtime
from mi_ml_gen.core.config import NOTHING
from mi_ml_gen.core.costs import RunCost, StepCost, bytes_of, without_numbers
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.encoders.base import accumulate_gradients
from mi_ml_gen.encoders.settings import PUBLISHED_SIZE_PX, EncoderConfig
from mi_ml_gen.encoders.training import build_encoder
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.unweighted import unweighted_generator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.walkers.spec import is_groups, read_groups


def perturbed_chunks(settings: EncoderConfig, generator: MultiLatentGenerator) -> Chunks | None:
    """The span of chunks that a T_z perturbs; None without one. A single file is taken to perturb all, which is never
    less work."""
    if settings.Tz is None or settings.Tz in NOTHING:
        return None
    if not (isinstance(settings.Tz, dict) or is_groups(settings.Tz)):
        return generator.layout.all
    groups = [generator.chunks(text, "--Tz") for text in read_groups(settings.Tz)]
    return Chunks(min(chunks.start for chunks in groups), max(chunks.stop for chunks in groups))


def count_step(settings: EncoderConfig, n: int) -> tuple[StepCost, dict[str, int]]:
    """A step of n samples on one device, and the bytes of the files that a run writes.

    The walker's own work and T_x are left out of the FLOPs: together less than a thousandth at the published sizes.
    """
    cpu = torch.device("cpu")
    rng = runtime.stream(0, "costs", 0, 0)
    with without_numbers() as counted, runtime.autocast(cpu, settings.precision):
        flops, peaks = {}, []
        side = settings.img_size or PUBLISHED_SIZE_PX
        generator: MultiLatentGenerator | None = None
        if settings.generator is not None:
            generator = unweighted_generator(settings.generator, settings.g_path, settings.g_use)
            side = generator.resolution
        augment = Augment(settings.policy, side, settings.crop_size)
        encoder = build_encoder(settings, augment.crop_size).train()
        if generator is not None:
            at_once = min(n, settings.decode_at_once or n)
            chunks = perturbed_chunks(settings, generator)
            with counted.step() as decoding, torch.no_grad():
                latents = torch.empty(at_once, generator.layout.dim)
                if chunks is None:
                    generator.decode(latents, rng)
                else:
                    generator.decode_pair(latents, torch.empty_like(latents), chunks, rng)
                del latents
            flops["generator"] = decoding.flops * n // at_once
            peaks.append(decoding.peak_bytes)
        first, second = (torch.empty(n, 3, augment.crop_size, augment.crop_size) for _ in range(2))
        with counted.step() as training:
            accumulate_gradients(
                encoder, first, second, settings.micro_batches, runtime.autocast(cpu, settings.precision)
            )
        flops[settings.encoder] = training.flops
        learned = sum(parameter.numel() * 4 for parameter in encoder.parameters() if parameter.requires_grad)
        weights = bytes_of(encoder)
        frozen = 0 if generator is None else bytes_of(generator)
        peak = max(*peaks, training.peak_bytes) if peaks else training.peak_bytes
        # SGD's momentum comes with the first step, and stays.
        cost = StepCost(n, flops, peak + learned, frozen + weights + 2 * learned)
        return cost, {"encoder": weights, "state": weights + learned}


def encoder_cost(settings: EncoderConfig, n_images: int | None = None) -> RunCost:
    """The cost of a run. n_images: of stored images (default: they are looked up, which reads names and tables alone).

    Raises UsageError where the size of the generator or of an epoch is not known.
    """
    per_epoch = settings.samples_per_epoch if settings.generator is not None else n_images
    if settings.generator is None and per_epoch is None and settings.data_path is not None:
        per_epoch = load_source(
            settings.data_path, "train", settings.img_size or PUBLISHED_SIZE_PX, framing=settings.framing,
            loader=settings.loader, skip_bad=settings.skip_bad,
        ).n_images  # fmt: skip
    if per_epoch is None:
        raise UsageError("how many samples an epoch has is not known; give --samples_per_epoch")
    n = settings.cumulative_bs
    step, files = count_step(settings, n)
    n_saved = -(-settings.max_epochs // settings.save_freq)
    notes = (f"an encoder is saved {n_saved:,} times; not counted: T_x, the walker, reading images",)
    return RunCost(settings.max_epochs * per_epoch, n, step, files, precision=settings.precision, notes=notes)


def cost_lines(settings: EncoderConfig) -> list[str]:
    """The sheet, or why there is none, in lines."""
    return costs.lines_or_reason(lambda: encoder_cost(settings))
