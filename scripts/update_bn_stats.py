#!/usr/bin/env python3
"""Estimate the batch-norm statistics of an NVAE at a temperature, and write a generator that uses them there.

    python scripts/update_bn_stats.py --g_path last.pt --temperature 0.6 --output nvae-0.6.safetensors

Below temperature 1, features have another distribution than in training, so images improve if each temperature has its
own statistics. The output holds the new statistics, and those of all temperatures that the input had.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import BatchStatisticsConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, BatchStatisticsConfig)
    settings = config.from_arguments(BatchStatisticsConfig, parser.parse_args(argv))
    settings.check()
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.experiments.nvae_report import load_nvae
    from mi_ml_gen.generators.nvae.evaluation import estimate_statistics
    from mi_ml_gen.generators.registry import save_generator

    device = runtime.resolve_device(settings.device)
    generator = load_nvae(settings.generator, settings.g_path, device, settings.g_use)
    estimate_statistics(generator, settings.temperature, settings.batches, settings.batch_size, settings.seed)
    save_generator(settings.output, generator, "nvae")
    print(f"{settings.output}: statistics for temperature {', '.join(map(str, generator.temperatures))}")


if __name__ == "__main__":
    cli.run(main)
