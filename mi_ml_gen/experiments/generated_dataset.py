"""Generated images in files: a data set of a chosen number of images, or of pairs of anchor and positive.

Images are decoded, rounded to bytes on the device, and encoded and written by threads while the next are decoded. An
image depends on the seed and its own number alone, not on the batch size or the device (to rounding). A set that was
stopped, at whatever moment, goes on by the same command.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mi_ml_gen.core import config, loop, runtime
from mi_ml_gen.core.errors import MiMlGenError, Preempted, UsageError
from mi_ml_gen.core.files import UNFINISHED, disk_faults, read_json, write_json
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.core.registry import Registry
from mi_ml_gen.core.runs import RunFolder
from mi_ml_gen.data.beton.format import Encoded, write_beton
from mi_ml_gen.experiments.settings import ExportConfig
from mi_ml_gen.generators.anchors import anchor_distribution
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import NoiseDistribution, TruncatedNormal
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.base import IdentityWalker, Walker
from mi_ml_gen.walkers.origins import warn_of_differences

BLOCK = 64
"""Images whose noise is drawn together."""
COP_GEN_CLASS = 1300
"""Images in a folder of the layout cop-gen, as many as ImageNet has of a class."""
RECORD = ".export"
"""Folder of the settings and the progress, inside the set's own; hidden, so that readers of images pass it by."""

_SYNC_EVERY_S = 20.0


class Format:
    """How images are stored. Each is encoded by itself; a container then takes all of them into one file."""

    ending: ClassVar[str]
    """Of the file that is written for each image."""
    container: ClassVar[str] = ""
    """Ending of the one file that holds all images at the end; "" where the images' files are the set."""

    @staticmethod
    def encode(pixels: np.ndarray, quality: int) -> bytes:
        """uint8 (H, W, 3) as the content of a file."""
        raise NotImplementedError

    @staticmethod
    def assemble(path: Path, images: Iterator[Encoded], n: int) -> None:
        """Write the container of n encoded images."""
        raise NotImplementedError


FORMATS: Registry[type[Format]] = Registry("format", "--format")


def register_format(name: str) -> Callable[[type[Format]], type[Format]]:
    """Class decorator: make a `Format` known under a name, for --format."""
    return FORMATS.register(name)


@register_format("png")
class Png(Format):
    ending = "png"

    @staticmethod
    def encode(pixels: np.ndarray, quality: int) -> bytes:
        buffer = io.BytesIO()
        # Up to twice as fast as the default, files up to a fifth larger.
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()


