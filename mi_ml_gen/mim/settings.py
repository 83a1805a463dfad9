"""Settings of a MIM training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mi_ml_gen.core.config import option

Mode = Literal["anchor", "prior", "marginal", "gmm-marginal"]


@dataclass
class MimConfig:
    """What `scripts/train_mim.py` takes; names and defaults are the published ones."""

    dataset: str = option("toyMIM", help="toyN, toy-N, toyN_D, toyTEXT, ToyN ..., mnist, pca-fashion-mnistK")
    batch_size: int = option(128, at_least=1, flag="batch-size", help="items a step; also draws of the sampling half")
    epochs: int = option(50, at_least=1, help="passes over the training items, at most")
    seed: int = option(1, at_least=0, help="of initial parameters and all draws")
    seeds: int = option(1, at_least=1, help="train so many seeds at once, from --seed on, as one vectorised model")
    lr: float = option(1e-3, above=0, help="peak of the learning rate (Noam schedule, Adam)")
    warmup_steps: int = option(10, at_least=1, flag="warmup-steps", help="EPOCHS of warm-up of lr and beta; patience")
    log_interval: int = option(10, at_least=1, flag="log-interval", help="steps between moves of the progress bar")
    show_detailed: bool = option(False, flag="show-detailed", help="the picture of the best model in more detail")
    plot_x_recon_err: bool = option(False, flag="plot-x-recon-err", help="reconstruction errors in that picture")
    vis_progress: bool = option(False, flag="vis-progress", help="a picture every epoch, and the animation of all")

    mim_loss: bool = option(False, flag="mim-loss", help="MIM instead of VAE")
    mim_samp: bool = option(False, flag="mim-samp", help="with the sampling half: symmetric MIM")
    ae_loss: bool = option(False, flag="ae-loss", help="auto-encoder: beta 0, the encoder's std fixed to the floor")
    inv_H_loss: bool = option(False, flag="inv-H-loss", help="VAE, AE: add joint entropy; MIM: take it away")
    learn_P_z: bool = option(False, flag="learn-P-z", help="draw the sampling half from p(z) instead of N(0, I)")

    z_dim: int = option(2, at_least=1, flag="z-dim", help="latent dimensions")
    mid_dim: int = option(400, at_least=1, flag="mid-dim", help="hidden units")
    layers: int = option(2, at_least=1, help="affine layers of the encoder, and of the decoder")
    act: Literal["swish", "tanh", "relu"] = option("tanh", help="activation")
    min_logvar: float = option(10, above=0, flag="min-logvar", help="M: 10**-M is added to every standard deviation")
    p_z: Mode = option("anchor", flag="p-z", help="prior p(z)")
    q_x: Mode = option("marginal", flag="q-x", help="data density q(x)")
    q_x_gmm: int = option(0, at_least=0, flag="q-x-gmm", help="components of q(x); 0: a single one")
    q_zx_gmm: int = option(0, at_least=0, flag="q-zx-gmm", help="components of q(z|x)")
    p_z_gmm: int = option(0, at_least=0, flag="p-z-gmm", help="components of p(z)")
    p_xz_gmm: int = option(0, at_least=0, flag="p-xz-gmm", help="components of p(x|z)")

    as_published: bool = option(False, flag="as-published", help="as the published code, where it left the paper")
    mi_interval: int = option(
        10, at_least=0, flag="mi-interval", help="epochs between KSG estimates; 0: at the end only"
    )
    save_folder: str = option("./mim_runs", flag="save-folder", help="folder of run folders")
    data_root: str | None = option(None, flag="data-root", help="folder of the idx files of (Fashion-)MNIST")
    tag: str = option("", help="end of the run folder's name")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    no_cuda: bool = option(False, flag="no-cuda", help="the CPU, whatever else is there")
    state_interval_s: float = option(60.0, at_least=0, flag="state-interval-s", help="seconds between saved states")

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
        return Path(self.save_folder) / self.dataset / f"z{self.z_dim}" / name / f"seed{seeds[0]}{several}"


FREE = ("epochs", "log_interval", "show_detailed", "plot_x_recon_err", "vis_progress", "mi_interval", "save_folder",
        "data_root", "device", "no_cuda", "state_interval_s")  # fmt: skip
"""Settings that may differ when a run is resumed."""
