"""Settings of an NVAE's training; the names are those of the published configuration files."""

from __future__ import annotations

from dataclasses import dataclass

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.settings import InFolder, InNamedFolder, Precise, Resumed, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.generators.nvae.settings import NVAEConfig


@dataclass
class NVAETrainConfig(Precise, Seeded, Resumed, InNamedFolder):
    """What `scripts/train_nvae.py` takes."""

    resolution: tuple[int, int, int] = option((3, 32, 32), at_least=1, help="channels, height and width of an image")
    num_scales: int = option(3, at_least=1, help="number of scales, each with its own latent resolution")
    num_groups_per_scale: int = option(1, at_least=1, help="groups in each scale (in the largest one if adaptive)")
    is_adaptive: bool = option(False, help="halve the groups from each scale to the next deeper one")
    min_groups_per_scale: int = option(1, at_least=1, help="smallest number of groups in a scale if adaptive")
    num_cells_per_group: int = option(2, at_least=1, help="residual cells in each group")
    num_latent_per_group: int = option(16, at_least=1, help="channels of each latent variable")
    num_nf_cells: int | None = option(None, at_least=1, help="normalising-flow blocks in each group (default: no flow)")
    initial_channels: int = option(128, at_least=1, help="channels at the resolution of the image")
    num_pre_post_process_blocks: int = option(
        1,
        at_least=1,
        flag="num_pre-post_process_blocks",
        help="blocks before the first scale, each of which halves the image",
    )
    num_pre_post_process_cells: int = option(
        2, at_least=1, flag="num_pre-post_process_cells", help="residual cells in each of these blocks"
    )
    num_logistic_mixtures: int = option(10, at_least=1, help="components of the output distribution")

    seed: int = redefined(Seeded, "seed", 1234)
    epochs: float = option(
        400,
        above=0,
        free=True,
        flag="max_epochs",
        help="passes through the training images; the schedules end with them",
    )
    warmup_epochs: float | None = option(5, at_least=0, help="epochs over which the learning rate rises")
    cumulative_bs: int = option(64, at_least=1, aliases=("batch_size",), help="images in a step, over all processes")
    base_lr: float = option(1e-2, above=0, help="highest learning rate of Adamax")
    min_lr: float = option(1e-4, at_least=0, help="learning rate at the end of the cosine")
    weight_decay: float = option(3e-4, at_least=0, help="weight decay of Adamax")
    eps: float = option(1e-3, above=0, help="epsilon of Adamax")
    weight_decay_norm: float = option(1e-2, at_least=0, help="weight of the spectral regularisation")
    weight_decay_norm_anneal: bool = option(
        False, help="change that weight gradually, starting from --weight_decay_norm_init"
    )
    weight_decay_norm_init: float = option(10.0, above=0, help="first value of the annealed weight")
    kl_anneal_portion: float = option(
        0.3, at_least=0, at_most=1, help="share of the steps over which the KL weight rises"
    )
    kl_const_portion: float = option(1e-4, at_least=0, at_most=1, help="share of the steps before the KL weight rises")
    kl_const_coeff: float = option(1e-4, at_least=0, at_most=1, help="smallest weight of the KL divergence")

    data: str = option(
        "fashion-mnist", flag="data_path",
        help="training images: fashion-mnist, torchvision:CIFAR10:data, a folder of images, or .beton files",
    )  # fmt: skip
    name: str = option("nvae", inside=True, help="name of the generator")
    flip: bool = option(False, help="mirror half of the training images")
    log_every: int = option(50, at_least=1, free=True, help="steps between lines of metrics")
    save_every: int = option(500, at_least=1, free=True, flag="save_freq", help="steps between saved states and grids")
    save_folder: str = redefined(InFolder, "save_folder", "./nvae_runs")
    run_name: str | None = redefined(  # type: ignore[assignment]
        InNamedFolder, "run_name", None, help="name of the run folder (default: the generator's)"
    )

    def architecture(self) -> NVAEConfig:
        """The sizes of the network. Raises UsageError where they do not fit together."""
        names = NVAEConfig.__dataclass_fields__
        return NVAEConfig(**{name: getattr(self, name) for name in names})

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        self.architecture()
        check_data_path("--data_path", self.data)
