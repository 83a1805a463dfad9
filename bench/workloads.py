"""Steps of the real training loops at their published sizes, on the pretended device, and what they ask of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bench.pretended import CUDA, pretended_cuda
from mi_ml_gen import delta
from mi_ml_gen.core import loop
from mi_ml_gen.core.counting import Counted, Counts
from mi_ml_gen.core.resnet import resnet
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.data.splits import Splits
from mi_ml_gen.encoders import training as encoders
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.generators import fingerprint
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.bigbigan import BigBiGAN, BigBiGANConfig
from mi_ml_gen.generators.diffusion import training as diffusion
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.processes import PROCESSES
from mi_ml_gen.generators.diffusion.settings import UNetConfig
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.nvae import training as nvae
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.mim import training as mim
from mi_ml_gen.mim.images import training as mim_images
from mi_ml_gen.mim.images.sets import Images, ImageSets
from mi_ml_gen.mim.images.settings import MimImageConfig
from mi_ml_gen.mim.settings import MimConfig
from mi_ml_gen.navigator import training as navigator
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.probe import training as probe
from mi_ml_gen.probe.features import Features
from mi_ml_gen.probe.settings import ProbeConfig
from mi_ml_gen.walkers import origins

N_STEPS = 2
"""Steps of a run; the last one is counted, when the optimisers have their states."""
_NVAE = dict(
    num_scales=2, num_groups_per_scale=1, num_cells_per_group=1, num_latent_per_group=2, initial_channels=4,
    num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip
_UNET = dict(
    sample_size=8, block_out_channels=(4, 8), down=("plain", "attention"), up=("attention", "plain"), norm_num_groups=2
)
GENERATORS: dict[str, Callable[[], MultiLatentGenerator]] = {
    "bigbigan": BigBiGAN,
    "stylegan2": lambda: StyleGAN2(StyleGAN2Config()),
    "small-bigbigan": lambda: BigBiGAN(
        BigBiGANConfig(resolution=16, width=8, multipliers=(2, 1), chunk_dim=4, attention_resolution=8)
    ),
    "small-stylegan2": lambda: StyleGAN2(
        StyleGAN2Config(z_dim=8, w_dim=8, img_resolution=16, channel_base=64, channel_max=8)
    ),
    "small-nvae": lambda: NVAE(NVAEConfig((3, 8, 8), **_NVAE)),  # type: ignore[arg-type]
    "small-linear-gaussian": LinearGaussian,
    "small-diffusion": lambda: Diffusion(UNetConfig(**_UNET), PROCESSES["v"](), use=dict(steps=2, block=1)),  # type: ignore[arg-type]
}
"""Published sizes, and networks of a few pixels for the checks of devices and reads alone."""
SMALL: dict[str, Any] = dict(batch_size=4, critic_width=4)


class Enough(Exception):
    """Ends a run after as many steps as are wanted."""


def run_steps(train: Callable[[Path], Any], n_steps: int, after: Callable[[int], Any]) -> None:
    """The first steps of a training, train(folder); `after` is told the number of each when it has ended."""

    end_of_step = loop.Session.end_of_step

    def ended(session: loop.Session, *arguments: Any, **named: Any) -> None:
        end_of_step(session, *arguments, **named)
        after(session.done)
        if session.done == n_steps:
            raise Enough

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(loop.Session, "end_of_step", ended))
        for module in (fingerprint, origins):  # hashes of weights; fake ones have no values
            stack.enter_context(mock.patch.object(module, "fingerprint", lambda generator: None))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.suppress(Enough))
        train(Path(folder) / "run")
        raise AssertionError(f"the run ended before {n_steps} steps")


def counted_step(train: Callable[[Path], Any], counted: Counted) -> Counts:
    """What the last of N_STEPS steps of a training asks for."""
    found = []

    def after(step: int) -> None:
        if step == N_STEPS - 1:
            counted.start()
        if step == N_STEPS:
            found.append(counted.stop())

    run_steps(train, N_STEPS, after)
    return found[0]


def frozen(name: str) -> MultiLatentGenerator:
    """A generator on the pretended device, as `load_generator` gives it."""
    if name in ("small-linear-gaussian", "small-diffusion"):
        with unset_fake_temporarily():
            made = GENERATORS[name]()
        return _without_numbers(made)
    with CUDA:
        return GENERATORS[name]().freeze().to(memory_format=torch.channels_last)


def _without_numbers(generator: MultiLatentGenerator) -> MultiLatentGenerator:
    """A generator whose making needs numbers, on the pretended device."""
    generator.to("meta").to_empty(device=CUDA)
    return generator.freeze().to(memory_format=torch.channels_last)


def train_navigator(path: Path, generator: MultiLatentGenerator, chunks: str, **changes: Any) -> None:
    """The navigator on a generator that is there, without what it measures before its first step."""
    settings = NavigatorConfig(generator=generator.name, chunks=chunks, **changes)
    known = delta.DeltaEstimate(1.0, 1.0, 1)
    with mock.patch.object(delta, "independent_delta", lambda *_, **__: known):
        navigator.train_navigator(settings, generator, path, progress=False)


def train_encoder(path: Path, generator: MultiLatentGenerator, method: str, **changes: Any) -> None:
    """An encoder on generated views, as published, without pictures of them."""
    published = dict(encoder=method, Tz="0_1=0,0.2,1 1_6=0,0.5,2", samples_per_epoch=6400, cumulative_bs=64)
    settings = EncoderConfig(**published | changes)  # type: ignore[arg-type]
    with mock.patch.object(encoders, "save_views", lambda *_: None):
        encoders.train_encoder(settings, generator, path=path, progress=False)


def navigator_step(counted: Counted, name: str, chunks: str, **changes: Any) -> Counts:
    return counted_step(lambda path: train_navigator(path, frozen(name), chunks, **changes), counted)


def encoder_step(counted: Counted, method: str, name: str = "bigbigan", **changes: Any) -> Counts:
    return counted_step(lambda path: train_encoder(path, frozen(name), method, **changes), counted)


def probe_step(counted: Counted, **changes: Any) -> Counts:
    """A step of the probe's linear layer on views drawn anew; the features before it are stood in for."""
    settings = ProbeConfig(**dict(views="no_color", readouts=["sgd"], cumulative_bs=4, max_epochs=2) | changes)
    with CUDA:
        backbone = resnet(18, 14, width=4)
    sources = [_stored(n) for n in (40, 8, 8)]

    def features(backbone: Any, source: HeldImages, *_: Any) -> Features:
        assert source.labels is not None
        return Features(torch.zeros(source.n_images, backbone.feature_dim), source.labels)

    with mock.patch.object(probe, "extract_features", features), mock.patch.object(probe, "unit_scale", lambda _: None):
        return counted_step(
            lambda path: probe.train_probe(settings, backbone, Splits(*sources), path, progress=False), counted
        )


