"""The families that `scripts/train_generator.py` trains: the settings of each, and what then runs. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.generators.families import ALIASES
from mi_ml_gen.generators.gan import settings as gan


@dataclass(frozen=True)
class Trainer:
    """How a family is trained."""

    settings: type
    """The dataclass of its settings."""

    def run(self, settings: Any) -> tuple[str, Path]:
        """Train, measure and describe; the card ("" in all processes but the first), and the run folder."""
        raise NotImplementedError


class _Gan(Trainer):
    def run(self, settings: Any) -> tuple[str, Path]:
        from mi_ml_gen.generators.gan.card import train_and_describe

        return train_and_describe(settings)


class _Diffusion(Trainer):
    def run(self, settings: Any) -> tuple[str, Path]:
        from mi_ml_gen.generators.diffusion.card import train_and_describe

        return train_and_describe(settings)


TRAINERS: dict[str, Trainer] = {
    **dict.fromkeys((*gan.FAMILIES, *ALIASES), _Gan(gan.GanConfig)),
    "diffusion": _Diffusion(DiffusionTrainConfig),
}
"""By the names that --family takes."""


def chosen(argv: Sequence[str] | None) -> Trainer:
    """The trainer of the family that a command line names by --family, or by its file of --config.

    Raises UsageError for an unknown family.
    """
    parser = cli.Parser(add_help=False)
    parser.add_argument("--family", default=None)
    parser.add_argument("--config", default=None)
    given, _ = parser.parse_known_args(argv)
    family = given.family or config.in_file(given.config, "family") or gan.GanConfig().family
    if family not in TRAINERS:
        near = nearest(family, TRAINERS, "family")
        raise UsageError(f"--family {family}: must be one of {', '.join(TRAINERS)}{near}")
    return TRAINERS[family]
