"""A folder of walkers, one for each chunk or group of chunks, in subfolders: run folders of the navigator, or the
layout of the published code (chunk0/w_COPGen_N.pth with F_loss_values.npy beside)."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mi_ml_gen.core import runs
from mi_ml_gen.core.arrays import read_npy
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.information.infonce import infonce_bound
from mi_ml_gen.information.verdicts import Finding
from mi_ml_gen.navigator.keeping import at_hand
from mi_ml_gen.navigator.records import RunRecord
from mi_ml_gen.navigator.selection import (
    bound_finding,
    convergence,
    near,
    of_walker,
    recorded_marginals,
    select_checkpoint,
)
from mi_ml_gen.navigator.several import walker_file_of
from mi_ml_gen.navigator.training import walker_file
from mi_ml_gen.walkers.base import Walker
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
    several: tuple[Walker, ...] = ()
    """All walkers of a run that trained several at once, `walker` among them; empty where there is one."""
    training: str | None = None
    """How its training ended, in a word or two: "converged", "still rising" ...; None where nobody can tell."""
    bound: Finding | None = None
    """Whether the bound of the critic that it trained against may be believed; None where nobody can tell."""
    own_bound_nats: float | None = None
    """That bound, where it does not follow from `smoothed_infonce`, as with several walkers."""
    written: str | None = None
    """The T_z that this walker was written as; None where it was trained."""

    @property
    def name(self) -> str:
        """What tells it from the others of a table."""
        return self.written or f"chunks {self.chunks}"

    @property
    def chunks(self) -> str:
        return ", ".join(map(str, self.walker.chunks))

    @property
    def walkers(self) -> tuple[Walker, ...]:
        return self.several or (self.walker,)


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
    folders = folders_of_walkers(base)
    if not folders:
        raise UsageError(f"--walkers_base_path {base}: no subfolder holds walkers (chunk0/, chunk1/, ...)")
    check_count(samples, [path.name for path in folders])
    wanted = samples if samples is not None else [None] * len(folders)
    return [
        _read_run(folder, at) if (folder / "config.yaml").exists() else _read_published(folder, at, batch_size)
        for folder, at in zip(folders, wanted, strict=True)
    ]


def folders_of_walkers(base: Path) -> list[Path]:
    """The subfolders that hold walkers, in natural order."""
    holds = ("config.yaml", "*.pth")
    found = [path for path in base.iterdir() if path.is_dir() and any(list(path.glob(name)) for name in holds)]
    return sorted(found, key=lambda path: natural_key(path.name))


def check_count(samples: Sequence[int] | None, names: Sequence[str]) -> None:
    """Refuse by UsageError checkpoints that are not one for each folder."""
    if samples is not None and len(samples) != len(names):
        raise UsageError(f"--walkers_iter: {len(samples)} given for {len(names)} folders ({', '.join(names)})")


def recorded(base: str | Path) -> list[RunRecord]:
    """What the runs in the subfolders of `base` were made with, in natural order; empty where there are none."""
    folders = [path.parent for path in Path(base).glob("*/config.yaml")]
    return [RunRecord.read(folder) for folder in sorted(folders, key=lambda path: natural_key(path.name))]


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts numbers within names by value."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _read_run(folder: Path, samples: int | None) -> TrainedWalker:
    settings, rows = runs.read_config(folder), _rows(folder)
    if settings.get("walkers", 1) > 1:
        return _read_several(folder, samples, settings, rows)
    n_pairs = settings["batch_size"]
    if settings["negatives"] == "global":
        n_pairs *= settings["n_processes"]
    there = at_hand(rows, partial(walker_file, folder))
    if not any(row["saved"] for row in there):
        raise UsageError(f"{folder}: no walker has been saved yet")
    done = runs.read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    if samples is None:
        samples = select_checkpoint(there, done.get("independent_delta", math.inf)).samples
    saved = [row["samples"] for row in there if row["saved"]]
    if samples not in saved:
        nearest = min(saved, key=lambda n: abs(n - samples))
        raise UsageError(f"{folder}: no walker of {samples} samples; the nearest has {nearest}")
    walker = load_walker(walker_file(folder, samples))
    loss = near(rows, samples)["loss"]
    record = RunRecord.read(folder)
    converged, why = convergence(rows, _was_stopped_by_rule(folder))
    limit = infonce_bound(loss, n_pairs, settings["temp"])
    marginals = recorded_marginals(done) if done.get("selected_samples") == samples else None
    finding = bound_finding(limit.nats, limit.ceiling_nats, converged, why, marginals=marginals)
    return TrainedWalker(
        folder, walker, samples, loss, loss, n_pairs, settings["temp"], tuple(rows), record,
        training=_in_short(converged, why), bound=finding,
    )  # fmt: skip


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run. Raises CorruptCheckpointError where they are damaged, or end before the run did."""
    rows, summary = runs.read_metrics(folder, whole=True), folder / "summary.json"
    n_trained = runs.read_json(summary).get("trained_samples", 0) if summary.exists() else 0
    if (n_told := rows[-1]["samples"] if rows else 0) < n_trained:
        raise CorruptCheckpointError(
            f"{folder / 'metrics.jsonl'}: damaged: ends after {n_told:,} samples, but the run had {n_trained:,}"
        )
    return rows


