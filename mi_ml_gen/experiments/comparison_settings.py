"""Rows and settings of the comparison of views, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.settings import Compiled, InFolder
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.experiments.settings import check_distinct
from mi_ml_gen.generators.known import check_generator_settings
from mi_ml_gen.generators.settings import FromGenerator

Policy = Literal["torchvision", "torchvision_no_color"]


class Method(NamedTuple):
    """A row of the table: what an encoder was trained on."""

    title: str
    images: Literal["real", "generated", "pairs", "none"]
    """pairs: those that people made. none: nothing was trained."""
    Tz: str
    """As the table has it; `Tz_of` in view_comparison makes it a T_z."""
    Tx: Policy | None
    budget_nats: float | None = None
    """What noise on `chunks` leaves, for rows by budget."""
    chunks: str = ""
    """Of a row by budget: all, fine, or a range such as 0_2."""
    mixture: float | None = None
    """Share of the pairs that T_z makes, where the others are left to T_x."""


METHODS = {
    "pixels": Method("pixels", "none", "", None),
    "untrained": Method("untrained backbone", "none", "", None),
    "imagenet": Method("EfficientNet-Lite0 on ImageNet", "none", "", None),
    "real": Method("real images", "real", "", "torchvision"),
    "real_no_color": Method("real images, without colour", "real", "", "torchvision_no_color"),
    "human": Method("pairs that people made", "pairs", "", "torchvision"),
    "human_no_color": Method("pairs that people made, without colour", "pairs", "", "torchvision_no_color"),
    "synth": Method("generated, unperturbed", "generated", "", "torchvision"),
    "synth_no_color": Method("generated, unperturbed, without colour", "generated", "", "torchvision_no_color"),
    "random_all": Method("random walker, all chunks", "generated", "random, all chunks", "torchvision"),
    "random": Method("random walkers", "generated", "random, fine chunks", "torchvision_no_color"),
    "learned": Method("learned walkers, one per chunk", "generated", "learned, fine chunks", "torchvision_no_color"),
    "random_equal": Method(
        "random walker, as many nats as learned", "generated", "random, fine chunks", "torchvision_no_color"
    ),
    "random_color": Method("random walkers and colour", "generated", "random, fine chunks", "torchvision"),
    "learned_color": Method("learned walkers and colour", "generated", "learned, fine chunks", "torchvision"),
    "mixture": Method("half learned, half colour", "generated", "learned, fine chunks", "torchvision", mixture=0.5),
}
"""The paper's pairs of T_z and T_x for BigBiGAN (by torchvision's conventions, with which the table in docs/probes.md
was measured), references that need no training here, and controls: real and unperturbed images under each T_x, so that
what T_z brings can be told from what T_x does; noise that leaves as many nats as the learned walkers; and T_z together
with colour, in each pair or in turns."""
REFERENCES = ("pixels", "untrained", "imagenet")


def budget_row(nats: float, chunks: str) -> str:
    """The name of the row by budget."""
    return f"budget{nats:g}_{chunks}"


@dataclass
class ComparisonConfig(Compiled, InFolder, FromGenerator):
    """What `scripts/compare_views.py` takes; the defaults are a table for a laptop. Rows and seeds may be added."""

    rows: list[str] = option(
        ["pixels", "untrained", "real", "synth", "synth_no_color", "random_all", "random", "learned"],
        choices=tuple(METHODS), free=True,
        help="rows of the table; docs/probes.md describes the others: imagenet, human, random_equal, mixture ...",
    )  # fmt: skip
    budgets: list[float] = option(
        [], above=0, free=True, later=True,
        help="rows by budget: pairs that share so many nats, such as 1 2 3 4, for each of --budget_chunks",
    )  # fmt: skip
    budget_chunks: list[str] = option(
        ["fine"], free=True, later=True,
        help="chunks that rows by budget perturb: all, fine (those of --fine_chunks), or ranges such as 0_1",
    )  # fmt: skip
    budget_Tx: Policy = option("torchvision_no_color", later=True, help="augmentation of the rows by budget")
    against: str = option(
        "random", free=True, later=True,
        help="row that all others are compared with, seed by seed; where it is missing there are no differences",
    )  # fmt: skip
    seeds: list[int] = option(
        [0, 1, 2], at_least=0, free=True, help="random seeds; each row is trained and probed once for each of them"
    )
    samples: int = option(
        120_000, at_least=2, flag="num_samples", help="number of images that each encoder is trained on"
    )

    generator: str = redefined(FromGenerator, "generator", "tiny-bigbigan")
    data_path: str = option("fashion-mnist", help="real, labelled images for the probes")
    pairs: str = option("emoji-pairs", later=True, help="pairs that people made, for the rows human and human_no_color")
    skip_bad: bool = option(False, free=True, help="leave out images that cannot be read (otherwise they are an error)")
    walkers: Path | None = option(
        None, flag="walkers_base_path",
        help='folder with a walker for each chunk, or a T_z such as "1_2=runs/a 2_4=runs/b" (default: trained here)',
    )  # fmt: skip
    fine_chunks: str | None = option(
        None, help="chunks that the walkers per chunk perturb (default: all but the first)"
    )
    random_std: float = option(
        1.0, above=0, help="standard deviation of the random walkers on the fine chunks (the paper's: 1)"
    )
    random_all_std: float = option(
        0.2, above=0, help="standard deviation of the random walker on all chunks (the paper's: 0.2)"
    )

    depth: Literal[10, 18] = option(18, later=True, help="layers of the ResNet")
    width: int = option(16, at_least=4, help="channels of the ResNet's first stage; 64 is the whole network")
    halves: bool = option(False, later=True, help="halve the resolution of small images in the stem of the ResNet")
    crop_size: int | None = option(
        None, at_least=8, later=True, help="side of the views, in pixels (default: 7/8 of the images' side)"
    )
    dim: int = option(64, at_least=2, help="dimensions of SimCLR's projections")
    batch_size: int = option(128, at_least=2, help="samples in each step")
    base_lr: float = option(0.3, above=0, help="learning rate for 256 samples a step; scaled in proportion")
    temperature: float = option(0.2, above=0, aliases=("temp",), help="temperature of SimCLR's loss")
    weight_decay: float = option(1e-4, at_least=0, help="weight decay of SGD")

    cuda_graphs: bool = option(
        False, free=True, later=True, help="record what a step launches on the GPU and replay it as CUDA graphs"
    )
    views_ahead: bool = option(
        False, free=True, later=True,
        help="on a CPU, make the views of the next step in a second thread",
    )  # fmt: skip
    probe_images: int = option(20_000, at_least=10, help="largest number of labelled training images for the probes")
    probe_epochs: int = option(60, at_least=1, help="epochs of the linear probe")
    retry: bool = option(False, free=True, later=True, help="also try encoders again that have failed twice")
    save_folder: Path = redefined(
        InFolder,
        "save_folder",
        Path("comparison"),
        flag="out",
        help="folder for all results; give the same folder to resume, or to work on it from several machines",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_distinct(self, "rows", "seeds", "budget_chunks", *(["budgets"] if self.budgets else []))

    @property
    def methods(self) -> dict[str, Method]:
        """The rows asked for, by name: those of the table, then those by budget."""
        found = {row: METHODS[row] for row in METHODS if row in self.rows}
        for chunks in self.budget_chunks:
            for nats in sorted(self.budgets):
                what = {"all": "all chunks", "fine": "fine chunks"}.get(chunks, f"chunks {chunks}")
                title = f"{nats:g} nat{'s' if nats != 1 else ''} shared, {what}"
                row = Method(title, "generated", f"random, {what}", self.budget_Tx, nats, chunks)
                found[budget_row(nats, chunks)] = row
        return found

    @property
    def cells(self) -> dict[str, tuple[str, int]]:
        """Row and seed of each cell by its name, in the order of work: all rows of a seed, then the next seed."""
        return {f"{row}_seed{seed}": (row, seed) for seed in self.seeds for row in self.methods}

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use, self.fine_chunks)
        for chunks in self.budget_chunks if self.budgets else ():
            if chunks not in ("all", "fine"):
                check_generator_settings(self.generator, self.g_path, self.g_use, chunks)
        check_data_path("--data_path", self.data_path)
        if any(self.methods[row].images == "pairs" for row in self.methods):
            check_data_path("--pairs", self.pairs)
        if self.against not in METHODS and self.against not in self.methods:
            raise UsageError(f"--against {self.against}: is no row; rows here: {', '.join(self.methods)}")
