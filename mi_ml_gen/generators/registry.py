"""The generators, behind one interface: `load_generator(name)` gives any of them, frozen and ready to decode.

A family adds one line to `FAMILIES`; weights that the package ships lie in pretrained/, each file with a card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mi_ml_gen.checkpoints import reading as checkpoints
from mi_ml_gen.checkpoints.names import checkpoint_names
from mi_ml_gen.checkpoints.values import Meaning, Names
from mi_ml_gen.core import files
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators import bigbigan, linear_gaussian
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.generators.stylegan2 import generator as stylegan2
from mi_ml_gen.generators.stylegan2 import published as stylegan2_pickle
from mi_ml_gen.hub import fetching as hub

__all__ = [
    "FAMILIES",
    "ImagePair",
    "MultiLatentGenerator",
    "bundled",
    "family_of",
    "load_generator",
    "load_latent_space",
    "load_own",
    "names",
    "published_names",
    "save_generator",
    "save_own",
]

PRETRAINED = Path(__file__).parent / "pretrained"


class Family(NamedTuple):
    """How one family of generators is built."""

    build: Callable[[dict[str, Any], dict[str, torch.Tensor], str], MultiLatentGenerator]
    """From the configuration and state dict of a file that `save_generator` wrote, and a name."""
    read_published: Callable[[Path], MultiLatentGenerator] | None = None
    """From the file that the authors of the network published."""
    make: Callable[[], MultiLatentGenerator] | None = None
    """Without any file, where the network has no weights to learn."""
    latent_space: Callable[[], MultiLatentGenerator] | None = None
    """Without weights: the published network's latents alone, where they need none."""
    published_as: str = ""
    """What the published file is called, for messages."""
    is_published: Callable[[Any], bool] = lambda root: False
    """Whether a parsed file (`checkpoints.CheckpointFile.root`) is of the kind that `read_published` reads."""
    names: Names = checkpoint_names
    """What the pickle in the published file may name."""


FAMILIES: dict[str, Family] = {
    "bigbigan": Family(
        bigbigan.build, bigbigan.read_published, latent_space=bigbigan.latent_space,
        published_as="BigBiGAN_x1.pth", is_published=bigbigan.is_published,
    ),
    "stylegan2": Family(
        stylegan2.build, stylegan2.read_published, published_as="stylegan2-car-config-f.pkl",
        is_published=stylegan2_pickle.is_published, names=stylegan2_pickle.stylegan2_names,
    ),
    "linear-gaussian": Family(linear_gaussian.build, make=linear_gaussian.LinearGaussian),
}  # fmt: skip


def bundled() -> list[str]:
    """Names of the generators whose weights come with the package."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def names() -> list[str]:
    """Every name that `load_generator` takes."""
    return sorted({*FAMILIES, *bundled()})


def load_generator(
    name: str,
    path: str | Path | None = None,
    device: torch.device | str | None = None,
    use: Mapping[str, Any] | Sequence[str] = (),
) -> MultiLatentGenerator:
    """A frozen generator in evaluation mode; gradients flow to its latents, not to its weights.

    name: a family, or a generator that comes with the package ("tiny-bigbigan").
    path: its weights, a file as published or one that `save_generator` wrote, or a reference to one (see hub.py);
        needed only where none are bundled.
    use: how it is used, see `MultiLatentGenerator.use`: {"psi": 0.7} or ["psi=0.7"], as the flag --g_use has it.
    Raises UsageError for an unknown name or option or a missing path, UnsafeCheckpointError or CorruptCheckpointError
    for a file that is refused.
    """
    if name not in names():
        raise UsageError(f"--generator {name}: must be one of {', '.join(names())}")
    if path is None and name in bundled():
        path = PRETRAINED / f"{name}.safetensors"
    if path is not None:
        generator = _read(name, Path(path))
    elif (make := FAMILIES[name].make) is not None:
        generator = make()
    else:
        published = FAMILIES[name].published_as
        raise UsageError(f"--generator {name}: its weights are not bundled; give --g_path, for example {published}")
    return generator.use(use).freeze().to(device).to(memory_format=torch.channels_last)


def load_latent_space(
    name: str,
    path: str | Path | None = None,
    device: torch.device | str | None = None,
    use: Mapping[str, Any] | Sequence[str] = (),
) -> MultiLatentGenerator:
    """A generator for its latents alone (layout, latents, distance): delta needs no image.

    As `load_generator`, but a family whose latents are the noise itself needs no weights for it.
    """
    family = FAMILIES.get(name)
    if path is None and family is not None and family.latent_space is not None:
        return family.latent_space().use(use)
    return load_generator(name, path, device, use)


def published_names(module: str, name: str) -> Meaning | None:
    """What the pickle in some family's published file may name; for `checkpoints.CheckpointFile`."""
    meanings = (family.names(module, name) for family in FAMILIES.values())
    return next((meaning for meaning in meanings if meaning is not None), None)


def family_of(root: Any) -> str | None:
    """The family whose published file this is, told by its parsed content, or None."""
    return next((name for name, family in FAMILIES.items() if family.is_published(root)), None)


def save_generator(path: str | Path, generator: MultiLatentGenerator, family: str, **metadata: str) -> None:
    """Write a generator as safetensors, with what `load_generator` needs to build it again in the header."""
    assert family in FAMILIES
    header = {"family": family, "name": generator.name, "config": json.dumps(generator.config()), **metadata}
    files.save_tensors(path, generator.state_dict(), header)


def save_own(path: str | Path, generator: MultiLatentGenerator) -> None:
    """As `save_generator`, of the family whose file the generator's class is in."""
    module = type(generator).__module__
    save_generator(path, generator, next(name for name, known in FAMILIES.items() if known.build.__module__ == module))


def load_own(path: str | Path) -> MultiLatentGenerator:
    """What `save_generator` wrote, of whatever family, as `load_generator` gives it."""
    return _read("", Path(path)).freeze().to(memory_format=torch.channels_last)


def _read(name: str, path: Path) -> MultiLatentGenerator:
    path = hub.local_path(path)
    if path.suffix != ".safetensors":
        read_published = FAMILIES[name].read_published if name in FAMILIES else None
        if read_published is None:
            raise UsageError(f"--g_path {path}: {name} reads .safetensors files only")
        return read_published(path)
    tensors, metadata = files.load_tensors(path)
    try:
        family, config = FAMILIES[metadata["family"]], json.loads(metadata["config"])
    except (KeyError, ValueError):
        raise CorruptCheckpointError(f"{path}: its header names no generator of this package") from None
    if name in FAMILIES and metadata["family"] != name:
        raise UsageError(f"--g_path {path}: holds a {metadata['family']}, not a {name}")
    with checkpoints.naming(path):
        return family.build(config, tensors, metadata.get("name", name))
