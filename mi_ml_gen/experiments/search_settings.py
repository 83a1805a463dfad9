"""Settings of the search for an encoder that fits a machine, without torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_ml_gen.core import config
from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.settings import InFolder, Precise
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.experiments.settings import check_distinct
from mi_ml_gen.generators.known import check_generator_settings

REFERENCE = "reference"
"""The name of the candidate that changes nothing."""
OURS = ("seed", "device", "precision", "max_epochs", "samples_per_epoch", "cuda_graphs", "save_folder", "run_name")
"""Settings of an encoder that the search sets itself."""


@dataclass
class SearchConfig(Precise, InFolder):
    """What `scripts/search_encoder.py` takes."""

    candidates: list[str] = option(
        [REFERENCE], free=True,
        help='settings of train_encoder.py that a candidate changes, such as "width=32 halves=true"; "reference" '
        "changes none; a comma ends a candidate",
    )  # fmt: skip
    base: str = option(
        "", help='settings that all candidates begin with, such as "width=16 Tz=1_4=1 Tx=torchvision_no_color"'
    )
    samples: list[int] = option(
        [48_000], at_least=2, free=True, flag="num_samples", help="samples that each candidate is trained on, in turn"
    )
    seeds: list[int] = option([0], at_least=0, free=True, help="random seeds")
    data_path: str = option("fashion-mnist", help="real, labelled images for the probes")
    probe_images: int = option(20_000, at_least=10, help="largest number of labelled training images for the probes")
    probe_epochs: int = option(60, at_least=1, help="epochs of the linear probe")
    time_s: float = option(
        0.0, at_least=0, free=True,
        help="also measure, before anything else and for about so many seconds in all, how fast each candidate is on "
        "this machine; the candidates take turns. Once all of them are in speeds.json they are not measured again",
    )  # fmt: skip
    cuda_graphs: bool = option(
        False, free=True, help="record what a step launches on the GPU and replay it as CUDA graphs"
    )
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("encoder_search"), flag="out",
        help="folder for all results; give the same folder to resume, or to work on it from several processes",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_distinct(self, "candidates", "samples", "seeds")
        names: dict[str, str] = {}
        for candidate in self.candidates:
            other = names.setdefault(cell_name(candidate), candidate)
            if other != candidate:
                raise UsageError(f"--candidates: {other} and {candidate} have the same name of a file; leave one out")

    @property
    def cells(self) -> dict[str, tuple[str, int, int]]:
        """Candidate, samples and seed of each cell by its name, in the order of work: all candidates on the fewest
        samples, then on more, then the next seed."""
        return {
            f"{cell_name(candidate)}_{samples}_seed{seed}": (candidate, samples, seed)
            for seed in self.seeds
            for samples in sorted(self.samples)
            for candidate in self.candidates
        }

    def encoder(self, candidate: str, samples: int, seed: int) -> EncoderConfig:
        """The settings of a cell's encoder. Raises UsageError for those that are wrong or that the search sets."""
        start: dict[str, Any] = {"encoder": "simclr", "generator": "tiny-bigbigan", "Tx": "torchvision"}
        start |= {"depth": "18", "width": "16", "dim": "64", "temperature": "0.2", "cumulative_bs": "128"}
        start |= {"base_lr": "0.3", "warmup": "true"}
        written = pairs(self.base) | ({} if candidate == REFERENCE else pairs(candidate))
        if wrong := sorted(set(OURS) & written.keys()):
            raise UsageError(f"--candidates {candidate}: {', '.join(wrong)} cannot differ between candidates")
        own = {"seed": seed, "device": self.device, "precision": self.precision, "cuda_graphs": self.cuda_graphs}
        own |= {"samples_per_epoch": samples, "max_epochs": 1}
        return config.load(EncoderConfig, None, start | written | own)

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_data_path("--data_path", self.data_path)
        for candidate in self.candidates:
            found = self.encoder(candidate, min(self.samples), 0)
            found.check()
            if found.generator is None:
                raise UsageError(f"--candidates {candidate}: needs a generator")
            check_generator_settings(found.generator, found.g_path, found.g_use)


def pairs(text: str) -> dict[str, str]:
    """The settings in "width=32 halves=true"; values with blanks stand in quotes. Raises UsageError for others."""
    found = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"settings {text}: {error}") from None
    for word in words:
        key, sign, value = word.partition("=")
        if not (key and sign):
            raise UsageError(f"settings {text}: {word} is not KEY=VALUE")
        found[key] = value
    return found


def cell_name(candidate: str) -> str:
    """A candidate as part of a file's name."""
    kept = "".join(letter if letter.isalnum() or letter in "=.-" else "_" for letter in candidate)
    return kept.replace("=", "")
