"""Settings of the navigator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mi_ml_gen.core.config import inside, option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.core.settings import Compiled, InFolder, InNamedFolder, Resumed, Seeded
from mi_ml_gen.generators.families import bundled
from mi_ml_gen.generators.known import check_generator_settings
from mi_ml_gen.generators.settings import AnchorNoise, FromGenerator
from mi_ml_gen.views.registry import POLICIES, policy_from_flags


@dataclass
class NavigatorConfig(Compiled, Seeded, Resumed, InNamedFolder, AnchorNoise, FromGenerator):
    """What `scripts/train_navigator.py` takes; the defaults are the paper's."""

    chunks: str = option(help='chunks to perturb: "1_6" means 1 to 5, the first included, the last excluded')
    num_samples: int = option(1_024_000, at_least=1, free=True, help="anchors to train on, over all processes")
    save_freq: int = option(2048, at_least=1, aliases=("save_every",), help="samples between saved walkers")
    keep: int | None = option(
        None, at_least=2, free=True,
        help="number of saved walkers that stay on the disk, spread evenly over the run (default: all)",
    )  # fmt: skip
    save_folder: str = redefined(InFolder, "save_folder", "./walker_runs")

    Tx: str = option(
        "",
        help="augmentation of the images: a name that train_encoder.py takes, or FILE.py:CLASS (default: the next "
        "three flags decide; without them, none, the centre crop)",
    )
    simclr_aug: bool = option(False, help="augment the images by random crops, flips, colours and grayscale")
    removeCrop: bool = option(False, help="augment as --simclr_aug does, but crop at the centre")
    removeColor: bool = option(False, help="augment as --simclr_aug does, but leave the colours as they are")
    img_size: int | None = option(
        None, at_least=8, flag="image_size", help="side of the decoded images, in pixels; must be the generator's own"
    )

    walkers: int = option(
        1, at_least=1,
        help="number of walkers to train at once, each against its own critic; 1 is the published procedure, several "
        "give delta an interval over trainings",
    )  # fmt: skip
    keep_going: bool = option(False, free=True, help="with several walkers, continue after all of them have converged")
    batch_size: int = option(64, at_least=2, help="pairs of each step, in each process")
    micro_batches: int = option(
        1, at_least=1, free=True,
        help="number of parts in which the generator decodes a batch: less memory, about 1.5 times the generator's "
        "work, and the same loss and gradients",
    )  # fmt: skip
    lr_walk: float = option(8e-5, above=0, help="learning rate of the walker")
    lr_MI: float = option(5e-5, above=0, help="learning rate of the critic")
    weight_decay: float = option(0.0, at_least=0, help="weight decay of both optimisers")
    beta1: float = option(0.5, at_least=0, below=1, help="beta1 of both Adam optimisers")
    beta2: float = option(0.999, at_least=0, below=1, help="beta2 of both Adam optimisers")
    temp: float = option(0.1, above=0, flag="temperature", help="temperature of InfoNCE")
    negatives: Literal["local", "global"] = option(
        "local", help="where candidates come from: the batch of the process, or the batches of all processes"
    )
    critic_width: int = option(64, at_least=4, help="channels of the critic's first stage; 64 gives a ResNet-18")

    early_stopping_min_steps: int = option(
        100_000, at_least=0, free=True, help="samples to train on before any rule may stop the run"
    )
    early_stopping_threshold: float | None = option(
        2.5, above=0, free=True, help="stop when the smoothed loss rises above this value; none turns the rule off"
    )
    patience: int | None = option(
        200_000, at_least=1, free=True,
        help="stop when the smoothed loss has not risen for this many samples; none turns the rule off",
    )  # fmt: skip
    image_freq: int = option(16, at_least=1, free=True, help="number of saved walkers between two grids of pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graphs and self.micro_batches > 1:
            raise UsageError("--cuda_graphs and --micro_batches: choose one of them")
        flags = [name for name in ("simclr_aug", "removeCrop", "removeColor") if getattr(self, name)]
        if self.Tx and flags:
            raise UsageError(f"--Tx {self.Tx} and --{flags[0]}: both name the augmentation; give one of them")
        POLICIES.check(self.policy)

    @classmethod
    def preset(cls, generator: str | None) -> str | None:
        """The bundled settings (a name for `config.load`) for a generator: those of the small ones, for the
        generators that come with the package, linear-gaussian among them; for all others None, the defaults, which are
        the paper's."""
        return "navigator/small" if generator in (*bundled(), "linear-gaussian") else None

    @property
    def policy(self) -> str:
        return self.Tx or policy_from_flags(self.simclr_aug, self.removeCrop, self.removeColor)

    @property
    def folder(self) -> Path:
        name = f"{self.run_name}_{short_name(self.generator)}_{self.chunks}_{short_name(self.policy)}"
        if self.walkers > 1:
            name += f"_{self.walkers}_walkers"
        return inside(self.save_folder, name)

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use, self.chunks)
        self.check_anchors()
