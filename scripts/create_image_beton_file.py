#!/usr/bin/env python3
"""Write folders of images as FFCV's .beton files: train.beton, validation.beton, test.beton, predict.beton.

    python scripts/create_image_beton_file.py --out cars --train_folder lsun_cars --max_resolution 512
    python scripts/create_image_beton_file.py --out pets --with_labels --train_folder pets/train \\
        --val_folder pets/val --test_folder pets/test

The paper's sets have these sizes: ImageNet and most downstream sets 256, LSUN cars 512, Birdsnap 224, CIFAR-100 32.
Writing the files does not need FFCV.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import BetonConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, BetonConfig)
    settings = config.from_arguments(BetonConfig, parser.parse_args(argv))
    settings.check()
    cli.loading()
    from mi_ml_gen.data.beton.writing import write_splits

    about = {name: getattr(settings, name) for name in ("max_resolution", "with_labels", "skip_bad")}
    for written in write_splits(settings.folders, settings.save_folder, n_workers=settings.workers, **about):
        classes = f" of {len(written.classes)} classes" if written.classes else ""
        print(f"{written.path}: {written.n_images} images{classes}, {written.n_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
