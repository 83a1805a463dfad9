#!/usr/bin/env python3
"""What each latent variable of an NVAE is used for: learned walkers beside the model's own KL divergence.

    python scripts/nvae_ablation.py --generator tiny-nvae --data fashion-mnist

Trains one walker for each group and each scale, and writes one page: Table 1 with the KL divergences, their rank
correlations, and images. Interrupted, the same command goes on. The settings of the walkers are those of
train_navigator.py; for tiny-nvae the defaults are those of mi_ml_gen/configs/navigator/small.yaml.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.navigator.settings import NavigatorConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NavigatorConfig)
    parser.add_argument("--data", default="fashion-mnist", metavar="REF", help="test images for the KL divergences")
    parser.add_argument("--n-images", type=int, default=1000, metavar="N", help="number of them (default: 1000)")
    parser.add_argument("--n_samples", type=int, default=100_000, metavar="N", help="draws for each delta")
    parser.add_argument("--out", type=Path, default=Path("nvae_ablation"), metavar="PATH", help="folder of all results")
    arguments = parser.parse_args(argv)
    arguments.generator = arguments.generator or "tiny-nvae"
    arguments.config = arguments.config or NavigatorConfig.preset(arguments.generator)
    arguments.chunks = arguments.chunks or "0_1"  # each group has its turn
    settings = config.from_arguments(NavigatorConfig, arguments)
    settings.check()
    if arguments.n_images < 1 or arguments.n_samples < 1:
        raise UsageError("--n-images and --n_samples: must be at least 1")
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.experiments import nvae_ablation
    from mi_ml_gen.generators.nvae.generator import NVAE
    from mi_ml_gen.generators.nvae.training import stored_images
    from mi_ml_gen.generators.registry import load_generator

    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    if not isinstance(generator, NVAE):
        raise UsageError(f"--generator {settings.generator}: is not an NVAE")

    images = stored_images(arguments.data, generator.settings, "test")[: arguments.n_images]
    parts = nvae_ablation.run_ablation(generator, settings, images, arguments.out, arguments.n_samples, device)
    table = nvae_ablation.to_table(parts)
    table.write(arguments.out, "table1")
    print("\n" + table.to_terminal() + "\n")
    for name, correlation in nvae_ablation.correlations(parts).items():
        print(f"rank correlation of the KL divergence with {name}: {correlation}")
    z = settings.distribution.sample((10, generator.noise_dim), runtime.stream(settings.seed, "page", 0, 0, device))
    command = shlex.join(["python", "scripts/nvae_ablation.py", *(argv or [])])
    page = nvae_ablation.write_page(arguments.out / "index.html", generator, parts, z, command)
    print(f"page: {page}")


if __name__ == "__main__":
    cli.run(main)
