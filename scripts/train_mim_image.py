#!/usr/bin/env python3
"""Train an image model as a VAE, by A-MIM, S-MIM or cMIM: affine, convolutional or autoregressive.

    python scripts/train_mim_image.py --dataset_name dynamic_fashion_mnist --model_name convhvae_2level-smim \\
        --prior vampprior --use_training_data_init --seed 14
    python scripts/train_mim_image.py --dataset_name dynamic_fashion_mnist --model_name vae-cmim --prior standard \\
        --n_train 2000 --n_test 500 --epochs 20 --warmup 5
    torchrun --nproc_per_node 2 scripts/train_mim_image.py --dataset_name cifar10 --data_path data \\
        --model_name pixelhvae_2level-amim --precision bf16

The run folder holds the settings, metrics, the model of the lowest validation loss (best.safetensors) and the last one.
The same command resumes an interrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cli
from mi_ml_gen.mim.images.settings import MimImageConfig


def main(argv: Sequence[str] | None = None) -> None:
    begun = cli.begin(argv, __doc__, MimImageConfig)
    if begun is None:
        return
    settings, _ = begun
    from mi_ml_gen.core import runtime
    from mi_ml_gen.mim.images.training import train_mim_image

    try:
        record = train_mim_image(settings)
        if runtime.is_main():
            print(f"{record.reason}; the best epoch is {record.best_epoch}: {record.best_loss:.3f} nats in validation")
            print(f"models, metrics and curves: {record.path}")
    finally:
        runtime.teardown()


if __name__ == "__main__":
    cli.run(main)
