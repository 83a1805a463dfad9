#!/usr/bin/env python3
"""Write images of a generator, or pairs of anchor and positive, as a data set.

    python scripts/generate_dataset.py --generator tiny-bigbigan --n_images 1000 --out generated
    python scripts/generate_dataset.py --generator bigbigan --g_path BigBiGAN_x1.pth --n_images 1300000 \\
        --format beton --precision bf16 --batch_size 256 --out generated
    python scripts/generate_dataset.py --generator bigbigan --g_path BigBiGAN_x1.pth --n_images 1300000 \\
        --Tz w_COPGen_60032.pth --layout cop-gen --out pairs     # for offline SimCLR

The same command resumes an interrupted data set.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import ExportConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, ExportConfig)
    settings = config.from_arguments(ExportConfig, parser.parse_args(argv))
    settings.check()
    cli.loading()
    from mi_ml_gen.experiments.generated_dataset import export_images

    done = export_images(settings)
    what = "images" if settings.Tz is None else "pairs"
    rate = f", {done.n_new / done.seconds:.0f} a second" if done.n_new else ""
    print(f"{done.folder}: {done.n_images} {what}, {done.n_new} of them new in {done.seconds:.1f} s{rate}")


if __name__ == "__main__":
    cli.run(main)
