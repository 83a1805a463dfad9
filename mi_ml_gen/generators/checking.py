"""What a generator promises, checked: of a user's own family before it is used."""

from __future__ import annotations

from typing import Any

import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import fault
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal

TOLERANCE = 1e-5
"""How far an image may leave [0, 1], for the sake of rounding."""


def check_generator(generator: MultiLatentGenerator, n: int = 2, seed: int = 0) -> None:
    """Raise UsageError, with the reason in one line, where a generator breaks a promise of `MultiLatentGenerator`.

    Looks at the layout, `walk_slice`, shapes, the range of `n` images, `decode_pair`, and the gradient that walkers
    need from images to noise. Draws nothing from the global random generators.
    """
    check_images(generator, n, seed)
    with torch.random.fork_rng(devices=[]):
        z, latents = _draw(generator, n, seed)
        for i in range(generator.layout.n_chunks):
            at = generator.walk_slice(Chunks(i, i + 1))
            if not 0 <= at.start < at.stop <= generator.noise_dim:
                _refuse(generator, f"walk_slice of chunk {i} is {at}; it must lie within 0 and noise_dim, "
                                   f"{generator.noise_dim}")  # fmt: skip
        if any(parameter.requires_grad for parameter in generator.parameters()):
            _refuse(generator, "its parameters ask for gradients; call freeze() first")
        z.requires_grad_()
        images = generator.decode(generator.latents(z), _rng(seed, z))
        slope = torch.autograd.grad(images.sum(), z, allow_unused=True)[0] if images.requires_grad else None
        if slope is None or not slope.isfinite().all() or not slope.abs().sum() > 0:
            _refuse(generator, "no gradient flows from its images to the noise, so no walker can learn on it")
        with torch.no_grad():
            pair = generator.decode_pair(latents, latents.flip(0), Chunks(0, generator.layout.n_chunks), _rng(seed, z))
        for image in pair:
            _check_image(generator, image, n)
        if generator.can_encode:
            with torch.no_grad():
                noise = generator.encode(pair.anchor)
            if not isinstance(noise, torch.Tensor) or noise.shape != z.shape or not noise.isfinite().all():
                shape = tuple(getattr(noise, "shape", ()))
                _refuse(generator, f"encode gives shape {shape}; {n} images must give finite noise, {tuple(z.shape)}")


def check_images(generator: MultiLatentGenerator, n: int = 1, seed: int = 0) -> None:
    """The cheap part of `check_generator`: the layout, and the shape and range of `n` images."""
    layout: Any = getattr(generator, "layout", None)
    if not isinstance(layout, LatentLayout):
        _refuse(generator, f"layout must be a LatentLayout, not {type(layout).__name__}")
    for name in ("noise_dim", "resolution"):
        value = getattr(generator, name, None)
        if not isinstance(value, int) or value < 1:
            _refuse(generator, f"{name} must be a whole number of at least 1, not {value}")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            z, latents = _draw(generator, n, seed)
            if not isinstance(latents, torch.Tensor) or latents.shape != (n, layout.dim):
                shape = tuple(getattr(latents, "shape", ()))
                _refuse(generator, f"latents gives shape {shape} for {n} rows of noise; it must be {(n, layout.dim)}")
            images = generator.decode(latents, _rng(seed, z))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"generator {_name(generator)}: decoding fails: {fault(error)}") from error
    _check_image(generator, images, n)


def _check_image(generator: MultiLatentGenerator, images: Any, n: int) -> None:
    expected = (n, 3, generator.resolution, generator.resolution)
    if not isinstance(images, torch.Tensor) or images.shape != expected:
        shape = tuple(getattr(images, "shape", ()))
        _refuse(generator, f"decode gives shape {shape}; {n} images must have {expected}")
    if not images.is_floating_point():
        _refuse(generator, f"decode gives {images.dtype}; images must be floating point numbers in [0, 1]")
    if not images.isfinite().all():
        _refuse(generator, "decode gives nan or infinity; images must lie in [0, 1]")
    least, most = float(images.min()), float(images.max())
    if least < -TOLERANCE or most > 1 + TOLERANCE:
        _refuse(generator, f"decode gives values from {least:.3g} to {most:.3g}; images must lie in [0, 1]")


def _draw(generator: MultiLatentGenerator, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (n, noise_dim) where the generator's tensors lie, and its latents."""
    held = next((t for t in (*generator.parameters(), *generator.buffers()) if t.is_floating_point()), torch.empty(0))
    z = TruncatedNormal().sample((n, generator.noise_dim), torch.Generator().manual_seed(seed)).to(held)
    return z, generator.latents(z)


def _rng(seed: int, like: torch.Tensor) -> torch.Generator:
    rng = runtime.Stream(like.device)
    rng.manual_seed(seed)
    return rng


def _name(generator: MultiLatentGenerator) -> str:
    return getattr(generator, "name", "") or type(generator).__name__


def _refuse(generator: MultiLatentGenerator, reason: str) -> None:
    raise UsageError(f"generator {_name(generator)}: {reason}")
