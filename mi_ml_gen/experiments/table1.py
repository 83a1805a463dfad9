"""Table 1 of the paper: for each latent variable, how far a learned walker moves it, and what the pair still shares.

A folder holds one walker per chunk, or per group of chunks, in subfolders: run folders of the navigator, or the
layout of the published code (chunk0/w_COPGen_N.pth with F_loss_values.npy beside).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mi_ml_gen import delta
from mi_ml_gen.core import runs, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.delta import DeltaEstimate
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.information.infonce import infonce_bound
from mi_ml_gen.latents import NoiseDistribution, TruncatedNormal
from mi_ml_gen.navigator.records import RunRecord
from mi_ml_gen.navigator.selection import near, select_checkpoint
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import train_navigator, walker_name
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import bars, curves, figure_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.text import encoded
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.pictures import decode_shown, swaps
from mi_ml_gen.walkers.spec import load_walker

SMOOTHED_STEPS = 64
"""Steps to either side of a published checkpoint that its smoothed InfoNCE is the mean over."""


@dataclass(frozen=True)
class TrainedWalker:
    """One walker of a folder, at the checkpoint that stands for it."""

    folder: Path
    walker: Walker
    samples: int
    """What the walker had been trained on."""
    infonce: float | None
    """Critic's loss at the checkpoint: of published runs the mean of three losses, as the published script takes it;
    of our own the smoothed one."""
    smoothed_infonce: float | None
    """Mean of the critic's loss over SMOOTHED_STEPS to either side of the checkpoint."""
    n_pairs: int
    """Pairs that the loss was taken over."""
    temperature: float
    rows: tuple[dict[str, Any], ...] = ()
    """The course of training: step, samples, loss ..."""
    record: RunRecord | None = None
    """What its run was made with; None where nothing was recorded, as in the published layout."""

    @property
    def chunks(self) -> str:
        return ", ".join(map(str, self.walker.chunks))


@dataclass(frozen=True)
class Row:
    """One line of Table 1."""

    walker: TrainedWalker
    delta: DeltaEstimate
    independent: DeltaEstimate
    """Length between independent draws on the same chunks."""

    @property
    def bound_nats(self) -> float | None:
        """From the smoothed loss: three losses of single batches are too few for a bound."""
        w = self.walker
        return None if w.smoothed_infonce is None else infonce_bound(w.smoothed_infonce, w.n_pairs, w.temperature).nats


# ---------------------------------------------------------------------------------------------------------------
# Reading a folder of walkers


def find_walkers(base: str | Path, samples: Sequence[int] | None = None, batch_size: int = 64) -> list[TrainedWalker]:
    """The walkers in the subfolders of `base`, in natural order (chunk2 before chunk10).

    samples: the checkpoint of each subfolder, by trained samples; by default a run folder's selected walker, and in
    the published layout the only checkpoint that is there. batch_size: of published runs, which do not record it;
    their losses are one per step.
    Raises UsageError when there is no such folder or checkpoint, CorruptCheckpointError for a file that is damaged.
    """
    base = Path(base)
    if not base.is_dir():
        raise UsageError(f"--walkers_base_path {base}: no such folder")
    holds = ("config.yaml", "*.pth")
    folders = [path for path in base.iterdir() if path.is_dir() and any(list(path.glob(name)) for name in holds)]
    folders.sort(key=lambda path: natural_key(path.name))
    if not folders:
        raise UsageError(f"--walkers_base_path {base}: no subfolder holds walkers (chunk0/, chunk1/, ...)")
    if samples is not None and len(samples) != len(folders):
        names = ", ".join(path.name for path in folders)
        raise UsageError(f"--walkers_iter: {len(samples)} given for {len(folders)} folders ({names})")
    wanted = samples if samples is not None else [None] * len(folders)
    return [
        _read_run(folder, at) if (folder / "config.yaml").exists() else _read_published(folder, at, batch_size)
        for folder, at in zip(folders, wanted, strict=True)
    ]


def recorded(base: str | Path) -> list[RunRecord]:
    """What the runs in the subfolders of `base` were made with, in natural order; empty where there are none."""
    folders = [path.parent for path in Path(base).glob("*/config.yaml")]
    return [RunRecord.read(folder) for folder in sorted(folders, key=lambda path: natural_key(path.name))]


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts numbers within names by value."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _read_run(folder: Path, samples: int | None) -> TrainedWalker:
    settings, rows = runs.read_config(folder), runs.read_metrics(folder, whole=True)
    n_pairs = settings["batch_size"]
    if settings["negatives"] == "global":
        n_pairs *= settings["n_processes"]
    if not any(row["saved"] for row in rows):
        raise UsageError(f"{folder}: no walker has been saved yet")
    if samples is None:
        independent = math.inf
        if (folder / "summary.json").exists():
            independent = runs.read_json(folder / "summary.json")["independent_delta"]
        samples = select_checkpoint(rows, independent).samples
    saved = [row["samples"] for row in rows if row["saved"]]
    if samples not in saved:
        nearest = min(saved, key=lambda n: abs(n - samples))
        raise UsageError(f"{folder}: no walker of {samples} samples; the nearest has {nearest}")
    walker = load_walker(folder / "walkers" / f"{walker_name(samples)}.safetensors")
    loss = near(rows, samples)["loss"]
    record = RunRecord.read(folder)
    return TrainedWalker(folder, walker, samples, loss, loss, n_pairs, settings["temp"], tuple(rows), record)