def _stored(n: int, n_colours: int = 1) -> HeldImages:
    """Real images of the host, of two classes."""
    with unset_fake_temporarily():
        images = torch.zeros(n, n_colours, 16, 16, dtype=torch.uint8)
        return HeldImages("stored", images, torch.arange(n) % 2, ("a", "b"))


def stored_step(counted: Counted, **changes: Any) -> Counts:
    """A step of an encoder's training on grey stored images."""
    settings = EncoderConfig(
        **dict(encoder="simclr", depth=18, width=4, dim=8, cumulative_bs=4, max_epochs=1, device="cuda") | changes
    )
    unlabelled = HeldImages("stored", _stored(40).images)
    with mock.patch.object(encoders, "save_views", lambda *_: None):
        return counted_step(lambda path: encoders.train_encoder(settings, source=unlabelled, path=path), counted)


def mim_step(counted: Counted, **changes: Any) -> Counts:
    """A step of MIM on toy4, two seeds."""
    settings = MimConfig(
        **dict(dataset="toy4", mid_dim=8, batch_size=16, mim_loss=True, mim_samp=True, warmup_steps=1) | changes
    )
    return counted_step(lambda path: mim.train_seeds(settings, [1, 2], path, measure=False), counted)


def nvae_step(counted: Counted, **changes: Any) -> Counts:
    """A step of NVAE's training."""
    sizes = dict(_NVAE, resolution=(1, 8, 8), cumulative_bs=4, epochs=3, weight_decay_norm_anneal=True, flip=True)

    def train(path: Path) -> None:
        images = torch.empty(10, 1, 8, 8, dtype=torch.uint8)
        place = dict(save_folder=str(path.parent), run_name=path.name)
        nvae.train_nvae(nvae.NVAETrainConfig(**(sizes | place | changes)), images)  # type: ignore[arg-type]

    return counted_step(train, counted)


def diffusion_step(counted: Counted, **changes: Any) -> Counts:
    """A step of a diffusion model's training."""
    sizes = dict(resolution=8, widths=(4, 8), patch=1, batch_size=4, steps=3, sampler_steps=3, block=1, flip=True)
    use = Diffusion._use

    def with_numbers(generator: Diffusion, given: dict[str, Any]) -> None:
        with unset_fake_temporarily():  # the sampler's steps are numbers
            use(generator, given)

    def train(path: Path) -> None:
        images = torch.empty(10, 1, 8, 8, dtype=torch.uint8)
        place = dict(save_folder=str(path.parent), run_name=path.name)
        diffusion.train_diffusion(DiffusionTrainConfig(**(sizes | place | changes)), images, progress=False)  # type: ignore[arg-type]

    with mock.patch.object(Diffusion, "_use", with_numbers):
        return counted_step(train, counted)


