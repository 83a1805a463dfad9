"""The generator and the noise of run folders: what they recorded is used; what contradicts it is named.

A script that reads runs takes the generator, its weights and use, and the distribution of the anchors' noise from
their config.yaml. A flag that says something else wins, and the difference is part of the output. What differs without
a flag, such as a file of weights that is not the one of the run, is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from mi_ml_gen.core import runs
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.anchors import encoded_images
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import KEY, effective_use, fingerprint
from mi_ml_gen.generators.registry import FAMILIES, load_generator, load_latent_space
from mi_ml_gen.generators.settings import NO_IMAGES
from mi_ml_gen.latents import NoiseDistribution, TruncatedNormal
from mi_ml_gen.walkers.origins import NOISE, described_anchors

logger = logging.getLogger(__name__)

Load = Callable[[str, str | None, torch.device, Sequence[str]], MultiLatentGenerator]


@dataclass(frozen=True)
class RunRecord:
    """What one run of the navigator was made with."""

    folder: Path
    generator: str
    g_path: str | None
    g_use: tuple[str, ...]
    noise: tuple[float, float, float]
    """Mean, standard deviation, truncation."""
    fingerprint: str | None
    """Of the generator's weights; None in runs of version 0.1."""
    anchors_data: str | None = None
    """The images that the anchors were encoded from; None: they were drawn from the prior."""

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """Of a run folder. Raises as `runs.read_config`, and UsageError where it is no run of the navigator."""
        settings = runs.read_config(folder)
        try:
            noise = tuple(float(settings[name]) for name in NOISE)
            use = tuple(settings.get("g_use") or ())
            known = settings.get(KEY)
            data = settings["anchors_data"] if settings.get("anchors") == "real" else None
            return cls(Path(folder), settings["generator"], settings["g_path"], use, noise, known, data)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{folder}: not a run of train_navigator.py, its config.yaml lacks {error}") from None


@dataclass(frozen=True)
class Flags:
    """What a command line says about generator and noise; None: nothing."""

    generator: str | None = None
    g_path: str | None = None
    g_use: Sequence[str] | None = None
    mean: float | None = None
    std: float | None = None
    truncation: float | None = None
    anchors: str | None = None
    """prior or real"""
    anchors_data: str | None = None


@dataclass(frozen=True)
class Circumstances:
    """What walkers are measured or shown with."""

    generator: MultiLatentGenerator
    name: str
    """Of the generator, as `load_generator` takes it."""
    g_path: str | None
    g_use: tuple[str, ...]
    noise: NoiseDistribution
    notes: list[str] = field(default_factory=list)
    """In what they differ from what the runs recorded, a sentence each."""


def circumstances(
    records: Sequence[RunRecord], flags: Flags, device: torch.device, load: Load = load_generator, default: str = ""
) -> Circumstances:
    """What the runs recorded, with flags on top; every contradiction is warned of and kept in `notes`.

    load: how the generator is loaded. default: its name where neither a run nor a flag says one.
    Raises UsageError where the runs disagree and no flag decides, where no generator is known, and where the weights
    are not those that the runs were made with although no flag asked for others.
    """
    recorded = _agreed(records, flags)
    name = flags.generator or recorded.generator or default
    if not name:
        raise UsageError("--generator must be given: there is no run that recorded it")
    asked = flags.generator not in (None, recorded.generator) or flags.g_path is not None
    g_path = flags.g_path if asked else recorded.g_path
    if load is load_latent_space and flags.g_path is None and needs_no_weights(name):
        g_path = None  # the run's file may be gone
    generator = load(name, g_path, device, ())
    notes = _network_notes(recorded, generator, name, flags, asked)

    options = {one.name for one in fields(generator.use_fields)}
    base = tuple(text for text in recorded.g_use if _key(text) in options)  # another family has other options
    before = effective_use(generator.use(base))
    after = effective_use(generator.use(flags.g_use or ()))
    if recorded.generator:
        changed = (key for key in after if after[key] != before[key])
        notes += [f"{key}={after[key]} where the runs had {key}={before[key]}" for key in changed]
    data = _anchors_data(recorded, flags)
    if data != recorded.anchors_data and recorded.generator:
        here, there = _anchors_text(data), _anchors_text(recorded.anchors_data)
        notes.append(f"{here} where the runs had {there}")
    values = []
    for key, own, wanted in zip(NOISE, recorded.noise or (0.0, 1.0, 2.0), _noise(flags), strict=True):
        values.append(own if wanted is None else wanted)
        if recorded.noise and wanted is not None and wanted != own:
            notes.append(f"{key} {wanted:g} of the noise where the runs had {own:g}")
    for note in notes:
        logger.warning("%s; the flag is used", note)
    noise = TruncatedNormal(*values) if data is None else encoded_images(generator, data)
    return Circumstances(generator, name, g_path, _merged(base, flags.g_use), noise, notes)


