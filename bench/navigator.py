"""One navigator step on the published BigBiGAN (128 px, 70 M parameters, random weights): plain against lean.

    python -m bench.navigator --batch 4 --chunks 1_6           on the CPU
    python -m bench.navigator --batch 64 --device cuda --chunks 1_6

Plain, as the reference does it: spectral normalisation computed in each call, both images decoded with a graph,
nearest upsampling before each convolution, the critic run twice with all gradients. Lean: what navigator.py does.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from bench import timing
from mi_ml_gen.core import runtime
from mi_ml_gen.generators.bigbigan import BigBiGAN
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.infonce import infonce_loss
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.walkers.learned import NonlinearWalker


class NormalisedEachCall(nn.Module):
    """The weight over its spectral norm by one power step, computed whenever the layer runs."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        matrix = weight.flatten(1)
        self.register_buffer("u", nn.functional.normalize(torch.randn(1, len(matrix), device=weight.device)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        matrix = weight.flatten(1)
        v = nn.functional.normalize(self.u @ matrix, eps=1e-4)
        return weight / (v @ matrix.T).norm()


def build(device: torch.device, plain: bool) -> BigBiGAN:
    torch.manual_seed(0)
    generator = BigBiGAN().to(device)
    if not plain:
        return generator.freeze().to(memory_format=torch.channels_last)
    generator.eval().requires_grad_(False)
    for module in list(generator.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.utils.parametrize.register_parametrization(
                module, "weight", NormalisedEachCall(module.weight.detach()), unsafe=True
            )
    return generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--chunks", default="1_6")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=1)
    options = parser.parse_args()
    device = runtime.resolve_device(options.device)
    augment = Augment("none", 128).to(device)
    distribution = TruncatedNormal()

    def step(plain: bool, precision: str = "fp32", compiled: bool = False):
        generator = build(device, plain)
        chunks = generator.chunks(options.chunks)
        walker = NonlinearWalker.on(generator, chunks).to(device)
        critic = Critic(augment.crop_size).to(device).train()
        if not plain:
            critic = critic.to(memory_format=torch.channels_last)
        fused = device.type == "cuda" and not plain
        adam_walker = torch.optim.Adam(walker.parameters(), 8e-5, (0.5, 0.999), fused=fused)
        adam_critic = torch.optim.Adam(critic.parameters(), 5e-5, (0.5, 0.999), fused=fused)
        rng = torch.Generator(device).manual_seed(0)
        decode_pair, score = generator.decode_pair, critic
        if compiled:
            decode_pair, score = torch.compile(generator.decode_pair), torch.compile(critic)

        def loss(features: torch.Tensor) -> torch.Tensor:
            return infonce_loss(torch.stack(features.chunk(2), dim=1))

        def run() -> None:
            pair = walker(generator, distribution.sample((options.batch, 120), rng))
            if plain:
                images = generator.decode(pair.anchor), generator.decode(pair.positive)
                views = torch.cat([augment(images[0]), augment(images[1])])
                adam_critic.zero_grad()
                loss(critic(views.detach())).backward()
                adam_critic.step()
                adam_walker.zero_grad()
                (-loss(critic(views))).backward()
                adam_walker.step()
                return
            with runtime.autocast(device, precision):
                images = decode_pair(pair.anchor, pair.positive, chunks)
                views = torch.cat([augment(images.anchor.float()), augment(images.positive.float())])
                views = views.contiguous(memory_format=torch.channels_last)
                loss_critic = loss(score(views.detach()))
            adam_critic.zero_grad(set_to_none=True)
            loss_critic.backward()
            adam_critic.step()
            with runtime.autocast(device, precision):
                loss_walker = -loss(score(views))
            for parameter, gradient in zip(
                walker.parameters(), torch.autograd.grad(loss_walker, list(walker.parameters())), strict=True
            ):
                parameter.grad = gradient
            adam_walker.step()

        return run

    ways = {"plain": step(plain=True), "lean": step(plain=False)}
    if device.type == "cuda":
        ways["lean, bf16"] = step(plain=False, precision="bf16")
        ways["lean, bf16, compiled"] = step(plain=False, precision="bf16", compiled=True)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = timing.compare(ways, options.repeats, options.warm_up, clock)
    what = f"navigator step, BigBiGAN 128, batch {options.batch}, chunks {options.chunks}"
    gflop = timing.gflop_of(ways["lean"]) if device.type == "cpu" else None
    timing.write(
        f"navigator_{device.type}_{options.chunks}", what, seconds, "plain", device, n=options.batch, unit="pairs",
        gflop=gflop, clock=clock,
    )  # fmt: skip


if __name__ == "__main__":
    main()
