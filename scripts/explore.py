#!/usr/bin/env python3
"""Make a page with a slider for each latent variable of a generator: one HTML file that you can open, mail or publish.

    python scripts/explore.py tiny-bigbigan --out explorer.html
    python scripts/explore.py tiny-bigbigan --walkers t1 --table t1/table1.json --map map.json
    python scripts/explore.py stylegan2 --g_path stylegan2-car-config-f.pkl --sliders 3 --image_size 96

GENERATOR is a name as in --generator of the other scripts. The page holds all images that the sliders can reach, so it
needs no server and downloads nothing. A page of more than 10 MB is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import ExplorerConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("name", nargs="?", metavar="GENERATOR", help="name of the generator")
    config.add_arguments(parser, ExplorerConfig)
    arguments = parser.parse_args(argv)
    arguments.generator = arguments.name if arguments.name is not None else arguments.generator
    a = config.from_arguments(ExplorerConfig, arguments)
    a.check()
    cli.loading()
    from mi_ml_gen.experiments.explorer import explore

    path = explore(a)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    cli.run(main)
