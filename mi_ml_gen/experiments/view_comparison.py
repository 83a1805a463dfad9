"""Which views make the better encoder? The same small SimCLR on real, generated and perturbed images, then probed.

Every encoder sees the same number of samples, with the T_x that the paper pairs with its T_z (Serez et al., 2025,
section 6), and is judged on the real test images of a labelled set: by a linear layer, nearest neighbours and ridge
regression. Floors: a backbone that was never trained, and the pixels themselves.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.core import config, runs, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import atomic_write, read_json, write_json
from mi_ml_gen.core.resnet import resnet
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages, ImageSource, held
from mi_ml_gen.data.splits import Splits, Subset, load_splits
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.training import train_encoder
from mi_ml_gen.experiments import table1
from mi_ml_gen.experiments.settings import FLOORS, METHODS, ComparisonConfig, Method
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.hub.assets import is_reference
from mi_ml_gen.latents import Chunks
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.probe.training import ProbeConfig, train_probe
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import figure_png, series_colors
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.walkers import spec

READOUTS = ("sgd", "ridge", "knn")


class Cell(NamedTuple):
    """One encoder and what its probes found: top-1 of each readout, 0 to 1, on the real test images."""

    row: str
    seed: int
    top1: dict[str, float]
    n_test: int
    seconds: float | None
    """Of training the encoder, where this call did all of it."""


class Pixels(nn.Module):
    """The views themselves as features; grey ones once, not three times."""

    def __init__(self, image_size: int, is_grey: bool) -> None:
        super().__init__()
        self.is_grey = is_grey
        self.feature_dim = (1 if is_grey else 3) * image_size**2

    def forward(self, views: Tensor) -> Tensor:
        return (views[:, :1] if self.is_grey else views).flatten(1)


def compare(settings: ComparisonConfig, progress: bool = True) -> list[Cell]:
    """Train and probe what is missing of the table; the same settings resume an interrupted comparison.

    Writes comparison.md, .csv, .json, .tex, .png and cells.json into the folder after every encoder. Raises UsageError
    for settings that make no sense or differ from the folder's, and what `train_navigator`, `train_encoder` and
    `train_probe` raise.
    """
    config.validate(settings)
    device = runtime.resolve_device(settings.device)
    folder = settings.save_folder
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    fine = fine_chunks(settings, generator)
    stored = held(load_source(settings.data_path, "train", generator.resolution, skip_bad=settings.skip_bad))
    described = config.to_dict(settings) | fingerprint_record(folder, generator)
    with runs.RunFolder.open(folder, described, **config.resuming(ComparisonConfig)) as run:
        walkers = None
        if any(METHODS[row].Tz.startswith("learned") for row in settings.rows):
            walkers = learned_walkers(settings, generator, fine, progress)
        cells = []
        todo = [(seed, row) for seed in settings.seeds for row in settings.rows]
        for done, (seed, row) in enumerate(todo, start=1):
            path = folder / "cells" / f"{row}_seed{seed}.json"
            if path.exists():
                cells.append(_read_cell(path))
                continue
            if progress:
                print(f"{done} of {len(todo)}: {METHODS[row].title}, seed {seed}", flush=True)
            found = _cell(settings, row, seed, generator, stored, fine, walkers, progress)
            write_json(path, found._asdict())
            cells.append(found)
            write_table(cells, settings, run.path)
        write_table(cells, settings, run.path)
    return cells


def _read_cell(path: Path) -> Cell:
    """A finished cell. Raises CorruptCheckpointError where its file is damaged."""
    try:
        return Cell(**read_json(path))
    except TypeError as error:
        raise CorruptCheckpointError(f"{path}: damaged: {error}; remove it to have this cell trained again") from None


def _cell(
    settings: ComparisonConfig,
    row: str,
    seed: int,
    generator: MultiLatentGenerator,
    stored: HeldImages,
    fine: Chunks,
    walkers: dict[str, Any] | None,
    progress: bool,
) -> Cell:
    """Train the encoder of a row and seed, and probe it."""
    method, seconds = METHODS[row], None
    view_px = Augment("none", generator.resolution).crop_size
    if row == "pixels":
        grey = bool((stored.images == stored.images[:, :1]).all())
        backbone: nn.Module = Pixels(view_px, grey)
    elif row == "untrained":
        torch.manual_seed(seed)
        backbone = resnet(18, view_px, settings.width)
    else:
        path = settings.save_folder / "encoders" / f"{row}_seed{seed}"
        is_new, started = not (path / "checkpoints").exists(), time.monotonic()
        own = encoder_settings(settings, method, seed, generator, stored, fine, walkers)
        if method.images == "real":
            trained = train_encoder(own, source=real_images(settings, stored, seed), path=path, progress=progress)
        else:
            trained = train_encoder(own, generator, path=path, progress=progress)
        seconds = round(time.monotonic() - started, 1) if is_new else None
        backbone = load_encoder(trained.path).backbone
    probe = ProbeConfig(
        dataset=None, readouts=list(READOUTS), max_epochs=settings.probe_epochs, seed=seed, device=settings.device,
        precision=settings.precision,
    )  # fmt: skip
    splits = probe_splits(settings, generator.resolution, seed)
    result = train_probe(
        probe, backbone, splits, settings.save_folder / "probes" / f"{row}_seed{seed}", keep_features=False,
        progress=progress,
    )  # fmt: skip
    top1 = {name: found.top1.value for name, found in result.evaluations.items()}
    return Cell(row, seed, top1, result.evaluations["sgd"].top1.n, seconds)


# ---------------------------------------------------------------------------------------------------------------
# What encoders are trained on


def fine_chunks(settings: ComparisonConfig, generator: MultiLatentGenerator) -> Chunks:
    """The chunks that walkers per chunk perturb: all but the first, which decides what is seen, unless told."""
    n_chunks = generator.layout.n_chunks
    if settings.fine_chunks is None:
        if n_chunks < 2:
            raise UsageError(f"{generator.name} has one chunk; there is none that walkers could leave alone")
        return Chunks(1, n_chunks)
    return generator.chunks(settings.fine_chunks, "--fine_chunks")


def learned_walkers(
    settings: ComparisonConfig, generator: MultiLatentGenerator, fine: Chunks, progress: bool = True
) -> dict[str, Any]:
    """Learned walkers for the fine chunks, chunks -> file or run folder; they are trained here where none are given."""
    base = settings.walkers
    if base is not None and (not base.is_dir() or (base / "walker.safetensors").exists()):
        return _given_walkers(base, generator, fine)
    if base is None:
        base = settings.save_folder / "walkers"
        given = {"generator": settings.generator, "chunks": "0_1", "device": settings.device}
        own = config.load(NavigatorConfig, NavigatorConfig.preset(settings.generator), given)
        own = dataclasses.replace(own, g_path=settings.g_path, g_use=settings.g_use)
        table1.train_missing(base, own, generator, progress=progress)
    found = {str(one.walker.chunks[0]): str(one.folder) for one in table1.find_walkers(base)}
    wanted = [str(Chunks(start, start + 1)) for start in range(fine.start, fine.stop)]
    if missing := [chunks for chunks in wanted if chunks not in found]:
        there = ", ".join(found)
        raise UsageError(f"--walkers {base}: no walker of chunks {', '.join(missing)}; there: {there}")
    return {chunks: found[chunks] for chunks in wanted}


def _given_walkers(written: Path, generator: MultiLatentGenerator, fine: Chunks) -> dict[str, Any]:
    """The walkers of a T_z, which must perturb all fine chunks and no others."""
    text = str(written)
    if not spec.is_groups(text) and not written.exists() and not is_reference(text):
        raise UsageError(f'--walkers {text}: no such folder or file; groups are written "1_2=runs/a 2_3=runs/b"')
    if spec.is_groups(text) or written.suffix in (".yaml", ".yml"):
        groups = spec.read_groups(text, "--walkers")
        groups = {chunks: str(member) if isinstance(member, Path) else member for chunks, member in groups.items()}
    else:
        groups = {str(chunks): text for chunks in spec.load_walker(text).chunks}
    walker = spec.walker_from(groups, generator, flag="--walkers")
    perturbed = sorted(i for chunks in walker.chunks for i in range(chunks.start, chunks.stop))
    if perturbed != list(range(fine.start, fine.stop)):
        names = ", ".join(map(str, walker.chunks))
        raise UsageError(f"--walkers {text}: must perturb all of chunks {fine}, and no others; these perturb {names}")
    return groups


def encoder_settings(
    settings: ComparisonConfig,
    method: Method,
    seed: int,
    generator: MultiLatentGenerator,
    stored: HeldImages,
    fine: Chunks,
    walkers: dict[str, Any] | None,
) -> EncoderConfig:
    """The settings of one encoder; those of all rows differ in what the row is about alone."""
    n_epochs = epochs(settings, stored)
    per_epoch = settings.samples // n_epochs
    whole = Chunks(0, generator.layout.n_chunks)
    Tz: dict[str, Any] | None = None
    if method.Tz == "random, all chunks":
        Tz = {str(whole): [0.0, settings.random_all_std, 2.0]}
    elif method.Tz == "random, fine chunks":
        Tz = {str(fine): [0.0, settings.random_std, 2.0]}
    elif method.Tz == "learned, fine chunks":
        assert walkers is not None
        Tz = dict(walkers)
    is_real = method.images == "real"
    return EncoderConfig(
        encoder="simclr",
        generator=None if is_real else settings.generator,
        g_path=None if is_real else settings.g_path,
        g_use=[] if is_real else settings.g_use,
        Tz=Tz,
        samples_per_epoch=None if is_real else per_epoch,
        Tx=method.Tx,
        depth=18,
        width=settings.width,
        dim=settings.dim,
        temperature=settings.temperature,
        max_epochs=n_epochs,
        cumulative_bs=settings.batch_size,
        base_lr=settings.base_lr,
        warmup=True,
        weight_decay=settings.weight_decay,
        knn_freq=n_epochs,
        save_freq=n_epochs,
        seed=seed,
        device=settings.device,
        precision=settings.precision,
        compile=settings.compile,
    )


def epochs(settings: ComparisonConfig, stored: ImageSource) -> int:
    """The least number of epochs in which the real images suffice for all samples."""
    return math.ceil(settings.samples / stored.n_images)


def real_images(settings: ComparisonConfig, stored: ImageSource, seed: int) -> ImageSource:
    """As many of the real images as an epoch has samples, chosen by the seed."""
    n = settings.samples // epochs(settings, stored)
    order = torch.randperm(stored.n_images, generator=runtime.stream(seed, "compared images", 0, 0))
    return stored if n == stored.n_images else Subset(stored, order[:n], f"{stored.name}, {n:,} images")


def probe_splits(settings: ComparisonConfig, image_size: int, seed: int) -> Splits:
    """The real images that probes are trained on, at most `probe_images` with those for validation, and judged by."""
    splits = load_splits(settings.data_path, image_size, seed, skip_bad=settings.skip_bad)
    if splits.test is None:
        raise UsageError(f"--data_path {settings.data_path}: has no test images to judge by")
    n = splits.train.n_images + splits.validation.n_images
    if settings.probe_images >= n:
        return splits

    def some(source: ImageSource) -> ImageSource:
        n_some = max(1, round(settings.probe_images * source.n_images / n))
        rng = runtime.stream(seed, "probed images", 0, 0)
        return Subset(source, torch.randperm(source.n_images, generator=rng)[:n_some], source.name)

    return splits._replace(train=some(splits.train), validation=some(splits.validation))


# ---------------------------------------------------------------------------------------------------------------
# The table


def mean_over_seeds(cells: Sequence[Cell], row: str, readout: str) -> report.Estimate | None:
    """Mean and standard deviation (with n - 1) over seeds, in percent; None where there is no such cell."""
    values = [100 * cell.top1[readout] for cell in cells if cell.row == row]
    if not values:
        return None
    return report.Estimate(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)


def comparison_table(cells: Sequence[Cell], settings: ComparisonConfig) -> report.Table:
    """A line for each row: what it was trained on, and top-1 by each readout, mean and spread over seeds."""
    lines: list[list[report.Cell]] = []
    for row in (name for name in METHODS if any(cell.row == name for cell in cells)):
        method = METHODS[row]
        n_seeds = sum(cell.row == row for cell in cells)
        accuracies: list[report.Cell] = []
        for readout in READOUTS:
            estimate = mean_over_seeds(cells, row, readout)
            assert estimate is not None
            accuracies.append(estimate if n_seeds > 1 else estimate.value)
        lines.append([method.title, method.Tz or None, method.Tx, *accuracies, n_seeds])
    columns = ["views", "T_z", "T_x", "linear (%)", "ridge (%)", "kNN (%)", "seeds"]
    formats = dict.fromkeys(columns[3:6], ".2f")
    n_test = cells[0].n_test
    caption = (
        f"Top-1 on {n_test:,} real test images; mean and standard deviation over seeds. ResNet-18 of width "
        f"{settings.width}, SimCLR on {settings.samples:,} samples each; probes on at most "
        f"{settings.probe_images:,} labelled images."
    )
    return report.Table(columns, lines, caption, formats)


def write_table(cells: Sequence[Cell], settings: ComparisonConfig, folder: Path) -> None:
    """The table as Markdown, CSV, JSON and LaTeX, all single results as cells.json, and the figure."""
    comparison_table(cells, settings).write(folder, "comparison")
    write_json(folder / "cells.json", [cell._asdict() for cell in cells])
    atomic_write(folder / "comparison.png", figure_png(figure(cells)))


def figure(cells: Sequence[Cell], readout: str = "sgd") -> Any:
    """A line for each row: a small dot for each seed, a large one for their mean, and the numbers; floors in grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, soft, line = "#22262b", "#626973", "#dcdfe3"
    rows = [row for row in METHODS if any(cell.row == row for cell in cells)]
    drawn = Figure(figsize=(7.5, 0.36 * len(rows) + 0.9), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    colors = iter(series_colors(len(METHODS)))
    for place, row in enumerate(rows):
        color = soft if row in FLOORS else next(colors)
        values = [100 * cell.top1[readout] for cell in cells if cell.row == row]
        estimate = mean_over_seeds(cells, row, readout)
        assert estimate is not None
        axes.axhline(place, color=line, linewidth=0.7, zorder=1)
        axes.plot(values, [place] * len(values), "o", color=color, markersize=4, alpha=0.55, zorder=2)
        axes.plot(estimate.value, place, "o", color=color, markersize=9, zorder=3)
        spread = f" ± {estimate.spread:.2f}" if math.isfinite(estimate.spread) else ""
        axes.annotate(
            f"{estimate.value:.2f}{spread}", (1, place), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=9, color=ink,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [METHODS[row].title for row in rows], fontsize=9.5, color=ink)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # from top to bottom
    axes.margins(x=0.08)
    axes.set_xlabel("top-1 on real test images by a linear layer (%)", fontsize=9, color=soft)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, labelcolor=soft, color=soft)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(soft)
    return drawn


__all__ = ["METHODS", "ComparisonConfig", "compare", "comparison_table"]
