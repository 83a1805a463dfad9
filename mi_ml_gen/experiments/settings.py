"""Settings of the experiments, without torch, so that their command lines are read and refused at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from mi_ml_gen.core import threads
from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.settings import Compiled, InFolder, OnDevice, Precise, Resumed, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.generators.known import check_generator_settings
from mi_ml_gen.generators.settings import AnchorNoise, FromGenerator

# --- the calibration of the critic --------------------------------------------------------------------------


@dataclass
class CalibrationConfig(OnDevice, Seeded, Resumed, InFolder):
    """What `scripts/measure_information.py` takes; the defaults give the table of docs/information.md."""

    nats: list[float] = option([4.0, 3.0, 2.0, 1.0, 0.5], help="mutual informations, in nats", positive=True)
    eval_pairs: list[int] = option([64, 256], help="pairs of a batch at which bounds are measured", at_least=2)
    n_eval_batches: int = option(200, help="batches on which each bound is measured", at_least=2)
    n_chunks: int = option(4, help="chunks of the generator", positive=True)
    chunk_size: int = option(3, help="numbers in each chunk", positive=True)
    noise: float = option(0.1, help="observation noise of the generator", positive=True)
    resolution: int = option(4, help="height and width of the generator's images, in pixels", positive=True)
    batch_size: int = option(256, help="pairs of a training batch", at_least=2)
    n_steps: int = option(1200, flag="steps", help="training steps of the first level", positive=True)
    n_steps_more: int = option(900, flag="steps_more", help="training steps of each further level", positive=True)
    lr: float = option(2e-3, help="learning rate of the first level; it falls to 0 along a cosine", positive=True)
    lr_more: float = option(1e-3, help="learning rate of each further level", positive=True)
    critic_width: int = option(24, help="channels of the critic's first stage", positive=True)
    temp: float = option(
        0.05, flag="temperature", positive=True,
        help="temperature of InfoNCE; at 0.1 the scores span too few nats to show 4",
    )  # fmt: skip
    save_freq: int = option(200, free=True, aliases=("save_every",), help="steps between saved states", positive=True)
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("calibration"), flag="out", help="folder of all results; the same one resumes"
    )

    def __post_init__(self) -> None:
        if not self.nats or not self.eval_pairs:
            raise UsageError("--nats and --eval_pairs: must hold at least one number each")


# --- continuous sampling against stored images --------------------------------------------------------------

SOURCES = ("generator", "torch", "ffcv")


@dataclass
class BenchmarkConfig(Compiled, Seeded, InFolder, FromGenerator):
    """What `scripts/benchmark_sampling.py` takes; the defaults are the paper's, but for --num_epochs.

    Calls with different sources and batch sizes share a folder, which collects measurements of the same work.
    """

    source: list[str] = option(
        list(SOURCES), choices=SOURCES, free=True, help="where images come from: generator, torch, ffcv"
    )
    batch_sizes: list[int] = option(
        [32, 64, 128, 256], at_least=2, free=True, help="images of a step; each size is measured"
    )
    samples_per_epoch: int = option(
        126_789, at_least=2, aliases=("iters_per_epoch",), help="images of an epoch, the same for all sources"
    )
    num_epochs: int = option(
        1,
        at_least=1,
        help="epochs of each measurement; the table shows their median (the paper's: 20)",
    )

    generator: str = redefined(FromGenerator, "generator", "bigbigan")
    data_path: str | None = option(
        None,
        free=True,
        aliases=("dataset_path",),
        help="stored images: a folder, a data set's name, or .beton files",
    )
    skip_bad: bool = option(False, free=True, help="leave out images that cannot be read (otherwise they are an error)")
    image_size: int | None = option(
        None, at_least=8, aliases=("img_size",), help="side of stored images, in pixels (default: their own, else 128)"
    )
    framing: str = option(
        "bigbigan", help="how stored images are cut to squares: whole, bigbigan, stylegan or classification"
    )
    workers: int | None = option(
        None, at_least=1, aliases=("n_workers",), help="threads that decode images (default: at most 8)"
    )

    width: int = option(64, at_least=4, help="channels of the encoder's first stage; 64 gives a ResNet-18")
    warm_up_steps: int = option(5, at_least=0, help="steps before the first epoch that are not measured")
    energy: bool = option(True, free=True, help="measure energy, where codecarbon is installed")
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("sampling_benchmark"), flag="out",
        help="folder of all results; measurements that it holds are not repeated",
    )  # fmt: skip
    device: str = redefined(OnDevice, "device", "auto", free=False)
    compile: bool = redefined(Compiled, "compile", False, free=False)

    def __post_init__(self) -> None:
        if len(set(self.source)) != len(self.source) or not self.source or not self.batch_sizes:
            raise UsageError("--source and --batch_sizes: must hold at least one value each, no source twice")
        if max(self.batch_sizes) > self.samples_per_epoch:
            raise UsageError(
                f"--batch_sizes {max(self.batch_sizes)}: an epoch has only {self.samples_per_epoch} samples"
            )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if "generator" in self.source:
            check_generator_settings(self.generator, self.g_path, self.g_use)
        if self.data_path is not None:
            check_data_path("--data_path", self.data_path)


# --- the quickstart --------------------------------------------------------------------------------------------


@dataclass
class QuickstartConfig:
    """What `scripts/quickstart.py` takes beside the settings of the navigator."""

    groups: int | None = option(None, at_least=1, help="chunks of each walker, with --generator (default 1)")
    n_samples: int = option(500_000, at_least=1, help="draws of each walker, for delta")
    fresh_critics: bool = option(
        True, help="measure what the pairs still share by fresh critics, where they cost less than the training did"
    )
    out: Path = option(Path("quickstart"), help="folder of all results; the same one resumes")


# --- what reads runs of the navigator ---------------------------------------------------------------------------


@dataclass
class FromRuns(AnchorNoise, FromGenerator):
    """Generator and noise are those that the runs recorded, unless a flag says something else."""

    SECTION: ClassVar[str] = "generator and noise (default: what the runs recorded)"

    generator: str | None = redefined(FromGenerator, "generator", None)  # type: ignore[assignment]
    g_use: list[str] | None = redefined(FromGenerator, "g_use", None)  # type: ignore[assignment]
    mean: float | None = redefined(AnchorNoise, "mean", None)  # type: ignore[assignment]
    std: float | None = redefined(AnchorNoise, "std", None, above=None, at_least=0)  # type: ignore[assignment]
    truncation: float | None = redefined(AnchorNoise, "truncation", None)  # type: ignore[assignment]


# --- Table 1 --------------------------------------------------------------------------------------------------


@dataclass
class Table1Config(OnDevice, Seeded, InFolder, FromRuns):
    """What `scripts/monte_carlo_simulation.py` takes."""

    walkers_base_path: Path = option(aliases=("walkers",), help="folder with a subfolder for each walker")
    walkers_iter: list[int] | None = option(
        None, at_least=0, help="checkpoint of each subfolder, by the number of samples it was trained on"
    )
    walkers_batch_size: int = option(64, at_least=1, help="batch size of published runs, which do not record it")
    n_samples: int = option(500_000, at_least=1, help="draws of each walker")
    dim_z: int | None = option(None, at_least=1, help="length of z; it is checked against the generator's")
    all_chunks: bool = option(False, help="first train a walker for every chunk that has none")
    groups: int = option(1, at_least=1, help="chunks of each walker, with --all_chunks")
    fresh_critics: Literal["auto", "yes", "no"] = option(
        "auto",
        help="measure what the pairs still share by critics that are trained anew on the finished walkers; auto: with "
        "--all_chunks or --page, where they cost less than the training did",
    )
    curves: bool = option(
        False, help="also measure curves of nats against delta, for learned and random perturbations of each chunk"
    )
    page: bool = option(False, help="also write table1.html, with images of every walker")
    save_folder: Path | None = redefined(
        InFolder, "save_folder", None, flag="out", help="folder of the table's files (default: --walkers_base_path)"
    )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if self.generator is not None:
            check_generator_settings(self.generator, self.g_path, self.g_use or (), needs_weights=False)
        if not (self.all_chunks or self.walkers_base_path.is_dir()):
            raise UsageError(f"--walkers_base_path {self.walkers_base_path}: no such folder")


# --- pictures of a generator and of a walker ----------------------------------------------------------------


@dataclass
class GeneratorPicturesConfig(OnDevice, Seeded, InFolder, AnchorNoise, FromGenerator):
    """What `scripts/visualize_generator.py` takes."""

    groups: int = option(1, help="chunks that are exchanged together")
    n_images: int = option(10, at_least=1, help="images of a row")
    std: float = redefined(AnchorNoise, "std", 1.0, above=None, at_least=0)
    save_folder: Path = redefined(InFolder, "save_folder", Path("pictures"), flag="out", help="folder of the pictures")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)


@dataclass
class WalkerPicturesConfig(OnDevice, Seeded, InFolder, FromRuns):
    """What `scripts/visualize_walker.py` takes; what is not given is the run's."""

    run: Path | None = option(None, help="run folder of train_navigator.py")
    walker: str | None = option(
        None,
        flag="Tz",
        help='a walker instead of a run: its file, or groups like "0_1=0.5 1_4=FILE"',
    )
    n_images: int = option(10, at_least=1, help="number of anchors, one for each column")
    n_rows: int = option(6, at_least=1, help="saved walkers that are shown along training")
    strengths: list[float] = option([0.0, 0.5, 1.0, 1.5, 2.0], help="multiples of the perturbation that are shown")
    save_folder: Path | None = redefined(
        InFolder, "save_folder", None, flag="out", help="folder of the pictures (default: images/ of the run)"
    )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if (self.run is None) == (self.walker is None):
            raise UsageError("give either --run, a run folder, or --Tz, a walker's file")
        if self.run is None and self.generator is None:
            raise UsageError("--generator must be given with --Tz")
        if self.generator is not None:
            check_generator_settings(self.generator, self.g_path, self.g_use or ())


