"""Settings of probes and of their evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mi_ml_gen.core.config import inside, option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.settings import InFolder, InNamedFolder, Precise, Resumed, Seeded, StoredImages
from mi_ml_gen.data.known import check_data_path, published_framing
from mi_ml_gen.hub.assets import check_path
from mi_ml_gen.views.registry import POLICIES

READOUTS = ("sgd", "knn", "ridge")


@dataclass
class ProbeConfig(Precise, Seeded, Resumed, InNamedFolder, StoredImages):
    """What `scripts/train_classifier.py` takes."""

    CONFIGS: ClassVar[str] = "classifiers"

    encoder_path: str | None = option(
        None, help="the encoder to probe: a run folder, encoder.safetensors, or a published file"
    )
    data_path: str | None = option(
        None,
        help="labelled images: fashion-mnist, digits, emoji, torchvision:CIFAR10:data, a folder of images, or .beton "
        "files",
    )
    save_folder: str = redefined(InFolder, "save_folder", "./classifier_runs")
    dataset: str | None = option(
        None, inside=True, help="name of the data set; for one of the paper's, the number of classes is checked"
    )
    image_size: int | None = option(
        None, at_least=8, aliases=("img_size",),
        help="side of the images, in pixels, of which 7/8 is seen (default: as the encoder was trained on, else the "
        "set's own)",
    )  # fmt: skip
    framing: str = redefined(
        StoredImages, "framing", "auto",
        help="how stored images are cut to squares: whole, bigbigan, stylegan or classification; auto does as "
        "published, bigbigan for --dataset imagenet and classification for all others",
    )  # fmt: skip
    skip_bad: bool = option(False, free=True, help="leave out images that cannot be read (otherwise they are an error)")
    hold_out: float = option(
        0.1, above=0, below=1,
        help="share of the training images that is held out, where the set has no validation images of its own",
    )  # fmt: skip
    readouts: list[str] = option(list(READOUTS), choices=READOUTS, help="classifiers of the features: sgd, knn, ridge")

    views: str = option(
        "none", flag="Tx",
        help="augmentation of the training images: none computes features of the centre crops once; no_color crops and "
        "mirrors anew in each epoch, as published; or any other that train_encoder.py takes",
    )  # fmt: skip
    scale: Literal["unit", "none"] = option(
        "unit",
        help="features for SGD: unit standardises them to mean squared length 1; none leaves them, as the paper",
    )
    max_epochs: int = option(60, at_least=1, help="passes of SGD over the training images")
    cumulative_bs: int = option(256, at_least=1, help="images in each step, over all processes")
    base_lr: float = option(30.0, above=0, help="learning rate for 256 images a step; scaled in proportion")
    decay: bool = option(True, help="keep the learning rate constant; by default it falls to a tenth along a cosine")
    val_freq: int = option(5, at_least=1, help="epochs between two validations")
    keep: Literal["last", "best"] = option(
        "best", help="which layer of SGD is judged: the last epoch's, as published, or the one of least validation loss"
    )

    n_neighbours: int = option(20, at_least=1, help="number of nearest neighbours that vote")
    knn_temp: float = option(0.1, above=0, help="temperature of kNN: a vote weighs exp(cosine / temperature)")

    batch_size: int = option(
        256, at_least=1, free=True, help="images that are decoded and encoded together where features are computed once"
    )

    def __post_init__(self) -> None:
        self.framing = published_framing(self.framing, self.dataset)
        POLICIES.check(self.views)
        if not self.readouts or len(set(self.readouts)) != len(self.readouts):
            raise UsageError(f"--readouts {' '.join(self.readouts)}: give each of {', '.join(READOUTS)} at most once")

    @property
    def folder(self) -> Path:
        data = self.dataset or re.sub(r"[^\w.-]+", "-", self.data_path or "data").strip("-.")
        return inside(self.save_folder, f"LinCls-{data}-{self.run_name}")

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        if self.encoder_path is None or self.data_path is None:
            raise UsageError(f"--{'encoder' if self.encoder_path is None else 'data'}_path must be given")
        check_path("--encoder_path", self.encoder_path)
        check_data_path("--data_path", self.data_path)


@dataclass
class EvaluationConfig(Precise, StoredImages):
    """What `scripts/eval_classifier.py` takes."""

    lin_cls_path: str = option(help="the classifier: a run folder, classifier.safetensors, or a published file")
    data_path: str = option(help="labelled images, in any form that train_classifier.py takes")
    dataset: str | None = option(
        None, help="name of the data set; for one of the paper's, the number of classes is checked"
    )
    split: Literal["train", "validation", "test"] = option("test", help="split of the data set to evaluate on")
    image_size: int | None = option(
        None,
        at_least=8,
        aliases=("img_size",),
        help="side of the images, in pixels (default: as the classifier's were)",
    )
    framing: str = redefined(
        StoredImages, "framing", "auto",
        help="how stored images are cut to squares: whole, bigbigan, stylegan or classification; auto does as the "
        "classifier's run recorded, else as published, by --dataset",
    )  # fmt: skip
    skip_bad: bool = option(False, help="leave out images that cannot be read (otherwise they are an error)")
    batch_size: int = option(256, at_least=1, help="images that are evaluated together")
    out_log_file: Path | None = option(
        None, help="name of the results: writes NAME.csv, and a folder NAME with tables and a figure"
    )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_path("--lin_cls_path", self.lin_cls_path)
        check_data_path("--data_path", self.data_path)