def needs_no_weights(name: str) -> bool:
    """Whether delta can be measured on the family without its weights, for its latents are the noise itself."""
    family = FAMILIES.get(name)
    return family is not None and family.latent_space is not None


@dataclass(frozen=True)
class _Agreed:
    """What all runs recorded alike; empty where there is none."""

    generator: str | None = None
    g_path: str | None = None
    g_use: tuple[str, ...] = ()
    noise: tuple[float, float, float] | None = None
    anchors_data: str | None = None
    fingerprints: frozenset[str] = frozenset()
    where: str = ""


def _agreed(records: Sequence[RunRecord], flags: Flags) -> _Agreed:
    if not records:
        return _Agreed()
    first = records[0]
    decided = {
        "generator": flags.generator is not None,
        "g_use": flags.g_use is not None,
        "noise": None not in _noise(flags),
        "anchors_data": flags.anchors == "prior" or flags.anchors_data is not None,
    }
    for other in records[1:]:
        for name, is_decided in decided.items():
            a, b = getattr(first, name), getattr(other, name)
            if a != b and not is_decided:
                raise UsageError(
                    f"{first.folder} was made with {name} {_text(a)}, {other.folder} with {_text(b)}; "
                    "give the flag that decides, or put them into folders of their own"
                )
    known = frozenset(record.fingerprint for record in records if record.fingerprint is not None)
    if len(known) > 1 and flags.generator is None and flags.g_path is None:
        raise UsageError(
            f"{first.folder.parent}: its runs were made with different networks of {first.generator}; "
            "give --g_path to decide, or put them into folders of their own"
        )
    return _Agreed(
        first.generator, first.g_path, first.g_use, first.noise, first.anchors_data, known, str(first.folder)
    )


def _network_notes(
    recorded: _Agreed, generator: MultiLatentGenerator, name: str, flags: Flags, asked: bool
) -> list[str]:
    """What to say where the network may be another one. Raises UsageError where nobody asked for another."""
    own = fingerprint(generator)
    if not recorded.generator or own is None or recorded.fingerprints == {own}:
        return []
    if recorded.fingerprints and not asked:
        known = ", ".join(sorted(recorded.fingerprints))
        raise UsageError(
            f"{recorded.where}: was made with another {name}: the weights have the fingerprint {own}, not {known}; "
            "give the run's weights by --g_path, or these by --g_path to measure on them all the same"
        )
    if recorded.fingerprints:
        return [
            f"network {generator.name} ({own}), while the runs were made on another {recorded.generator}, of other "
            "weights"
        ]
    if name != recorded.generator:
        return [f"generator {name} where the runs had {recorded.generator}"]
    if flags.g_path not in (None, recorded.g_path):
        return [f"weights {flags.g_path} where the runs recorded {recorded.g_path}"]
    return []


def _anchors_data(recorded: _Agreed, flags: Flags) -> str | None:
    """The images whose encodings are the anchors; None: the prior. Raises UsageError for flags without effect."""
    is_real = flags.anchors_data is not None or flags.anchors == "real" or recorded.anchors_data is not None
    if flags.anchors == "prior" or not is_real:
        return None
    data = flags.anchors_data or recorded.anchors_data
    if data is None:
        raise UsageError(NO_IMAGES)
    for key, value in zip(NOISE, _noise(flags), strict=True):
        if value is not None:
            raise UsageError(f"--{key} {value:g}: has no effect on anchors that are real images; give --anchors prior")
    return data


def _anchors_text(data: str | None) -> str:
    return described_anchors({"anchors": "prior" if data is None else "real", "anchors_data": data})


def _noise(flags: Flags) -> tuple[float | None, float | None, float | None]:
    return flags.mean, flags.std, flags.truncation


def _merged(base: Sequence[str], more: Sequence[str] | None) -> tuple[str, ...]:
    """KEY=VALUE texts, of which later ones replace earlier ones of their key."""
    return tuple({_key(text): text for text in [*base, *(more or ())]}.values())


def _key(text: str) -> str:
    return text.partition("=")[0].strip()


def _text(value: object) -> str:
    return " ".join(map(str, value)) or "of the weights" if isinstance(value, tuple) else str(value)
