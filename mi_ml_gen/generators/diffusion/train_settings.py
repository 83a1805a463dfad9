"""Settings of a diffusion model's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.settings import InFolder, InNamedFolder, Precise, Resumed, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.generators.diffusion.settings import UNetConfig

OBJECTIVES = ("v", "epsilon", "flow")
"""What a network can be trained to predict; a test compares with the processes."""


@dataclass
class DiffusionTrainConfig(Precise, Seeded, Resumed, InNamedFolder):
    """What `scripts/train_generator.py --family diffusion` takes; the defaults are those of tiny-diffusion."""

    family: Literal["diffusion"] = option("diffusion", help="family of the network")
    objective: Literal["v", "epsilon", "flow"] = option(
        "v", help="what the network predicts: velocity or noise, with the cosine schedule, or flow on straight lines"
    )
    data: str = option(
        "fashion-mnist", free=True, flag="data_path", aliases=("data_root",),
        help="training images: fashion-mnist, fashion-mnist:FOLDER, a folder of images, or another set by name",
    )  # fmt: skip
    colours: Literal["grey", "rgb"] = option("grey", help="colours of the network's images")
    resolution: int = option(32, at_least=4, help="height and width of the images, in pixels")
    widths: tuple[int, ...] = option(
        (48, 64, 64), at_least=1, help="channels of each level of the network, from the largest side"
    )
    patch: int = option(2, at_least=1, help="side of the squares of pixels that the network takes for one pixel")
    layers: int = option(1, at_least=1, help="residual blocks of each level on the way down; one more on the way up")
    dropout: float = option(0.0, at_least=0, below=1, help="share of the features that training leaves out")

    steps: int = option(3_600, at_least=1, free=True, aliases=("n_steps",), help="updates of the network")
    batch_size: int = option(256, at_least=1, help="images in each step")
    lr: float = option(1e-3, above=0, help="learning rate of Adam, after the warm-up")
    warmup_steps: int = option(500, at_least=0, help="steps of the linear rise of the learning rate")
    clip: float = option(1.0, above=0, help="largest norm of the gradient; a larger one is scaled down")
    ema_halflife: float = option(200_000.0, above=0, help="half-life of the averaged network's weights, in images")
    flip: bool = option(False, help="mirror half of the training images")
    sampler_steps: int = option(20, at_least=2, free=True, help="steps of the sampler of the trained generator")
    block: int = option(4, at_least=1, free=True, help="noises of the sampler that are one chunk")
    scale: float = option(
        1.137, above=0, free=True,
        help="factor of the sampler's noise; 1.137 gives noise truncated at 2, which commands draw, a variance of 1",
    )  # fmt: skip
    quality_images: int = option(
        10_000, at_least=0, free=True, help="generated images that the quality is measured on; 0: it is not measured"
    )
    compare_samplers: bool = option(
        False, free=True, help="measure the quality of other numbers of steps and other noise, too"
    )
    save_every: int = option(
        500, at_least=1, free=True, flag="save_freq",
        help="steps between grids of samples, and between states (see --state_interval_s)",
    )  # fmt: skip
    save_folder: str = redefined(InFolder, "save_folder", "./generator_runs")
    run_name: str = redefined(InNamedFolder, "run_name", "tiny-diffusion", help="name of the run folder")

    def network(self) -> UNetConfig:
        """Sizes of the network. Raises UsageError where they do not fit together."""
        levels = len(self.widths)
        return UNetConfig(
            sample_size=self.resolution,
            in_channels=1 if self.colours == "grey" else 3,
            patch=self.patch,
            block_out_channels=self.widths,
            layers_per_block=self.layers,
            # Attention from the second level on: at the largest side it costs most and helps least.
            down=tuple("plain" if level == 0 else "attention" for level in range(levels)),
            up=tuple("plain" if level == levels - 1 else "attention" for level in range(levels)),
            attention_head_dim=16 if all(width % 16 == 0 for width in self.widths) else None,
            norm_num_groups=next(groups for groups in (8, 4, 2, 1) if all(w % groups == 0 for w in self.widths)),
            dropout=self.dropout,
        )

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        self.network()
        check_data_path("--data_path", self.data)
        if self.block > self.sampler_steps:
            raise UsageError(f"--block {self.block}: must be at most the {self.sampler_steps} noises of the sampler")
