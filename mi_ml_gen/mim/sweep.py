"""The published comparisons of MIM with VAE, each a loop over a width and over seeds (Livne et al. 2019, section 5).

    expressiveness    toy4, hidden units from 5 to 500
    entropy           the same with the joint entropy added to VAE and taken from MIM (--inv-H-loss)
    bottleneck        five Gaussians in 20 dimensions, latent dimensions from 2 to 20
    bottleneck-pca    20 principal coefficients of Fashion-MNIST, latent dimensions from 2 to 20

    for result in run_sweep(settings):     # trains what is missing, reads back what is there
        ...
    write_report(settings)                 # figure.png, table.*, runs.csv of all that is there

The folder of a sweep:

    FOLDER/SECTION[-quick]/config.yaml             the settings that all its runs share
                           mim-samp_20/seeds_1-3/  one run folder (`mi_ml_gen.mim.training`) of stacked seeds
                           runs.csv  table.*  figure.png  models.png

All seeds of a point train at once as one stacked model. Seeds and values may be added later: what is finished stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mi_ml_gen.core import config, runs, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import atomic_write, read_json, read_with_hash, write_json
from mi_ml_gen.mim import datasets, pictures
from mi_ml_gen.mim.evaluate import over_seeds
from mi_ml_gen.mim.model import load_mim
from mi_ml_gen.mim.settings import MimConfig
from mi_ml_gen.mim.sweep_settings import MIM as MIM
from mi_ml_gen.mim.sweep_settings import PLANE_DATA, Method, SweepConfig
from mi_ml_gen.mim.sweep_settings import SECTIONS as SECTIONS
from mi_ml_gen.mim.sweep_settings import VAE as VAE
from mi_ml_gen.mim.training import member_folder, train_seeds
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import figure_png
from mi_ml_gen.report.images import save_png
from mi_ml_gen.report.text import csv_text

QUANTITIES = {
    "MI_ksg": "Mutual information, KSG (nats)",
    "H_q_x": "NLL (nats)",
    "x_recon_err": "Reconstruction error",
    "clf_acc_KNN5": "KNN-5 accuracy",
}
"""The four figures of a section."""


class Row(NamedTuple):
    """The results of one seed at one point."""

    method: Method
    value: int
    seed: int
    statistics: Mapping[str, float]


class Result(NamedTuple):
    """One point that is finished: its rows, and whether they were trained just now."""

    method: Method
    value: int
    rows: list[Row]
    is_new: bool
    wall_s: float

    @property
    def line(self) -> str:
        """What there is to say of it in one line."""
        summary = over_seeds(row.statistics for row in self.rows)
        told = ", ".join(f"{name} {summary[name].value:.3f}" for name in QUANTITIES if name in summary)
        how = f"{self.wall_s:.0f} s" if self.is_new else "read back"
        return f"{self.method.label} {self.value}: {told} over {len(self.rows)} seeds ({how})"


@dataclass(frozen=True)
class Group:
    """The run folder of some seeds of a point, seeds_1-3, whether it is there or not."""

    path: Path
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, point: Path, seeds: Sequence[int]) -> Group:
        name = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
        return cls(point / f"seeds_{name}", tuple(seeds))

    @cached_property
    def statistics(self) -> dict[int, dict[str, float]]:
        """Of the seeds that are finished."""
        files = {seed: self.folder(seed) / "results.csv" for seed in self.seeds}
        return {seed: read_statistics(file) for seed, file in files.items() if file.exists()}

    def folder(self, seed: int) -> Path:
        """Of one seed's files."""
        return member_folder(self.path, seed, len(self.seeds))

    @property
    def is_finished(self) -> bool:
        return set(self.statistics) == set(self.seeds)


