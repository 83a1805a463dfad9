"""How a T_z is written: on the command line, in YAML, and in files of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub.assets import is_reference
from mi_ml_gen.walkers.base import IdentityWalker, Walker
from mi_ml_gen.walkers.files import load_walker_file
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker


def walker_from(
    text: Mapping[str, Any] | str | Path | None,
    generator: MultiLatentGenerator,
    device: torch.device | str | None = None,
) -> Walker:
    """T_z of a configuration, frozen, for a generator.

    None: generated images, unperturbed (the "synth" baseline). A path: a walker's file, ours or published, the run
    folder of one, or a YAML of groups. A mapping, or text such as "0_1=runs/coarse 1_4=0,0.8,2": for each group of
    chunks a path, noise [mean, std, truncation] (or [low, high]), or null. Paths count from here.
    Raises as `load_groups` and `load_walker`.
    """
    if text is None or (isinstance(text, str) and text.strip() in config.NOTHING):
        return IdentityWalker()
    if isinstance(text, str) and "=" in text:
        text = _groups_of(text)
    if isinstance(text, Mapping):
        walker: Walker = load_groups(text, generator, device)
    else:
        path = Path(text)
        walker = load_walker(path / "walker.safetensors" if path.is_dir() else path, device, generator)
        if isinstance(walker, NonlinearWalker):
            generator.chunks(str(walker.range), f"{path}: chunks")
            walker.check_width(generator)
    return walker.eval().requires_grad_(False)


def _groups_of(text: str) -> dict[str, Any]:
    """ "0_1=runs/coarse 1_4=0,0.8,2" -> {"0_1": "runs/coarse", "1_4": ["0", "0.8", "2"]}"""
    groups: dict[str, Any] = {}
    for item in text.split():
        chunks, equals, value = item.partition("=")
        if not (equals and value):
            raise UsageError(f"T_z {item!r}: write CHUNKS=WALKER or CHUNKS=MEAN,STD,TRUNCATION, with spaces between")
        if chunks in groups:
            raise UsageError(f"T_z: group {chunks} stands there twice")
        groups[chunks] = value.split(",") if "," in value else value
    return groups


def load_walker(
    path: str | Path, device: torch.device | str | None = None, generator: MultiLatentGenerator | None = None
) -> Walker:
    """Read a walker that `save_walker` wrote (either of its two files), or a published pickle, which is never run.

    With the generator that it is for, `path` may also be a YAML of groups, see `load_groups`, and, always, a reference
    to a file (see hub/fetching.py). Raises UsageError for a missing file, UnsafeCheckpointError or
    CorruptCheckpointError for one that is refused.
    """
    path = hub.local_path(path)
    if path.suffix in (".yaml", ".yml") and generator is not None:
        return load_groups(path, generator, device)
    return load_walker_file(path, device)


def load_groups(
    groups: str | Path | Mapping[str, Any],
    generator: MultiLatentGenerator,
    device: torch.device | str | None = None,
) -> GroupedWalker:
    """A walker for each group of chunks, from a YAML file, or a mapping of what such a file holds:

        0_4: runs/coarse/walker.safetensors    # what `load_walker` reads, or the run folder of one walker
        4_8: [0, 1, 2]                         # noise: [mean, std, truncation], or [low, high]
        8_12: null                             # left alone

    A file's relative paths count from the file, a mapping's from here; a mapping may also hold walkers. In place of a
    path a reference may stand (see hub.py). Raises
    UsageError for groups that overlap or do not fit the generator, else as `load_walker`.
    """
    where, content, base = "groups", groups, Path()
    if not isinstance(groups, Mapping):
        path = hub.local_path(groups)
        where, content, base = str(groups), _read_groups(path), path.parent
    assert isinstance(content, Mapping)
    members: dict[str, Walker | Sequence[float] | None] = {}
    for text, group in content.items():
        generator.chunks(text, f"{where}: group")
        if isinstance(group, str | Path) and str(group) not in config.NOTHING:
            path = Path(group) if is_reference(group) else base / group
            members[text] = load_walker(path / "walker.safetensors" if path.is_dir() else path, device)
        else:
            members[text] = group if isinstance(group, Walker) else _numbers(group, f"{where}: group {text}")
    grouped = GroupedWalker.from_groups(members, generator.layout.n_chunks)
    for walker in grouped.members:
        if isinstance(walker, NonlinearWalker):
            walker.check_width(generator)
    return grouped


def _read_groups(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every scalar as text: YAML itself takes the chunks 0_4 for the number 4."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must hold lines of the form START_STOP: walker, [mean, std, truncation] or null")
    if len(content) < len(root.value):
        raise UsageError(f"{path}: a group stands there twice")
    return content


def _numbers(group: Any, where: str) -> list[float] | None:
    """The numbers of a law, None for nothing."""
    if group is None or group in config.NOTHING:
        return None
    try:
        return [float(number) for number in group]
    except (TypeError, ValueError):
        raise UsageError(
            f"{where}: {group}: must be a walker's path, [mean, std, truncation], [low, high] or null"
        ) from None
