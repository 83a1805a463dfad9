"""Every trainer at a size that takes a moment. A new one joins the suite of faults by its line in TRAINERS."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from mi_ml_gen.core import loop
from mi_ml_gen.data.beton.format import Encoded, encode_jpeg, write_beton
from mi_ml_gen.encoders import training as encoders
from mi_ml_gen.experiments import critic_calibration
from mi_ml_gen.experiments.critic_calibration import CalibrationConfig
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.diffusion import training as diffusion
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.generators.gan import training as gan
from mi_ml_gen.generators.gan.recipes import RECIPES
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.nvae import training as nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.mim.images import training as mim_images
from mi_ml_gen.mim.training import train_seeds
from mi_ml_gen.navigator import several
from mi_ml_gen.navigator import training as navigator
from mi_ml_gen.probe import training as probe
from tests.conftest import make_small_generator
from tests.encoders.test_training import SETTINGS as ENCODER
from tests.generators.diffusion.test_generator import small as small_diffusion
from tests.mim.images.test_training import SETTINGS as MIM_IMAGE
from tests.mim.images.test_training import small_layers, tiny_sets
from tests.mim.test_training import SETTINGS as MIM
from tests.mim.test_training import TinyData
from tests.navigator.test_training import SETTINGS as NAVIGATOR
from tests.probe.test_features import make_backbone
from tests.probe.test_training import SETTINGS as PROBE
from tests.probe.test_training import make_splits

SMALL_STYLEGAN2 = StyleGAN2Config(
    z_dim=8, w_dim=8, mapping_layers=1, img_resolution=8, channel_base=64, channel_max=8
)  # fmt: skip
SMALL_NVAE = NVAEConfig(
    (1, 8, 8), num_scales=2, num_groups_per_scale=1, num_cells_per_group=1, num_latent_per_group=2,
    initial_channels=4, num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip


@dataclass(frozen=True)
class Trainer:
    """One trainer and what the suite must know about it."""

    train: Callable[..., object]
    """train(path, **changes): to the end, in a folder that is new or holds an interrupted run."""
    n_steps: int
    saves: tuple[int, ...]
    """Steps after which a state is saved where state_interval_s is 0."""
    other: dict[str, Any]
    """A setting that may not change when a run goes on."""
    stops: tuple[int, ...] = ()
    """Steps after which a signal may stop the run (default: all)."""
    is_distributed: bool = False
    is_same_in_two: bool = False
    """Whether two processes do what one does, up to the order of sums."""
    of_two: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What makes two processes take as many steps as one, where they share the work of a run."""
    long: tuple[int, dict[str, Any]] = (0, {})
    """A number of steps, and the changes by which the trainer takes so many."""


def _nothing(*arguments: Any, **named: Any) -> None:
    """Stands for pictures and pages, which take most of such a run's time."""


GENERATORS: dict[str, Callable[[], MultiLatentGenerator]] = {
    "bigbigan": make_small_generator,
    "stylegan2": lambda: _seeded(StyleGAN2, SMALL_STYLEGAN2),
    "nvae": lambda: _seeded(NVAE, SMALL_NVAE),
    "diffusion": lambda: small_diffusion(steps=2, block=1),
    "linear": lambda: LinearGaussian((2, 2), resolution=8).freeze(),
}
"""One of each family, as small as it gets."""


def _seeded(family: Callable[..., MultiLatentGenerator], sizes: Any) -> MultiLatentGenerator:
    torch.manual_seed(0)
    return family(sizes, "small").freeze()


def train_navigator(path: Path, family: str = "bigbigan", **changes: Any) -> None:
    settings = dict(num_samples=64, save_freq=24, negatives="global") | changes
    with mock.patch.object(navigator.pictures, "save_curves", _nothing):
        with mock.patch.object(navigator.pictures, "save_pairs", _nothing):
            wanted = dataclasses.replace(NAVIGATOR, **settings)
            navigator.train_navigator(wanted, GENERATORS[family](), path, progress=False)


def train_several(path: Path, **changes: Any) -> None:
    settings = dict(num_samples=64, save_freq=24, walkers=2) | changes
    with mock.patch.object(several.pictures, "save_curves", _nothing):
        with mock.patch.object(several.pictures, "save_pairs", _nothing):
            wanted = dataclasses.replace(NAVIGATOR, **settings)
            several.train_several(wanted, make_small_generator(), path, progress=False)