def run_sweep(settings: SweepConfig, progress: bool = True) -> Iterator[Result]:
    """Train what is missing, one point after the other, and give each point as it is finished.

    The same settings go on with an interrupted sweep. Raises UsageError where the folder was made with others,
    and what `train_seeds` raises.
    """
    free = ("seeds", "values", "at_once", "save_folder", "data_root", "device")
    dataset = None
    with runs.RunFolder.open(settings.path, config.to_dict(settings), **config.resuming(SweepConfig) | {"free": free}):
        for value in settings.wanted_values:
            for method in settings.about.methods:
                started, is_new = time.perf_counter(), False
                for group in unfinished(settings, method, value):
                    dataset = dataset or _load(settings)
                    _train(settings.run_settings(method, value), group, dataset, progress)
                    is_new = True
                rows = [row for row in read_rows(settings) if (row.method, row.value) == (method, value)]
                yield Result(method, value, rows, is_new, time.perf_counter() - started)


def unfinished(settings: SweepConfig, method: Method, value: int) -> list[Group]:
    """The groups that still have to be trained for the wanted seeds: begun ones as they were, then new ones."""
    point = _point(settings, method, value)
    known = found_groups(point)
    begun = [group for group in known if not group.is_finished and set(group.seeds) & set(settings.wanted_seeds)]
    covered = {seed for group in known for seed in group.seeds}
    missing = [seed for seed in settings.wanted_seeds if seed not in covered]
    new: list[list[int]] = []
    for seed in missing:
        if new and seed == new[-1][-1] + 1 and len(new[-1]) < settings.at_once:
            new[-1].append(seed)
        else:
            new.append([seed])
    return begun + [Group.of(point, seeds) for seeds in new]


def found_groups(point: Path) -> list[Group]:
    """The run folders of a point, by their first seed."""
    groups = []
    for path in point.glob("seeds_*"):
        first, _, last = path.name.removeprefix("seeds_").partition("-")
        if first.isdecimal() and (not last or last.isdecimal()) and (path / "config.yaml").exists():
            groups.append(Group(path, tuple(range(int(first), int(last or first) + 1))))
    return sorted(groups, key=lambda group: group.seeds)


def read_rows(settings: SweepConfig) -> list[Row]:
    """All finished runs of the wanted values and seeds, by value, method and seed."""
    rows = []
    for value in settings.wanted_values:
        for method in settings.about.methods:
            for group in found_groups(_point(settings, method, value)):
                found = group.statistics.items()
                rows += [Row(method, value, seed, row) for seed, row in found if seed in settings.wanted_seeds]
    return rows


def read_statistics(path: Path) -> dict[str, float]:
    """A results.csv: lines of a name and a number. Raises CorruptCheckpointError for anything else."""
    try:
        pairs = [line.split(",") for line in read_with_hash(path, hash_required=False).decode().splitlines()]
        return {name: float(value) for name, value in pairs}
    except ValueError as error:
        raise CorruptCheckpointError(f"{path}: not lines of name,number; remove it to measure it again") from error


# --- the report ---------------------------------------------------------------------------------------------


def write_report(settings: SweepConfig) -> list[Path]:
    """The figure, the table over seeds and the table of all runs, of what is finished; gives the files.

    Of two-dimensional data also models.png: reconstructions and latents of the first seed's models, a row a method.
    Raises UsageError where nothing is finished.
    """
    rows = read_rows(settings)
    if not rows:
        raise UsageError(f"{settings.path}: no run is finished there; leave out --report-only to train")
    path, about = settings.path, settings.about
    atomic_write(path / "runs.csv", _runs_csv(rows, about.varied).encode())
    figure = pictures.band_figure(series(rows), QUANTITIES, about.x_label)
    atomic_write(path / "figure.png", figure_png(figure))
    written = [path / "figure.png", path / "runs.csv", *sweep_table(rows, settings).write(path, "table").values()]
    if (picture := models_picture(settings)) is not None:
        written.append(save_png(path / "models.png", picture))
    return written


