"""Pictures of walkers: what they do to images, along training and along the length of the perturbation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks
from mi_ml_gen.report.figures import curves, figure_png
from mi_ml_gen.report.images import image_grid, pair_grid, save_png
from mi_ml_gen.walkers.base import Pair, Walker
from mi_ml_gen.walkers.spec import load_walker


@torch.no_grad()
def decode_shown(generator: MultiLatentGenerator, latents: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, H, W); where decoding draws, the draws are the same in every picture. Raises NonFiniteError."""
    images = generator.decode(latents, runtime.stream(0, "pictures", 0, 0, latents.device))
    return runtime.finite(f"images of {generator.name}", images)


@torch.no_grad()
def save_pairs(path: Path, generator: MultiLatentGenerator, walker: Walker, z: torch.Tensor) -> Path:
    """Anchors of noise z above their positives."""
    pair = walker(generator, z)
    images = decode_shown(generator, pair.anchor), decode_shown(generator, pair.positive)
    return save_png(path, pair_grid(*images, n_columns=len(z), labels=("anchor", "positive")))


@torch.no_grad()
def save_chunks(path: Path, generator: MultiLatentGenerator, walkers: Sequence[Walker], z: torch.Tensor) -> Path:
    """The anchors of noise z, then a row per walker: the positives that it makes of them."""
    rows = {"anchor": decode_shown(generator, generator.latents(z))}
    for walker in walkers:
        rows[_name(walker.chunks)] = decode_shown(generator, walker(generator, z).positive)
    return save_png(path, _labelled(rows))


@torch.no_grad()
def swaps(
    generator: MultiLatentGenerator, z: torch.Tensor, donors: torch.Tensor, groups: Sequence[Chunks]
) -> np.ndarray:
    """The anchors of noise z, a row per group of chunks with that group taken from the donors, then the donors.

    Style mixing (Karras et al., 2019, section 3.1), for every family: what a group of chunks decides is what
    changes from the first row to its row, and what it shares with the last row.
    """
    anchor, donor = generator.latents(z), generator.latents(donors)
    rows = {"anchor": decode_shown(generator, anchor)}
    for group in groups:
        at = generator.layout.slice(group)
        mixed = torch.cat([anchor[:, : at.start], donor[:, at], anchor[:, at.stop :]], dim=1)
        rows[f"{_name((group,))} from donor"] = decode_shown(generator, mixed)
    return _labelled(rows | {"donor": decode_shown(generator, donor)})


@torch.no_grad()
def save_strengths(
    path: Path, generator: MultiLatentGenerator, walker: Walker, z: torch.Tensor, strengths: Sequence[float]
) -> Path:
    """A row of images per multiple of the perturbation's displacement in latent space; 0 is the anchor."""
    pair: Pair = walker(generator, z)
    rows = [decode_shown(generator, pair.anchor + x * (pair.positive - pair.anchor)) for x in strengths]
    labels = [f"\N{MULTIPLICATION SIGN} {strength:g}" for strength in strengths]
    return save_png(path, image_grid(torch.cat(rows), n_columns=len(z), row_labels=labels))


@torch.no_grad()
def save_training(path: Path, generator: MultiLatentGenerator, run: Path, z: torch.Tensor, n_rows: int = 6) -> Path:
    """The anchors, then their positives under walkers saved along a run, evenly spaced, the last included."""
    matches = [re.fullmatch(r"w_(\d+)(_0)?", path.stem) for path in (run / "walkers").glob("w_*.safetensors")]
    saved = sorted((int(match[1]), match.string) for match in matches if match)  # of several walkers, the first
    if not saved:
        raise UsageError(f"{run}: no walker has been saved yet")
    places = torch.linspace(0, len(saved) - 1, min(n_rows, len(saved))).round().long().tolist()
    rows = {"anchor": decode_shown(generator, generator.latents(z))}
    for place in places:
        n_samples, stem = saved[place]
        walker = load_walker(run / "walkers" / f"{stem}.safetensors", z.device)
        rows[f"{n_samples:,}"] = decode_shown(generator, walker(generator, z).positive)
    return save_png(path, _labelled(rows))


def _name(chunks: Sequence[Chunks]) -> str:
    return f"chunks {', '.join(map(str, chunks))}" if chunks else "unperturbed"


def _labelled(rows: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Rows of images (n, 3, H, W) with their names to the left."""
    return image_grid(torch.cat(list(rows.values())), n_rows=len(rows), row_labels=list(rows))


def save_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Loss, bound and delta over the samples of a run."""
    figure = curves(rows, ("loss", "bound_nats", "delta"), x="samples", x_label="samples")
    atomic_write(path, figure_png(figure))
    return path
