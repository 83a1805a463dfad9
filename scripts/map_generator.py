#!/usr/bin/env python3
"""Map a generator: measure what every range of its latent variables (chunks) says about the image, in nats.

    python scripts/map_generator.py --generator tiny-bigbigan
    python scripts/map_generator.py --generator tiny-stylegan --ranges tree --classifier classifier_runs/mine
    python scripts/map_generator.py --generator bigbigan --g_path BigBiGAN_x1.pth --device cuda --n_train 16384

For each range, the table has: the delta of redrawing it, the information that remains when it is redrawn, the
information that it carries alone, and the information about a label that is lost when it is redrawn. Each information
has a 95% interval and a verdict. Writes map.html, map.json, and table.md, .csv, .json and .tex into --out. The same
command resumes an interrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.experiments.settings import MapConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, MapConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.experiments.generator_map import map_generator, to_table

    found = map_generator(settings)
    print(to_table(found.content).to_terminal())
    print(f"written: {found.path / 'map.html'}, {found.path / 'map.json'}")


if __name__ == "__main__":
    cli.run(main)
