"""Image models: likelihood, sampling and training beside the plain way of the published code.

    python -m bench.mim_images                      # all parts; --parts likelihood sampling training
    python -m bench.mim_images --parts likelihood --images 100 --conv_images 20 --S_conv 5000 --device cuda

Likelihood: the published loop takes one image at a time, repeats it, and sends each hundred copies through the whole
model: the encoder, the encoder of all 500 pseudo-inputs, and the decoder. Both ways estimate the same number. The
seconds of the plain ways grow with the images and the samples, so few of them are timed, and as many the other way.

Sampling: a whole pass of the PixelCNN for each pixel. The first passes are timed, and their seconds multiplied up to
all pixels; they are all alike.

Training: two convolutions for a gated one, the pseudo-inputs in a pass of their own, an optimiser that goes through the
parameters one by one.

On a CPU the clock counts the processors' seconds, which bears a busy machine better; on a GPU it is the wall's. The
results of a GPU have names of their own. Sampling and training are timed on a CPU alone.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench import timing
from mi_ml_gen.core import optimizers, runtime
from mi_ml_gen.mim.images import objectives
from mi_ml_gen.mim.images.base import ImageModel, ModelSpec
from mi_ml_gen.mim.images.layers import GatedConv, GatedDense
from mi_ml_gen.mim.images.likelihood import log_likelihood
from mi_ml_gen.mim.images.networks import PixelHVAE, build_model, start_pseudo_inputs
from mi_ml_gen.mim.images.objectives import OBJECTIVES
from mi_ml_gen.mim.images.pixel_sampling import sample

PARTS = ("likelihood", "sampling", "training")
CHUNK = 100
"""Copies of an image at a time in the published loop (MB)."""


def made(family: str, device: torch.device | str = "cpu") -> ImageModel:
    model = build_model(ModelSpec(family, (1, 28, 28)), runtime.stream(0, "bench weights", 0, 0))
    start_pseudo_inputs(model, runtime.stream(0, "bench pseudo-inputs", 0, 0), 0.05, 0.01)
    return model.to(device)


def binary_images(n: int) -> Tensor:
    return (runtime.uniform((n, 1, 28, 28), runtime.stream(0, "bench images", 0, 0)) < 0.3).float()


def plain_likelihood(model: ImageModel, images: Tensor, n_draws: int) -> Tensor:
    """The published loop: log mean w of each image, (n,)."""
    found = []
    for i, image in enumerate(images):
        rng = runtime.stream(0, "importance draws", i, 0, images.device)
        noise = model.noise(n_draws, rng)
        parts = []
        for start in range(0, n_draws, CHUNK):
            own = noise.rows(slice(start, start + CHUNK))
            x = image.expand(len(own.z1), *image.shape)
            drawn = model.q_z(model.features(x), own)
            log_w = model.log_p_x(x, drawn.z) + model.log_prior(drawn.z, model.components()) - drawn.log_q
            parts.append(log_w.detach())
        found.append(torch.logsumexp(torch.cat(parts), 0) - math.log(n_draws))
    return torch.stack(found)


def compare_likelihood(
    family: str, n_images: int, n_draws: int, repeats: int, device: torch.device | str = "cpu"
) -> None:
    model, images = made(family, device).eval(), binary_images(n_images).to(device)
    plain = plain_likelihood(model, images[:1], CHUNK).cpu()
    apart = (plain - log_likelihood(model, images[:1], CHUNK).nats).abs().max().item()
    ways = {
        "plain": lambda: plain_likelihood(model, images, n_draws),
        "as in the package": lambda: log_likelihood(model, images, n_draws),
    }
    is_cpu = torch.device(device).type == "cpu"
    clock = time.process_time if is_cpu else time.perf_counter
    seconds = timing.compare(ways, repeats, warm_up=0, clock=clock)
    what = f"likelihood of {n_images} images under {family}, S = {n_draws:,}, 500 pseudo-inputs; {apart:.1e} nats apart"
    gflop = timing.gflop_of(ways["as in the package"]) if is_cpu else None
    of: dict = dict(n=n_images, unit="images", gflop=gflop, clock=clock)
    name = f"mim_images_likelihood_{family}" + ("" if is_cpu else f"_{torch.device(device).type}")
    timing.write(name, what, seconds, "plain", device, **of)


@torch.no_grad()
def compare_sampling(n_images: int, n_passes: int, repeats: int) -> None:
    model = made("pixelhvae_2level").eval()
    assert isinstance(model, PixelHVAE)
    z = model.sample_prior(n_images, runtime.stream(0, "bench z", 0, 0))
    uniforms = runtime.uniform((n_images, 1, 28, 28), runtime.stream(0, "bench uniforms", 0, 0))
    maps, x = model.maps(z), torch.zeros(n_images, 1, 28, 28)

    def passes() -> None:
        for _ in range(n_passes):
            model.pixels(model.pixelcnn(torch.cat((x, maps), 1)))

    ways = {"plain": passes, "as in the package": lambda: sample(model, z, uniforms)}
    seconds = timing.compare(ways, repeats, clock=time.process_time)
    seconds["plain"] = [one * 28 * 28 / n_passes for one in seconds["plain"]]
    what = f"{n_images} images of pixelhvae_2level; plain: {n_passes} of 784 passes timed, multiplied up"
    gflop = timing.gflop_of(ways["as in the package"])
    of: dict = dict(n=n_images, unit="images", gflop=gflop, clock=time.process_time)
    timing.write("mim_images_sampling", what, seconds, "plain", **of)


class PlainGated(nn.Module):
    """A gated layer as two layers."""

    def __init__(self, layer: GatedDense | GatedConv) -> None:
        super().__init__()
        self.h, self.g = layer.h, layer.g

    def forward(self, x: Tensor) -> Tensor:
        return self.h(x) * torch.sigmoid(self.g(x))


def plain_twin(model: ImageModel) -> ImageModel:
    """The same function in the layers of the published code."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (GatedDense, GatedConv)):
                setattr(module, name, PlainGated(child))
    twin.features_and_components = lambda x: (twin.features(x), twin.components())  # type: ignore[method-assign]
    return twin