def train_encoder(path: Path, **changes: Any) -> None:
    settings = dict(encoder="byol", samples_per_epoch=24, max_epochs=2, save_freq=1) | changes
    with mock.patch.object(encoders, "report_run", _nothing):
        wanted = dataclasses.replace(ENCODER, **settings)
        generator = None if wanted.data_path else make_small_generator()
        encoders.train_encoder(wanted, generator, path=path, progress=False)


def stored_images(path: Path, n: int = 16) -> str:
    """A .beton file of small images of two classes, beside a run's folder."""
    beton = path.parent / "images.beton"
    if not beton.exists():
        rng = np.random.default_rng(0)
        pictures = [encode_jpeg(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)) for _ in range(n)]
        write_beton(beton, (Encoded(data, 8, 8, i % 2) for i, data in enumerate(pictures)), n, ("cat", "dog"))
    return str(beton)


def train_encoder_on_files(path: Path, workers: int = 2, **changes: Any) -> None:
    """SimCLR on stored images, which threads decode."""
    of_files = dict(encoder="simclr", data_path=stored_images(path), loader="torch", workers=workers, Tz=None)
    train_encoder(path, **of_files | dict(samples_per_epoch=None, max_epochs=3, img_size=8, Tx="simclr") | changes)


def train_probe(path: Path, **changes: Any) -> None:
    settings = dict(max_epochs=3, val_freq=1, readouts=["sgd"]) | changes
    with mock.patch.object(probe, "write_evaluations", _nothing):
        wanted = dataclasses.replace(PROBE, **settings)
        probe.train_probe(wanted, make_backbone(), make_splits(), path, progress=False)


def train_mim(path: Path, **changes: Any) -> None:
    """Two seeds, of which the first stops after five of six epochs."""
    settings = dict(warmup_steps=1, epochs=6, lr=2e-2, mim_samp=False, mim_loss=False, mi_interval=0) | changes
    wanted = dataclasses.replace(MIM, **settings)
    train_seeds(wanted, [1, 2], path, TinyData(), neighbours=False, progress=False)


def train_mim_image(path: Path, **changes: Any) -> None:
    """S-MIM, whose draws serve four steps."""
    settings = dict(model_name="vae-smim", sampling_every=4, epochs=3) | changes
    with mock.patch.object(mim_images, "save_curves", _nothing), small_layers():
        wanted = dataclasses.replace(MIM_IMAGE, **settings)
        mim_images.train_mim_image(wanted, tiny_sets(), path, progress=False)


