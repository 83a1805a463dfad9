"""From a name to a generator: `load_generator(name)` gives any of them, frozen and ready to decode.

What a name may be is in families.py; weights that the package ships lie in pretrained/, each file with a card.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.checkpoints.names import checkpoint_names
from mi_ml_gen.checkpoints.reading import CheckpointFile
from mi_ml_gen.checkpoints.values import Meaning
from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.registry import fault, short_name
from mi_ml_gen.core.weights import Content, Kind, Published, register_kind
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.generators.checking import check_generator, check_images
from mi_ml_gen.generators.families import (
    FAMILIES,
    PRETRAINED,
    Family,
    bundled,
    canonical,
    check_name,
    family_of_class,
    names,
    register_generator,
)
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub import sharing

logger = logging.getLogger(__name__)

__all__ = [
    "FAMILIES",
    "PRETRAINED",
    "Family",
    "ImagePair",
    "MultiLatentGenerator",
    "bundled",
    "check_generator",
    "family_of",
    "load_generator",
    "load_latent_space",
    "load_own",
    "names",
    "published_names",
    "register_generator",
    "save_generator",
    "save_own",
]


def load_generator(
    name: str,
    path: str | Path | None = None,
    device: torch.device | str | None = None,
    use: Mapping[str, Any] | Sequence[str] = (),
) -> MultiLatentGenerator:
    """A frozen generator in evaluation mode; gradients flow to its latents, not to its weights.

    name: a family, registered or in a file of the user's ("path/to/file.py:Class"), or a generator that comes with the
        package ("tiny-bigbigan"); published names ("stylegan") count as ours.
    path: its weights, a file as published or one that `save_generator` wrote, or a reference (see hub/fetching.py);
        needed only where none are bundled.
    use: how it is used, see `MultiLatentGenerator.use`: {"psi": 0.7} or ["psi=0.7"], as the flag --g_use has it.
    Raises UsageError for an unknown name or option, a missing path, and a user's family one of whose images leaves
    [0, 1]; UnsafeCheckpointError or CorruptCheckpointError for a file that is refused.
    """
    generator, family = _load(name, path)
    generator = generator.use(use).freeze().to(device).to(memory_format=torch.channels_last)
    if family is not None and not family.is_checked:
        check_images(generator)
    for remark in generator.remarks():
        logger.warning(remark)
    return generator


def _load(name: str, path: str | Path | None) -> tuple[MultiLatentGenerator, Family | None]:
    """A generator, and the family that its name means: None for a bundled one."""
    check_name(name)
    name = canonical(name)
    if name in bundled():
        return _read(name, None, Path(path) if path is not None else PRETRAINED / f"{name}.safetensors"), None
    family = FAMILIES[name]
    if path is not None:
        generator = _read(name, family, Path(path))
    elif family.make is not None:
        generator = _made(name, family)
    else:
        published = family.published_as
        raise UsageError(f"--generator {name}: its weights are not bundled; give --g_path, for example {published}")
    if not hasattr(generator, "name"):
        generator.name = short_name(name)
    return generator, family


def _made(name: str, family: Family) -> MultiLatentGenerator:
    assert family.make is not None
    if family.is_checked:
        return family.make()
    try:
        return family.make()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # of a user's class
        raise UsageError(f"--generator {name}: cannot be made without arguments: {fault(error)}") from error


def load_latent_space(
    name: str,
    path: str | Path | None = None,
    device: torch.device | str | None = None,
    use: Mapping[str, Any] | Sequence[str] = (),
) -> MultiLatentGenerator:
    """A generator for its latents alone (layout, latents, distance): delta needs no image.

    As `load_generator`, but a family whose latents are the noise itself needs no weights for it.
    """
    family = FAMILIES.get(canonical(name))
    if path is None and family is not None and family.latent_space is not None:
        return family.latent_space().use(use)
    return load_generator(name, path, device, use)


# --- files --------------------------------------------------------------------------------------------------


def save_generator(path: str | Path, generator: MultiLatentGenerator, family: str = "", **about: str) -> None:
    """Write a generator as safetensors, with what `load_generator` needs to build it again, and `about`, in the head.

    family: its own; it may be left out.
    """
    assert family in ("", _family_name(generator)), f"a {type(generator).__name__} is no {family}"
    weights.write(path, GeneratorFiles.name, generator.state_dict(), _config(generator), about)


def save_own(path: str | Path, generator: MultiLatentGenerator) -> None:
    """As `save_generator`."""
    save_generator(path, generator)


def load_own(path: str | Path) -> MultiLatentGenerator:
    """What `save_generator` wrote, of whatever family, as `load_generator` gives it."""
    return _read("", None, Path(path)).freeze().to(memory_format=torch.channels_last)


def published_names(module: str, name: str) -> Meaning | None:
    """What the pickle in some family's published file may name; for `checkpoints.CheckpointFile`."""
    usual = (checkpoint_names, *(family.names for _, family in _package_families() if family.names is not None))
    return next((meaning for names in usual if (meaning := names(module, name)) is not None), None)


def family_of(root: Any) -> str | None:
    """The family whose published file this is, told by its parsed content, or None."""
    return next((name for name, family in _package_families() if family.is_published(root)), None)


def _package_families() -> Iterator[tuple[str, Family]]:
    """All families but those of entry points, whose packages are not run for a look at a file."""
    points = FAMILIES.points()
    return ((name, FAMILIES[name]) for name in FAMILIES.names() if name not in points or name in FAMILIES.loaded())


