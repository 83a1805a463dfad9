"""Tasks as files for users of other packages (`bmi`, `mutinfo`, or any estimator): samples beside their true value.

Each task is one .npz: x (n, d_x), y (n, d_y) in float64, nats, and `about`, JSON text of the rest. The folder holds
`load_task.py` as well, ten lines that need NumPy alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.core.runtime import stream
from mi_ml_gen.information.tasks import Task

LOADER = '''\
"""Read a task: pairs (x, y) and their true mutual information. Needs NumPy alone."""
import json
import numpy as np


def load_task(path):
    """x (n, d_x), y (n, d_y), the true mutual information in nats, and a dict of what the task is."""
    with np.load(path) as file:
        return file["x"], file["y"], float(file["nats"]), json.loads(str(file["about"]))
'''


def export_tasks(folder: str | Path, tasks: Sequence[Task], n: int, seed: int = 0) -> list[Path]:
    """Write n pairs of each task, and the loader, into a folder; gives the paths of the tasks' files, in order.

    The pairs are a function of (seed, the file's name). Raises UsageError for n below 1, and for two tasks that would
    have one file; nothing is written then.
    """
    if n < 1:
        raise UsageError(f"{n} pairs of each task: must be at least 1")
    names = [file_name(task) for task in tasks]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"tasks: two would be written to {twice[0]}; give each level and dimension once")
    paths = []
    for task, name in zip(tasks, names, strict=True):
        x, y = task.sample(n, stream(seed, name, 0, 0))
        about = {"name": task.name, "d_x": task.d_x, "d_y": task.d_y, "n": n, "seed": seed, **task.parameters}
        content = {"x": x.numpy(), "y": y.numpy(), "nats": np.float64(task.nats), "about": json.dumps(about)}
        path = Path(folder) / name
        atomic_write(path, lambda file, content=content: np.savez(file, **content))  # type: ignore[misc]
        paths.append(path)
    atomic_write(Path(folder) / "load_task.py", LOADER.encode())
    return paths


def file_name(task: Task) -> str:
    """Such as "normal_5x5_2nats.npz"."""
    nats = f"{task.nats:.4f}".rstrip("0").rstrip(".")
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', task.name)}_{task.d_x}x{task.d_y}_{nats}nats.npz"
