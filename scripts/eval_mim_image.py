#!/usr/bin/env python3
"""Measure image models of train_mim_image.py: likelihood, neighbours, clusters, mutual information, pictures.

    python scripts/eval_mim_image.py mim_image_runs/dynamic_fashion_mnist/*/seed14
    python scripts/eval_mim_image.py RUN --S 500 --n_likelihood 1000        # a quick look

Writes evaluation.json and images/samples.png, reconstructions.png and latents.png into each run folder. What was
measured before of the same model with the same settings is read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images.evaluation_settings import ImageEvaluationConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders of train_mim_image.py")
    config.add_arguments(parser, ImageEvaluationConfig, file=False)
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(ImageEvaluationConfig, arguments, file=False)
    for run in arguments.runs:
        if not Path(run).is_dir():
            raise UsageError(f"{run}: no such run folder")
    cli.loading()
    from mi_ml_gen.mim.images.evaluation import check_run, evaluate_run, to_table

    for run in arguments.runs:
        check_run(Path(run))

    for run in arguments.runs:
        results = evaluate_run(run, settings, progress=True)
        print(f"{results['model_name']} on {results['dataset']}: {run}\n")
        print(to_table(results).to_terminal(), flush=True)


if __name__ == "__main__":
    cli.run(main)
