#!/usr/bin/env python3
"""Train an NVAE (Vahdat and Kautz, 2020), a generator with one latent variable per group.

    python scripts/train_nvae.py --config nvae/tiny                             # Fashion-MNIST on a CPU
    python scripts/train_nvae.py --config nvae/cifar10 --data_path torchvision:CIFAR10:data

The same command resumes an interrupted run. The run folder holds generator.safetensors (load it with --generator nvae
--g_path), metrics with the bits per dimension and the KL divergence of each group, and grids of samples and
reconstructions.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.generators.nvae.train_settings import NVAETrainConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, NVAETrainConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.core import runtime
    from mi_ml_gen.generators.nvae.training import stored_images, train_nvae

    try:
        path = train_nvae(settings, stored_images(settings.data, settings.architecture()))
        if runtime.is_main():
            print(f"generator, metrics and grids: {path}")
    finally:
        runtime.teardown()


if __name__ == "__main__":
    cli.run(main)