def train_gan(path: Path, family: str = "stylegan2", **changes: Any) -> None:
    sizes = dict(width=4, discriminator_width=4, batch_size=4, steps=5, save_every=2, state_interval_s=0.0)
    place = dict(save_folder=str(path.parent), run_name=path.name, device="cpu")
    images = torch.randint(256, (40, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    finish = RECIPES[family].finish
    with (
        mock.patch.object(gan, "_save_samples", _nothing),
        mock.patch.object(gan, "LOG_INTERVAL", 1),
        mock.patch.object(RECIPES[family], "finish", lambda self, average, seed: finish(self, average, seed, 2)),
    ):
        gan.train_generator(gan.GanConfig(family=family, **(sizes | place | changes)), images, progress=False)


def train_nvae(path: Path, **changes: Any) -> None:
    sizes = dict(
        resolution=(1, 8, 8), num_scales=2, num_groups_per_scale=1, num_cells_per_group=1, num_latent_per_group=2,
        initial_channels=4, num_pre_post_process_cells=1, num_logistic_mixtures=2, cumulative_bs=4, epochs=3,
        base_lr=1e-3, warmup_epochs=0.5, weight_decay_norm_anneal=True, flip=True, log_every=1, save_every=2,
        state_interval_s=0.0,
    )  # fmt: skip
    place = dict(save_folder=str(path.parent), run_name=path.name, device="cpu")
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(nvae, "_save_grids", _nothing):
        nvae.train_nvae(nvae.NVAETrainConfig(**(sizes | place | changes)), images, progress=False)


def train_diffusion(path: Path, **changes: Any) -> None:
    sizes = dict(
        resolution=4, widths=(4,), patch=2, steps=5, batch_size=4, warmup_steps=2, save_every=2, flip=True,
        state_interval_s=0.0,
    )  # fmt: skip
    place = dict(save_folder=str(path.parent), run_name=path.name, device="cpu")
    images = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(diffusion, "_save_samples", _nothing), mock.patch.object(diffusion, "LOG_INTERVAL", 3):
        diffusion.train_diffusion(DiffusionTrainConfig(**(sizes | place | changes)), images, progress=False)


def calibrate(path: Path, **changes: Any) -> None:
    settings = dict(
        nats=[1.0, 2.0], eval_pairs=[16], n_eval_batches=4, n_chunks=2, chunk_size=1, resolution=2, batch_size=8,
        n_steps=6, n_steps_more=4, critic_width=2, save_freq=3, save_folder=path, device="cpu", state_interval_s=0.0,
    )  # fmt: skip
    with mock.patch.object(critic_calibration, "figure", lambda found: mock.Mock()):
        critic_calibration.calibrate(CalibrationConfig(**settings | changes), progress=False)


def example() -> Callable[..., Any]:
    """The trainer in the documentation of `core/loop.py`, as it stands there."""
    assert loop.__doc__ is not None
    text = loop.__doc__[loop.__doc__.index("    import torch") : loop.__doc__.index("The trainer keeps")]
    names: dict[str, Any] = {}
    exec(compile(textwrap.dedent(text), "the example of core/loop.py", "exec"), names)
    return names["fit_line"]


def train_example(path: Path, **changes: Any) -> None:
    example()(path, **dict(n_steps=125, state_interval_s=0.0) | changes)


TRAINERS = {
    "navigator": Trainer(train_navigator, 8, (3, 6, 8), dict(lr_walk=0.5), is_distributed=True,
                         of_two=dict(num_samples=128, save_freq=48),
                         long=(1000, dict(num_samples=8_000, save_freq=10**6))),
    "several": Trainer(train_several, 8, (3, 6, 8), dict(lr_walk=0.5),
                       long=(1000, dict(num_samples=8_000, save_freq=10**6))),
    "encoder": Trainer(train_encoder, 6, (3, 6), dict(base_lr=0.5), is_distributed=True,
                       long=(1000, dict(samples_per_epoch=4_000))),
    "probe": Trainer(train_probe, 9, (3, 6, 9), dict(base_lr=0.5), is_distributed=True,
                     long=(10_002, dict(max_epochs=3334, val_freq=10_000))),
    "mim": Trainer(train_mim, 120, tuple(range(20, 121, 20)), dict(lr=0.5), tuple(
        epoch * 20 + step for epoch in range(6) for step in (16, 20)),  # noise comes in blocks of 16 steps
        long=(10_000, dict(epochs=500, warmup_steps=500))),  # which is the patience, too
    "mim image": Trainer(train_mim_image, 12, (4, 8, 12), dict(lr=0.5), is_distributed=True,
                         long=(2_000, dict(epochs=500, early_stopping_epochs=500))),
    "gan": Trainer(train_gan, 5, (2, 4, 5), dict(lr=0.5), long=(1000, dict(steps=1000, save_every=10**6))),
    "nvae": Trainer(train_nvae, 6, (2, 4, 6), dict(base_lr=0.5), is_distributed=True, is_same_in_two=True,
                    long=(1000, dict(epochs=500, save_every=10**6))),
    "diffusion": Trainer(train_diffusion, 5, (2, 4, 5), dict(lr=0.5), is_distributed=True, is_same_in_two=True,
                         long=(1000, dict(steps=1000, save_every=10**6))),
    "calibration": Trainer(calibrate, 10, (3, 6, 9, 10), dict(lr=0.5),
                           long=(2004, dict(n_steps=2000, save_freq=10**6))),
    "example": Trainer(train_example, 125, (50, 100, 125), dict(lr=0.5), is_distributed=True,
                       long=(10_000, dict(n_steps=10_000))),
}  # fmt: skip

_NAVIGATOR = TRAINERS["navigator"]
_ENCODER = TRAINERS["encoder"]


def _variant(of: Trainer, train: Callable[..., object], **changes: Any) -> Trainer:
    return dataclasses.replace(of, train=train, **changes)


VARIANTS = {
    **{
        f"navigator on {family}": _variant(_NAVIGATOR, functools.partial(train_navigator, family=family))
        for family in GENERATORS if family != "bigbigan"
    },
    **{
        f"encoder {method}": _variant(_ENCODER, functools.partial(train_encoder, encoder=method))
        for method in ("simclr", "simsiam")
    },
    "encoder on files": _variant(_ENCODER, train_encoder_on_files, saves=(2, 4, 6)),
    "probe of views": _variant(TRAINERS["probe"], functools.partial(train_probe, views="no_color")),
    **{
        f"gan {family}": _variant(TRAINERS["gan"], functools.partial(train_gan, family=family))
        for family in RECIPES if family != "stylegan2"
    },
}  # fmt: skip
"""The same trainers on other generators, images and objectives, for `make torture` alone."""

EVERY = TRAINERS | VARIANTS
