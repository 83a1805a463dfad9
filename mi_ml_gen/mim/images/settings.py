"""Settings of the training of an image model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mi_ml_gen.core.config import inside, option, redefined
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.settings import InFolder, Precise, Resumed, Seeded
from mi_ml_gen.mim.images.known import DATASETS

FAMILY_NAMES = ("vae", "hvae_2level", "convhvae_2level", "pixelhvae_2level")
"""The families of `networks.FAMILIES`; a test compares."""
LOSS_ENDINGS = {
    "": "vae", "vae": "vae", "mim": "amim", "amim": "amim", "smim": "smim", "amim_x": "amim_x", "cmim": "cmim",
    "infonce": "infonce_mim",
}  # fmt: skip
"""What may stand behind a family's name, and the objective (`objectives.OBJECTIVES`) that it means."""
PIXEL_SAMPLING_EVERY = 20


@dataclass
class MimImageConfig(Precise, Seeded, Resumed, InFolder):
    """What `scripts/train_mim_image.py` takes; names and defaults are the published ones, but for the data set: the
    default is one that is found everywhere."""

    dataset_name: str = option(
        "dynamic_fashion_mnist",
        help=f"data set: {', '.join(DATASETS)}, or FILE.py:FUNCTION (published default: freyfaces)",
    )
    data_root: str | None = option(None, free=True, flag="data_path", help="folder with the files of the data set")
    n_train: int | None = option(None, at_least=1, help="use only the first N training images")
    n_test: int | None = option(None, at_least=1, help="use only the first N validation and test images")

    model_name: str = option(
        "vae",
        help=f"{', '.join(FAMILY_NAMES)}; each may end in -amim (or -mim), -amim_x, -smim, -cmim or -infonce, without "
        "such an end it is trained as a VAE",
    )
    prior: Literal["vampprior", "standard"] = option(
        "vampprior", help="p(z): a mixture learned with the model, or N(0, I)"
    )
    q_x_prior: Literal["marginal", "vampprior"] = option(
        "marginal", help="q(x) of MIM: the decoder's marginal, or a mixture of decoders at learned latents"
    )
    z1_size: int = option(40, at_least=1, help="dimensions of the latent next to the image")
    z2_size: int = option(40, at_least=1, help="dimensions of the upper latent")
    number_components: int = option(500, at_least=1, help="K: pseudo-inputs of the VampPrior")
    use_training_data_init: bool = option(False, help="start the pseudo-inputs from the first K training images")
    pseudoinputs_mean: float | None = option(
        None, help="mean of other pseudo-inputs at the start (default: the data set's)"
    )
    pseudoinputs_std: float | None = option(
        None, above=0, help="standard deviation of other pseudo-inputs at the start (default: the data set's)"
    )

    batch_size: int = option(100, at_least=1, help="images in each step, and draws of S-MIM's sampling half")
    test_batch_size: int = option(100, at_least=1, free=True, help="images at a time in validation")
    epochs: int = option(
        2000, at_least=1, free=True, flag="max_epochs", help="largest number of passes over the images"
    )
    early_stopping_epochs: int = option(50, at_least=0, help="stop after more epochs than these without a better one")
    warmup: int = option(100, at_least=0, help="epochs over which beta rises to 1")
    optimizer: Literal["adamnormgrad", "adamw"] = option("adamnormgrad", help="the published method, or AdamW")
    lr: float = option(5e-4, above=0, help="learning rate")
    weight_decay: float = option(0.0, at_least=0, help="of the optimiser")

    sampling_every: int | None = option(
        None, at_least=1,
        help="S-MIM: steps for which the draws of the sampling half are kept (default 1, of an autoregressive decoder, "
        f"which draws slowly, {PIXEL_SAMPLING_EVERY})",
    )  # fmt: skip
    score_function: bool = option(
        False,
        help="S-MIM: let gradients pass through the drawn images, by the score function: unbiased, and so noisy that "
        "models learn less from it",
    )
    contrast_weight: float = option(1.0, at_least=0, help="weight of the contrastive term of -cmim and -infonce")
    temperature: float = option(0.1, above=0, help="temperature of that term")
    as_published: bool = option(False, help="follow the published code where it differs from the paper")

    seed: int = redefined(Seeded, "seed", 14)
    no_cuda: bool = option(False, free=True, help="use the CPU even where a GPU is available")
    save_folder: str = redefined(InFolder, "save_folder", "./mim_image_runs")
    tag: str = option("", inside=True, help="text at the end of the run folder's name")

    def __post_init__(self) -> None:
        if self.family not in FAMILY_NAMES:
            raise UsageError(
                f"--model_name {self.model_name}: unknown model{nearest(self.family, FAMILY_NAMES, 'model')}"
            )
        if self._ending not in LOSS_ENDINGS:
            raise UsageError(
                f"--model_name {self.model_name}: unknown loss; {self.family} may end in "
                + ", ".join(f"-{ending}" for ending in LOSS_ENDINGS if ending)
            )

    @property
    def family(self) -> str:
        return self.model_name.partition("-")[0]

    @property
    def _ending(self) -> str:
        return self.model_name.partition("-")[2]

    @property
    def objective(self) -> str:
        """A key of `objectives.OBJECTIVES`."""
        return LOSS_ENDINGS[self._ending]

    @property
    def keeps_draws(self) -> int:
        """Steps for which draws of the sampling half are kept."""
        return self.sampling_every or (PIXEL_SAMPLING_EVERY if self.family.startswith("pixel") else 1)

    @property
    def folder(self) -> Path:
        """Where a run goes, named as published but for the time; what the name leaves out is in config.yaml."""
        name = f"{self.model_name}_{self.prior}"
        if self.prior == "vampprior":
            name += f"__K_{self.number_components}"
        name += f"__wu_{self.warmup}__z1_{self.z1_size}" + ("" if self.family == "vae" else f"_z2_{self.z2_size}")
        name += ("_q_x" if self.q_x_prior == "vampprior" else "") + ("-as_published" if self.as_published else "")
        name += f"-{self.tag}" if self.tag else ""
        data = re.sub(r"[^\w.-]+", "_", self.dataset_name).strip("._") or "data"
        return inside(self.save_folder, f"{data}/{name}/seed{self.seed}")

    def beta(self, epoch: int) -> float:
        """The warm-up of an epoch, which are counted from 1."""
        return min(1.0, epoch / self.warmup) if self.warmup else 1.0