def models_picture(settings: SweepConfig) -> np.ndarray | None:
    """Frames of the first finished seed's models, uint8 (h, w, 3): a row a method, a column a value. None where the
    data have not two dimensions."""
    if settings.about.dataset not in PLANE_DATA:
        return None
    data = _load(settings)
    lines = []
    for method in settings.about.methods:
        frames = []
        for value in sorted(settings.wanted_values):
            folders = [group.folder(min(group.statistics)) for group in _finished(settings, method, value)]
            if folders:
                model = load_mim(folders[0] / "best.safetensors", device=data.test.x.device)
                rng = runtime.stream(0, "mim frame", 0, 0, data.test.x.device)
                frames.append(pictures.progress_frame(model, data, rng, f"{method.label} {value}"))
        if frames:
            lines.append(np.concatenate(frames, axis=1))
    width = max(line.shape[1] for line in lines)
    return np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in lines])


def series(rows: Sequence[Row]) -> dict[str, dict[float, dict[str, report.Estimate]]]:
    """For each method, for each value, mean and standard error over seeds of each quantity."""
    result: dict[str, dict[float, dict[str, report.Estimate]]] = {}
    for method in dict.fromkeys(row.method.label for row in rows):
        own = [row for row in rows if row.method.label == method]
        values = sorted({row.value for row in own})
        result[method] = {v: over_seeds(row.statistics for row in own if row.value == v) for v in values}
    return result


def sweep_table(rows: Sequence[Row], settings: SweepConfig) -> report.Table:
    """A line for each method and value."""
    about = settings.about
    columns = [about.x_label, "method", "seeds", *QUANTITIES.values(), "best epoch"]
    cells: list[list[report.Cell]] = []
    for label, points in series(rows).items():
        for value, summary in points.items():
            n = sum((row.method.label, row.value) == (label, value) for row in rows)
            shown = [summary.get(name) for name in (*QUANTITIES, "epoch")]
            cells.append([int(value), label, n, *shown])
    cells.sort(key=lambda line: (line[0], [m.label for m in about.methods].index(str(line[1]))))
    caption = f"{about.dataset}: mean and standard error over seeds; at most {settings.wanted_epochs} epochs."
    formats = {"best epoch": ".1f"}
    for name, title in QUANTITIES.items():
        is_wild = any(abs(row.statistics.get(name, 0.0)) > pictures.WILD for row in rows)
        formats[title] = ".3g" if is_wild else ".3f"
    return report.Table(columns, cells, caption, formats)


def _runs_csv(rows: Sequence[Row], varied: str) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.statistics))
    lines = ([row.method.name, row.value, row.seed, *(row.statistics.get(name, "") for name in names)] for row in rows)
    return csv_text([["method", varied, "seed", *names], *lines])


# --- the parts ----------------------------------------------------------------------------------------------


def _train(settings: MimConfig, group: Group, dataset: datasets.Dataset, progress: bool) -> None:
    """Train a group and add the time that it took to its seconds.json, also when it is stopped."""
    timer, wall, processor = group.path / "seconds.json", time.perf_counter(), time.process_time()
    before: dict[str, Any] = read_json(timer) if timer.exists() else {}
    try:
        train_seeds(settings, group.seeds, path=group.path, dataset=dataset, progress=progress)
    finally:
        taken = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        if group.path.is_dir():
            total = {name: before.get(name, 0.0) + seconds for name, seconds in taken.items()}
            write_json(timer, total)


def _load(settings: SweepConfig) -> datasets.Dataset:
    return datasets.load(
        settings.about.dataset, as_published=settings.as_published, root=settings.data_root, device=settings.device
    )


def _finished(settings: SweepConfig, method: Method, value: int) -> list[Group]:
    """The groups of a point with any results."""
    return [group for group in found_groups(_point(settings, method, value)) if group.statistics]


def _point(settings: SweepConfig, method: Method, value: int) -> Path:
    return settings.path / f"{method.name}_{value}"
