"""The names of generators, and the registry that families enter: this file imports no torch.

A family of the package is a function here that imports it when it is asked for. A user's family enters from outside:

    @register_generator("mine")
    class Mine(MultiLatentGenerator): ...

in any file that is imported, in an installed package that names the class as an entry point of the group
"mi_ml_gen.generators", or without any registration as --generator path/to/file.py:Mine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.registry import Registry, short_name

if TYPE_CHECKING:
    import torch

    from mi_ml_gen.checkpoints.values import Names
    from mi_ml_gen.generators.base import MultiLatentGenerator

PRETRAINED = Path(__file__).parent / "pretrained"
ALIASES = {"stylegan": "stylegan2"}
"""Published names of families that are called otherwise here."""
ENTRY_POINTS = "mi_ml_gen.generators"

G = TypeVar("G", bound="type[MultiLatentGenerator]")


@dataclass(frozen=True)
class Family:
    """How one family of generators is built."""

    build: Callable[[dict[str, Any], dict[str, torch.Tensor], str], MultiLatentGenerator]
    """From the configuration and state dict of a file that `save_generator` wrote, and a name."""
    read_published: Callable[[Path], MultiLatentGenerator] | None = None
    """From the file that the authors of the network published."""
    make: Callable[[], MultiLatentGenerator] | None = None
    """Without any file, where the network has no weights to learn."""
    network: Callable[[], MultiLatentGenerator] | None = None
    """The published network with random weights, where its size is known without a file."""
    latent_space: Callable[[], MultiLatentGenerator] | None = None
    """Without weights: the published network's latents alone, where they need none."""
    published_as: str = ""
    """What the published file is called, for messages."""
    is_published: Callable[[Any], bool] = lambda root: False
    """Whether a parsed file (`checkpoints.CheckpointFile.root`) is of the kind that `read_published` reads."""
    names: Names | None = None
    """What the pickle in the published file may name, beside the usual."""
    is_checked: bool = False
    """Whether tests hold it to the promises of the interface; of the others `load_generator` checks an image."""


def family_of_class(name: str, found: Any) -> Family:
    """The family that a class is, from outside of the package. Raises UsageError for what is no such class."""
    from mi_ml_gen.generators.base import MultiLatentGenerator

    if not (isinstance(found, type) and issubclass(found, MultiLatentGenerator)):
        raise UsageError(f"--generator {name}: must be a class derived from mi_ml_gen.generators.MultiLatentGenerator")
    if "family" not in vars(found):
        found.family = short_name(name)
    return Family(found.from_state, read_published=found.from_file, make=found)


FAMILIES: Registry[Family] = Registry("generator", "--generator", ENTRY_POINTS, family_of_class)
"""Families by name. A class or instance knows its own as `family`."""


def register_generator(name: str) -> Callable[[G], G]:
    """Class decorator: make a `MultiLatentGenerator` known under a name, for --generator, load_generator and files.

    The class is made without arguments where no weights are given, and by its `from_state` from a saved file.
    """

    def register(cls: G) -> G:
        cls.family = name
        FAMILIES.add(name, family_of_class(name, cls))
        return cls

    return register


@FAMILIES.lazily("bigbigan")
def _bigbigan() -> Family:
    from mi_ml_gen.generators import bigbigan

    return Family(
        bigbigan.build, bigbigan.read_published, network=bigbigan.BigBiGAN, latent_space=bigbigan.latent_space,
        is_checked=True,
        published_as="BigBiGAN_x1.pth", is_published=bigbigan.is_published,
    )  # fmt: skip


@FAMILIES.lazily("stylegan2")
def _stylegan2() -> Family:
    from mi_ml_gen.generators.stylegan2 import generator, published

    return Family(
        generator.build, generator.read_published, network=generator.published_network,
        published_as="stylegan2-car-config-f.pkl", is_checked=True,
        is_published=published.is_published, names=published.stylegan2_names,
    )  # fmt: skip


@FAMILIES.lazily("nvae")
def _nvae() -> Family:
    from mi_ml_gen.generators.nvae import generator, published

    return Family(
        generator.build, published.read_published, published_as="last.pt of NVAE-from-scratch", is_checked=True,
        is_published=published.is_published,
    )  # fmt: skip


@FAMILIES.lazily("diffusion")
def _diffusion() -> Family:
    from mi_ml_gen.generators.diffusion import generator, published

    return Family(
        generator.build, published.read_published, published_as="a folder of diffusers with a UNet2DModel",
        is_checked=True,
    )  # fmt: skip


@FAMILIES.lazily("linear-gaussian")
def _linear_gaussian() -> Family:
    from mi_ml_gen.generators import linear_gaussian

    return Family(linear_gaussian.build, make=linear_gaussian.LinearGaussian, is_checked=True)


@FAMILIES.lazily("linear-gaussian-waves")
def _linear_gaussian_waves() -> Family:
    from mi_ml_gen.generators import linear_gaussian

    return Family(linear_gaussian.build, make=linear_gaussian.gaussian_waves, is_checked=True)


# --- names --------------------------------------------------------------------------------------------------


def bundled() -> list[str]:
    """Names of the generators whose weights come with the package."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def names() -> list[str]:
    """Every name that `load_generator` takes, but for the published aliases."""
    return sorted({*FAMILIES.names(), *bundled()})


def canonical(name: str) -> str:
    """The name of a generator here, for a published one."""
    return ALIASES.get(name, name)


def check_name(name: str) -> None:
    """Raise UsageError for what can name no generator; FILE.py:CLASS is believed, and nothing is imported."""
    if ":" not in name and canonical(name) not in names():
        near = nearest(name, names(), "generator")
        raise UsageError(f"--generator {name}: must be one of {', '.join(names())}, or FILE.py:CLASS{near}")


def families() -> Iterator[tuple[str, Family]]:
    """All families with their names, imported."""
    return iter(FAMILIES.items())
