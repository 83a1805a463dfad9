"""Trackers that a run may be followed in beside its own folder; imported only where they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mi_ml_gen.core.errors import EnvironmentFault, UsageError

TRACKERS = ("wandb", "tensorboard")

OnRow = Callable[[Mapping[str, Any]], None]


def add_flags(parser: Any) -> None:
    """Declare --logging and --wandb_id, what `tracker` is given."""
    about = "also send the metrics to a tracker: wandb (the default) or tensorboard"
    parser.add_argument("--logging", nargs="?", const="wandb", choices=TRACKERS, help=about)
    about = "id of the Weights & Biases run to continue; implies --logging wandb"
    parser.add_argument("--wandb_id", metavar="ID", help=about)


@contextmanager
def tracker(
    kind: str | None, path: Path, settings: Mapping[str, Any], wandb_id: str | None = None
) -> Iterator[OnRow | None]:
    """A function that takes each line of metrics to a tracker: "wandb", "tensorboard" (into path/tensorboard), or
    None for no function. Only the first process of several tracks.

    wandb_id: an existing run of Weights & Biases, which goes on; it must be there. By default the folder's name is the
    id.

    Raises EnvironmentFault where the tracker's package is not installed, UsageError for another kind.
    """
    if wandb_id is not None:
        if kind not in (None, "wandb"):
            raise UsageError(f"--wandb_id {wandb_id}: is for --logging wandb, not {kind}")
        kind = "wandb"
    if kind is None or os.environ.get("RANK", "0") != "0":
        yield None
        return
    if kind not in TRACKERS:
        raise UsageError(f"--logging {kind}: must be one of {', '.join(TRACKERS)}")
    with _wandb(path, settings, wandb_id) if kind == "wandb" else _tensorboard(path, settings) as on_row:
        yield on_row


@contextmanager
def _wandb(path: Path, settings: Mapping[str, Any], wandb_id: str | None) -> Iterator[OnRow]:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb") from error
    which = {"id": path.name, "resume": "allow"} if wandb_id is None else {"id": wandb_id, "resume": "must"}
    run = wandb.init(project="mi_ml_gen", name=path.name, config=dict(settings), **which)
    try:
        yield lambda row: run.log(_numbers(row), step=int(row["step"]))
    finally:
        run.finish()


@contextmanager
def _tensorboard(path: Path, settings: Mapping[str, Any]) -> Iterator[OnRow]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error
    with SummaryWriter(str(path / "tensorboard")) as writer:

        def on_row(row: Mapping[str, Any]) -> None:
            for name, value in _numbers(row).items():
                writer.add_scalar(name, value, int(row["step"]))

        yield on_row


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "step"}


def _missing(package: str) -> EnvironmentFault:
    return EnvironmentFault(f"--logging {package}: needs {package}; pip install 'mi_ml_gen[track]'")
