"""Generate images and, of each, several positives: what a perturbation of chosen chunks does.

    python scripts/view_generation.py --configuration view_generation/bigbigan --g_path BigBiGAN_x1.pth \\
        --save_folder views
    python scripts/view_generation.py --configuration mine.yaml --save_folder views --seeds published

A configuration is a YAML file or the name of a bundled one; any of its keys can be given as a flag too. Writes
idx=0_var=0.png (anchor 0), idx=0_var=1.png (its first positive) ... and grid.png, a row per anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config, runtime
from mi_ml_gen.experiments.view_grids import ViewGenerationConfig, generate_views


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, ViewGenerationConfig)
    parser.add_argument("--configuration", dest="config", metavar="FILE.yaml", help="as --config, the reference's name")
    parser.add_argument("--save_folder", type=Path, required=True, metavar="PATH", help="folder of the images")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda ...")
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(ViewGenerationConfig, arguments)
    paths = generate_views(settings, arguments.save_folder, runtime.resolve_device(arguments.device))
    print(f"{arguments.save_folder}: {len(paths) - 1} images of {settings.n_images} anchors, and {paths[-1].name}")


if __name__ == "__main__":
    cli.run(main)