def _read_published(folder: Path, samples: int | None, batch_size: int) -> TrainedWalker:
    found = {int(m[1]): path for path in folder.glob("*.pth") if (m := re.fullmatch(r"w_COPGen_(\d+)", path.stem))}
    if samples is None and len(found) == 1:
        samples = next(iter(found))
    if samples is None:
        raise UsageError(f"{folder}: {len(found)} checkpoints w_COPGen_N.pth; choose one by --walkers_iter")
    if samples not in found:
        names = ", ".join(str(n) for n in sorted(found)) or "none"
        raise UsageError(f"{folder}: no w_COPGen_{samples}.pth; there: {names}")
    losses = _published_losses(folder / "F_loss_values.npy")
    infonce, smoothed, rows = None, None, []
    if losses is not None:
        step = samples // batch_size
        if step >= len(losses) + 1:
            raise UsageError(
                f"{folder}: {len(losses)} losses cannot reach {samples} samples in batches of {batch_size}; "
                "give the run's batch size by --walkers_batch_size"
            )
        infonce = float(losses[max(0, step - 1) : step + 2].mean())  # three, as the published script
        smoothed = float(losses[max(0, step - SMOOTHED_STEPS) : step + SMOOTHED_STEPS + 1].mean())
        rows = [{"step": i, "samples": i * batch_size, "loss": float(loss)} for i, loss in enumerate(losses)]
    walker = load_walker(found[samples])
    return TrainedWalker(folder, walker, samples, infonce, smoothed, batch_size, 0.1, tuple(rows))


