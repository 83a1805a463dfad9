"""Groups of settings that several commands share, each declared once. A settings class inherits those that it needs:

    @dataclass
    class ProbeConfig(Precise, Seeded, InNamedFolder):
        save_folder: str = redefined(InFolder, "save_folder", "./classifier_runs")      # another default
        max_epochs: int = option(60, at_least=1, help="passes over the training images")

`SECTION` is the title of the group's flags in --help. Those of a generator are in generators/settings.py. Nothing here
imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mi_ml_gen.core.config import option
from mi_ml_gen.core.errors import UsageError


@dataclass
class OnDevice:
    """Where the work is done."""

    SECTION: ClassVar[str] = "machine"

    device: str = option("auto", free=True, help="device to work on: auto, cpu, cuda, cuda:1 or mps")


@dataclass
class Precise(OnDevice):
    """With a choice of arithmetic."""

    SECTION: ClassVar[str] = "machine"

    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", help="number format of the networks")


@dataclass
class Compiled(Precise):
    """With a choice of torch.compile or CUDA graphs."""

    SECTION: ClassVar[str] = "machine"

    compile: bool = option(False, free=True, help="compile the networks with torch.compile")
    cuda_graphs: bool = option(
        False, free=True, later=True,
        help="record what a step launches on the GPU and replay it as CUDA graphs, in a run of one process",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.cuda_graphs and self.compile:
            raise UsageError("--cuda_graphs and --compile: choose one of them")


@dataclass
class Seeded:
    """Random numbers."""

    SECTION: ClassVar[str] = "randomness"

    seed: int = option(0, at_least=0, help="random seed for weights, noise and the order of the data")


@dataclass
class StoredImages:
    """Images from files."""

    SECTION: ClassVar[str] = "stored images"

    framing: str = option(
        "whole", help="how stored images are cut to squares: whole, bigbigan, stylegan or classification"
    )
    loader: Literal["auto", "torch", "ffcv"] = option(
        "auto", free=True, help="reader of stored images; auto takes FFCV for .beton files where it is installed"
    )


@dataclass
class InFolder:
    """Where results go."""

    SECTION: ClassVar[str] = "output"

    save_folder: Any = option("./runs", free=True, help="folder that holds the run's own folder")


@dataclass
class InNamedFolder(InFolder):
    """A run folder with a name of its own."""

    SECTION: ClassVar[str] = "output"

    run_name: str = option(
        "0", free=True, inside=True, help="part of the run folder's name; give the same name to resume"
    )


@dataclass
class Resumed:
    """A training that saves its state."""

    SECTION: ClassVar[str] = "output"

    state_interval_s: float = option(
        60.0,
        at_least=0,
        free=True,
        help="shortest time between two saved states, in seconds; a run resumes from the last one",
    )