def mim_image_step(counted: Counted, model_name: str, **changes: Any) -> Counts:
    """A step of an image model of MIM, on binary images."""
    sizes = dict(
        dataset_name="empty", number_components=4, prior="vampprior", z1_size=3, z2_size=2, batch_size=4, warmup=0
    )

    def train(path: Path) -> None:
        images = Images(torch.empty(40, 1, 8, 8), torch.empty(40, dtype=torch.int64), are_probabilities=True)
        sets = ImageSets("empty", "binary", images, images, images, 0.5, 0.1, ("a", "b"))
        settings = MimImageConfig(**(sizes | dict(model_name=model_name) | changes))  # type: ignore[arg-type]
        mim_images.train_mim_image(settings, sets, path, progress=False)

    return counted_step(train, counted)


_VIEWS = dict(samples_per_epoch=40, cumulative_bs=4, depth=18, width=4, dim=8, pred=4)
_CHUNKS = dict(Tz="0_1=0,0.2,1 1_2=0.1,0.5")
TRAINERS: dict[str, Callable[[Counted], Counts]] = {
    **{
        f"navigator, {name}, {precision}": lambda c, name=name, precision=precision: navigator_step(
            c, f"small-{name}", "1_2", simclr_aug=True, precision=precision, **SMALL
        )
        for name, precision in (
            ("bigbigan", "fp32"),
            ("bigbigan", "bf16"),
            ("stylegan2", "bf16"),
            ("nvae", "bf16"),
            ("linear-gaussian", "fp32"),
            ("diffusion", "bf16"),
        )
    },
    **{
        f"{method}, bf16": lambda c, method=method: encoder_step(
            c, method, "small-bigbigan", precision="bf16", **_VIEWS, **_CHUNKS
        )
        for method in ("simclr", "simsiam", "byol")
    },
    "simclr in micro-batches": lambda c: encoder_step(
        c, "simclr", "small-stylegan2", micro_batches=2, **_VIEWS, Tz="0_2=0.5"
    ),
    "simclr on stored images": stored_step,
    "probe": probe_step,
    "mim": mim_step,
    "nvae": nvae_step,
    "diffusion": diffusion_step,
    "diffusion, bf16": lambda c: diffusion_step(c, precision="bf16"),
    "mim image, vae": lambda c: mim_image_step(c, "vae"),
    "mim image, cmim, bf16": lambda c: mim_image_step(c, "hvae_2level-cmim", precision="bf16"),
    "mim image, convolutional": lambda c: mim_image_step(c, "convhvae_2level-amim"),
    "mim image, pixel": lambda c: mim_image_step(c, "pixelhvae_2level-infonce"),
}
"""Each trainer and family at a size that takes a moment."""

Train = Callable[..., None]
PUBLISHED: dict[str, tuple[str, Train]] = {
    "navigator BigBiGAN 1_6": ("bigbigan", lambda path, g, **how: train_navigator(path, g, "1_6", **how)),
    "navigator StyleGAN2-512 0_16": ("stylegan2", lambda path, g, **how: train_navigator(path, g, "0_16", **how)),
    "SimCLR ResNet-50 on BigBiGAN": ("bigbigan", lambda path, g, **how: train_encoder(path, g, "simclr", **how)),
    "SimSiam ResNet-50 on BigBiGAN": ("bigbigan", lambda path, g, **how: train_encoder(path, g, "simsiam", **how)),
    "BYOL ResNet-50 on BigBiGAN": ("bigbigan", lambda path, g, **how: train_encoder(path, g, "byol", **how)),
}
"""The published sizes at batch 64: the generator's name, and train(folder, generator, **changes of the settings)."""
PRECISIONS = ("fp32", "bf16")


def count(name: str, precision: str, **changes: Any) -> Counts:
    """One line of the table."""
    generator, train = PUBLISHED[name]
    with pretended_cuda() as counted:
        return counted_step(lambda path: train(path, frozen(generator), precision=precision, **changes), counted)


def graph_breaks(function: Callable[..., Any], *arguments: Any) -> int:
    """How often torch.compile leaves the graph in a call of `function`; nothing is compiled to machine code."""
    import torch._dynamo  # takes seconds

    torch._dynamo.reset()
    explained = torch._dynamo.explain(function)(*arguments)
    torch._dynamo.reset()
    return explained.graph_break_count
