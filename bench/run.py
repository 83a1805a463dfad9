"""All timings that a machine without a GPU can make, in one table: what `make bench` runs.

    python -m bench.run                  all of it
    python -m bench.run --quick          smaller pieces of work, fewer repeats
    python -m bench.run --only ksg nvae
    python -m bench.run --page           run nothing; put the results into docs/speed.md

Each piece of work runs in a process of its own, in which the plain way and ours take turns. Writes bench/results/cpu.md
and cpu.json anew after each, so what is done is there when it is stopped; with --only, other rows of this commit stay.
`make bench-gpu` is the same for a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import timing
from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.core.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULT = timing.RESULTS / "cpu"
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
BENCHES: dict[str, tuple[str, str]] = {
    "navigator 1_6": ("bench.navigator --batch 4 --chunks 1_6", "--repeats 3"),
    "navigator 5_6": ("bench.navigator --batch 4 --chunks 5_6", "--repeats 3"),
    "stylegan2": ("bench.stylegan2 --batch 4", "--batch 2"),
    "nvae": ("bench.nvae", "--repeats 3"),
    "nvae training": ("bench.nvae --training", "--repeats 3"),
    "nvae cifar10": ("bench.nvae --layout cifar10 --channels 16 --batch 8 --repeats 5", "--repeats 3"),
    "nvae cifar10 training": ("bench.nvae --layout cifar10 --channels 16 --batch 4 --training", "--repeats 3"),
    "augment": ("bench.augment", "--batch 64"),
    "sampling": ("bench.sampling", "--n 50000"),
    "monte carlo": ("bench.monte_carlo", "--n 50000"),
    "ksg": ("bench.ksg", "--n 2000"),
    "mim": ("bench.mim --processor", "--seeds 3 --seed_epochs 1"),
    "mim images": ("bench.mim_images", "--parts likelihood training --S 500 --S_conv 100 --batch 20"),
}
"""Each bench by its name: the command, and what --quick adds to it."""


def run(command: Iterable[str]) -> list[dict[str, Any]]:
    """The results of one bench, in the order in which it wrote them; a bench that fails gives what it had written."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"BENCH_RESULTS": folder}
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment)
        paths = sorted(Path(folder).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        found = [json.loads(path.read_text()) for path in paths]
    if done.returncode:
        found.append({"failed": done.returncode})
    return found


def rate(per_s: float) -> str:
    """Three digits, and no exponent for large numbers."""
    return f"{float(f'{per_s:.3g}'):,.6g}" if per_s < 1e6 else f"{float(f'{per_s:.3g}'):,.0f}"


def in_terms_of_plain(row: dict[str, Any], way: str) -> str:
    """How many times faster than the plain way, with what the turns differed."""
    median, low, high = row["times_faster_than_plain"][way]
    return f"{median:.2f} ({low:.2f} to {high:.2f})" if len(row["turns"][way]) > 1 else f"{median:.2f}"


def ways_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The package's way and what to call it in a table, then the others but the plain one."""
    here = row["here"]
    return [(here, row["what"]), *((way, f"- {way}") for way in row["seconds"] if way not in (here, row["plain"]))]


def markdown(result: dict[str, Any]) -> str:
    """The table with all numbers."""
    lines = [
        f"# Work beside the plain way on {result['machine']}", "",
        f"{result['date']}, commit {result['commit']}{', --quick' if result['quick'] else ''}, by `make bench`.", "",
        "`plain` and `here` are what the two ways get done in a second, the medians of so many `turns`, in which they "
        "work one after the other. `times faster` is the median of the turns' ratios, with the smallest and the "
        "largest of them. Seconds are of the processor, all threads together: other programs on the machine make them "
        "longer, but change the ratios less. `floor` is the time of the counted FLOPs at the rate of float32 "
        f"products of {timing.MATRIX} x {timing.MATRIX} matrices on this machine, measured beside the work, and "
        "`reached` is its share of the measured time. Work without such FLOPs has no floor. Rows that begin with - are "
        "further ways of the work above them.", "",
        "| work | unit | plain, 1/s | here, 1/s | turns | times faster | here, s | floor, s | reached |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, rows in result["benches"].items():
        for row in rows:
            if "failed" in row:
                lines.append(f"| {name}: failed with exit code {row['failed']} | | | | | | | | |")
                continue
            plain = row["seconds"][row["plain"]]
            mark = "" if row["clock"] == "processor" else " (wall)"
            for way, what in ways_of(row):
                seconds = row["seconds"][way]
                has_floor = way == row["here"] and row["gflop_per_s"]
                floor_s = row["gflop"] / row["gflop_per_s"] if has_floor else None
                end = "| |" if floor_s is None else f"{floor_s:.3g} | {floor_s / seconds:.2f} |"
                lines.append(
                    f"| {what} | {row['unit']} | {rate(row['n'] / plain)} | {rate(row['n'] / seconds)} | "
                    f"{len(row['turns'][way])} | {in_terms_of_plain(row, way)} | {seconds:.3g}{mark} | {end}"
                )
    return "\n".join(lines) + "\n"


def summary(result: dict[str, Any]) -> str:
    """The lines of docs/speed.md between its marks."""
    lines = ["| work | plain, s | here, s | times faster | turns |", "| --- | ---: | ---: | --- | ---: |"]
    for rows in result["benches"].values():
        for row in rows:
            assert "failed" not in row, row
            plain = row["seconds"][row["plain"]]
            for way, what in ways_of(row):
                cells = (what, f"{plain:.3g}", f"{row['seconds'][way]:.3g}", in_terms_of_plain(row, way))
                lines.append(f"| {' | '.join(cells)} | {len(row['turns'][way])} |")
    quick = ", with `--quick`" if result["quick"] else ""
    lines += ["", f"{result['machine']}, {result['date']}, commit {result['commit']}{quick}; seconds of the processor."]
    return "\n".join(lines)


def write_page(result: dict[str, Any], page: Path = PAGE) -> None:
    """Put the summary into docs/speed.md."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{summary(result)}\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller pieces of work, fewer repeats")
    parser.add_argument("--only", nargs="+", choices=BENCHES, metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--page", action="store_true", help="run nothing; put what cpu.json holds into docs/speed.md")
    options = parser.parse_args(argv)
    path = RESULT.with_suffix(".json")
    if options.page:
        write_page(json.loads(path.read_text()))
        return
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = {
        "machine": timing.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": git.stdout.strip() or "unknown",
        "quick": options.quick,
        "benches": {},
    }
    before = json.loads(path.read_text()) if options.only and path.exists() else {}
    same = ("machine", "commit", "quick")
    if all(before.get(key) == result[key] for key in same):
        result["benches"] = before["benches"]
    for name in options.only or BENCHES:
        command, quick = BENCHES[name]
        result["benches"][name] = run([*command.split(), *(quick.split() if options.quick else ())])
        ordered = {name: result["benches"][name] for name in BENCHES if name in result["benches"]}
        result["benches"] = ordered
        atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())
        atomic_write(RESULT.with_suffix(".md"), markdown(result).encode())
    print(f"\n{markdown(result)}\nwritten: {path.with_suffix('.md')}, {path}")
    if failed := [name for name, rows in result["benches"].items() if any("failed" in row for row in rows)]:
        raise EnvironmentFault(f"failed, see above: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main)
