#!/usr/bin/env python3
"""Show what a generator does: samples, and what changes when images exchange one of their latent variables.

    python scripts/visualize_generator.py --generator tiny-stylegan --groups 2
    python scripts/visualize_generator.py --generator stylegan2 --g_path stylegan2-car-config-f.pkl --groups 4

Writes samples.png and swaps.png into --out. The first row of swaps.png holds images, the last one other images
(donors). Each row between them shows the first images with one chunk (or --groups chunks) of the donors. Nothing is
trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import GeneratorPicturesConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, GeneratorPicturesConfig)
    a = config.from_arguments(GeneratorPicturesConfig, parser.parse_args(argv))
    a.check()
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.generators.anchors import anchor_distribution
    from mi_ml_gen.generators.registry import load_generator
    from mi_ml_gen.report.images import image_grid, save_png
    from mi_ml_gen.walkers import pictures

    device = runtime.resolve_device(a.device)
    generator = load_generator(a.generator, a.g_path, device, a.g_use)
    groups = generator.groups(a.groups)
    noise = anchor_distribution(a, generator)
    shape = (a.n_images, generator.noise_dim)
    z, donors = (noise.sample(shape, runtime.stream(a.seed, name, 0, 0, device)) for name in ("shown", "donors"))
    many = noise.sample((a.n_images**2, generator.noise_dim), runtime.stream(a.seed, "samples", 0, 0, device))
    out = a.save_folder
    out.mkdir(parents=True, exist_ok=True)
    samples = pictures.decode_shown(generator, generator.latents(many))
    written = [save_png(out / "samples.png", image_grid(samples, n_columns=a.n_images))]
    written.append(save_png(out / "swaps.png", pictures.swaps(generator, z, donors, groups)))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main)