# --- .beton files -------------------------------------------------------------------------------------------

BETON_NAMES = {"train": "train", "val": "validation", "test": "test", "predict": "predict"}


@dataclass
class BetonConfig(InFolder):
    """What `scripts/create_image_beton_file.py` takes."""

    save_folder: Path = redefined(
        InFolder, "save_folder", flag="out", aliases=("output_folder",), help="folder of the .beton files"
    )
    train_folder: Path | None = option(None, help="images of the train split, with or without folders of classes")
    val_folder: Path | None = option(None, help="images of the validation split")
    test_folder: Path | None = option(None, help="images of the test split")
    predict_folder: Path | None = option(None, help="images without labels, to predict on")
    max_resolution: int = option(256, help="longest side that is stored, in pixels")
    with_labels: bool = option(False, help="store the folders of classes as labels")
    skip_bad: bool = option(False, help="leave out images that cannot be read")
    workers: int = option(min(8, threads.available()), at_least=1, help="threads that read and encode images")

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each split that is given, by the split's name in files."""
        found = {name: getattr(self, f"{split}_folder") for split, name in BETON_NAMES.items()}
        return {name: folder for name, folder in found.items() if folder is not None}

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if not self.folders:
            raise UsageError("give at least one of --train_folder, --val_folder, --test_folder, --predict_folder")