@register_format("jpg")
class Jpeg(Format):
    ending = "jpg"

    @staticmethod
    def encode(pixels: np.ndarray, quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()


@register_format("beton")
class Beton(Jpeg):
    container = "beton"

    @staticmethod
    def assemble(path: Path, images: Iterator[Encoded], n: int) -> None:
        write_beton(path, images, n)


class Export(NamedTuple):
    """A finished set of n_images images or pairs, n_new of which this call wrote, in so many seconds."""

    folder: Path
    n_images: int
    n_new: int
    seconds: float


def export_images(settings: ExportConfig) -> Export:
    """Write the set that `settings` describe, or the rest of it.

    Every file is whole or absent under its name. Raises UsageError for settings that do not fit the generator or the
    folder, Preempted after SIGTERM or Ctrl-C, EnvironmentFault on a full disk; the same call goes on afterwards.
    """
    config.validate(settings)
    FORMATS.check(settings.format)
    settings.check()
    if settings.layout == "cop-gen" and FORMATS[settings.format].container:
        raise UsageError(f"--layout cop-gen: is a layout of image files, not of --format {settings.format}")
    device = runtime.resolve_device(settings.device)
    runtime.set_precision(settings.precision)
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    distribution = anchor_distribution(settings, generator)
    record = settings.save_folder / RECORD
    walker = budget.walker_by(
        settings.Tz, generator, distribution, settings.starting_seed, device, folder=record, whole_nats=settings.budget
    )
    warn_of_differences(walker, generator, distribution)
    kinds = ("anchor",) if isinstance(walker, IdentityWalker) else ("anchor", "positive")

    about = {name: value for name, value in config.to_dict(settings).items() if name != "save_folder"}
    about |= fingerprint_record(record, generator)
    began = time.monotonic()
    reopened = config.resuming(ExportConfig) | {"free": settings.free}
    with RunFolder.open(record, about, **reopened) as run, loop.Preemption() as preemption:
        if solved := budget.solved(walker):
            run.write_json(budget.RECORD, solved)
        names = _Names(settings, record, kinds)
        n_new = 0
        if not names.containers or not all(path.exists() for path in names.containers):
            n_new = _write_missing(settings, generator, distribution, walker, device, names, preemption)
            _assemble(names, settings.n_images, generator.resolution)
        shutil.rmtree(names.parts, ignore_errors=True)
    return Export(settings.save_folder, settings.n_images, n_new, time.monotonic() - began)


def to_bytes(images: Tensor, truncated: bool = False) -> Tensor:
    """Images (n, 3, H, W) in [0, 1] -> uint8 (n, H, W, 3), rounded, on the same device.

    truncated: rounded down, as in the published images, which are darker by half a level on average. Raises
    NonFiniteError for images that are no numbers.
    """
    levels = runtime.finite("images to write", images.float()) * 255
    levels = levels.floor_() if truncated else levels.round_()
    return levels.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def encode(pixels: np.ndarray, ending: str, quality: int = 90) -> bytes:
    """uint8 (H, W, 3) as a file; ending: a format of images, "png" or "jpg"."""
    return FORMATS[ending].encode(pixels, quality)


# --- names --------------------------------------------------------------------------------------------------


class _Names:
    """Where the files of each image go."""

    def __init__(self, settings: ExportConfig, record: Path, kinds: Sequence[str]) -> None:
        self.record = record
        self.parts = record / "parts"
        self._settings = settings
        self._kinds = kinds
        self._digits = len(str(settings.n_images))
        self.format = FORMATS[settings.format]
        self.ending = self.format.ending
        folder = settings.save_folder
        stems = kinds if len(kinds) == 2 else ("train",)
        whole = self.format.container
        self.containers = tuple(folder / f"{stem}.{whole}" for stem in stems) if whole else ()

    def of(self, i: int) -> tuple[Path, ...]:
        """The anchor's file, and the positive's."""
        folder, name = self._settings.save_folder, f"{i:0{self._digits}}.{self.ending}"
        if self.containers:
            return tuple(self.parts / kind / f"{i // 1000:06}" / name for kind in self._kinds)
        if self._settings.layout == "cop-gen":
            place = folder / "train" / f"{i // COP_GEN_CLASS:04}"
            stem = f"seed{self._settings.starting_seed:04}_sample{i % COP_GEN_CLASS:05}"
            return tuple(place / f"{stem}_{word}.{self.ending}" for word in ("anchor", "neighbor")[: len(self._kinds)])
        if len(self._kinds) == 1:
            return (folder / name,)
        return tuple(folder / kind / name for kind in self._kinds)


# --- drawing ------------------------------------------------------------------------------------------------


class _Latents:
    """The latents of any images by their numbers: block after block of noise, each a function of seed and block."""

    def __init__(
        self,
        settings: ExportConfig,
        generator: MultiLatentGenerator,
        distribution: NoiseDistribution,
        walker: Walker,
        device: torch.device,
    ) -> None:
        self._generator = generator
        self._walker = walker
        self._device = device
        self._seed = settings.starting_seed
        self._distribution = distribution
        self._is_published = settings.published_seeds
        self._size = settings.batch_size if settings.published_seeds else BLOCK
        self._last: tuple[int, tuple[Tensor, ...]] | None = None

    def of(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Latents (stop - start, layout.dim) of the anchors, and of the positives where pairs are made."""
        parts = []
        for block in range(start // self._size, (stop - 1) // self._size + 1):
            if self._last is None or self._last[0] != block:
                self._last = block, self._draw(block)
            first = block * self._size
            rows = slice(max(start - first, 0), min(stop - first, self._size))
            parts.append(tuple(latents[rows] for latents in self._last[1]))
        return tuple(torch.cat(kind) for kind in zip(*parts, strict=True))

    def _draw(self, block: int) -> tuple[Tensor, ...]:
        shape = (self._size, self._generator.noise_dim)
        if self._is_published:
            assert isinstance(self._distribution, TruncatedNormal)
            z = self._distribution.sample_reference(shape, self._seed + block).to(self._device)
        else:
            rng = runtime.stream(self._seed, "export: anchors", block, 0, self._device)
            z = self._distribution.sample(shape, rng)
        if isinstance(self._walker, IdentityWalker):
            return (self._generator.latents(z),)
        return self._walker(self._generator, z, runtime.stream(self._seed, "export: positives", block, 0, self._device))


# --- writing ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _write_missing(
    settings: ExportConfig,
    generator: MultiLatentGenerator,
    distribution: NoiseDistribution,
    walker: Walker,
    device: torch.device,
    names: _Names,
    preemption: loop.Preemption,
) -> int:
    """Write the images that are not there yet; gives their number."""
    n, size = settings.n_images, settings.batch_size
    progress = _Progress(names.record / "progress.json")
    wanted = _wanted(names, n, progress.n_safe)
    latents = _Latents(settings, generator, distribution, walker, device)
    running: deque[Future] = deque()
    with (
        ThreadPoolExecutor(settings.n_workers, thread_name_prefix="encode") as pool,
        Bar(total=n, initial=n - len(wanted), unit=" images", disable=None) as bar,
    ):
        # A batch is decoded whole where any image of it is wanted: rounding may depend on an image's neighbours.
        for start in sorted({i // size * size for i in wanted}):
            stop = min(start + size, n)
            rng = runtime.stream(settings.starting_seed, "export: decode", start, 0, device)
            kinds = latents.of(start, stop)  # in float32, whatever the precision of the decoder
            with runtime.autocast(device, settings.precision):
                images = [generator.decode(kind, rng) for kind in kinds]
            arrays = [to_bytes(kind, settings.published_seeds).cpu().numpy() for kind in images]
            new = [i for i in range(start, stop) if i in wanted]
            for i in new:
                for path, array in zip(names.of(i), arrays, strict=True):
                    running.append(pool.submit(_write, path, array[i - start], names.format, settings.quality))
            while len(running) > 2 * size * len(arrays):  # the generator waits for the threads, two batches behind
                running.popleft().result()
            bar.update(len(new))
            if preemption.requested or progress.is_due():
                _finish(running)
                progress.save(stop)
            if preemption.requested:
                raise Preempted(f"{settings.save_folder} holds {stop} of {n} images; the same command resumes")
        _finish(running)
        progress.save(n)
    return len(wanted)


def _wanted(names: _Names, n: int, n_safe: int) -> set[int]:
    """The images that are missing or may be damaged. Makes the folders, and clears what a killed process left."""
    there: dict[Path, set[str]] = {}
    for folder in {path.parent for i in range(n) for path in names.of(i)}:
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            there[folder] = set(os.listdir(folder))
            for name in there[folder]:
                if UNFINISHED.fullmatch(name):
                    (folder / name).unlink()
    return {i for i in range(n) if i >= n_safe or any(path.name not in there[path.parent] for path in names.of(i))}


def _finish(running: deque[Future]) -> None:
    while running:
        running.popleft().result()


def _write(path: Path, pixels: np.ndarray, format: type[Format], quality: int) -> None:
    """Write a file beside its name and rename it. It is synced later, many at a time; until then a power cut may lose
    it, and the images after `_Progress.n_safe` are written again."""
    partial = path.with_name(f".{path.name}.{0:012x}.partial")
    with disk_faults(path):
        try:
            partial.write_bytes(format.encode(pixels, quality))
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


class _Progress:
    """How many images, from the first on, are on the disk for good."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_safe = 0
        with contextlib.suppress(MiMlGenError, ValueError, TypeError, KeyError):  # absent or damaged: none is safe
            self.n_safe = int(read_json(path)["n_safe"])
        self._last = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._last > _SYNC_EVERY_S

    def save(self, n_safe: int) -> None:
        os.sync()
        self.n_safe = max(n_safe, self.n_safe)
        write_json(self.path, {"n_safe": self.n_safe})
        self._last = time.monotonic()


def _assemble(names: _Names, n: int, side: int) -> None:
    """The containers, if any, from the files of images that were written for them."""
    for k, path in enumerate(names.containers):
        images = (Encoded(names.of(i)[k].read_bytes(), side, side) for i in range(n))
        names.format.assemble(path, images, n)
