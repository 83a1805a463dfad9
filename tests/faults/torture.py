"""Run the cases of the fault harness and write what came out into docs/reliability.md; `make torture` runs this.

    python -m tests.faults.torture                       # all cases; one that is stopped goes on
    python -m tests.faults.torture --only killed rot     # those of some promises
    python -m tests.faults.torture --list                # their names

Each case runs in a process forked off this one, which has imported everything and computed nothing, in a folder of its
own. Results go to results.jsonl in --folder, one line a case. A case counts as done while neither the package nor the
harness has changed since.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import mi_ml_gen
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.core.progress import Bar
from tests.faults import cases, children
from tests.faults.cases import ROWS, Case

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
NOT_HERE = "not here: "
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"


# --- one case


def run(case: Case, folder: Path) -> dict[str, Any]:
    """The case's outcome: {"passed": bool, "why": "" or what happened, "wall_s": seconds}; passed is None where this
    machine does not allow the case."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began_s = time.monotonic()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()  # its children form a group with it, to be ended together
        os.close(read)
        _check(case, folder, write)
    os.close(write)
    try:
        why = _outcome(pid, read, case.limit_s)
    finally:  # also where this process is interrupted
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    passed = None if why.startswith(NOT_HERE) else why == ""
    return {"passed": passed, "why": why, "wall_s": round(time.monotonic() - began_s, 2)}


def _check(case: Case, folder: Path, write: int) -> None:
    why = "?"
    try:
        with open(os.devnull, "r+b") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        case.check(folder)
        why = ""
    except children.NotHere as error:
        why = f"{NOT_HERE}{error}"
    except BaseException as error:
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:1500]} [{' '.join(frames[1:])}]"
    finally:
        os.write(write, json.dumps(why).encode())
        os._exit(0)


def _outcome(pid: int, read: int, limit_s: float) -> str:
    deadline_s = time.monotonic() + limit_s
    while True:
        if (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0):
            break
        if time.monotonic() > deadline_s:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)
            return f"not done after {limit_s:.0f} s"
        time.sleep(0.005)
    with os.fdopen(read, "rb") as pipe:
        os.set_blocking(pipe.fileno(), False)
        said = pipe.read()
    return json.loads(said) if said else f"the case's process ended with {os.waitstatus_to_exitcode(ended[1])}"


# --- all cases


def prepare(folder: Path) -> None:
    """Import everything, so that forked processes need not, and compute nothing, which would start threads."""
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(mi_ml_gen.__path__, "mi_ml_gen."):
        with contextlib.suppress(ImportError):  # extras that are not installed
            importlib.import_module(module.name)
    for name in ("torch._dynamo", "scipy.stats", "matplotlib.backends.backend_agg", "PIL.JpegImagePlugin"):
        importlib.import_module(name)
    children.SHARED = folder / f"whole runs of {fingerprint()[:12]}"
    cases.families()
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page in every child


def fingerprint() -> str:
    """Of the package and the harness: results of other code do not count."""
    digest = hashlib.sha256()
    for place in (ROOT / "mi_ml_gen", ROOT / "tests"):
        for file in sorted(place.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


class Results:
    """Outcomes by case, in a file that processes may share."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self._key = path, {"code": fingerprint(), "seed": seed}
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a last line cut short
                    row = json.loads(line)
                    if all(row[key] == value for key, value in self._key.items()):
                        self.found[row["case"]] = row

    def add(self, case: Case, outcome: dict[str, Any]) -> None:
        row = {"case": str(case), "row": case.row} | outcome | self._key
        self.found[str(case)] = row
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(row).encode() + b"\n")


def run_all(wanted: Sequence[Case], results: Results, folder: Path, progress: bool = True) -> None:
    waiting = [case for case in wanted if str(case) not in results.found]
    place = folder / f"case of {os.getpid()}"
    failed = sum(results.found[str(case)]["passed"] is False for case in wanted if str(case) in results.found)
    bar = Bar(total=len(wanted), initial=len(wanted) - len(waiting), unit="case", disable=not progress)
    for case in waiting:
        outcome = run(case, place)
        results.add(case, outcome)
        if outcome["passed"] is False:
            failed += 1
            bar.write(f"failed: {case}: {outcome['why']}")
        bar.set_postfix({"failed": failed})
        bar.update(1)
    bar.close()


# --- the page


def table(defined: Iterable[Case], found: dict[str, dict[str, Any]], seed: int) -> str:
    """Markdown: cases, passes and failures of each promise, and the failures by name."""
    lines = ["| promise | `--only` | cases | run | passed | failed |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    defined, total, failures = list(defined), [0, 0, 0, 0], []
    for row, promise in ROWS.items():
        members = [case for case in defined if case.row == row]
        outcomes = [found[str(case)] for case in members if str(case) in found]
        outcomes = [outcome for outcome in outcomes if outcome["passed"] is not None]
        n_passed = sum(outcome["passed"] for outcome in outcomes)
        counts = [len(members), len(outcomes), n_passed, len(outcomes) - n_passed]
        total = [one + other for one, other in zip(total, counts, strict=True)]
        lines.append(f"| {promise} | {row} | " + " | ".join(f"{count:,}" for count in counts) + " |")
        failures += [
            f"- {outcome['case']}: {outcome['why'].replace(f'{ROOT}/', '')[:300]}"  # no paths of this machine
            for outcome in outcomes
            if not outcome["passed"]
        ]
    lines.append("| together | | " + " | ".join(f"**{count:,}**" for count in total) + " |")
    about = (
        f"mi_ml_gen {mi_ml_gen.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}, {platform.system()} on {os.cpu_count()} virtual CPUs, seed {seed}."
    )
    return "\n".join([*lines, "", about, *(["", "What failed:", "", *failures] if failures else [])])


def write_page(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{page}: lacks {BEGIN} or {END}"
    atomic_write(page, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the cases of the fault harness.")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=ROWS, help=f"of {', '.join(ROWS)}")
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    parser.add_argument("--seed", type=int, default=0, help="of random places and moments")
    parser.add_argument("--limit", type=int, help="run only so many cases, spread over all families")
    parser.add_argument("--sample", action="store_true", help="only those few of each family that the test suite runs")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "torture", help="for results and work")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes")
    parser.add_argument("--again", action="store_true", help="run also what is done")
    parser.add_argument("--no-page", action="store_true", help="leave the page as it is")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and stop")
    arguments = parser.parse_args(argv)

    everything = cases.all_cases(arguments.seed)
    wanted = cases.sample(arguments.seed) if arguments.sample else everything
    wanted = [case for case in wanted if arguments.match in str(case)]
    wanted = [case for case in wanted if arguments.only is None or case.row in arguments.only][: arguments.limit]
    if arguments.list:
        print("\n".join(map(str, wanted)))
        return 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    prepare(arguments.folder)
    results = Results(arguments.folder / "results.jsonl", arguments.seed)
    if arguments.again:
        results.found.clear()
    run_all(wanted, results, arguments.folder)
    gc.unfreeze()
    if not arguments.no_page:
        write_page(arguments.page, table(everything, results.found, arguments.seed))
    n_failed = sum(results.found[str(case)]["passed"] is False for case in wanted)
    print(f"{len(wanted):,} cases, {n_failed:,} failed; all outcomes: {results.path}")
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