# --- anchors and positives as pictures ----------------------------------------------------------------------


@dataclass
class ViewGenerationConfig(FromGenerator):
    """What `generate_views` draws; the keys are those of the reference's YAML files, and two more."""

    anchor_params: tuple[float, float, float] = option(
        (0.0, 1.0, 2.0), help="mean, standard deviation and truncation of the anchors' noise"
    )
    Tz: Any = option(
        help="walker of the positives: groups like '1_4=0,0.8,2 4_6=w.safetensors' (YAML: a mapping), or a file"
    )
    n_images: int = option(4, help="number of anchors", at_least=1)
    batch_size: int = option(1, help="anchors that are drawn and decoded together", at_least=1)
    augmentations: int = option(3, help="positives of each anchor", at_least=0)
    starting_seed: int = option(42, flag="seed", help="random seed for anchors and positives", at_least=0)
    seeds: Literal["own", "published"] = option(
        "own",
        help="published draws what the reference draws from this seed, and rounds bytes down as it does; own draws "
        "every noise anew",
    )

    @property
    def generator_path(self) -> str | None:
        """The published name of `g_path`."""
        return self.g_path

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)


@dataclass
class ViewPicturesConfig(OnDevice, InFolder, ViewGenerationConfig):
    """What `scripts/view_generation.py` takes."""

    save_folder: Path = redefined(InFolder, "save_folder", flag="out", help="folder of the pictures")


# --- generated data sets ------------------------------------------------------------------------------------


