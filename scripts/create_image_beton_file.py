"""Write folders of images as FFCV's .beton files: train.beton, validation.beton, test.beton, predict.beton.

    python scripts/create_image_beton_file.py --output_folder cars --train_folder lsun_cars --max_resolution 512
    python scripts/create_image_beton_file.py --output_folder pets --with_labels --train_folder pets/train \\
        --val_folder pets/val --test_folder pets/test

Sizes of the paper's sets: ImageNet and most downstream sets 256, LSUN cars 512, Birdsnap 224, CIFAR-100 32. Needs no
FFCV; only reading the files through it does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.beton.writing import write_splits

NAMES = {"train": "train", "val": "validation", "test": "test", "predict": "predict"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--output_folder", type=Path, required=True, metavar="PATH", help="folder of the .beton files")
    for split in NAMES:
        add(f"--{split}_folder", type=Path, metavar="PATH", help=f"images of the {split} split, class folders or not")
    add(
        "--max_resolution",
        type=int,
        default=256,
        metavar="N",
        help="longest side that is stored, in pixels (default 256)",
    )
    add("--with_labels", action="store_true", help="store the class folders as labels")
    add("--skip_bad", action="store_true", help="leave out images that cannot be read")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="threads")
    a = parser.parse_args(argv)
    folders = {name: getattr(a, f"{split}_folder") for split, name in NAMES.items()}
    given = {name: folder for name, folder in folders.items() if folder is not None}
    if not given:
        raise UsageError("give at least one of --train_folder, --val_folder, --test_folder, --predict_folder")
    if a.workers < 1:
        raise UsageError(f"--workers {a.workers}: must be at least 1")
    options = {"max_resolution": a.max_resolution, "with_labels": a.with_labels, "skip_bad": a.skip_bad}
    for written in write_splits(given, a.output_folder, n_workers=a.workers, **options):
        classes = f" of {len(written.classes)} classes" if written.classes else ""
        print(f"{written.path}: {written.n_images} images{classes}, {written.n_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
