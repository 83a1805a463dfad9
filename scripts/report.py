#!/usr/bin/env python3
"""Show runs side by side on one page: settings that differ, curves, last numbers with their verdicts, and pictures.

    python scripts/report.py walker_runs/0_tiny-bigbigan_0_1_none walker_runs/1_tiny-bigbigan_0_1_none --out report.html
    python scripts/report.py encoder_runs/*

RUN is a run folder of any training script. The page is one file that needs no other file and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="PATH", help="the HTML file to write")
    a = parser.parse_args(argv)
    if a.out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {a.out}: must end in .html")
    for run in a.runs:
        if not (run / "config.yaml").is_file():
            raise UsageError(f"RUN {run}: not a run folder, there is no config.yaml in it")
    cli.loading()
    from mi_ml_gen.experiments.run_report import write_report

    print(f"written: {write_report(a.runs, a.out)}")


if __name__ == "__main__":
    cli.run(main)
