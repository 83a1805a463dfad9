#!/usr/bin/env python3
"""Look at this machine: Python, torch, GPUs, FFCV, caches, disk, weights; and how to mend what is not right.

    python scripts/doctor.py

ok: works; none: optional, and not there; warn: works in part; fail: required, and it does not work. Exits with 0 when
all that is required works, else with 4.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.hub import doctor


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(works_anywhere=True, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="do not start processes by torchrun")
    arguments = parser.parse_args(argv)
    if sys.stderr.isatty():
        print("checking this machine; this can take half a minute ...", file=sys.stderr, flush=True)
    findings = doctor.examine(processes=not arguments.quick)
    print(doctor.to_text(findings, min(120, shutil.get_terminal_size((100, 24)).columns)))
    return 0 if doctor.is_well(findings) else EnvironmentFault.exit_code


if __name__ == "__main__":
    cli.run(main)
