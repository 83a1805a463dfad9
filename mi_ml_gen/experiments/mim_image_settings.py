"""Settings of the comparison of MIM with contrastive learning on images, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.settings import InFolder, Precise, Resumed
from mi_ml_gen.mim.images.known import SETS

GENERATIVE = {
    "vae": "VAE", "amim": "A-MIM", "smim": "S-MIM", "amim_x": "A-MIM, q(x) = p(x|z)", "cmim": "cMIM",
    "infonce_mim": "InfoNCE + MIM",
}  # fmt: skip
"""Methods with a decoder and their titles."""
CONTRASTIVE = {"simclr": "SimCLR", "simsiam": "SimSiam", "byol": "BYOL"}
"""Methods that train the encoder alone, on two views of each image."""
METHODS = GENERATIVE | CONTRASTIVE
FAMILIES = ("vae", "hvae_2level", "convhvae_2level")


@dataclass
class MimComparisonConfig(Precise, Resumed, InFolder):
    """What `scripts/compare_mim_image.py` takes."""

    methods: list[str] = option(list(METHODS), free=True, help=f"methods to train: {', '.join(METHODS)}")
    seeds: int = option(3, at_least=1, free=True, help="number of seeds of each method, starting with seed 0")
    dataset_name: str = option("dynamic_fashion_mnist", help="data set; docs/mim_images.md lists them")
    data_path: str | None = option(None, free=True, help="folder with the files of the data set")
    n_train: int | None = option(None, at_least=20, help="use only the first training images (default: all)")
    n_test: int | None = option(None, at_least=20, help="use only the first validation and test images (default: all)")

    model_name: str = option("convhvae_2level", help=f"network of all methods: {', '.join(FAMILIES)}")
    z1_size: int = option(40, at_least=1, help="dimensions of the latent next to the image")
    z2_size: int = option(40, at_least=1, help="dimensions of the latent above it")
    prior: Literal["standard", "vampprior"] = option("standard", help="prior of the upper latent")
    number_components: int = option(500, at_least=1, help="pseudo-inputs of the VampPrior")

    epochs: int = option(20, at_least=1, help="passes over the training images, the same for all methods")
    batch_size: int = option(256, at_least=2, help="images in each step")
    lr: float = option(1e-3, above=0, help="learning rate of AdamW; it falls to a tenth along a cosine")
    weight_decay: float = option(1e-4, at_least=0, help="weight decay of AdamW")
    warmup: float = option(
        0.2, at_least=0, at_most=1, help="share of the steps in which beta rises to 1, and S-MIM has no sampling half"
    )
    temperature: float = option(0.1, above=0, help="temperature of cMIM, of InfoNCE and of SimCLR")
    contrast_weight: float = option(1.0, at_least=0, help="weight of the contrastive term of cMIM and InfoNCE + MIM")
    target_momentum: float = option(0.99, at_least=0, at_most=1, help="share of BYOL's target that each step keeps")

    n_likelihood: int = option(1000, at_least=2, help="test images whose likelihood is estimated")
    S: int = option(1000, at_least=2, help="importance samples for each of them")
    n_probe: int | None = option(None, at_least=20, help="training images of the readouts (default: all)")
    workers: int = option(1, at_least=1, free=True, help="processes that train side by side on the device")
    save_folder: Path = redefined(
        InFolder, "save_folder", Path("mim_image_comparison"), flag="out",
        help="folder for all results; give the same folder to resume",
    )  # fmt: skip

    def __post_init__(self) -> None:
        SETS.check(self.dataset_name)
        for name in self.methods:
            if name not in METHODS:
                raise UsageError(
                    f"--methods {name}: must be one of {', '.join(METHODS)}{nearest(name, METHODS, 'method')}"
                )
        if self.model_name not in FAMILIES:
            raise UsageError(
                f"--model_name {self.model_name}: must be one of {', '.join(FAMILIES)}; an autoregressive decoder "
                "is not compared here"
            )

    @property
    def cells(self) -> list[Cell]:
        """All that is to be trained: every method of the first seed, then of the next ones."""
        return [Cell(method, seed) for seed in range(self.seeds) for method in dict.fromkeys(self.methods)]


@dataclass(frozen=True)
class Cell:
    """One training: a method and a seed."""

    method: str
    seed: int

    @property
    def title(self) -> str:
        return f"{METHODS[self.method]}, seed {self.seed}"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.method}_seed{self.seed}"

    def folder(self, settings: MimComparisonConfig) -> Path:
        return Path(settings.save_folder) / "cells" / self.name


__all__ = ["CONTRASTIVE", "FAMILIES", "GENERATIVE", "METHODS", "Cell", "MimComparisonConfig"]
