"""Settings of the experiments, without torch, so that their command lines are read and refused at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from mi_ml_gen.core import threads
from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.core.settings import Compiled, InFolder, OnDevice, Precise, Resumed, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.features.registry import check_features
from mi_ml_gen.generators.families import bundled
from mi_ml_gen.generators.known import check_generator_settings
from mi_ml_gen.generators.settings import AnchorNoise, Anchors, FromGenerator
from mi_ml_gen.hub.assets import check_path
from mi_ml_gen.navigator.settings import NavigatorConfig

# --- the calibration of the critic --------------------------------------------------------------------------


@dataclass
class CalibrationConfig(OnDevice, Seeded, Resumed, InFolder):
    """What `scripts/measure_information.py` takes; the defaults give the table of docs/information.md."""

    nats: list[float] = option([4.0, 3.0, 2.0, 1.0, 0.5], help="mutual informations, in nats", positive=True)
    eval_pairs: list[int] = option([64, 256], help="batch sizes at which the bounds are measured, in pairs", at_least=2)
    n_eval_batches: int = option(200, help="number of batches on which each bound is measured", at_least=2)
    n_chunks: int = option(4, help="number of chunks of the generator", positive=True)
    chunk_size: int = option(3, help="dimensions of each chunk", positive=True)
    noise: float = option(0.1, help="observation noise of the generator", positive=True)
    resolution: int = option(4, help="height and width of the generator's images, in pixels", positive=True)
    batch_size: int = option(256, help="pairs in a training batch", at_least=2)
    n_steps: int = option(1200, flag="steps", help="training steps of the first level", positive=True)
    n_steps_more: int = option(900, flag="steps_more", help="training steps of each further level", positive=True)
    lr: float = option(2e-3, help="learning rate of the first level; it falls to 0 along a cosine", positive=True)
    lr_more: float = option(1e-3, help="learning rate of each further level", positive=True)
    critic_width: int = option(24, help="channels of the critic's first stage", positive=True)
    temp: float = option(
        0.05, flag="temperature", positive=True,
        help="temperature of InfoNCE; at 0.1 the scores span too few nats to show 4",
    )  # fmt: skip
    estimator: str | None = option(
        None, free=True,
        help="measure with this estimator of the registry (doe, ksg, infonce ...) instead of the image critic",
    )  # fmt: skip
    pairs: Path | None = option(
        None, free=True, help="with --estimator: an .npz file with arrays x (n, d_x) and y (n, d_y) to measure instead"
    )
    n_pairs: int = option(
        10_000, free=True, at_least=200, help="with --estimator: pairs of the generator at each level"
    )
    save_freq: int = option(200, free=True, aliases=("save_every",), help="steps between saved states", positive=True)
    save_folder: Path = redefined(
        InFolder,
        "save_folder",
        Path("calibration"),
        flag="out",
        help="folder for all results; give the same folder to resume",
    )

    def __post_init__(self) -> None:
        if not self.nats or not self.eval_pairs:
            raise UsageError("--nats and --eval_pairs: must hold at least one number each")
        if self.pairs is not None and self.estimator is None:
            raise UsageError("--pairs needs --estimator, such as --estimator doe")


# --- the calibration of the estimators of information --------------------------------------------------------


@dataclass
class InformationConfig(OnDevice, Seeded, InFolder):
    """What `scripts/calibrate_information.py` takes; the defaults give the page that docs/information.md quotes."""

    estimators: list[str] = option(
        ["doe", "gaussian", "ksg", "minde", "infonce", "dv", "nwj", "smile"],
        free=True, help="names of the estimators to test",
    )  # fmt: skip
    tasks: list[str] = option(
        ["normal", "normal-dense", "half-cube", "wiggly", "bimodal", "asinh-cauchy", "student", "spiral", "tangled",
         "additive-uniform", "gamma-exponential", "clusters"],
        help="families of tasks of known information, which docs/tasks.md describes",
    )  # fmt: skip
    nats: list[float] = option([0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0], at_least=0, help="levels of information, in nats")
    dims: list[int] = option([1, 2, 5, 20, 50], at_least=1, help="numbers of dimensions of x, and of y")
    sizes: list[int] = option([500, 2000, 10_000, 50_000], at_least=200, flag="n", help="numbers of pairs in a task")
    n_tasks: int = option(
        60, at_least=0, free=True, help="number of tasks drawn from the grid; every estimator gets each of them"
    )
    most_values: int = option(500_000, positive=True, help="largest size of a task, in pairs times dimensions")
    table: bool = option(True, free=True, help="leave out the tasks of mutinfo's public table (10,000 normal pairs)")
    picture: bool = option(True, free=True, help="leave out the picture of the bounds (20-dimensional normal pairs)")
    quick: bool = option(False, help="run a small grid that takes a few minutes, without table and picture")
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("information_calibration"), flag="out",
        help="folder for all results; give the same folder to resume",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("estimators", "tasks", "nats", "dims", "sizes"):
            if not getattr(self, name):
                raise UsageError(f"--{'n' if name == 'sizes' else name}: must hold at least one value")


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
        [32, 64, 128, 256], at_least=2, free=True, help="batch sizes to measure, in images a step"
    )
    samples_per_epoch: int = option(
        126_789, at_least=2, aliases=("iters_per_epoch",), help="number of images in an epoch, the same for all sources"
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
    energy: bool = option(
        True, free=True, help="do not measure energy; by default it is measured where codecarbon is installed"
    )
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("sampling_benchmark"), flag="out",
        help="folder for all results; measurements in it are not repeated",
    )  # fmt: skip
    device: str = redefined(OnDevice, "device", "auto", free=False)
    compile: bool = redefined(Compiled, "compile", False, free=False)
    cuda_graphs: bool = redefined(Compiled, "cuda_graphs", False, free=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.source)) != len(self.source) or not self.source or not self.batch_sizes:
            raise UsageError("--source and --batch_sizes: must hold at least one value each, and no source twice")
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

    groups: int | None = option(
        None, at_least=1, help="number of chunks that each walker perturbs, with --generator (default 1)"
    )
    n_samples: int = option(500_000, at_least=1, help="number of draws for each delta")
    fresh_critics: bool = option(
        False,
        help="also measure what the pairs still share with fresh critics, if they cost less than the training did",
    )
    out: Path = option(Path("quickstart"), help="folder for all results; give the same folder to resume")


# --- what reads runs of the navigator ---------------------------------------------------------------------------


@dataclass
class FromRuns(AnchorNoise, FromGenerator):
    """Generator and noise are those that the runs recorded, unless a flag says something else."""

    SECTION: ClassVar[str] = "generator and noise (default: what the runs recorded)"
    RECORDED: ClassVar[bool] = True

    generator: str | None = redefined(FromGenerator, "generator", None)  # type: ignore[assignment]
    g_use: list[str] | None = redefined(FromGenerator, "g_use", None)  # type: ignore[assignment]
    anchors: Literal["prior", "real"] | None = redefined(Anchors, "anchors", None)  # type: ignore[assignment]
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
    n_samples: int = option(500_000, at_least=1, help="number of draws for each delta")
    dim_z: int | None = option(None, at_least=1, help="length of z, which must be the generator's")
    all_chunks: bool = option(False, help="first train walkers for every chunk that has none")
    as_published: bool = option(
        False,
        help="train one walker for each chunk, whose delta has no interval over trainings (default: four at once for "
        "generators that come with the package, one for others; --train walkers=N)",
    )
    groups: int = option(1, at_least=1, help="number of chunks that each walker perturbs, with --all_chunks")
    fresh_critics: Literal["auto", "yes", "no"] = option(
        "auto",
        help="measure what the pairs still share with new critics, trained on the finished walkers; auto: with "
        "--all_chunks or --page, if they cost less than the training did; with --curves or --Tz, always",
    )
    Tz: list[str] = option(
        [], help="further perturbations as rows of their own, such as 0_1=ganspace:5 0_1=sefa:3 0_1=0.5 0_1=budget:3.0"
    )
    curves: bool = option(
        False, help="also measure curves of nats against delta, for learned and random perturbations of each chunk"
    )
    page: bool = option(False, help="also write table1.html, with images of every walker")
    save_folder: Path | None = redefined(
        InFolder, "save_folder", None, flag="out", help="folder for the table's files (default: --walkers_base_path)"
    )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if self.generator is not None:
            check_generator_settings(self.generator, self.g_path, self.g_use or (), needs_weights=False)
        self.check_anchors()
        if not (self.all_chunks or self.walkers_base_path.is_dir()):
            raise UsageError(f"--walkers_base_path {self.walkers_base_path}: no such folder")


# --- NVAE -----------------------------------------------------------------------------------------------------


@dataclass
class NVAEEvaluationConfig(OnDevice, Seeded, FromGenerator):
    """What `scripts/evaluate_nvae.py` takes."""

    generator: str = redefined(FromGenerator, "generator", "nvae", help="name of an NVAE: nvae, tiny-nvae ...")
    data_path: str = option(
        "fashion-mnist", aliases=("data",), help="images: fashion-mnist, torchvision:CIFAR10:data, a folder ..."
    )
    n_images: int | None = option(None, at_least=1, help="number of test images (default: all)")
    importance_samples: int = option(1, at_least=1, help="samples for each image, for the bits per dimension")
    batch_size: int = option(100, at_least=1, help="images that are measured together")
    frechet: bool = option(
        False, help="also measure samples, in the features of a small classifier that is trained on the labels"
    )
    features: str | None = option(
        None,
        help="also measure samples, in the features of this network: imagenet, inception:FILE, or an encoder or "
        "classifier (a file or a run folder)",
    )
    card: Path | None = option(None, help="folder for a model card and its picture")
    output: Path | None = option(None, help="JSON file for the numbers")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        check_data_path("--data_path", self.data_path)
        if self.features is not None:
            check_features("--features", self.features)


@dataclass
class BatchStatisticsConfig(OnDevice, Seeded, FromGenerator):
    """What `scripts/update_bn_stats.py` takes."""

    generator: str = redefined(FromGenerator, "generator", "nvae", help="name of an NVAE: nvae, tiny-nvae ...")
    temperature: float = option(above=0, help="temperature, the factor of sigma, to estimate statistics for")
    output: Path = option(help="the generator to write, FILE.safetensors")
    batches: int = option(500, at_least=1, aliases=("n_batches",), help="batches of samples")
    batch_size: int = option(100, at_least=2, help="samples in a batch")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        if self.output.suffix != ".safetensors":
            raise UsageError(f"--output {self.output}: must end in .safetensors")


@dataclass
class NVAEAblationConfig(NavigatorConfig):
    """What `scripts/nvae_ablation.py` takes: the settings of the walkers, and its own."""

    generator: str = redefined(FromGenerator, "generator", "tiny-nvae", help="name of an NVAE: nvae, tiny-nvae ...")
    chunks: str = redefined(NavigatorConfig, "chunks", "0_1", help="not used: each group and each scale has its turn")
    data_path: str = option("fashion-mnist", aliases=("data",), help="test images for the KL divergences")
    n_images: int = option(1000, at_least=1, help="number of these images")
    n_samples: int = option(100_000, at_least=1, help="draws for each delta")
    save_folder: Path = redefined(  # type: ignore[assignment]
        InFolder, "save_folder", Path("nvae_ablation"), flag="out", help="folder of all results; the same one resumes"
    )

    @classmethod
    def preset(cls, generator: str | None) -> str | None:
        """As for the navigator, with fewer samples."""
        return "navigator/nvae" if generator in (None, *bundled()) else None

    @property
    def of_walkers(self) -> NavigatorConfig:
        """The settings of the walkers alone."""
        own = {field.name: getattr(self, field.name) for field in fields(NavigatorConfig)}
        return NavigatorConfig(**own | {"save_folder": str(self.save_folder)})

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        super().check()
        check_data_path("--data_path", self.data_path)


# --- pictures of a generator and of a walker ----------------------------------------------------------------


@dataclass
class GeneratorPicturesConfig(OnDevice, Seeded, InFolder, AnchorNoise, FromGenerator):
    """What `scripts/visualize_generator.py` takes."""

    groups: int = option(1, at_least=1, help="number of chunks that are exchanged together")
    n_images: int = option(10, at_least=1, help="number of images in a row")
    std: float = redefined(AnchorNoise, "std", 1.0, above=None, at_least=0)
    save_folder: Path = redefined(InFolder, "save_folder", Path("pictures"), flag="out", help="folder for the pictures")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        self.check_anchors()


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
        InFolder, "save_folder", None, flag="out", help="folder for the pictures (default: images/ of the run)"
    )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if (self.run is None) == (self.walker is None):
            raise UsageError("give either --run, a run folder, or --Tz, a walker's file")
        if self.run is None and self.generator is None:
            raise UsageError("--generator must be given with --Tz")
        if self.generator is not None:
            check_generator_settings(self.generator, self.g_path, self.g_use or ())
        self.check_anchors()


# --- the map of a generator ---------------------------------------------------------------------------------


@dataclass
class MapConfig(OnDevice, Seeded, Resumed, InFolder, AnchorNoise, FromGenerator):
    """What `scripts/map_generator.py` takes; the defaults need minutes for a bundled generator on two cores."""

    ranges: Literal["auto", "all", "tree", "single"] = option(
        "auto", help="ranges of chunks: all of them, a binary tree, or single chunks; auto takes all up to 8 chunks"
    )
    classifier: str | None = option(
        None, help="classifier that gives the labels: a file or run folder (default: clusters of the pixels)"
    )
    label_data: str | None = option(
        None, later=True,
        help="labelled images, such as fashion-mnist, on which a small classifier is trained whose label is followed",
    )  # fmt: skip
    features: str | None = option(
        None, later=True,
        help="take the label from the features of this network: imagenet, inception:FILE, or an encoder's file; by "
        "ridge regression on --label_data, or by clusters without it",
    )  # fmt: skip
    n_labels: int = option(
        10, at_least=2, help="number of k-means clusters, if neither a classifier nor labels are given"
    )
    critic: Literal["canonical", "network"] = option(
        "canonical", later=True,
        help="what finds the information: critics in closed form, or one network for all ranges, which starts from "
        "these and finds more where the images are not jointly normal, at several times the cost",
    )  # fmt: skip
    critic_steps: int = option(144, at_least=1, later=True, help="training steps of the network")
    critic_width: int = option(16, at_least=1, later=True, help="channels of the network's first stage")
    n_train: int = option(2048, at_least=64, help="number of image groups that the canonical critics are made from")
    n_eval: int = option(1024, at_least=64, help="number of image pairs that each number is measured on")
    n_inputs: int = option(192, at_least=1, help="largest number of principal components that the critics see")
    critic_size: int = option(32, at_least=4, help="largest side of the images that the critics see, in pixels")
    n_images: int = option(8, at_least=1, free=True, help="images in each row of the page")
    save_folder: Path | None = redefined(
        InFolder, "save_folder", None, flag="out", help="folder of the map (default: maps/ and the generator's name)"
    )

    @property
    def folder(self) -> Path:
        return Path(self.save_folder) if self.save_folder is not None else Path("maps") / short_name(self.generator)

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        self.check_prior()
        if self.classifier is not None:
            check_path("--classifier", self.classifier)
        if self.label_data is not None:
            check_data_path("--label_data", self.label_data)
            if self.classifier is not None:
                raise UsageError("--label_data and --classifier: both name the label; give one of them")
        if self.features is not None:
            check_features("--features", self.features)
            if self.classifier is not None:
                raise UsageError("--features and --classifier: both name the label; give one of them")


# --- the explorer -------------------------------------------------------------------------------------------


@dataclass
class ExplorerConfig(OnDevice, Seeded, AnchorNoise, FromGenerator):
    """What `scripts/explore.py` takes."""

    out: Path = option(Path("explorer.html"), free=True, help="the HTML file to write")
    walkers: str | None = option(
        None, aliases=("Tz",),
        help=(
            "learned walkers to add to the random directions: a run folder, a folder with one for each "
            "chunk, or a T_z"
        ),
    )  # fmt: skip
    map: Path | None = option(
        None, help="map.json of map_generator.py, whose measurements the page then shows beside the sliders"
    )
    table: Path | None = option(
        None, help="table1.json of monte_carlo_simulation.py, whose measurements the page shows too"
    )
    sliders: int = option(4, at_least=1, help="largest number of sliders, if no walkers define the groups of chunks")
    positions: int | None = option(
        None, at_least=3, at_most=101,
        help="number of positions of each slider, odd (default: 11, or fewer to stay below 8,000 images)",
    )  # fmt: skip
    n_anchors: int = option(3, at_least=1, help="number of images to start from")
    image_size: int = option(128, at_least=8, help="side of the images in the page, in pixels; at most the generator's")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        self.check_prior()
        if self.positions is not None and self.positions % 2 == 0:
            raise UsageError(f"--positions {self.positions}: must be odd, so that one of them is the anchor")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out {self.out}: must end in .html")
        for flag, path in (("--map", self.map), ("--table", self.table)):
            if path is not None and not path.is_file():
                raise UsageError(f"{flag} {path}: no such file")


# --- .beton files -------------------------------------------------------------------------------------------

BETON_NAMES = {"train": "train", "val": "validation", "test": "test", "predict": "predict"}


@dataclass
class BetonConfig(InFolder):
    """What `scripts/create_image_beton_file.py` takes."""

    save_folder: Path = redefined(
        InFolder, "save_folder", flag="out", aliases=("output_folder",), help="folder for the .beton files"
    )
    train_folder: Path | None = option(
        None, help="folder with the training images, with or without a folder for each class"
    )
    val_folder: Path | None = option(None, help="folder with the validation images")
    test_folder: Path | None = option(None, help="folder with the test images")
    predict_folder: Path | None = option(None, help="folder with images without labels, to predict on")
    max_resolution: int = option(256, at_least=1, help="longest side of a stored image, in pixels")
    with_labels: bool = option(False, help="store the class folders as labels")
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
class ViewGenerationConfig(Anchors, FromGenerator):
    """What `generate_views` draws; the keys are those of the reference's YAML files, and two more."""

    anchor_params: tuple[float, float, float] = option(
        (0.0, 1.0, 2.0), help="mean, standard deviation and truncation of the anchors' noise"
    )
    Tz: Any = option(
        help="walker of the positives: groups like '1_4=0,0.8,2 4_6=w.safetensors' (YAML: a mapping), or a file"
    )
    budget: float | None = option(
        None, above=0,
        help="nats that the images of a pair shall share: --Tz's perturbation is made longer or shorter to reach it",
    )  # fmt: skip
    n_images: int = option(4, help="number of anchors", at_least=1)
    batch_size: int = option(1, help="anchors that are drawn and decoded together", at_least=1)
    augmentations: int = option(3, help="positives of each anchor", at_least=0)
    starting_seed: int = option(42, flag="seed", help="random seed for anchors and positives", at_least=0)
    seeds: Literal["own", "published"] = option(
        "own",
        help="published: the noise and the rounding of the published script; own: independent noise for each positive",
    )

    @property
    def generator_path(self) -> str | None:
        """The published name of `g_path`."""
        return self.g_path

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        self.check_anchors()

    def check_anchors(self) -> None:
        """As in `Anchors`; with real images nothing may be said of random noise."""
        super().check_anchors()
        if self.anchors == "real" and self.seeds == "published":
            raise UsageError("--anchors real: the published seeds draw from the prior; leave out --seeds published")
        if self.anchors == "real" and self.anchor_params != type(self).anchor_params:
            raise UsageError(
                "--anchors real: anchor_params have no effect on real images; give 0 1 2 or leave them out"
            )


