#!/usr/bin/env python3
"""From bundled generators to Table 1 in a few minutes: train walkers, measure delta, write a page.

    python scripts/quickstart.py                             (what `make quickstart` runs)
    python scripts/quickstart.py --num_samples 64000         (longer, closer to convergence)
    python scripts/quickstart.py --generator tiny-stylegan --groups 2

Without --generator or --config, it trains a walker for each chunk of tiny-bigbigan, and one for the coarse and one for
the fine half of the chunks of tiny-stylegan, as the paper does. --walkers 4 trains four for each, so that delta has an
interval over trainings. The settings are those of mi_ml_gen/configs/navigator/small.yaml, and every flag of
train_navigator.py overrides them. The same command resumes an interrupted run. The page is quickstart/index.html.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.experiments.settings import QuickstartConfig
from mi_ml_gen.navigator.settings import NavigatorConfig

GENERATORS = {"tiny-bigbigan": 1, "tiny-stylegan": 4}
"""The generators of a plain `make quickstart`, and how many chunks each of their walkers perturbs."""
FRESH = dict(max_steps=96, reuse=4, eval_pairs=1024, heldout_pairs=256)
"""Settings of the fresh critics: brief ones, so that a quickstart still ends in minutes."""


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NavigatorConfig)
    config.add_arguments(parser, QuickstartConfig, file=False)
    arguments = parser.parse_args(argv)
    whole = config.from_arguments(QuickstartConfig, arguments, file=False)
    plain = arguments.generator is None and arguments.config is None
    if plain and whole.groups is not None:
        raise UsageError(f"--groups {whole.groups}: give --generator, too")
    arguments.generator = arguments.generator or (next(iter(GENERATORS)) if plain else None)
    arguments.config = arguments.config or "navigator/small"
    arguments.chunks = arguments.chunks or "0_1"  # each group of chunks has its turn
    settings = config.from_arguments(NavigatorConfig, arguments)
    chosen = GENERATORS if plain else {settings.generator: whole.groups or 1}
    settings.check()
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.experiments import table1
    from mi_ml_gen.generators.anchors import anchor_distribution
    from mi_ml_gen.generators.registry import load_generator
    from mi_ml_gen.information.image_critic import CriticSettings
    from mi_ml_gen.navigator import folders
    from mi_ml_gen.walkers import pictures

    device = runtime.resolve_device(settings.device)

    measured = []
    for i, (name, group) in enumerate(chosen.items(), start=1):
        own = dataclasses.replace(settings, generator=name)
        generator = load_generator(name, own.g_path, device, own.g_use)
        folder = whole.out / short_name(name)
        groups = generator.groups(group)
        noise = anchor_distribution(own, generator)
        what = "a walker" if own.walkers == 1 else f"{own.walkers} walkers"
        print(f"{i} of {len(chosen)}: {name}, {what} for each of chunks {', '.join(map(str, groups))}")
        table1.train_missing(folder, own, generator, group)
        found = folders.find_walkers(folder)
        rows = table1.estimate_rows(generator, found, whole.n_samples, noise, own.seed, device, True)
        critic = table1.fresh_settings(found, CriticSettings(**FRESH)) if whole.fresh_critics else None
        if critic is not None:
            rows = table1.with_remaining(
                generator, rows, critic, noise, False, own.seed, device, True, folder / "fresh_critics"
            )
        table1.write_table(rows, folder)
        print("\n" + table1.to_table(rows).to_terminal() + "\n")
        for line in table1.warnings(rows):
            print(f"caution: {line}")
        z = noise.sample((12, generator.noise_dim), runtime.stream(own.seed, "page", 0, 0, device))
        pictures.save_chunks(folder / "chunks.png", generator, [one.walker for one in found], z)
        measured.append(table1.MeasuredGenerator(generator, rows, noise, own.seed, device))

    command = cli.called("quickstart", argv)
    title = f"What each latent variable of {' and '.join(chosen)} does"
    page = table1.write_page(whole.out / "index.html", measured, title, command)
    print(f"done in {time.monotonic() - started:.0f} s; open {page}")


if __name__ == "__main__":
    cli.run(main)
