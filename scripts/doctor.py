#!/usr/bin/env python3
"""Check this machine: Python, torch, GPUs, FFCV, caches, disk and weights. Prints a command for each problem.

    python scripts/doctor.py

ok: it works; none: it is optional and missing; warn: it works in part; fail: it is required and does not work. The
exit code is 0 if everything that is required works, and 4 otherwise.
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
    parser.add_argument("--quick", action="store_true", help="skip the check that starts processes with torchrun")
    arguments = parser.parse_args(argv)
    if sys.stderr.isatty():
        print("checking this machine; this can take half a minute ...", file=sys.stderr, flush=True)
    findings = doctor.examine(processes=not arguments.quick)
    print(doctor.to_text(findings, min(120, shutil.get_terminal_size((100, 24)).columns)))
    return 0 if doctor.is_well(findings) else EnvironmentFault.exit_code


if __name__ == "__main__":
    cli.run(main)
