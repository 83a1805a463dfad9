"""Gradients through a diffusion sampler: memory and time against the number of steps.

    python -m bench.diffusion
    python -m bench.diffusion --batch 8 --steps 5 10 20 40 80

The plain way keeps what every run of the network needs for its backward pass. Ours keeps one image a step, and runs the
network again. Both ways give the same gradient. Memory is what autograd keeps between the two passes, counted exactly;
during the backward pass ours holds the maps of one step beside it. The clock counts the processors' seconds.

A pair of decodings that share the noise of the first steps is compared with two decodings.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench import timing
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.processes import PROCESSES
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.latents import Chunks


def kept_mb(decode: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """Megabytes that the forward pass keeps for the backward pass, each storage once, the noise left out."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images = decode(z)
    found.pop(z.untyped_storage().data_ptr(), None)
    assert images.requires_grad
    return sum(found.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator = Diffusion(DiffusionTrainConfig().network(), PROCESSES["v"]())
    generator.freeze().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(generator)
    plain.unet.requires_grad_(True)  # a sampler whose network may be trained keeps everything

    def slope(which: Diffusion, z: Tensor) -> Tensor:
        rows = z.clone().requires_grad_()
        return torch.autograd.grad(which.decode(rows).square().sum(), rows)[0]

    print(f"{'steps':>5s} {'plain, MB':>10s} {'ours, MB':>9s} {'ratio':>6s}")
    for n in arguments.steps:
        for which in (plain, generator):
            which.use({"steps": n, "block": 1})
        z = torch.randn(arguments.batch, generator.noise_dim)
        torch.testing.assert_close(slope(plain, z), slope(generator, z), rtol=1e-3, atol=1e-5)
        sizes = [kept_mb(which.decode, z.clone().requires_grad_()) for which in (plain, generator)]
        print(f"{n:5d} {sizes[0]:10.1f} {sizes[1]:9.2f} {sizes[0] / sizes[1]:6.0f}")

    n = 20
    for which in (plain, generator):
        which.use({"steps": n, "block": 4})
    z = torch.randn(arguments.batch, generator.noise_dim)
    ways = {"plain": lambda: slope(plain, z), "ours: a step is run again": lambda: slope(generator, z)}
    seconds = timing.compare(ways, arguments.repeats, clock=time.process_time)
    what = f"gradient of {arguments.batch} images of tiny-diffusion's network, {n} steps"
    timing.write("diffusion_gradient", what, seconds, "plain")

    chunks = Chunks(3, 4)
    moved = z.clone()
    moved[:, generator.layout.slice(chunks)] += 0.5

    @torch.no_grad()
    def two() -> tuple[Tensor, Tensor]:
        return generator.decode(z), generator.decode(moved)

    @torch.no_grad()
    def pair() -> tuple[Tensor, Tensor]:
        found = generator.decode_pair(z, moved, chunks)
        return found.anchor, found.positive

    for a, b in zip(two(), pair(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    seconds = timing.compare({"two decodings": two, "a pair": pair}, arguments.repeats, clock=time.process_time)
    timing.write(
        "diffusion_pair", f"{arguments.batch} pairs that differ in chunk 3 of 5 ({n} steps)", seconds, "two decodings"
    )


if __name__ == "__main__":
    main()