def _was_stopped_by_rule(folder: Path) -> bool:
    """Whether a stopping rule ended a finished run; a run that is not finished was not stopped."""
    if not (folder / "summary.json").exists():
        return False
    return not str(runs.read_json(folder / "summary.json").get("stopped_because", "all ")).startswith("all ")


_ENDS = {"still rising": "still rising", "still falling": "still falling", "not turned": "loss has not turned",
         "too few": "too short to tell"}  # fmt: skip


def _in_short(converged: bool, why: str) -> str:
    """The end of a training, from the sentence of `convergence`, for a cell of the table."""
    return "converged" if converged else next((short for part, short in _ENDS.items() if part in why), "not converged")


def _read_several(
    folder: Path, samples: int | None, settings: dict[str, Any], rows: list[dict[str, Any]]
) -> TrainedWalker:
    """A run of several walkers: each at its own selected checkpoint, or all at the same one."""
    n = settings["walkers"]
    own = [of_walker(rows, i) for i in range(n)]
    there = [at_hand(one, partial(walker_file_of, folder, i)) for i, one in enumerate(own)]
    if not all(any(row["saved"] for row in one) for one in there):
        raise UsageError(f"{folder}: no walker has been saved yet")
    done = runs.read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    independent = done.get("independent_delta", math.inf)
    at = [samples if samples is not None else select_checkpoint(one, independent).samples for one in there]
    walkers = [load_walker(walker_file_of(folder, i, n_seen)) for i, n_seen in enumerate(at)]
    ends = [convergence(one, stopped_by_rule=False) for one in own]
    unfinished = [why for converged, why in ends if not converged]
    why = unfinished[0] if unfinished else "the loss had stopped rising"
    bounds = [near(one, n_seen)["bound_nats"] for one, n_seen in zip(own, at, strict=True)]
    finding = bound_finding(max(bounds), math.log(settings["batch_size"]), not unfinished, why, from_both_sides=False)
    median = done.get("median_walker", 0)
    return TrainedWalker(
        folder, walkers[median], at[median], None, None, settings["batch_size"], settings["temp"], tuple(rows),
        RunRecord.read(folder), tuple(walkers), _in_short(not unfinished, why), finding, statistics.fmean(bounds),
    )  # fmt: skip


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
    losses = read_npy(path)
    if losses.ndim != 1 or not np.issubdtype(losses.dtype, np.floating) or not len(losses):
        raise CorruptCheckpointError(f"{path}: must be a list of losses, has shape {losses.shape} of {losses.dtype}")
    return losses


__all__ = ["SMOOTHED_STEPS", "TrainedWalker", "check_count", "find_walkers", "folders_of_walkers", "natural_key",
           "recorded"]  # fmt: skip
