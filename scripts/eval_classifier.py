#!/usr/bin/env python3
"""Evaluate a linear classifier on the test images of a labelled data set.

    python scripts/eval_classifier.py --lin_cls_path classifier_runs/LinCls-fashion-mnist-0 --data_path fashion-mnist
    python scripts/eval_classifier.py --lin_cls_path LinCls-StanfordCars-.../last.ckpt --dataset StanfordCars \\
        --data_path datasets/StanfordCars/ffcv --batch_size 16 --out_log_file cars

Prints top-1 and top-5 accuracies with their 95% intervals. --out_log_file NAME writes them to NAME.csv, and the
accuracy of each class and the confusion figure to the folder NAME.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.probe.settings import EvaluationConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, EvaluationConfig)
    settings = config.from_arguments(EvaluationConfig, parser.parse_args(argv))
    settings.check()
    cli.loading()
    from mi_ml_gen.probe.evaluation import run_evaluation

    found = run_evaluation(settings)
    print(f"top-1: {found.top1}")
    print(f"top-5: {found.top5}")


if __name__ == "__main__":
    cli.run(main)
