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

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the files")
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME",
        help='families, or "bmi" for the tasks of that benchmark (default: all families)',
    )  # fmt: skip
    parser.add_argument(
        "--nats",
        nargs="+",
        type=float,
        default=[0.5, 2.0, 4.0],
        metavar="X",
        help="levels of information, in nats (default: 0.5 2 4)",
    )
    parser.add_argument(
        "--dims", nargs="+", type=int, default=[1, 5], metavar="D", help="numbers of dimensions (default: 1 5)"
    )
    parser.add_argument(
        "--n", type=int, default=10_000, metavar="N", help="number of pairs in each file (default: 10000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--list", action="store_true", help="list the tasks, and stop")
    arguments = parser.parse_args(argv)
    if arguments.n < 1 or arguments.seed < 0 or min(arguments.dims) < 1:
        raise UsageError("--n and --dims must be at least 1, --seed at least 0")
    cli.loading()
    from mi_ml_gen.generators import known_images  # noqa: F401 - registers its tasks
    from mi_ml_gen.information import task_files, tasks

    families = [name for name in arguments.tasks or tasks.TASKS.names() if name != "bmi"]
    for name in families:
        tasks.TASKS.check(name)
    chosen = list(tasks.grid(arguments.nats, arguments.dims, families))
    if "bmi" in arguments.tasks:
        chosen += tasks.bmi_tasks()
    if not chosen:
        raise UsageError("--nats and --dims: no task reaches any of these levels; --nats 2 has one of every family")
    if arguments.list:
        print(*chosen, sep="\n")
        return
    paths = task_files.export_tasks(arguments.out, chosen, arguments.n, arguments.seed)
    print(f"{len(paths)} tasks of {arguments.n:,} pairs, and load_task.py, in {arguments.out}")


if __name__ == "__main__":
    cli.run(main)
