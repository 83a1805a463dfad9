"""Settings of the small generators' training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import user_path
from mi_ml_gen.core.settings import InFolder, InNamedFolder, Precise, Resumed, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.generators.families import ALIASES, canonical

FAMILIES = ("bigbigan", "stylegan2")
"""The families that have a recipe; a test compares with recipes.RECIPES."""
FASHION_MNIST = "fashion-mnist"
IN_FOLDERS = (FASHION_MNIST, "emoji")
"""The data sets whose files --data_path may name."""
RESOLUTION_PX = 32
"""Side of the images of all recipes."""


@dataclass
class GanConfig(Precise, Seeded, Resumed, InNamedFolder):
    """What `scripts/train_generator.py` takes; None: as the family's recipe has it (`resolved`)."""

    family: str = option("bigbigan", choices=(*FAMILIES, *ALIASES), help="family of the generator")
    dataset: str = option(
        FASHION_MNIST, later=True,
        help="training images: fashion-mnist, emoji, torchvision:CIFAR10:data, a folder of images ...",
    )  # fmt: skip
    data_path: str | None = option(
        None, free=True, aliases=("data_root",),
        help="folder with the files of fashion-mnist or emoji (default: the usual folders)",
    )  # fmt: skip
    steps: int = option(12000, at_least=1, free=True, aliases=("n_steps",), help="updates of each network")
    batch_size: int = option(64, at_least=4, help="images in each step")
    width: int | None = option(None, at_least=4, help="channels of the generator at 32 px; lower resolutions have more")
    discriminator_width: int | None = option(
        None, at_least=4, help="channels of the discriminator at 32 px; lower resolutions have more"
    )
    augment: bool = option(
        False, later=True,
        help="show the discriminator images with random colours, places and holes, for few training images",
    )  # fmt: skip
    lr: float | None = option(None, above=0, help="learning rate of the generator")
    lr_discriminator: float | None = option(None, above=0, help="learning rate of the discriminator")
    ema_halflife: float = option(10_000.0, above=0, help="half-life of the averaged generator's weights, in images")
    save_every: int = option(
        250,
        at_least=1,
        free=True,
        flag="save_freq",
        help="steps between grids of samples, and between states (see --state_interval_s)",
    )
    save_folder: str = redefined(InFolder, "save_folder", "./generator_runs")
    run_name: str | None = redefined(  # type: ignore[assignment]
        InNamedFolder, "run_name", None, help="name of the run folder (default: the generator's)"
    )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_data_path("--dataset", self.dataset)
        if self.data_path is None:
            return
        if self.dataset.partition(":")[0] not in IN_FOLDERS:
            raise UsageError(f"--data_path {self.data_path}: belongs to {' or '.join(IN_FOLDERS)}; leave it out, since "
                             f"--dataset {self.dataset} says where its images are")  # fmt: skip
        if not user_path(self.data_path).exists():
            raise UsageError(f"--data_path {self.data_path}: no such folder")

    @property
    def reference(self) -> str:
        """What `data.loading.load_source` reads the images by: the data set with its folder."""
        if self.data_path is None:
            return self.dataset
        name, _, rest = self.dataset.partition(":")
        return f"{name}:{self.data_path}:{rest}" if rest else f"{name}:{self.data_path}"

    def resolved(self) -> GanConfig:
        """With the family's own name and every None replaced by the recipe's default."""
        from mi_ml_gen.generators.gan.recipes import RECIPES  # imports torch

        family = canonical(self.family)
        defaults = asdict(RECIPES[family].defaults)
        if self.dataset != FASHION_MNIST:
            defaults["run_name"] += f"-{Path(self.dataset.partition(':')[0]).name}"
        return replace(self, family=family, **{k: v for k, v in defaults.items() if getattr(self, k) is None})