def _read(name: str, family: Family | None, path: Path) -> MultiLatentGenerator:
    """The generator in a file, which must be of `family` where that is given."""
    path = hub.local_path(path)
    if (path / sharing.CONFIG).is_file() and (path / sharing.WEIGHTS).is_file():  # a folder of save_pretrained
        path = path / sharing.WEIGHTS
    if path.suffix == ".safetensors":
        content = weights.read(path, GeneratorFiles.name)
        found = content.config.get("family")
        if not isinstance(found, str):
            raise CorruptCheckpointError(f"{path}: its head does not name a family of generators")
        if family is not None and not _is_family(found, name):
            raise UsageError(f"--g_path {path}: holds a {found}, not a {short_name(name)}; give --generator {found}")
        generator = weights.build(path, content)
        assert isinstance(generator, MultiLatentGenerator)
        return generator
    if family is None or family.read_published is None:
        raise UsageError(f"--g_path {path}: {name} reads .safetensors files only")
    try:
        generator = family.read_published(path)
    except CheckpointError:
        if (other := _told(path)) not in (None, name):
            raise UsageError(f"--g_path {path}: holds a {other}, not a {name}; give --generator {other}") from None
        raise
    weights.check_finite(path, generator.state_dict())
    return generator


def _told(path: Path) -> str | None:
    """The family of a published file, told by its content; None for one that cannot be read, and for a folder."""
    if path.is_dir():
        return None
    try:
        with CheckpointFile(path, published_names) as file:
            return family_of(file.root)
    except CheckpointError:
        return None


def _family_name(generator: MultiLatentGenerator) -> str:
    """The family of a generator as files name it: the registered name of its class, else the class's own."""
    cls = type(generator)
    return str(vars(cls).get("family") or cls.__name__)


def _is_family(found: str, name: str) -> bool:
    """Whether what a file calls its family is the one that a name of --generator means.

    A user's class goes by its registered name, by its own, and by that of the entry point that names it: which of
    them a file has depends on how the generator was loaded that was saved.
    """
    family = FAMILIES[name]
    if found == name or family.is_checked:
        return found == name
    make = family.make
    point = FAMILIES.points().get(found)
    own = getattr(make, "__name__", None)
    registered = getattr(make, "__dict__", {}).get("family")
    return found in (registered, own) or (point is not None and point.attr == own)


def _family(name: str) -> Family:
    """The family that a file names: registered, a class of that name that is defined somewhere by now, or the class of
    that name that an installed package has as an entry point."""
    if name in FAMILIES:
        return FAMILIES[name]
    waiting = MultiLatentGenerator.__subclasses__()
    for cls in waiting:
        waiting += cls.__subclasses__()
    found = [cls for cls in waiting if name in (vars(cls).get("family"), cls.__name__)]
    if not found:
        for point in FAMILIES.points().values():
            if point.attr == name:
                return FAMILIES[point.name]
        raise CorruptCheckpointError(
            f"its family {name[:80]!r} is not known here; import the file that defines it, or give it as "
            f"--generator FILE.py:{name[:80]}"
        )
    return family_of_class(name, max(found, key=lambda cls: cls.defined))


def _config(generator: MultiLatentGenerator) -> dict[str, Any]:
    return {
        "family": _family_name(generator),
        "name": getattr(generator, "name", _family_name(generator)),
        "settings": generator.config(),
    }


def _described(family: str, generator: MultiLatentGenerator) -> str:
    sizes = sorted(set(generator.layout.sizes))
    of = " or ".join(map(str, sizes[:3])) + (" ..." if len(sizes) > 3 else "")
    n_parameters = sum(parameter.numel() for parameter in generator.parameters())
    return (
        f"{family} generator: {generator.layout.n_chunks} chunks of {of} numbers, {generator.resolution} px, "
        f"{n_parameters:,} parameters"
    )


@register_kind
class GeneratorFiles(Kind[MultiLatentGenerator]):
    """Generators of all families in files."""

    name = "generator"
    models = MultiLatentGenerator
    file = "generator.safetensors"
    about = "A generator of images with several latent variables (chunks)."
    use = (
        "from mi_ml_gen.generators import MultiLatentGenerator\n"
        "from mi_ml_gen.latents import TruncatedNormal\n\n"
        'generator = MultiLatentGenerator.from_pretrained("{repo}")\n'
        "z = TruncatedNormal().sample((8, generator.noise_dim))\n"
        "images = generator.decode(generator.latents(z))  # (8, 3, height, width) in [0, 1]"
    )

    def config(self, model: MultiLatentGenerator) -> dict[str, Any]:
        return _config(model)

    def build(self, config: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> MultiLatentGenerator:
        generator = _family(config["family"]).build(config["settings"], tensors, config["name"])
        return generator.freeze().to(memory_format=torch.channels_last)

    def older(self, path: Path, tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> Content | None:
        """Metadata of 0.1: family, name, config as JSON, and what the writer noted."""
        if not {"family", "config"} <= metadata.keys():
            return None
        config = {
            "family": metadata["family"],
            "name": metadata.get("name", metadata["family"]),
            "settings": weights.parsed(path, metadata["config"]),
        }
        about = {key: value for key, value in metadata.items() if key not in ("family", "name", "config")}
        return Content(self.name, config, about, tensors)

    def published(self, root: Any, source: Path) -> Published | None:
        family = family_of(root)
        if family is None:
            return None
        read_published = FAMILIES[family].read_published
        assert read_published is not None
        generator = read_published(source)
        return Published(
            _described(family, generator),
            lambda target: save_generator(target, generator, family, source=source.name),
            f"--generator {family} --g_path {{path}}",
        )

    def pickle_names(self, module: str, name: str) -> Meaning | None:
        return published_names(module, name)
