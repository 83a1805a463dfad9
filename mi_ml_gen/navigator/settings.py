"""Settings of the navigator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mi_ml_gen.core.config import option
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.generators.families import bundled
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.views.augment import policy_from_flags


@dataclass
class NavigatorConfig:
    """What `scripts/train_navigator.py` takes; the defaults are the paper's."""

    generator: str = option(help="bigbigan, tiny-bigbigan, linear-gaussian ...")
    chunks: str = option(help='which chunks to perturb: "1_6" is 1 to 5, the first included, the last excluded')
    g_path: str | None = option(None, help="weights of the generator, where none are bundled")
    g_use: list[str] = option([], help="its use, KEY=VALUE ...: psi=0.7 crop=256 size=128 label=3 noise_mode=random")
    num_samples: int = option(1_024_000, at_least=1, help="anchors to train on, over all processes")
    save_freq: int = option(2048, at_least=1, help="samples between saved walkers")
    save_folder: str = option("./walker_runs", help="folder of run folders")
    run_name: str = option("0", help="first part of the run folder's name; the same command resumes it")

    mean: float = option(0.0, help="mean of the anchors' noise")
    std: float = option(1.0, above=0, help="standard deviation of the anchors' noise")
    truncation: float = option(2.0, above=0, help="bound of the anchors' noise, in standard deviations")
    simclr_aug: bool = option(False, help="views: crop, flip, colour and grayscale at random")
    removeCrop: bool = option(False, help="views: as --simclr_aug, but the centre crop")
    removeColor: bool = option(False, help="views: as --simclr_aug, but no colour changes")
    img_size: int | None = option(None, at_least=8, help="side of the decoded images (default: the generator's own)")

    batch_size: int = option(64, at_least=2, help="pairs a step, of each process")
    lr_walk: float = option(8e-5, above=0, help="learning rate of the walker")
    lr_MI: float = option(5e-5, above=0, help="learning rate of the critic")
    weight_decay: float = option(0.0, at_least=0, help="of both optimisers")
    beta1: float = option(0.5, at_least=0, below=1, help="of both Adams")
    beta2: float = option(0.999, at_least=0, below=1, help="of both Adams")
    temp: float = option(0.1, above=0, help="temperature of InfoNCE")
    negatives: Literal["local", "global"] = option("local", help="candidates: of each process, or of all")
    critic_width: int = option(64, at_least=4, help="channels of the critic's first stage; 64 is ResNet-18")

    early_stopping_min_steps: int = option(100_000, at_least=0, help="samples before any rule may stop the run")
    early_stopping_threshold: float | None = option(
        2.5, above=0, help="stop once the smoothed loss is above it (none: never)"
    )
    patience: int | None = option(
        200_000, at_least=1, help="stop when the smoothed loss has not risen for so many samples (none: never)"
    )

    seed: int = option(0, at_least=0, help="of weights and all draws")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", help="arithmetic of generator and critic")
    compile: bool = option(False, help="compile generator and critic with torch.compile")
    state_interval_s: float = option(60.0, at_least=0, help="least seconds between saved states, for resuming")
    image_freq: int = option(16, at_least=1, help="saved walkers between grids of pairs")

    @classmethod
    def preset(cls, generator: str | None) -> str | None:
        """The bundled settings (a name for `config.load`) for a generator: those of the small ones, for the
        generators that come with the package; for all others None, the defaults, which are the paper's."""
        return "navigator/small" if generator in bundled() else None

    @property
    def law(self) -> TruncatedNormal:
        return TruncatedNormal(self.mean, self.std, self.truncation)

    @property
    def policy(self) -> str:
        return policy_from_flags(self.simclr_aug, self.removeCrop, self.removeColor)

    @property
    def folder(self) -> Path:
        return Path(self.save_folder) / f"{self.run_name}_{short_name(self.generator)}_{self.chunks}_{self.policy}"


FREE = ("num_samples", "g_path", "device", "compile", "state_interval_s", "image_freq", "save_folder", "run_name",
        "early_stopping_min_steps", "early_stopping_threshold", "patience")  # fmt: skip
"""Settings that may differ when a run is resumed."""