@dataclass
class ExportConfig(Precise, InFolder, AnchorNoise, FromGenerator):
    """What `scripts/generate_dataset.py` takes."""

    n_images: int = option(help="number of images, or of pairs, to write", at_least=1)
    save_folder: Path = redefined(
        InFolder, "save_folder", flag="out", help="folder of the data set; the same one goes on with a stopped set"
    )
    Tz: str | None = option(
        None,
        help="write pairs by this walker: a file, a run folder, a YAML of groups, or '0_1=0,0.2,1 1_4=w.safetensors'",
    )
    layout: Literal["plain", "cop-gen"] = option(
        "plain", help="names of the files: 000.png (of pairs in anchor/ and positive/), or as in COP-Gen's data sets"
    )
    format: str = option("png", help="format of the images: png, jpg, or beton, which writes one file that FFCV reads")
    quality: int = option(90, help="quality of JPEG images, also inside .beton", at_least=1, at_most=100)
    std: float = redefined(AnchorNoise, "std", 1.0, above=None, at_least=0)
    starting_seed: int = option(0, flag="seed", help="random seed for all noise", at_least=0)
    published_seeds: bool = option(
        False, help="draw as the reference does: by SciPy, from starting_seed + the number of the batch"
    )
    batch_size: int = option(64, help="images that are decoded together", at_least=1)
    n_workers: int = option(
        min(8, threads.available()), flag="workers", free=True, at_least=1, help="threads that encode and write images"
    )
    g_path: str | None = redefined(FromGenerator, "g_path", None, free=False)

    @property
    def free(self) -> tuple[str, ...]:
        """Settings that may change when a stopped set goes on; published draws depend on the batch size."""
        return ("device", "n_workers") if self.published_seeds else ("device", "n_workers", "batch_size")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        if self.layout == "cop-gen" and self.format == "beton":
            raise UsageError("--layout cop-gen: is a layout of image files, not of --format beton")
        if self.published_seeds and self.Tz is not None:
            raise UsageError("--published_seeds: the reference's script makes no pairs; leave out --Tz or the seeds")


# --- the comparison of views --------------------------------------------------------------------------------


class Method(NamedTuple):
    """A row of the table: what an encoder was trained on."""

    title: str
    images: Literal["real", "generated", "none"]
    """none: nothing was trained."""
    Tz: Literal["", "random, all chunks", "random, fine chunks", "learned, fine chunks"]
    Tx: Literal["torchvision", "torchvision_no_color"] | None


METHODS = {
    "pixels": Method("pixels", "none", "", None),
    "untrained": Method("untrained backbone", "none", "", None),
    "real": Method("real images", "real", "", "torchvision"),
    "real_no_color": Method("real images, without colour", "real", "", "torchvision_no_color"),
    "synth": Method("generated, unperturbed", "generated", "", "torchvision"),
    "synth_no_color": Method("generated, unperturbed, without colour", "generated", "", "torchvision_no_color"),
    "random_all": Method("random walker, all chunks", "generated", "random, all chunks", "torchvision"),
    "random": Method("random walkers", "generated", "random, fine chunks", "torchvision_no_color"),
    "learned": Method("learned walkers, one per chunk", "generated", "learned, fine chunks", "torchvision_no_color"),
}
"""The paper's pairs of T_z and T_x for BigBiGAN (by torchvision's conventions, with which the table in docs/probes.md
was measured), floors, and controls: real and unperturbed images under the T_x of the
last two rows, so that what T_z brings can be told from what T_x does."""
FLOORS = ("pixels", "untrained")


@dataclass
class ComparisonConfig(Compiled, InFolder, FromGenerator):
    """What `scripts/compare_views.py` takes; the defaults are a table for a laptop. Rows and seeds may be added."""

    rows: list[str] = option(
        ["pixels", "untrained", "real", "synth", "synth_no_color", "random_all", "random", "learned"],
        choices=tuple(METHODS), free=True, help="rows of the table; there is real_no_color, too",
    )  # fmt: skip
    seeds: list[int] = option(
        [0, 1, 2], at_least=0, free=True, help="random seeds; each row is trained and probed once for each of them"
    )
    samples: int = option(120_000, at_least=2, flag="num_samples", help="images on which each encoder is trained")

    generator: str = redefined(FromGenerator, "generator", "tiny-bigbigan")
    data_path: str = option("fashion-mnist", help="the real, labelled images")
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

    width: int = option(16, at_least=4, help="channels of the ResNet-18's first stage; 64 is the whole network")
    dim: int = option(64, at_least=2, help="dimensions of SimCLR's projections")
    batch_size: int = option(128, at_least=2, help="samples of each step")
    base_lr: float = option(0.3, above=0, help="learning rate for 256 samples a step; scaled in proportion")
    temperature: float = option(0.2, above=0, aliases=("temp",), help="temperature of SimCLR's loss")
    weight_decay: float = option(1e-4, at_least=0, help="weight decay of SGD")

    probe_images: int = option(20_000, at_least=10, help="labelled training images for the probes, at most")
    probe_epochs: int = option(60, at_least=1, help="epochs of the probe by SGD")
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("comparison"), flag="out", help="folder of all results; the same one resumes"
    )

    def __post_init__(self) -> None:
        for name in ("rows", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UsageError(f"--{name} {' '.join(map(str, values))}: give at least one, none twice")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use, self.fine_chunks)
        check_data_path("--data_path", self.data_path)
