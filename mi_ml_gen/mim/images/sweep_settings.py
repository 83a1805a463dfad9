"""Settings of a sweep over data sets, image models, priors and seeds, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mi_ml_gen.core import config
from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.settings import InFolder, Precise
from mi_ml_gen.mim.images.known import SETS
from mi_ml_gen.mim.images.settings import MimImageConfig

MODELS = [
    f"{family}{loss}" for family in ("convhvae_2level", "pixelhvae_2level") for loss in ("", "-amim", "-smim")
]  # fmt: skip
PRIORS = ["standard", "vampprior"]


class Point(NamedTuple):
    """One training of a sweep."""

    dataset: str
    model: str
    prior: str
    seed: int

    @property
    def title(self) -> str:
        return f"{self.dataset} {self.model} {self.prior} seed {self.seed}"

    @property
    def name(self) -> str:
        """For files."""
        return re.sub(r"[^\w.-]+", "_", self.title)


@dataclass
class ImageSweepConfig(Precise, InFolder):
    """What `scripts/sweep_mim_image.py` takes."""

    datasets: list[str] = option(
        ["dynamic_fashion_mnist"], free=True, help="data sets, as --dataset_name of train_mim_image.py"
    )
    models: list[str] = option(MODELS, free=True, help="models, as --model_name of train_mim_image.py")
    priors: list[str] = option(PRIORS, free=True, choices=PRIORS, help="priors of the upper latent")
    seeds: int = option(1, at_least=1, free=True, help="number of seeds, from 14 on, the published one")
    run_settings: list[str] = option(
        [], flag="set", help="settings of all runs, KEY=VALUE by the flags of train_mim_image.py: epochs=20 warmup=5"
    )
    data_root: str | None = option(None, free=True, flag="data_path", help="folder with the files of the data sets")

    S: int = option(500, at_least=2, help="importance samples for each image of the likelihood")
    n_likelihood: int = option(200, at_least=2, help="test images whose likelihood is estimated")
    n_embedded: int = option(
        10000, at_least=50, help="training images, and test images at most, of nearest neighbours and clusters"
    )

    workers: int = option(1, at_least=1, free=True, help="runs that are trained side by side")
    train_seconds: float | None = option(
        None, above=0, free=True,
        help="seconds from the start of this command after which trainings stop and save their state; what each has "
        "learned is then measured, and the same command resumes it",
    )  # fmt: skip
    save_folder: str = redefined(InFolder, "save_folder", "./mim_image_sweep", flag="out", help="folder of the sweep")

    def __post_init__(self) -> None:
        for name in self.datasets:
            SETS.check(name)
        for point in self.points:
            self.settings_of(point)

    @property
    def points(self) -> list[Point]:
        """All runs: the published loops over data sets, models and priors, seed by seed."""
        seeds = range(14, 14 + self.seeds)
        return [
            Point(data, model, prior, seed)
            for seed in seeds for data in self.datasets for model in self.models for prior in self.priors
        ]  # fmt: skip

    def settings_of(self, point: Point) -> MimImageConfig:
        """The settings of one run. Raises UsageError for those that make no sense."""
        own = {
            "dataset_name": point.dataset, "model_name": point.model, "prior": point.prior, "seed": point.seed,
            "use_training_data_init": True, "precision": self.precision, "device": self.device,
            "data_root": self.data_root, "save_folder": str(Path(self.save_folder) / "runs"),
        }  # fmt: skip
        settings = config.load(MimImageConfig, None, own)
        return replace(settings, **config.given(MimImageConfig, self.run_settings, "--set"))
