#!/usr/bin/env python3
"""Generate images (anchors), and several perturbed versions (positives) of each, to see what a perturbation does.

    python scripts/view_generation.py --config view_generation/bigbigan --g_path BigBiGAN_x1.pth \\
        --out views
    python scripts/view_generation.py --config mine.yaml --out views --seeds published

--config takes a YAML file or the name of a bundled one. Each of its keys is also a flag. Writes
idx=0_var=0.png (anchor 0), idx=0_var=1.png (its first positive) ... and grid.png, a row per anchor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import ViewPicturesConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, ViewPicturesConfig)
    parser.add_argument("--configuration", dest="config", help=argparse.SUPPRESS)  # the published name
    settings = config.from_arguments(ViewPicturesConfig, parser.parse_args(argv))
    settings.check()
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.experiments.view_grids import generate_views

    paths = generate_views(settings, settings.save_folder, runtime.resolve_device(settings.device))
    n_images = sum(path.name.startswith("idx=") for path in paths)
    print(f"wrote {n_images} images to {settings.save_folder}: {settings.n_images} anchors and their positives")
    print(f"all of them side by side: {paths[-1]}")


if __name__ == "__main__":
    cli.run(main)