def _published_losses(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        losses = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptCheckpointError(f"{path}: {error}") from None
    if losses.ndim != 1 or not np.issubdtype(losses.dtype, np.floating) or not len(losses):
        raise CorruptCheckpointError(f"{path}: must be a list of losses, has shape {losses.shape} of {losses.dtype}")
    return losses


# ---------------------------------------------------------------------------------------------------------------
# Making the table


def train_missing(
    base: str | Path,
    settings: NavigatorConfig,
    generator: MultiLatentGenerator,
    group: int = 1,
    progress: bool = True,
) -> None:
    """Train one walker for each group of `group` chunks, in base/chunk0, base/chunk1, ...; finished ones stay.

    Interrupted, the same call resumes. Raises UsageError when the chunks cannot be cut into such groups.
    """
    stem = "chunk" if group == 1 else "group_"
    for i, chunks in enumerate(generator.groups(group)):
        own = dataclasses.replace(settings, chunks=str(chunks))
        train_navigator(own, generator, Path(base) / f"{stem}{i}", progress)


def estimate_rows(
    generator: MultiLatentGenerator,
    found: Sequence[TrainedWalker],
    n_samples: int,
    distribution: NoiseDistribution | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
    *,
    law: TruncatedNormal | None = None,
) -> list[Row]:
    """One row for each walker. Raises UsageError for a walker that does not fit the generator."""
    distribution = distribution or law  # its former name
    rows = []
    for one in found:
        for chunks in one.walker.chunks:
            generator.chunks(str(chunks), flag=f"{one.folder}: walker on chunks")
        walker = one.walker.to(device)
        estimate = delta.estimate_delta(generator, walker, n_samples, distribution, seed, device, progress)
        whole = one.walker.chunks[0]
        independent = delta.independent_delta(generator, whole, distribution=distribution, seed=seed, device=device)
        rows.append(Row(one, estimate, independent))
    return rows


def to_table(rows: Sequence[Row], notes: Sequence[str] = ()) -> report.Table:
    """All columns; delta and InfoNCE as in the paper, and beside them their errors and scales.

    notes: in what the table was measured otherwise than its runs recorded; they stand in the caption.
    """
    has_smoothed = any(row.walker.infonce != row.walker.smoothed_infonce for row in rows)  # published walkers
    cells = [
        [
            row.walker.chunks,
            row.delta.mean,
            row.delta.std,
            row.delta.standard_error,
            row.delta.mean / row.independent.mean,
            row.walker.infonce,
            *([row.walker.smoothed_infonce] if has_smoothed else []),
            row.bound_nats,
            row.walker.samples,
        ]
        for row in rows
    ]
    columns = ["chunks", "delta", "std", "std. error", "of independent", "InfoNCE"]
    columns += [*(["smoothed"] if has_smoothed else []), "bound (nats)", "samples"]
    formats = {"delta": ".3f", "std": ".3f", "std. error": ".4f", "of independent": ".1%", "InfoNCE": ".3f"}
    formats |= {"bound (nats)": ".2f", "samples": ","} | ({"smoothed": ".3f"} if has_smoothed else {})
    n = rows[0].delta.n_samples
    caption = f"Delta of each walker over {n:,} draws; InfoNCE and the bound it gives on the mutual information."
    if has_smoothed:
        caption += (
            " InfoNCE of published walkers is the mean of three losses, as published; beside it stands the mean over "
            f"{SMOOTHED_STEPS} steps to either side, from which the bound follows."
        )
    if notes:
        caption += f" Measured with {'; '.join(notes)}."
    return report.Table(columns, cells, caption, formats)


def to_paper_table(rows: Sequence[Row]) -> report.Table:
    """The paper's columns, for LaTeX: chunk, mean and standard deviation of delta, InfoNCE."""
    cells = [[row.walker.chunks, row.delta.mean, row.delta.std, row.walker.infonce] for row in rows]
    columns = ["chunk", "mean", "std", "InfoNCE"]
    return report.Table(columns, cells, formats=dict.fromkeys(columns[1:], ".2f"))


def write_table(rows: Sequence[Row], folder: str | Path, notes: Sequence[str] = ()) -> list[Path]:
    """Table 1 as Markdown, CSV, JSON, LaTeX and a figure in `folder`; gives the files."""
    folder = Path(folder)
    written = list(to_table(rows, notes).write(folder, "table1").values())
    atomic_write(folder / "table1.tex", encoded(to_paper_table(rows).to_latex()))
    atomic_write(folder / "table1.png", figure_png(delta_figure(rows)))
    return [*written, folder / "table1.png"]


def delta_figure(rows: Sequence[Row]) -> Any:
    """Delta of each walker as bars, with its standard deviation."""
    values = {f"chunks {row.walker.chunks}": report.Estimate(row.delta.mean, row.delta.std) for row in rows}
    return bars(values, x_label="delta (mean ± standard deviation over anchors)")


class Study(NamedTuple):
    """A generator, the rows of its Table 1, and the noise with which it was measured."""

    generator: MultiLatentGenerator
    rows: Sequence[Row]
    distribution: NoiseDistribution
    seed: int
    device: torch.device | str
    notes: Sequence[str] = ()
    """In what it was measured otherwise than its runs recorded."""


def write_page(path: str | Path, studies: Sequence[Study], title: str, commands: str, n_images: int = 10) -> Path:
    """One self-contained HTML page: for each generator the table, delta as bars, anchors beside positives per chunk,
    chunks exchanged, and the curves of training."""
    page = Page(
        title,
        "A walker was trained on each latent variable (chunk, or group of chunks) of a frozen generator: it perturbs "
        "that part alone, so that image and perturbed image share as little information as a critic can find. The "
        "length of the perturbation, delta, and what changes in the images say what the part does.",
    )
    for study in studies:
        _add_study(page, study, n_images)
    page.section("Commands").code(commands)
    return page.write(path)


@torch.no_grad()
def _add_study(page: Page, study: Study, n_images: int) -> None:
    generator, rows = study.generator, study.rows
    shape = (n_images, generator.noise_dim)
    z, donors = (
        study.distribution.sample(shape, runtime.stream(study.seed, name, 0, 0, study.device))
        for name in ("page", "donors")
    )
    page.section(f"Table 1 of {generator.name}").table(to_table(rows, study.notes))
    page.text(
        "`of independent` is delta over the length between two independent draws of the chunk: at 100% the anchor is "
        "forgotten. `bound` is a lower bound on the mutual information of the pair, in nats."
    )
    page.figure(delta_figure(rows), f"Delta of each walker of {generator.name} as a bar")
    page.section(f"What each latent variable of {generator.name} does")
    page.text(f"The same {n_images} anchors in every row, each above its positive.")
    scale = max(1.0, 64 / generator.resolution)
    anchor = decode_shown(generator, generator.latents(z))
    for row in rows:
        positive = decode_shown(generator, row.walker.walker(generator, z).positive)
        page.rows(
            {"anchor": anchor, "positive": positive},
            f"anchors and positives of {generator.name}, chunks {row.walker.chunks}",
            f"chunks {row.walker.chunks}: delta {row.delta.mean:.2f}",
            scale=scale,
        )
    page.text("The same anchors with these chunks exchanged for those of other images, the donors; nothing is trained.")
    groups = [chunks for row in rows for chunks in row.walker.walker.chunks]
    page.image(
        swaps(generator, z, donors, groups),
        f"anchors of {generator.name}, a row per part taken from the donors, donors",
        f"anchors; {', '.join(map(str, groups))} from the donors; donors",
        scale=scale,
    )
    courses = {f"chunks {row.walker.chunks}": row.walker.rows for row in rows if row.walker.rows}
    if courses:
        page.section(f"Training of the walkers of {generator.name}").figure(
            [curves(courses, (name,), x="samples", x_label="samples") for name in ("loss", "bound_nats", "delta")],
            "Loss, bound and delta during training, a line for each walker",
            "The critic first learns to tell pairs (the loss falls), then the walker takes information away.",
        )
