"""Settings of a MIM training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mi_ml_gen.core.config import inside, option, redefined
from mi_ml_gen.core.settings import InFolder, OnDevice, Resumed, Seeded

Mode = Literal["anchor", "prior", "marginal", "gmm-marginal"]


@dataclass
class MimConfig(OnDevice, Seeded, Resumed, InFolder):
    """What `scripts/train_mim.py` takes; names and defaults are the published ones."""

    dataset: str = option(
        "toyMIM", inside=True, help="data set: toyN, toy-N, toyN_D, toyTEXT, ToyN ..., mnist, pca-fashion-mnistK"
    )
    batch_size: int = option(
        128, at_least=1, help="data items in each step, and the model's own draws in MIM's sampling half"
    )
    epochs: int = option(
        50, at_least=1, free=True, flag="max_epochs", help="largest number of passes over the training items"
    )
    seed: int = redefined(Seeded, "seed", 1)
    seeds: int = option(
        1, at_least=1, help="number of seeds, starting with --seed, that are trained together as one vectorised model"
    )
    lr: float = option(1e-3, above=0, help="highest learning rate (Noam schedule, Adam)")
    warmup_steps: int = option(
        10, at_least=1, help="EPOCHS over which the learning rate and beta rise; also the patience, in epochs"
    )
    log_interval: int = option(10, at_least=1, free=True, help="steps between updates of the progress bar")
    show_detailed: bool = option(False, free=True, help="draw the best model in more detail")
    plot_x_recon_err: bool = option(False, free=True, help="draw reconstruction errors into that picture")
    vis_progress: bool = option(False, free=True, help="draw a picture in every epoch, and make an animation of them")

    mim_loss: bool = option(False, help="train MIM instead of a VAE")
    mim_samp: bool = option(False, help="train MIM with its sampling half, which makes it symmetric")
    ae_loss: bool = option(False, help="train an auto-encoder: beta is 0, and the encoder's standard deviation 10**-M")
    inv_H_loss: bool = option(False, help="add the joint entropy to the loss of VAE and AE, or subtract it from MIM's")
    learn_P_z: bool = option(False, help="draw the sampling half from p(z) instead of N(0, I)")

    z_dim: int = option(2, at_least=1, help="latent dimensions")
    mid_dim: int = option(400, at_least=1, help="hidden units of each layer")
    layers: int = option(2, at_least=1, help="affine layers of the encoder, and of the decoder")
    act: Literal["swish", "tanh", "relu"] = option("tanh", help="activation function")
    min_logvar: float = option(10, above=0, help="M: 10**-M is added to every standard deviation")
    p_z: Mode = option("anchor", help="form of the prior p(z)")
    q_x: Mode = option("marginal", help="form of the data density q(x)")
    q_x_gmm: int = option(0, at_least=0, help="components of q(x); 0 means a single one")
    q_zx_gmm: int = option(0, at_least=0, help="components of q(z|x)")
    p_z_gmm: int = option(0, at_least=0, help="components of p(z)")
    p_xz_gmm: int = option(0, at_least=0, help="components of p(x|z)")

    as_published: bool = option(False, help="follow the published code where it differs from the paper")
    mi_interval: int = option(
        10, at_least=0, free=True, help="epochs between two KSG estimates; 0: only one at the end"
    )
    save_folder: str = redefined(InFolder, "save_folder", "./mim_runs")
    data_root: str | None = option(
        None, free=True, flag="data_path", help="folder with the idx files of MNIST or Fashion-MNIST"
    )
    tag: str = option("", inside=True, help="text at the end of the run folder's name")
    no_cuda: bool = option(False, free=True, help="use the CPU even where a GPU is available")

    @property
    def loss_name(self) -> str:
        """vae, ae, mim, mim-samp: the part of the folder's name."""
        if self.mim_loss:
            return "mim-samp" if self.mim_samp else "mim"
        return "ae" if self.ae_loss else "vae"

    def folder(self, seeds: Sequence[int]) -> Path:
        """Where a run over these seeds goes; what the name does not say is in config.yaml."""
        name = (
            f"{self.loss_name}_logvar{self.min_logvar:g}_mid-dim{self.mid_dim}_layers{self.layers}"
            f"_q-x{self.q_x_gmm}{self.q_x}_q-zx{self.q_zx_gmm}_p-z{self.p_z_gmm}{self.p_z}_p-xz{self.p_xz_gmm}"
        )
        marks = dict(inv_H=self.inv_H_loss, learn_P_z=self.learn_P_z, self=self.dataset[:1] == "T")
        name += "".join(f"-{mark}" for mark, given in marks.items() if given)
        name += ("-as_published" if self.as_published else "") + (f"-{self.tag}" if self.tag else "")
        several = f"-{seeds[-1]}" if len(seeds) > 1 else ""
        return inside(self.save_folder, f"{self.dataset}/z{self.z_dim}/{name}/seed{seeds[0]}{several}")