def plain_adam_norm_grad(parameters: list[nn.Parameter], lr: float) -> Callable[[], None]:
    """A step of the published optimiser, parameter by parameter."""
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = iter(range(1, 10**9))

    @torch.no_grad()
    def step() -> None:
        t = next(steps)
        for p, m, v in zip(parameters, means, squares, strict=True):
            assert p.grad is not None
            grad = p.grad / (p.grad.norm() + 1e-7)
            m.mul_(0.9).add_(grad, alpha=0.1)
            v.mul_(0.999).addcmul_(grad, grad, value=0.001)
            p.addcdiv_(m, v.sqrt().add_(1e-8), value=-lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t))
            p.grad = None

    return step


def trainings(model: ImageModel, n_images: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """A step of each way, which gives the loss."""
    x, objective = binary_images(n_images), OBJECTIVES["vae"]
    twin = plain_twin(model)
    plain_step = plain_adam_norm_grad([p for p in twin.parameters() if p.requires_grad], 5e-4)
    optimizer = optimizers.AdamNormGrad(model.parameters(), lr=5e-4)

    def loss_of(one: ImageModel) -> Tensor:
        noise = one.noise(n_images, runtime.stream(0, "bench noise", 0, 0))
        loss = objectives.batch_loss(one, objective, x, noise).loss
        loss.backward()
        return loss.detach()

    def plain() -> Tensor:
        loss = loss_of(twin)
        plain_step()
        return loss

    def lean() -> Tensor:
        loss = loss_of(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    yield "plain", plain
    yield "as in the package", lean


def compare_training(n_images: int, repeats: int) -> None:
    ways = dict(trainings(made("convhvae_2level").train(), n_images))
    losses = [float(step()) for step in ways.values()]
    apart = abs(losses[0] / losses[1] - 1)
    seconds = timing.compare(ways, repeats, warm_up=0, clock=time.process_time)
    of: dict = dict(
        n=n_images, unit="images", gflop=timing.gflop_of(ways["as in the package"]), clock=time.process_time
    )
    what = f"training step of convhvae_2level, {n_images} images, 500 pseudo-inputs; losses {apart:.0e} apart"
    timing.write("mim_images_training", what, seconds, "plain", **of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=2, help="images of the likelihood of the multilayer model")
    parser.add_argument("--S", type=int, default=5000, help="samples for each of them")
    parser.add_argument("--S_conv", type=int, default=200, help="samples for an image of the convolutional model")
    parser.add_argument("--conv_images", type=int, default=1, help="images of the likelihood of that model")
    parser.add_argument("--batch", type=int, default=100, help="images of a training step")
    parser.add_argument("--device", default="cpu", help="of the likelihood")
    args = parser.parse_args()
    if "likelihood" in args.parts:
        compare_likelihood("hvae_2level", args.images, args.S, args.repeats, args.device)
        compare_likelihood("convhvae_2level", args.conv_images, args.S_conv, args.repeats, args.device)
    if "sampling" in args.parts:
        compare_sampling(64, 4, args.repeats)
    if "training" in args.parts:
        compare_training(args.batch, args.repeats)


if __name__ == "__main__":
    main()
