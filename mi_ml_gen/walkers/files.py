"""Walkers, T_z: what perturbs a latent vector into the positive partner of an anchor.

A walker changes the part of the noise that `generator.walk_slice(chunks)` names. Both vectors go through
`generator.latents`, and the positive takes the changed latents on the walker's chunks, the anchor's elsewhere; so
one walker serves every family of generators (Serez et al., 2025, section 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core import files
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.base import IdentityWalker, Walker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import RandomWalker, law_from
from mi_ml_gen.walkers.published import read_walker

# ---------------------------------------------------------------------------------------------------------------
# Files


def build_walker(config: Mapping[str, Any]) -> Walker:
    """A walker from what its `config()` gave. Raises UsageError for a configuration that makes no sense."""
    try:
        kind = config["kind"]
        if kind == "identity":
            return IdentityWalker()
        if kind == "grouped":
            return GroupedWalker([build_walker(inner) for inner in config["walkers"]])
        start, stop = map(int, str(config["chunks"]).split("_"))
        if kind == "nonlinear":
            return NonlinearWalker(Chunks(start, stop), int(config["width"]))
        if kind == "random":
            return RandomWalker(Chunks(start, stop), law_from(config["law"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"walker configuration: {error}") from None
    raise UsageError(f"walker configuration: unknown kind {kind!r}")


def save_walker(path: str | Path, walker: Walker, **about: Any) -> Path:
    """Write `path`.safetensors and, beside it, `path`.json: the walker's configuration and `about` (generator,
    number of training samples, seed ...). The suffix may be given or left out. Gives the safetensors path."""
    path = _with_suffix(Path(path), ".safetensors")
    description = {"format": "mi_ml_gen walker", **walker.config(), "about": about}
    files.atomic_write(_with_suffix(path, ".json"), (json.dumps(description, indent=2) + "\n").encode())
    files.save_tensors(path, walker.state_dict(), {"format": "mi_ml_gen walker"})
    return path


def load_walker_file(path: str | Path, device: torch.device | str | None = None) -> Walker:
    """Read one walker that `save_walker` wrote (either of its two files), or a published pickle, which is never run."""
    path = hub.local_path(path)
    if path.suffix in (".safetensors", ".json"):
        return _load_saved(path).to(device)
    return read_published(path).to(device)


def read_published(path: str | Path) -> NonlinearWalker:
    """The walker in a published pickle, whatever its name; raises as `load_walker`."""
    published = read_walker(hub.local_path(path))
    width = len(published.state["walker.0.bias"])
    # COP-Gen's walker records no chunks: it perturbs all of BigBiGAN's.
    start, stop = published.attributes.get("start", 0), published.attributes.get("stop", 6)
    walker = NonlinearWalker(Chunks(start, stop), width)
    walker.load_state_dict(published.state)
    return walker


def read_about(path: str | Path) -> dict[str, Any]:
    """What `save_walker` was told about a walker; empty for a published file."""
    path = Path(path)
    return _description(path)["about"] if path.suffix in (".safetensors", ".json") else {}


def _load_saved(path: Path) -> Walker:
    description = _description(path)
    tensors, _ = files.load_tensors(_with_suffix(path, ".safetensors"))
    try:
        walker = build_walker(description)
        walker.load_state_dict(tensors)
    except (UsageError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{path}: {' '.join(str(error).split())}") from None
    return walker


def _description(path: Path) -> dict[str, Any]:
    path = _with_suffix(path, ".json")
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; a walker is a .safetensors file with a .json beside it") from None
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{path}: not a walker's description: {error}") from None
    if not isinstance(description, dict) or not {"kind", "about"} <= description.keys():
        raise CorruptCheckpointError(f"{path}: not a walker's description")
    return description


def _with_suffix(path: Path, suffix: str) -> Path:
    known = (".safetensors", ".json")
    return path.with_suffix(suffix) if path.suffix in known else path.with_name(path.name + suffix)
