#!/usr/bin/env python3
"""Write pairs of known mutual information as .npz files, to test estimators of other packages.

    python scripts/export_tasks.py --out tasks
    python scripts/export_tasks.py --out tasks --tasks normal student --nats 0.5 2 --dims 1 5 --n 5000
    python scripts/export_tasks.py --out tasks --list

Each file holds x (n, d_x), y (n, d_y), and the true value in nats, exact to 1e-6. load_task.py beside the files reads
them with NumPy alone. If a family cannot reach a level in some dimension, that file is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments.settings import TaskFilesConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, TaskFilesConfig, file=False)
    parser.add_argument("--list", action="store_true", help="list the tasks, and stop")
    arguments = parser.parse_args(argv)
    a = config.from_arguments(TaskFilesConfig, arguments, file=False)
    cli.loading()
    from mi_ml_gen.generators import known_images  # noqa: F401 - registers its tasks
    from mi_ml_gen.information import task_files, tasks

    families = [name for name in a.tasks or tasks.TASKS.names() if name != "bmi"]
    for name in families:
        tasks.TASKS.check(name)
    chosen = list(tasks.grid(a.nats, a.dims, families))
    if "bmi" in a.tasks:
        chosen += tasks.bmi_tasks()
    if not chosen:
        raise UsageError("--nats and --dims: no task reaches any of these levels; --nats 2 has one of every family")
    if arguments.list:
        print(*chosen, sep="\n")
        return
    paths = task_files.export_tasks(a.out, chosen, a.n, a.seed)
    print(f"{len(paths)} tasks of {a.n:,} pairs, and load_task.py, in {a.out}")


if __name__ == "__main__":
    cli.run(main)
