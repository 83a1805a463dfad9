"""How a T_z is written: one grammar for flags, YAML, files of groups and Python.

    T_z     nothing                          images without perturbation
            FILE                             one walker, or a file of groups
            CHUNKS=WALKER CHUNKS=WALKER ...  a walker for each group of chunks
    WALKER  nothing | NOISE | DIRECTIONS | FILE | budget:NATS | DIRECTIONS,budget:NATS | FILE,budget:NATS
    NOISE   STD | MEAN,STD,TRUNCATION | LOW,HIGH
    DIRECTIONS  ganspace:NUMBER | ganspace:NUMBER,STRENGTH | sefa:NUMBER | sefa:NUMBER,STRENGTH
    FILE    a path or a reference (docs/pretrained.md)
    nothing none | null | ~ | no text at all
    CHUNKS  START_STOP, the first chunk included, the last excluded: 1_6 is chunks 1 to 5
    budget:NATS  noise after which image and positive share so many nats; after DIRECTIONS (without STRENGTH) or FILE,
                 their perturbation, made longer or shorter; solved where it is used (budget.py)

    none                                     the anchor itself
    walker_runs/coarse                       the selected walker of a run of train_navigator.py
    w_COPGen_60032.pth                       a published walker
    groups.yaml                              a file of groups, see `load_groups`
    hf://me/my-walker                        a walker on the Hub; or hf://me/my-walker/FILE@REVISION
    walker-bigbigan-1_6                      a file by the name that download_pretrained.py knows it by
    0_1=0.5                                  normal noise of standard deviation 0.5 on chunk 0, truncated at 2 of them
    0_6=0,0.2,2                              noise of mean 0, standard deviation 0.2, truncation 2 on all six chunks
    0_6=0.1,0.5                              half of the samples: noise of a standard deviation between 0.1 and 0.5
    0_2=ganspace:5,1.5                       along the first 5 directions of GANSpace, standard deviation 1.5 each
    0_1=sefa:3                               along the first 3 directions of SeFa, standard deviation 1 each
    0_1=walker_runs/coarse 1_4=0.5 4_6=none  a group of its own each
    0_1=budget:3.0                           noise on chunk 0 that leaves 3 nats of information between the images
    0_1=walker_runs/coarse,budget:3.0        a walker, scaled so that the images share 3 nats

Text that begins with CHUNKS= is groups, all other text is a FILE; so a file named "0_1=x" is written "./0_1=x". A group
reaches to the next blank that CHUNKS= follows, so paths may hold blanks and equal signs; one that holds " 0_1=" stands
in quotes: 0_1="a 0_1=b.safetensors". Noise may stand in brackets, as in YAML: 0_1=[0, 0.5, 2]. In YAML and Python the
groups may be a mapping, and then noise a list and nothing None:

    Tz: {0_1: walker_runs/coarse, 1_4: [0, 0.5, 2], 4_6: null}

Relative paths count from the working directory, in a file of groups from that file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.texts import TextError, parse_yaml
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.hub import assets
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub.assets import is_reference
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.base import IdentityWalker, Walker
from mi_ml_gen.walkers.directions import directions_walker
from mi_ml_gen.walkers.files import load_walker_file
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.noise import RandomWalker

EXAMPLE = "0_1=0.5 1_4=0,0.8,2 4_6=walker_runs/fine"
"""A T_z of groups, for messages."""

_GROUP = re.compile(r"(?:^|(?<=\s))\s*(-?\d+_-?\d+)=", re.ASCII)
_DIRECTIONS = re.compile(r"\s*(ganspace|sefa):\s*(\d+)\s*(?:,(.*))?", re.ASCII)
_QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
_BUDGET = re.compile(r"(?:(?P<of>.*\S)\s*,)?\s*budget:(?P<nats>.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.ASCII | re.IGNORECASE)


def walker_from(
    written: Mapping[Any, Any] | Walker | str | Path | None,
    generator: MultiLatentGenerator,
    device: torch.device | str | None = None,
    flag: str = "T_z",
) -> Walker:
    """The walker that a T_z means (the grammar stands at the top of this module), frozen, for a generator.

    written: text, a path, a mapping of groups, None for nothing, or a walker, which is checked and moved. device: where
    it comes to be, by default where the generator is. flag: what error messages call it.
    Raises UsageError that names the wrong part, and as `load_walker`.
    """
    device = device_of(generator) if device is None else device
    if isinstance(written, Walker):
        walker = written.to(device)
    elif written is None or _is_nothing(written):
        walker = IdentityWalker()
    elif isinstance(written, Mapping):
        walker = load_groups(written, generator, device)
    elif isinstance(written, str) and is_groups(written):
        walker = _grouped(read_groups(written, flag), generator, device, f"{flag} {written}")
    elif isinstance(written, str | Path):
        walker = _of_file(written, generator, device, flag)
    else:
        raise UsageError(f"{flag} {written!r}: give text such as {EXAMPLE!r}, a path, or a mapping of groups")
    walker.check(generator)
    return walker.eval().requires_grad_(False)


def is_groups(text: str) -> bool:
    """Whether the text of a T_z is groups (it begins with CHUNKS=), and not a file."""
    return _GROUP.match(text) is not None


def read_groups(written: str | Path | Mapping[Any, Any], flag: str = "T_z") -> dict[str, Any]:
    """The groups of a T_z, CHUNKS -> WALKER, from text, a mapping or a YAML file of groups, whose paths then count from
    the working directory; no walker is read.

    Raises UsageError where a group is empty or is given twice, and for a file that is not one of groups.
    """
    if isinstance(written, Mapping):
        return {str(chunks): member for chunks, member in written.items()}
    if isinstance(written, Path) or not is_groups(written):
        path = hub.local_path(written)
        return {chunks: _beside(path, member) for chunks, member in _read_groups_file(path).items()}
    starts = list(_GROUP.finditer(_hide_quoted(written)))
    ends = [match.start() for match in starts[1:]] + [len(written)]
    groups: dict[str, Any] = {}
    for match, end in zip(starts, ends, strict=True):
        chunks, member = match[1], written[match.end() : end].strip()
        if not member:
            raise UsageError(f"{flag} {written}: nothing follows {chunks}=; write for example {EXAMPLE}")
        if chunks in groups:
            raise UsageError(f"{flag} {written}: group {chunks} is given twice")
        groups[chunks] = member
    return groups


def load_walker(
    path: str | Path, device: torch.device | str | None = None, generator: MultiLatentGenerator | None = None
) -> Walker:
    """Read a walker that `save_walker` wrote (either of its two files), the run folder of one, or a published pickle,
    which is never run.

    With the generator that it is for, `path` may also be a YAML of groups, see `load_groups`. In place of a path a
    reference may stand (see hub/fetching.py). Raises UsageError for a missing file, UnsafeCheckpointError or
    CorruptCheckpointError for one that is refused.
    """
    meant = assets.parse(path)
    if isinstance(meant, assets.HubFile) and meant.is_folder:
        path = str(meant._replace(path=meant.path + "walker.safetensors"))  # as share_model.py uploads it
    path = hub.local_path(path)
    if path.suffix in (".yaml", ".yml"):
        if generator is None:
            raise UsageError(f"{path}: is a file of groups, but the file of a single walker is needed")
        return load_groups(path, generator, device)
    if path.is_dir():
        if not (path / "walker.safetensors").exists():
            raise UsageError(f"{path}: holds no walker.safetensors, which every finished run of train_navigator.py has")
        path = path / "walker.safetensors"
    return load_walker_file(path, device)


def load_groups(
    groups: str | Path | Mapping[Any, Any],
    generator: MultiLatentGenerator,
    device: torch.device | str | None = None,
) -> GroupedWalker:
    """A walker for each group of chunks, from a YAML file, or a mapping of what such a file holds:

        0_4: runs/coarse                       # what `load_walker` reads
        4_8: [0, 1, 2]                         # noise: [mean, std, truncation], [low, high], or std
        8_12: null                             # left alone
        12_16: ganspace:5,1.5                  # directions

    Each value is a WALKER of the grammar at the top of this module. A file's relative paths count from the file, a
    mapping's from the working directory; a mapping may also hold walkers.
    Raises UsageError for groups that overlap or do not fit the generator, else as `load_walker`.
    """
    where = "groups" if isinstance(groups, Mapping) else str(groups)
    return _grouped(read_groups(groups), generator, device, where)


def _grouped(
    groups: Mapping[str, Any], generator: MultiLatentGenerator, device: torch.device | str | None, where: str
) -> GroupedWalker:
    members: dict[str, Walker | None] = {}
    for key, written in groups.items():
        chunks = generator.chunks(key, f"{where}: group")
        members[str(chunks)] = _member(written, chunks, generator, device, f"{where}: group {key}")
    walker = GroupedWalker.from_groups(members, generator.layout.n_chunks)
    walker.check(generator)
    return walker


def _member(
    written: Any, chunks: Chunks, generator: MultiLatentGenerator, device: torch.device | str | None, where: str
) -> Walker | None:
    """The WALKER of a group: None for nothing. `generator` is what DIRECTIONS are found for."""
    if isinstance(written, Walker):
        return written
    if written is None or _is_nothing(written):
        return None
    if budget_in(written) is not None:
        raise UsageError(
            f"{where}: {written}: a budget must be solved for the noise of the anchors, which is not known here; "
            "give the strength, which the budget.json of a run with this budget tells"
        )
    if (found := _directions(written)) is not None:
        try:
            return directions_walker(generator, chunks, *found).to(device)
        except UsageError as error:
            raise UsageError(f"{where}: {written}: {error}") from None
    numbers = _numbers(written)
    if numbers is None and not isinstance(written, str | Path):
        raise UsageError(f"{where}: {written}: must be a walker's path, [mean, std, truncation], [low, high] or null")
    try:
        return RandomWalker(chunks, numbers) if numbers is not None else load_walker(_unquoted(written), device)
    except UsageError as error:
        text = str(written)
        if numbers is None and ("," in text or len(text.split()) > 1) and not Path(_unquoted(text)).exists():
            raise UsageError(
                f"{where}: {text!r} is neither noise (mean,std,truncation) nor a file; "
                f"write CHUNKS=WALKER with blanks between groups: {EXAMPLE}"
            ) from None
        raise UsageError(f"{where}: {error}") from None


def _of_file(
    written: str | Path, generator: MultiLatentGenerator, device: torch.device | str | None, flag: str
) -> Walker:
    """The walker of a T_z that is a FILE."""
    written = _unquoted(written)
    text = str(written)
    if not Path(text).exists() and not is_reference(text):
        whole = generator.layout.all
        if _directions(text) is not None:
            raise UsageError(f"{flag} {text}: says no chunks; for all of {generator.name} write {whole}={text}")
        if _numbers(text) is not None:
            raise UsageError(
                f"{flag} {text}: names no chunks; for noise on all of {generator.name} write {whole}={text}"
            )
        if "=" in text:
            raise UsageError(
                f"{flag} {text}: no such file; groups begin with CHUNKS=, START_STOP from 0_{whole.stop}: {EXAMPLE}"
            )
    return load_walker(written, device, generator)


def _unquoted(written: str | Path) -> str | Path:
    quoted = _QUOTED.fullmatch(written.strip()) if isinstance(written, str) else None
    return written if quoted is None else quoted[2]


def _beside(file: Path, member: Any) -> Any:
    """A WALKER of a file of groups; its path counts from the file's folder."""
    if not isinstance(member, str) or _is_nothing(member) or _numbers(member) is not None or _directions(member):
        return member
    if (budget := budget_in(member)) is not None:
        of, nats = budget
        return member if of is None else f"{_beside(file, of)},budget:{nats}"
    path = _unquoted(member)
    return path if is_reference(path) else file.parent / path


