"""What a sweep compares, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mi_ml_gen.core import config
from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.settings import InFolder, OnDevice
from mi_ml_gen.mim.settings import MimConfig


class Method(NamedTuple):
    """One line of a figure: its name in folders, in figures, and the flags that make it."""

    name: str
    label: str
    flags: dict[str, bool]


MIM = Method("mim-samp", "MIM", {"mim_loss": True, "mim_samp": True})
VAE = Method("vae", "VAE", {})
MIM_MINUS_H = Method("mim-samp-inv_H", "MIM − H", {"mim_loss": True, "mim_samp": True, "inv_H_loss": True})
VAE_PLUS_H = Method("vae-inv_H", "VAE + H", {"inv_H_loss": True})


@dataclass(frozen=True)
class Section:
    """One published comparison: methods over the values of one setting, on one data set."""

    text: str
    dataset: str
    varied: str
    values: tuple[int, ...]
    quick_values: tuple[int, ...]
    methods: tuple[Method, ...] = (MIM, VAE)
    mid_dim: int = 50

    @property
    def x_label(self) -> str:
        return {"mid_dim": "hidden units", "z_dim": "latent dimensions"}[self.varied]


_WIDTHS, _QUICK_WIDTHS = (5, 20, 50, 100, 200, 300, 400, 500), (5, 50, 500)
_LATENTS, _QUICK_LATENTS = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20), (2, 10, 20)
SECTIONS = {
    "expressiveness": Section("MIM and VAE by hidden units", "toy4", "mid_dim", _WIDTHS, _QUICK_WIDTHS),
    "entropy": Section(
        "joint entropy added to VAE, taken from MIM", "toy4", "mid_dim", _WIDTHS, _QUICK_WIDTHS,
        (MIM_MINUS_H, VAE_PLUS_H),
    ),
    "bottleneck": Section("MIM and VAE by latent dimensions", "toy4_20", "z_dim", _LATENTS, _QUICK_LATENTS),
    "bottleneck-pca": Section(
        "MIM and VAE by latent dimensions", "pca-fashion-mnist20", "z_dim", _LATENTS, _QUICK_LATENTS
    ),
}  # fmt: skip
EPOCHS, QUICK_EPOCHS = 200, 20
PLANE_DATA = ("toy4",)


@dataclass
class SweepConfig(OnDevice, InFolder):
    """What `scripts/sweep_mim.py` takes; the defaults are the published loops."""

    section: str = option(help=f"comparison to run: {', '.join(SECTIONS)}")
    seeds: int = option(10, at_least=1, help="number of seeds, starting with seed 1")
    quick: bool = option(
        False, help=f"train only three values, for at most {QUICK_EPOCHS} epochs: a quick look on a laptop"
    )
    values: list[int] | None = option(
        None, at_least=1, help="hidden units or latent dimensions to train, instead of all"
    )
    epochs: int | None = option(
        None, at_least=1, flag="max_epochs", help=f"epochs at most (default {EPOCHS}, with --quick {QUICK_EPOCHS})"
    )
    at_once: int = option(10, at_least=1, help="seeds that are trained together as one stacked model")
    as_published: bool = option(False, help="follow the published code where it differs from the paper")
    save_folder: str = redefined(InFolder, "save_folder", "./mim_sweeps", flag="out", help="folder for the sweeps")
    data_root: str | None = option(None, flag="data_path", help="folder with the idx files of Fashion-MNIST")

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise UsageError(f"section {self.section!r} is unknown{nearest(self.section, SECTIONS, 'section')}")

    @property
    def about(self) -> Section:
        return SECTIONS[self.section]

    @property
    def wanted_values(self) -> tuple[int, ...]:
        return tuple(self.values or (self.about.quick_values if self.quick else self.about.values))

    @property
    def wanted_seeds(self) -> range:
        return range(1, self.seeds + 1)

    @property
    def wanted_epochs(self) -> int:
        return self.epochs or (QUICK_EPOCHS if self.quick else EPOCHS)

    @property
    def path(self) -> Path:
        return Path(self.save_folder) / (self.section + ("-quick" if self.quick else ""))

    def run_settings(self, method: Method, value: int) -> MimConfig:
        """Those of one point's run: batch 128, M = 6, warm-up and patience of 3 epochs, as published."""
        about = self.about
        given = {
            "dataset": about.dataset, "epochs": self.wanted_epochs, "batch_size": 128, "warmup_steps": 3,
            "min_logvar": 6, "mid_dim": about.mid_dim, "z_dim": 2, "mi_interval": 0, "as_published": self.as_published,
            "device": self.device, "data_root": self.data_root, **method.flags, about.varied: value,
        }  # fmt: skip
        return config.load(MimConfig, None, given)
