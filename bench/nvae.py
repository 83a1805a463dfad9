"""NVAE in a navigator's step, and its own training step.

    python -m bench.nvae                          # the layout of tiny-nvae
    python -m bench.nvae --layout cifar10 --channels 16 --batch 8
    python -m bench.nvae --training               # the training step instead

The navigator's step decodes anchors and positives, and differentiates the positives with respect to the noise. Its
plain way computes weight normalisation and batch norms at each call, doubles the resolution before the layers that need
not see it, decodes anchors and positives one after the other from the start, and has no channels-last layout. Both ways
give the same images.

The training step is forward, both regularisers, backward and Adamax. Its plain way doubles the resolution first, too,
has no channels-last layout, and iterates for the spectral norm of each weight by itself. Both ways give the same loss.

The clock counts the processors' seconds, which bears a busy machine better.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import timing
from mi_ml_gen.core import config
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.likelihood import LogisticMixture
from mi_ml_gen.generators.nvae.network import BatchNorm, DecoderCell, NormedConv, UpSkip
from mi_ml_gen.generators.nvae.objective import SpectralNorms, largest_gains
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.nvae.training import NVAETrainConfig
from mi_ml_gen.latents import Chunks


class PlainSkip(nn.Module):
    """`UpSkip` with the doubling first."""

    def __init__(self, skip: UpSkip):
        super().__init__()
        self.conv = skip.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


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
                if isinstance(child.skip_connection, UpSkip):
                    child.skip_connection = PlainSkip(child.skip_connection)
                setattr(module, name, PlainCell(child))
    for module in twin.modules():
        if isinstance(module, BatchNorm):
            module.copies = 1  # the pixels are doubled before it
    return twin


def plain_norms(network: nn.Module, singular: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of the spectral norms by power iterations for each weight in turn; see `SpectralNorms`."""
    convs = [module for module in network.modules() if isinstance(module, (NormedConv, nn.Conv2d))]
    total = torch.zeros(())
    for i, conv in enumerate(convs):
        matrix = conv.weight.flatten(1)
        if i == len(singular):
            singular.append((torch.randn(len(matrix)), torch.randn(matrix.shape[1])))
        u, v = singular[i]
        with torch.no_grad():
            for _ in range(SpectralNorms.ITERATIONS):
                v = F.normalize(matrix.T @ u, dim=0, eps=1e-3)
                u = F.normalize(matrix @ v, dim=0, eps=1e-3)
        singular[i] = u, v
        total = total + u @ (matrix @ v)
    return total


class Training:
    """Steps of `generators.nvae.training` on one batch, the lean way or the plain one."""

    def __init__(self, generator: NVAE, images: Tensor, plain: bool):
        self.network = (generator.requires_grad_(True)).train().autoencoder
        self.config, self.plain, self.images = generator.settings, plain, images
        self.noise = [torch.randn(len(images), *shape) for shape in self.config.latent_shapes]
        self.singular: list[tuple[Tensor, Tensor]] = []
        self.norms = SpectralNorms(self.network, torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.Adamax(self.network.parameters(), lr=1e-3, weight_decay=3e-4, eps=1e-3)

    def step(self) -> float:
        """Loss without regularisers, before the step."""
        out = self.network(self.images, self.noise)
        mixture = LogisticMixture.of(out.logits, self.config.num_logistic_mixtures, self.config.resolution[0])
        loss = out.kl.sum(1).mean() - mixture.log_prob(self.images * 2 - 1).mean()
        norms = plain_norms(self.network, self.singular) if self.plain else self.norms()
        self.optimizer.zero_grad(set_to_none=True)
        (loss + 1e-2 * (norms + largest_gains(self.network))).backward()
        self.optimizer.step()
        return loss.item()


def compare_training(architecture: NVAEConfig, layout: str, batch: int, repeats: int) -> None:
    torch.manual_seed(0)
    lean = NVAE(architecture)
    plain = plain_twin(lean)
    images = torch.rand(batch, *architecture.resolution)
    torch.manual_seed(1)
    one = Training(lean.to(memory_format=torch.channels_last), images, plain=False)  # type: ignore[arg-type]
    torch.manual_seed(1)
    other = Training(plain, images, plain=True)
    losses = one.step(), other.step()
    apart = abs(losses[0] / losses[1] - 1)
    seconds = timing.compare({"plain": other.step, "as in the package": one.step}, repeats, clock=time.process_time)
    what = f"NVAE {layout}, {architecture.initial_channels} channels, training step of {batch} images"
    more: dict = dict(n=batch, unit="images", gflop=timing.gflop_of(one.step), clock=time.process_time)
    timing.write(f"nvae_{layout}_training", f"{what}; losses {apart:.1e} apart", seconds, "plain", **more)


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
    parser.add_argument("--training", action="store_true", help="time the training step")
    args = parser.parse_args()
    overrides = {} if args.channels is None else {"initial_channels": args.channels}
    architecture = config.load(NVAETrainConfig, f"nvae/{args.layout}", overrides).architecture()
    if args.training:
        compare_training(architecture, args.layout, args.batch, args.repeats)
        return
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
        gflop = timing.gflop_of(ways["as in the package"])
        more: dict = dict(n=args.batch, unit="pairs", gflop=gflop, clock=time.process_time)
        timing.write(name, f"{what}; images at most {apart:.1e} apart", seconds, "plain", **more)


if __name__ == "__main__":
    main()