def _is_nothing(written: Any) -> bool:
    return isinstance(written, str) and written.strip() in config.NOTHING


def _numbers(written: Any) -> list[float] | float | None:
    """Noise as a number (std) or a list of them, given so or as text; None for what is neither."""
    if isinstance(written, str):
        text = written.strip()
        in_brackets = text.startswith("[") and text.endswith("]")
        parts = (text[1:-1] if in_brackets else text).split(",")
        written = parts if in_brackets or len(parts) > 1 else text
    items = list(written) if isinstance(written, list | tuple) else [written]
    if not items or not all(_NUMBER.fullmatch(str(item).strip()) for item in items):
        return None
    return [float(item) for item in items] if isinstance(written, list | tuple) else float(written)


def _directions(written: Any) -> tuple[str, int, float] | None:
    """Method, number and strength of DIRECTIONS; None for what is none. Raises UsageError for a strength that is no
    number."""
    match = _DIRECTIONS.fullmatch(written) if isinstance(written, str) else None
    if match is None:
        return None
    strength = "1" if match[3] is None else match[3].strip()
    if not _NUMBER.fullmatch(strength) or not 0 <= float(strength) < math.inf:
        raise UsageError(f"{written.strip()}: the strength must be a number of at least 0, as in ganspace:5,1.5")
    return match[1], int(match[2]), float(strength)


def budget_in(written: Any) -> tuple[str | None, str] | None:
    """What stands before and after `budget:` in a WALKER; None for one without a budget."""
    match = _BUDGET.fullmatch(written) if isinstance(written, str) else None
    return None if match is None else (match["of"], match["nats"])


def has_own_strength(written: str) -> bool:
    """Whether a WALKER is noise, directions with a strength, or nothing: what no budget can stand behind."""
    if _is_nothing(written) or _numbers(written) is not None:
        return True
    match = _DIRECTIONS.fullmatch(written)
    return match is not None and match[3] is not None


def _hide_quoted(text: str) -> str:
    """The text with every quoted member blanked out, so that nothing in it looks like a group."""
    return re.sub(r"""(?<==)(["'])(.*?)\1(?=\s|$)""", lambda match: "x" * len(match[0]), text)


def _read_groups_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every scalar as text: YAML itself takes the chunks 0_4 for the number 4."""
    try:
        content = parse_yaml(path.read_bytes(), as_text=True, unique=True)
    except TextError as error:
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must hold lines of the form START_STOP: walker, [mean, std, truncation] or null")
    return content