@dataclass
class ViewPicturesConfig(OnDevice, InFolder, ViewGenerationConfig):
    """What `scripts/view_generation.py` takes."""

    save_folder: Path = redefined(InFolder, "save_folder", flag="out", help="folder for the pictures")


# --- generated data sets ------------------------------------------------------------------------------------


@dataclass
class ExportConfig(Precise, InFolder, AnchorNoise, FromGenerator):
    """What `scripts/generate_dataset.py` takes."""

    n_images: int = option(help="number of images, or of pairs, to write", at_least=1)
    save_folder: Path = redefined(
        InFolder, "save_folder", flag="out", help="folder for the data set; give the same folder to resume"
    )
    Tz: str | None = option(
        None,
        help="write pairs by this walker: a file, a run folder, a YAML of groups, or '0_1=0,0.2,1 1_4=w.safetensors'",
    )
    budget: float | None = option(
        None, above=0,
        help="nats that the images of a pair shall share: --Tz's perturbation is made longer or shorter to reach it",
    )  # fmt: skip
    layout: Literal["plain", "cop-gen"] = option(
        "plain", help="names of the files: 000.png (pairs: in anchor/ and positive/), or as in COP-Gen's data sets"
    )
    format: str = option("png", help="format of the images: png, jpg, or beton, which writes one file that FFCV reads")
    quality: int = option(90, help="quality of JPEG images, also inside .beton", at_least=1, at_most=100)
    std: float = redefined(AnchorNoise, "std", 1.0, above=None, at_least=0)
    starting_seed: int = option(0, flag="seed", help="random seed for all noise", at_least=0)
    published_seeds: bool = option(
        False, help="draw the published noise, with SciPy from the seed plus the number of the batch"
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
        self.check_anchors()
        if self.anchors == "real" and self.published_seeds:
            raise UsageError("--anchors real: the published seeds draw from the prior; leave out --published_seeds")
        if self.layout == "cop-gen" and self.format == "beton":
            raise UsageError("--layout cop-gen: is a layout of image files, not of --format beton")
        if self.published_seeds and self.Tz is not None:
            raise UsageError("--published_seeds: the reference's script makes no pairs; leave out --Tz or the seeds")


def check_distinct(settings: object, *names: str) -> None:
    """Refuse by UsageError lists that are empty, or that have a value twice."""
    for name in names:
        values = getattr(settings, name)
        if not values or len(set(values)) != len(values):
            raise UsageError(f"--{name} {' '.join(map(str, values))}: give at least one value, and none twice")


# --- pairs that people made -------------------------------------------------------------------------------------


@dataclass
class HumanPairsConfig(OnDevice, Resumed, FromGenerator):
    """What `scripts/compare_pairs.py` takes."""

    data_path: str = option(
        "emoji-pairs",
        help="pairs that people made: emoji-pairs, or emoji-pairs:FOLDER; without skin tones unless it says so",
    )
    generator: str = redefined(FromGenerator, "generator", "tiny-emoji")
    walkers: list[str] = option(
        ["0_1=1"], help="walkers whose pairs stand beside them: files, or noise such as 0_1=1 of standard deviation 1"
    )
    critic_width: int = option(32, at_least=1, help="channels of the critic's first stage")
    batch_size: int = option(256, at_least=2, help="pairs in a training batch")
    max_steps: int = option(600, at_least=1, help="training steps of each critic, at most")
    seeds: list[int] = option([0, 1, 2], at_least=0, help="random seeds; each kind of pairs is measured with each")
    out: Path = option(Path("pairs"), free=True, help="folder for the table; the same command resumes")

    def __post_init__(self) -> None:
        check_distinct(self, "seeds", "walkers")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        check_data_path("--data_path", self.data_path)


# --- tasks of known information, as files -----------------------------------------------------------------------


@dataclass
class TaskFilesConfig(Seeded):
    """What `scripts/export_tasks.py` takes."""

    out: Path = option(help="folder for the files")
    tasks: list[str] = option([], help='families, or "bmi" for the tasks of that benchmark (default: all families)')
    nats: list[float] = option([0.5, 2.0, 4.0], at_least=0, help="levels of information, in nats")
    dims: list[int] = option([1, 5], at_least=1, help="numbers of dimensions")
    n: int = option(10_000, at_least=1, help="number of pairs in each file")

    def __post_init__(self) -> None:
        for name in ("nats", "dims"):
            if not getattr(self, name):
                raise UsageError(f"--{name}: must hold at least one value")
