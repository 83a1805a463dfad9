"""Settings of an encoder's training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mi_ml_gen.core import config, runs
from mi_ml_gen.core.config import option
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.encoders.registry import METHODS
from mi_ml_gen.latents import TruncatedNormal


@dataclass
class EncoderConfig:
    """What `scripts/train_encoder.py` takes; the defaults are the paper's for SimSiam and BYOL."""

    encoder: str = option(help="method of representation learning: simclr, simsiam, byol, or FILE.py:CLASS")
    generator: str | None = option(None, help="generated images: bigbigan, stylegan2, tiny-bigbigan ... (none: stored)")
    g_path: str | None = option(None, help="weights of the generator, where none are bundled")
    g_use: list[str] = option([], help="its use, KEY=VALUE ...: psi=0.7 crop=256 size=128 label=3 noise_mode=random")
    mean: float = option(0.0, help="mean of the anchors' noise")
    std: float = option(1.0, above=0, help="standard deviation of the anchors' noise")
    truncation: float = option(2.0, above=0, help="bound of the anchors' noise, in standard deviations")
    Tz: Any = option(None, help='walker: none, a path, or groups: "0_1=runs/w.safetensors 1_6=0,0.2,2 3_4=null"')
    samples_per_epoch: int | None = option(None, at_least=1, help="generated images an epoch (must be given for them)")
    data_path: str | None = option(
        None, help="stored images: fashion-mnist, digits, torchvision:CIFAR10:data, a folder of images or .beton files"
    )
    framing: str = option("whole", help="how stored images are cut: whole, bigbigan, stylegan, classification")
    loader: Literal["auto", "torch", "ffcv"] = option("auto", help="how stored images are read")
    skip_bad: bool = option(False, help="leave out stored images that cannot be read (otherwise they are an error)")
    workers: int | None = option(None, at_least=1, help="decoding threads (default: one a core, at most 8)")
    img_size: int | None = option(None, at_least=8, help="side of stored images (default: their own, else 128)")
    Tx: str | None = option(
        "simclr",
        help="augmentation of the images: simclr, no_crop and no_color as published; torchvision, torchvision_no_crop "
        "and torchvision_no_color by torchvision's conventions; none is the centre crop",
    )
    crop_size: int | None = option(None, at_least=8, help="side of the views (default: 7/8 of the images')")

    depth: Literal[18, 50] = option(50, help="layers of the ResNet")
    width: int = option(64, at_least=1, help="channels of its first stage; 64 is the published network")
    dim: int = option(2048, at_least=2, help="dimensions of the projections")
    pred: int = option(512, at_least=1, help="hidden units of the predictor")
    temperature: float = option(0.1, above=0, help="of SimCLR's loss")
    base_temperature: float | None = option(None, above=0, help="SimCLR's loss is multiplied by temperature over it")
    target_momentum: float = option(0.996, at_least=0, at_most=1, help="what BYOL's target keeps at each step")

    max_epochs: int = option(100, at_least=1, help="epochs to train")
    cumulative_bs: int = option(512, at_least=2, help="samples a step, of all processes together")
    micro_batches: int = option(1, at_least=1, help="parts that a process's batch is worked on in, to save memory")
    base_lr: float = option(0.05, above=0, help="learning rate for 256 samples a step; the peak is in proportion")
    decay: bool = option(True, help="let the rate fall to a tenth, along a cosine")
    warmup: bool = option(False, help="let it rise from 0 over the first tenth (with --decay only)")
    momentum: float = option(0.9, at_least=0, below=1, help="of SGD")
    weight_decay: float = option(1e-4, at_least=0, help="of SGD")

    knn_data: str | None = option(None, help="labelled set for the kNN accuracy (default: stored images' own labels)")
    knn_freq: int = option(5, at_least=1, help="epochs between kNN accuracies")
    abort_on_collapse: bool = option(False, help="stop, with exit code 5, when the features collapse")
    save_freq: int = option(5, at_least=1, help="epochs between saved encoders and grids of views")
    state_interval_s: float = option(60.0, at_least=0, help="least seconds between saved states, for resuming")
    save_folder: str = option("./encoder_runs", help="folder of run folders")
    run_name: str | None = option(None, help="name of the run folder (default: from the settings)")

    seed: int = option(0, at_least=0, help="of weights and all draws")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", help="arithmetic of generator and encoder")
    compile: bool = option(False, help="compile generator and encoder with torch.compile")
    decode_at_once: int | None = option(None, at_least=1, help="pairs decoded together (default: all of a batch)")

    def __post_init__(self) -> None:
        METHODS.check(self.encoder)

    @property
    def law(self) -> TruncatedNormal:
        return TruncatedNormal(self.mean, self.std, self.truncation)

    @property
    def policy(self) -> str:
        return self.Tx or "none"

    @property
    def folder(self) -> Path:
        method, images = short_name(self.encoder), short_name(self.generator or "stored")
        name = f"{method}_{images}_{self.policy}_seed{self.seed}"
        return Path(self.save_folder) / (self.run_name or name)


FREE = ("g_path", "device", "compile", "state_interval_s", "save_freq", "save_folder", "run_name", "workers", "loader",
        "skip_bad", "decode_at_once", "knn_freq", "abort_on_collapse")  # fmt: skip
"""Settings that may differ when a run is resumed."""


# ---------------------------------------------------------------------------------------------------------------
# From settings to parts


def named_configuration(name: str, other: str | None = None) -> str:
    """What --config takes for the configuration that --conf names: a bundled one of encoders, or a file.

    Raises UsageError where there is none of that name, and where --config (`other`) names one as well.
    """
    if other is not None:
        raise UsageError(f"--conf {name} and --config {other}: give one of them")
    folder = config.BUNDLED / "encoders"
    for path in (folder / f"{name}.yaml", Path(name), Path(f"{name}.yaml")):
        if path.is_file():
            return str(path)
    known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    near = nearest(name, known, "configuration")
    raise UsageError(f"--conf {name}: no bundled configuration of that name, and no file{near}")


def resumed_settings(folder: Path, flags: Mapping[str, Any]) -> EncoderConfig:
    """The settings of the run in a folder, with the flags (by name, None where not given) on top.

    Raises UsageError where the folder is no run, and for a --config, for the run has its own.
    """
    if flags.get("config") is not None:
        raise UsageError("--resume_from: the run's own settings are used; leave --conf and --config out")
    if folder.is_file():
        raise UsageError(f"--resume_from {folder}: give a run's folder (for a file there is load_encoder)")
    found = runs.read_config(folder)
    names = {field.name for field in dataclasses.fields(EncoderConfig)}
    given = {name: value for name, value in flags.items() if name in names and value is not None}
    return config.load(EncoderConfig, None, {name: found[name] for name in names & found.keys()} | given)
