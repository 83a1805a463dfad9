"""What a run was made with: environment.json in its folder, one entry for each start of the command.

    {"starts": [{"command": ..., "at": "2025-03-01T10:00:00Z", "elapsed_s": 812.4, "device": ..., ...}]}

An entry says when the command began and, once it ended in order, how long it took; after a kill that is missing.
"""

from __future__ import annotations

import datetime
import logging
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen import __version__
from mi_ml_gen.core.errors import EnvironmentFault, MiMlGenError
from mi_ml_gen.core.files import read_json, write_json

logger = logging.getLogger(__name__)

NAME = "environment.json"


class Record:
    """One start of a command in a run folder; written when it is made, and again by `end`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._began = time.monotonic()
        self._starts = [*read(folder), {"command": command(), "at": _now(), **describe()}]
        self._write()

    def end(self) -> None:
        """Note how long it took, and on which GPU, known by now. A full disk is reported, not raised: the run's own
        outcome matters more."""
        self._starts[-1] |= {"elapsed_s": round(time.monotonic() - self._began, 1), "device": device_name()}
        try:
            self._write()
        except EnvironmentFault as error:
            logger.warning("%s", error)

    def _write(self) -> None:
        write_json(self._path, {"starts": self._starts})


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The starts in a run folder, oldest first; empty where there is no such record, or it is damaged."""
    path = Path(folder) / NAME
    if not path.exists():
        return []
    try:
        starts = read_json(path).get("starts")
    except MiMlGenError as error:
        logger.warning("%s; the record is passed over", error)
        return []
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        logger.warning("%s: damaged, no list of starts; the record is passed over", path)
        return []
    return starts


def describe() -> dict[str, Any]:
    """Software and machine, as far as they matter for numbers and times."""
    return {
        "device": device_name(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mi_ml_gen": __version__,
    }


def device_name() -> str:
    """The GPU in use, or "cpu". Asking for its name would claim one, so a GPU counts once something is on it."""
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu"


def cpu_name() -> str:
    """As the kernel calls it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command() -> str:
    """The command line, for people to repeat: a script by its name and not by where it lies."""
    script, *rest = sys.argv or [""]
    path = Path(script)
    if path.suffix == ".py" and path.parent.name == "scripts":
        words = ["python", f"scripts/{path.name}"]
    elif script.startswith("mi-ml-gen "):
        words = script.split()
    else:
        words = [path.name or "python"]
    return shlex.join([*words, *rest])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
