#!/usr/bin/env python3
"""Compare the critic's bound with a known mutual information: the table and figure of docs/information.md.

    python scripts/measure_information.py
    python scripts/measure_information.py --nats 2 1 --steps 300 --steps_more 200 --out quick
    python scripts/measure_information.py --estimator doe                        # another estimator, the same pairs
    python scripts/measure_information.py --estimator doe --pairs mine.npz       # your pairs: arrays x and y

Trains the critic on pairs of the linear Gaussian generator, from the most information to the least. Measures each
level on new draws, and writes calibration.md, .csv, .json and images/calibration.png. The same command resumes an
interrupted run. --estimator prints estimates with intervals and verdicts instead, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.experiments.settings import CalibrationConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, CalibrationConfig)
    if begun is None:
        return
    settings, _ = begun
    if settings.estimator is not None:
        from mi_ml_gen.experiments import information_calibration

        for truth, estimate in information_calibration.estimates(settings):
            known = "" if truth is None else f"{truth:g} nats in truth; "
            print(f"{known}{settings.estimator}: {estimate}\n  {estimate.reason}")
        return
    from mi_ml_gen.experiments import critic_calibration

    measurements = critic_calibration.calibrate(settings)
    print(critic_calibration.calibration_table(measurements).to_terminal())
    print(f"run folder: {settings.save_folder}")


if __name__ == "__main__":
    cli.run(main)
