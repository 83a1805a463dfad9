#!/usr/bin/env python3
"""Compare learned walkers with an NVAE's own KL divergence: what is each latent variable used for?

    python scripts/nvae_ablation.py --generator tiny-nvae --data_path fashion-mnist

Trains one walker for each group and each scale, and writes one page: Table 1 with the KL divergences, their rank
correlations, and images. The same command resumes an interrupted run. The settings of the walkers are those of
train_navigator.py. For tiny-nvae, the defaults are those of mi_ml_gen/configs/navigator/nvae.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import NVAEAblationConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NVAEAblationConfig)
    arguments = parser.parse_args(argv)
    arguments.config = arguments.config or NVAEAblationConfig.preset(arguments.generator)
    settings = config.from_arguments(NVAEAblationConfig, arguments)
    settings.check()
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.experiments import nvae_ablation
    from mi_ml_gen.experiments.nvae_report import load_nvae
    from mi_ml_gen.generators.anchors import anchor_distribution
    from mi_ml_gen.generators.nvae.training import stored_images

    device, out = runtime.resolve_device(settings.device), settings.save_folder
    generator = load_nvae(settings.generator, settings.g_path, device, settings.g_use)
    images = stored_images(settings.data_path, generator.settings, "test")[: settings.n_images]
    parts = nvae_ablation.run_ablation(generator, settings.of_walkers, images, out, settings.n_samples, device)
    table = nvae_ablation.to_table(parts)
    table.write(out, "table1")
    print("\n" + table.to_terminal() + "\n")
    for name, correlation in nvae_ablation.correlations(parts).items():
        print(f"rank correlation of the KL divergence with {name}: {correlation}")
    noise = anchor_distribution(settings, generator)
    z = noise.sample((10, generator.noise_dim), runtime.stream(settings.seed, "page", 0, 0, device))
    command = cli.called("nvae_ablation", argv)
    print(f"page: {nvae_ablation.write_page(out / 'index.html', generator, parts, z, command)}")


if __name__ == "__main__":
    cli.run(main)
