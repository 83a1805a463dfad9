"""NVAE in a navigator's step: decode anchors and positives, and differentiate the positives with respect to the noise.

    python -m bench.nvae                          # the layout of tiny-nvae
    python -m bench.nvae --layout cifar10 --channels 16 --batch 8

The plain way computes weight normalisation and batch norms at each call, doubles the resolution before the layers that
need not see it, decodes anchors and positives one after the other from the start, and has no channels-last layout. Both
ways give the same images. The clock counts the processors' seconds, which bears a busy machine better.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor, nn

from bench import timing
from mi_ml_gen.core import config
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.network import DecoderCell, NormedConv
from mi_ml_gen.generators.nvae.training import NVAETrainConfig
from mi_ml_gen.latents import Chunks


class PlainCell(nn.Module):
    """`DecoderCell` without what is folded or moved."""

    def __init__(self, cell: DecoderCell):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell.skip_connection(x) + 0.1 * self.cell.residual(x)


def plain_twin(generator: NVAE) -> NVAE:
    """The same function, with every weight computed at each call."""
    twin = copy.deepcopy(generator).to(memory_format=torch.contiguous_format)
    for module in list(twin.modules()):
        if isinstance(module, NormedConv):
            module.folded = False
        for name, child in list(module.named_children()):
            if isinstance(child, DecoderCell):
                setattr(module, name, PlainCell(child))
    return twin


def step(generator: NVAE, z: Tensor, chunks: Chunks, shared: bool) -> Tensor:
    """Anchors and positives, and the gradient with respect to the perturbed chunks; gives the positives."""
    at = generator.layout.slice(chunks)
    moved = (z[:, at] + 0.5).requires_grad_()
    positive = torch.cat([z[:, : at.start], moved, z[:, at.stop :]], 1)
    if shared:
        image = generator.decode_pair(z, positive, chunks).positive
    else:
        with torch.no_grad():
            generator.decode(z)
        image = generator.decode(positive)
    image.sum().backward()
    return image.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", default="tiny", choices=("tiny", "cifar10"))
    parser.add_argument("--channels", type=int, help="initial channels (default: the layout's)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    overrides = {} if args.channels is None else {"initial_channels": args.channels}
    architecture = config.load(NVAETrainConfig, f"nvae/{args.layout}", overrides).architecture()
    torch.manual_seed(0)
    generator = NVAE(architecture).freeze().to(memory_format=torch.channels_last)
    assert isinstance(generator, NVAE)
    twin = plain_twin(generator)
    n_chunks = generator.layout.n_chunks
    last_scale = Chunks(n_chunks - architecture.groups_per_scale[-1], n_chunks)
    z = torch.randn(args.batch, generator.noise_dim)
    for chunks in (Chunks(0, 1), last_scale):
        apart = (step(generator, z, chunks, True) - step(twin, z, chunks, False)).abs().max().item()
        ways = {
            "plain": lambda chunks=chunks: step(twin, z, chunks, False),
            "folded, nothing shared": lambda chunks=chunks: step(generator, z, chunks, False),
            "as in the package": lambda chunks=chunks: step(generator, z, chunks, True),
        }
        seconds = timing.compare(ways, args.repeats, clock=time.process_time)
        what = f"NVAE {args.layout}, {architecture.initial_channels} channels, {args.batch} pairs, chunks {chunks}"
        name = f"nvae_{args.layout}_{chunks}"
        timing.write(name, f"{what}; images at most {apart:.1e} apart", seconds, "plain")


if __name__ == "__main__":
    main()
