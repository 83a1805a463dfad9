"""Settings of an encoder's training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mi_ml_gen.core import config
from mi_ml_gen.core.config import inside, option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.core.settings import Compiled, InFolder, InNamedFolder, Resumed, Seeded, StoredImages
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.encoders.registry import METHODS
from mi_ml_gen.generators.families import canonical
from mi_ml_gen.generators.known import SIZES, check_generator_settings
from mi_ml_gen.generators.settings import AnchorNoise, FromGenerator
from mi_ml_gen.views.registry import POLICIES

PUBLISHED_SETS = {"bigbigan": (1_281_167, "bigbigan"), "stylegan": (893_000, "stylegan")}
"""Of each data_type of the published configurations: images of an epoch (of ImageNet-1K, of LSUN Cars), and framing."""
PUBLISHED_SIZE_PX = 128
NOTHING_TO_TRAIN_ON = "nothing to train on: give --generator NAME, or --data_path with images"


@dataclass
class EncoderConfig(Compiled, Seeded, Resumed, InNamedFolder, StoredImages, AnchorNoise, FromGenerator):
    """What `scripts/train_encoder.py` takes; the defaults are the paper's for SimSiam and BYOL."""

    CONFIGS: ClassVar[str] = "encoders"

    encoder: str = option(help="method of representation learning: simclr, simsiam, byol, or FILE.py:CLASS")
    generator: str | None = redefined(  # type: ignore[assignment]
        FromGenerator, "generator", None,
        help="name of the generator to train on: bigbigan, stylegan2, tiny-bigbigan ... (default: stored images)",
    )  # fmt: skip
    Tz: Any = option(
        None, help='walker that makes positives: none, a file, or groups like "0_1=runs/w.safetensors 1_6=0,0.2,2"'
    )
    budget: float | None = option(
        None, above=0,
        help="nats that the images of a pair shall share: --Tz's perturbation is made longer or shorter to reach it",
    )  # fmt: skip
    mixture: float | None = option(
        None, above=0, below=1, later=True,
        help="share of the pairs that --Tz makes, without changes of colour; the others are one image twice, under the "
        "whole --Tx (default: each pair gets both)",
    )  # fmt: skip
    samples_per_epoch: int | None = option(
        None, at_least=1, help="number of generated images in an epoch; must be given with --generator"
    )
    data_path: str | None = option(
        None,
        help="stored images to train on: fashion-mnist, digits, emoji, torchvision:CIFAR10:data, a folder of images, "
        "or .beton files; emoji-pairs gives pairs of pictures",
    )
    skip_bad: bool = option(
        False, free=True, help="leave out stored images that cannot be read (otherwise they are an error)"
    )
    workers: int | None = option(
        None, at_least=1, free=True, aliases=("n_workers",), help="threads that decode images (default: at most 8)"
    )
    img_size: int | None = option(
        None, at_least=8, flag="image_size", help="side of stored images, in pixels (default: their own, else 128)"
    )
    Tx: str | None = option(
        "simclr",
        help="augmentation of the images: simclr, no_crop and no_color as published; torchvision, torchvision_no_crop "
        "and torchvision_no_color by torchvision's conventions; none for the centre crop; or FILE.py:CLASS",
    )
    crop_size: int | None = option(
        None, at_least=8, help="side of the views, in pixels (default: 7/8 of the images' side)"
    )

    depth: Literal[10, 18, 50] = option(50, help="layers of the ResNet")
    width: int = option(64, at_least=1, help="channels of the ResNet's first stage; 64 is the published network")
    halves: bool = option(
        False, later=True,
        help="halve the resolution of small images in the stem, for a quarter of the work at the same width; larger "
        "images have the stem of the published network",
    )  # fmt: skip
    dim: int = option(2048, at_least=2, help="dimensions of the projections")
    pred: int = option(512, at_least=1, help="hidden units of the predictor")
    temperature: float = option(0.1, above=0, aliases=("temp",), help="temperature of SimCLR's loss")
    base_temperature: float | None = option(
        None, above=0, help="SimCLR's loss is multiplied by temperature / base_temperature"
    )
    target_momentum: float = option(
        0.996, at_least=0, at_most=1, help="share of BYOL's target network that is kept at each step"
    )

    max_epochs: int = option(100, at_least=1, help="epochs to train")
    cumulative_bs: int = option(512, at_least=2, help="samples in each step, over all processes")
    micro_batches: int = option(
        1, at_least=1, help="parts into which each process splits its batch, to use less memory"
    )
    base_lr: float = option(0.05, above=0, help="learning rate for 256 samples a step; scaled in proportion")
    decay: bool = option(True, help="keep the learning rate constant; by default it falls to a tenth along a cosine")
    warmup: bool = option(
        False,
        help="let the learning rate rise from 0 over the first tenth of the epochs; has no effect with --no_decay",
    )
    momentum: float = option(0.9, at_least=0, below=1, help="momentum of SGD")
    weight_decay: float = option(1e-4, at_least=0, help="weight decay of SGD")

    knn_data: str | None = option(
        None, help="labelled images for the kNN accuracy (default: the stored images, where they have labels)"
    )
    knn_freq: int = option(5, at_least=1, free=True, help="epochs between two kNN accuracies")
    abort_on_collapse: bool = option(False, free=True, help="stop with exit code 5 when the features collapse")
    save_freq: int = option(
        5, at_least=1, free=True, aliases=("save_every",), help="epochs between saved encoders and grids of views"
    )
    save_folder: str = redefined(InFolder, "save_folder", "./encoder_runs")
    run_name: str | None = redefined(  # type: ignore[assignment]
        InNamedFolder, "run_name", None, help="name of the run folder (default: from the settings)"
    )
    decode_at_once: int | None = option(
        None, at_least=1, free=True, help="pairs that are decoded together (default: all of a batch)"
    )
    views_ahead: bool = option(
        False, free=True, later=True,
        help="on a CPU, make the views of the next step in a second thread",
    )  # fmt: skip

    def __post_init__(self) -> None:
        METHODS.check(self.encoder)
        POLICIES.check(self.policy)
        super().__post_init__()

    @property
    def policy(self) -> str:
        return self.Tx or "none"

    @property
    def folder(self) -> Path:
        method, images = short_name(self.encoder), short_name(self.generator or "stored")
        return inside(self.save_folder, self.run_name or f"{method}_{images}_{short_name(self.policy)}_seed{self.seed}")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if self.generator is not None and self.data_path is not None:
            raise UsageError("--generator and --data_path: the views come from one of them; leave the other out")
        if self.generator is None and self.data_path is None:
            raise UsageError(NOTHING_TO_TRAIN_ON)
        if self.generator is not None:
            check_generator_settings(self.generator, self.g_path, self.g_use)
            self.check_anchors()
        elif self.anchors == "real":
            raise UsageError("--anchors real: the anchors are those of a generator; give --generator")
        if self.mixture is not None and (self.generator is None or self.Tz is None or self.Tz in config.NOTHING):
            raise UsageError("--mixture: mixes the pairs of --Tz with others; give --generator and --Tz")
        for flag, reference in (("--data_path", self.data_path), ("--knn_data", self.knn_data)):
            if reference is not None:
                check_data_path(flag, reference)

    def known_inputs(self) -> list[str] | None:
        """What --dry-run says of generator and images that come with the package; None where files must be opened."""
        references = [text for text in (self.data_path, self.knn_data) if text is not None]
        if self.g_path is not None or not (self.generator is None or self.generator in SIZES):
            return None
        if any(Path(text).expanduser().exists() or text.startswith("torchvision") for text in references):
            return None
        size = SIZES.get(self.generator or "")
        lines = [] if size is None else [f"generator: {self.generator}, {size[1]} px, can be loaded"]
        return lines + [f"images: {text}, a set that is known by name" for text in references]

    @classmethod
    def from_published(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a published configuration as ours; other files as they are.

        A null generator_path means stored images. The published files leave the number of generated images to a data
        file; here it is that of the set which data_type names.
        """
        flat = dict(content)
        if "data_type" not in flat:
            return flat
        kind = flat.pop("data_type")
        if flat.get("Tz") in config.NOTHING:
            flat["Tz"] = None
        if kind not in PUBLISHED_SETS:
            raise UsageError(f"data_type {kind}: must be one of {', '.join(PUBLISHED_SETS)}")
        n_images, framing = PUBLISHED_SETS[kind]
        path, noise = flat.pop("generator_path", None), flat.pop("anchor_params", None)
        if path in config.NOTHING or path is None:
            return {"framing": framing, "img_size": str(PUBLISHED_SIZE_PX)} | flat
        if isinstance(noise, list):
            if len(noise) != 3:
                raise UsageError(f"anchor_params {noise}: must be mean, standard deviation and truncation")
            flat |= dict(zip(("mean", "std", "truncation"), noise, strict=True))
        return {"generator": canonical(kind), "g_path": path, "samples_per_epoch": str(n_images)} | flat


named_configuration = functools.partial(config.named, "encoders")
"""What --config takes for the configuration of encoders that --conf names; see `config.named`."""


def resumed_settings(folder: Path, flags: Mapping[str, Any]) -> EncoderConfig:
    """The settings of the run in a folder, with the flags (by name, None where not given) on top.

    Raises UsageError where the folder is no run, and for a --config, for the run has its own.
    """
    from mi_ml_gen.core import runs  # imports torch

    if flags.get("config") is not None:
        raise UsageError("--resume_from: the run's own settings are used; leave --config out")
    if folder.is_file():
        raise UsageError(f"--resume_from {folder}: give a run's folder (for a file there is load_encoder)")
    found = runs.read_config(folder)
    names = {field.name for field in dataclasses.fields(EncoderConfig)}
    given = {name: value for name, value in flags.items() if name in names and value is not None}
    return config.load(EncoderConfig, None, {name: found[name] for name in names & found.keys()} | given)
