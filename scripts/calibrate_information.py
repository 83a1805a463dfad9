#!/usr/bin/env python3
"""Test every estimator of mutual information on pairs whose information is known.

    python scripts/calibrate_information.py --quick --out quick        # a few minutes
    python scripts/calibrate_information.py                            # hours on one core; stop it when you like

Writes information.html (errors, intervals and verdicts, with every estimate), information.json and images/. Ctrl-C
stops the run and writes the page of what is done. The same command then does what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.experiments.settings import InformationConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, InformationConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.experiments import information_calibration

    results = information_calibration.calibrate(settings)
    grid = [result for result in results if result.cell.part == "grid"] or results
    print(information_calibration.summary_table(information_calibration.summarise(grid)).to_terminal())
    if (public := information_calibration.public_table(results)) is not None:
        print(public.to_terminal())
    print(f"page: {settings.save_folder}/information.html")


if __name__ == "__main__":
    cli.run(main)
