"""T_x, the policy simclr, with parameters drawn per sample: against kornia and against a loop over torchvision.

    python -m bench.augment                                      256 x 3 x 128 x 128 on the CPU
    python -m bench.augment --device cuda

Two views of each image are what a training step takes; one is timed, on the CPU in seconds of the processors. kornia
takes part where it is installed (`pip install kornia`). All ways do random resized crop, flip, colour jitter,
grayscale and normalisation; simclr by kornia's conventions, torchvision by torchvision's.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable

import torch
from torch import nn
from torchvision.transforms import v2

from bench import timing
from mi_ml_gen.core import runtime
from mi_ml_gen.views.augment import IMAGENET_MEAN, IMAGENET_STD, Augment


def torchvision_transform(size: int) -> nn.Module:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def kornia_transform(size: int) -> nn.Module:
    from kornia.augmentation import (
        AugmentationSequential,
        ColorJiggle,
        Normalize,
        RandomGrayscale,
        RandomHorizontalFlip,
        RandomResizedCrop,
    )

    return AugmentationSequential(
        RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        RandomHorizontalFlip(),
        ColorJiggle(0.4, 0.4, 0.4, 0.1, p=0.8),
        RandomGrayscale(p=0.2),
        Normalize(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD)),
        same_on_batch=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=1)
    options = parser.parse_args()
    device = runtime.resolve_device(options.device)
    images = torch.rand(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    augment = Augment("simclr", options.size).to(device)
    rng = torch.Generator(device).manual_seed(0)
    one = torchvision_transform(augment.crop_size)
    other = Augment("torchvision", options.size).to(device)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "torchvision, a loop over the samples": lambda: torch.stack([one(image) for image in images]),
    }
    if importlib.util.find_spec("kornia") is not None:
        whole = kornia_transform(augment.crop_size).to(device)
        ways["kornia AugmentationSequential"] = lambda: whole(images)
    ways["views.Augment, torchvision"] = lambda: other(images, rng)
    ways["views.Augment, simclr"] = lambda: augment(images, rng)
    if device.type == "cuda":
        compiled = torch.compile(augment.view)
        ways["views.Augment, simclr, compiled"] = lambda: compiled(images, augment.draw(len(images), rng, device))
    with torch.no_grad():
        for name, way in ways.items():
            views = way()
            assert views.shape == (options.batch, 3, augment.crop_size, augment.crop_size), name
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        seconds = timing.compare(ways, options.repeats, options.warm_up, clock)
    unit = "on the wall" if device.type == "cuda" else "of the processors, all threads together"
    what = f"T_x simclr, per sample, {options.batch} x 3 x {options.size} x {options.size}; seconds {unit}"
    of: dict = dict(n=options.batch, unit="images", clock=clock)
    timing.write(f"augment_{device.type}", what, seconds, next(iter(ways)), device, **of)


if __name__ == "__main__":
    main()
