#!/usr/bin/env python3
"""Learn a walker: perturb some chunks of a generator so that anchor and positive share as little as possible.

    python scripts/train_navigator.py --generator tiny-bigbigan --chunks 0_1
    python scripts/train_navigator.py --generator tiny-stylegan --chunks 0_4
    python scripts/train_navigator.py --generator bigbigan --g_path BigBiGAN_x1.pth --chunks 1_6 --precision bf16
    python scripts/train_navigator.py --generator tiny-bigbigan --chunks 0_1 --walkers 4
    torchrun --nproc_per_node 4 scripts/train_navigator.py --generator bigbigan --g_path ... --chunks 0_6

The defaults shown below are the paper's (--config navigator/paper). Without --config, the small generators that come
with the package take the bundled navigator/small instead, which needs a minute or two on a CPU.

One walker is the published procedure. --walkers 4 trains four at once, each against its own critic, and delta gets an
interval over trainings. The run then ends when all walkers have converged.

--dry-run checks the settings. For generators that do not come with the package, it also counts what the run costs:
FLOPs, memory, and hours on 1, 8 and 64 GPUs.

The run folder holds the settings, metrics, curves, grids of pairs, every saved walker, and the selected one
(walker.safetensors). The same command resumes an interrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.generators.families import bundled
from mi_ml_gen.navigator.settings import NavigatorConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NavigatorConfig)
    cli.add_dry_run(parser)
    arguments = parser.parse_args(argv)
    arguments.config = arguments.config or NavigatorConfig.preset(arguments.generator)
    settings = config.from_arguments(NavigatorConfig, arguments)
    settings.check()
    found: list[str] = []
    if arguments.dry_run and settings.generator not in bundled():
        cli.loading()
        from mi_ml_gen.navigator.costs import cost_lines

        found = cost_lines(settings)
    if cli.is_dry_run(arguments, settings, found):
        return
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.navigator.selection import report, several_report
    from mi_ml_gen.navigator.several import train_several
    from mi_ml_gen.navigator.training import train_navigator

    try:
        if settings.walkers > 1:
            several = train_several(settings)
            path, lines = several.path, several_report(several.summary) if runtime.is_main() else []
        else:
            result = train_navigator(settings)
            path, lines = result.path, report(result.summary) if runtime.is_main() else []
        if runtime.is_main():
            print("\n".join([*lines, f"run folder: {path}"]))
    finally:
        runtime.teardown()


if __name__ == "__main__":
    cli.run(main)
