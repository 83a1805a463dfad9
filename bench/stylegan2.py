"""Synthesis of StyleGAN2 at 512 px: one shared convolution a layer against per-sample grouped kernels.

    python -m bench.stylegan2 --batch 8 --threads 2

Both ways compute the same images from the same weights, in processes of their own, which take turns. Prints for each
the median time of a forward pass (on the wall, and of the processors, all threads together, which bears a busy
machine better), the peak of resident memory, and how far the images are apart. `decode` is timed too: it
computes only what reaches the centre crop.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from bench import timing
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.generators.stylegan2.network import Features, Modulation, NoiseSource, SynthesisLayer, Window

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("shared", "grouped", "decode")


def grouped_forward(
    layer: SynthesisLayer,
    features: Features,
    w: torch.Tensor,
    wanted: Window,
    noise: NoiseSource,
    gain: float = 1.0,
    modulation: Modulation | None = None,  # which it makes itself
) -> Features:
    """`SynthesisLayer.forward` as the paper writes it: modulate, normalise and apply one kernel per sample.

    Whole planes only. The slow twin of the layer; the tests compare them.
    """
    assert wanted == Window(0, layer.resolution) and layer.activation == "lrelu"
    n, gain = len(w), gain * math.sqrt(2)
    kernels = layer.weight * layer.affine(w)[:, None, :, None, None]  # (n, out, in, 3, 3)
    kernels = kernels * (gain * torch.rsqrt(kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8))
    x = features.x.reshape(1, -1, *features.x.shape[2:])  # samples side by side, a group each
    if layer.up:
        x = F.conv_transpose2d(x, kernels.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
        x = x.reshape(n, -1, *x.shape[2:])
        low_pass = 4 * layer.resample_filter.flip(0, 1).expand(x.shape[1], 1, -1, -1)
        assert low_pass.shape[-1] == 4
        x = F.conv2d(x, low_pass, padding=1, groups=x.shape[1])
    else:
        x = F.conv2d(x, kernels.flatten(0, 1), padding=1, groups=n).reshape(n, -1, *x.shape[2:])
    drawn = noise.map(layer, n, wanted) if layer.use_noise else None
    offset = layer.bias[:, None, None] if drawn is None else layer.bias[:, None, None] + drawn * layer.noise_strength
    x = F.leaky_relu(x.add_(offset * gain), 0.2, inplace=True)
    if layer.conv_clamp is not None:
        clamp = layer.conv_clamp * gain / math.sqrt(2)
        x = x.clamp(-clamp, clamp)
    return Features(x, wanted)


def with_grouped_kernels(generator: StyleGAN2) -> StyleGAN2:
    """The same generator, changed in place, with a kernel per sample in every 3x3 layer. It decodes whole images before
    it crops them, and anchor and positive one after the other."""
    for module in generator.modules():
        if isinstance(module, SynthesisLayer):
            module.forward = MethodType(grouped_forward, module)  # type: ignore[method-assign]
    generator.decode = MethodType(decode_whole, generator)  # type: ignore[method-assign]
    generator.decode_pair = MethodType(MultiLatentGenerator.decode_pair, generator)  # type: ignore[method-assign]
    return generator


def decode_whole(generator: StyleGAN2, latents: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
    """`StyleGAN2.decode`, which here computes what the crop then cuts off."""
    start, stop = generator._crop()
    return generator._shown(generator.synthesize(latents, rng)[..., start:stop, start:stop])


@torch.no_grad()
def measure(way: str, batch: int, resolution: int, threads: int) -> dict[str, Any]:
    """Time of one pass, after one of a single image, and peak memory of one way, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    generator = StyleGAN2(StyleGAN2Config(img_resolution=resolution)).freeze()
    assert isinstance(generator, StyleGAN2)
    if way == "grouped":
        with_grouped_kernels(generator)  # sample beside sample needs the contiguous layout
    else:
        generator.to(memory_format=torch.channels_last)  # as load_generator does
    run: Callable[[torch.Tensor], torch.Tensor] = generator.decode if way == "decode" else generator.synthesize
    latents = generator.latents(torch.randn(batch, generator.noise_dim))
    gflop = timing.gflop_of(lambda: run(latents[:1])) * batch
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, cpu_start = time.perf_counter(), time.process_time()
    images = run(latents)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak_mib,
        "before_mib": before_mib,
        "gflop": gflop,
        "probe": images[:, :, ::37, ::41].flatten().tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure this one here and print JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.batch, args.resolution, args.threads)))
        return
    machine = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {machine}, {args.threads} threads, float32")
    print(f"{args.resolution} px, batch {args.batch}, medians of {args.repeats} turns")
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way in WAYS:
            command = [sys.executable, "-m", "bench.stylegan2", "--way", way]
            for flag in ("batch", "resolution", "threads"):
                command += [f"--{flag}", str(getattr(args, flag))]
            output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            turns[way].append(json.loads(output))
    results = {}
    for way in WAYS:
        row = results[way] = dict(turns[way][0])
        row |= {
            key: statistics.median(turn[key] for turn in turns[way]) for key in ("seconds", "cpu_seconds", "peak_mib")
        }
        above = row["peak_mib"] - row["before_mib"]
        times = f"{row['seconds']:7.2f} s, processors {row['cpu_seconds']:7.2f} s"
        print(f"{way:>8}: {times}, peak {row['peak_mib']:6.0f} MiB ({above:.0f} above the network at rest)")
    shared = results["shared"]
    apart = max(abs(a - b) for a, b in zip(shared["probe"], results["grouped"]["probe"], strict=True))
    print(f"shared and grouped images differ by {apart:.1e}")
    for way in ("grouped", "decode"):
        ratios = {key: results[way][key] / shared[key] for key in ("seconds", "cpu_seconds", "peak_mib")}
        print(f"{way} / shared: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))
    names = {"grouped": "plain", "shared": "one convolution a layer", "decode": "only what reaches the crop"}
    torch.set_num_threads(args.threads)
    timing.write(
        "stylegan2_cpu", f"StyleGAN2 at {args.resolution} px, images without gradients, batch {args.batch}",
        {name: [turn["cpu_seconds"] for turn in turns[way]] for way, name in names.items()}, "plain",
        n=args.batch, unit="images", gflop=results["decode"]["gflop"], clock=time.process_time,
    )  # fmt: skip


if __name__ == "__main__":
    main()
