"""Look at a generator: samples, and what each of its latent variables changes when it is exchanged for another's.

    python scripts/visualize_generator.py --generator tiny-stylegan --groups 2
    python scripts/visualize_generator.py --generator stylegan2 --g_path stylegan2-car-config-f.pkl --groups 4

Writes samples.png and swaps.png into --out: the anchors, a row per chunk (or group of --groups chunks) with that part
of the latents taken from the donors, and the donors. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.report.images import image_grid, save_png
from mi_ml_gen.walkers import pictures


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--generator", required=True, metavar="NAME", help="its name")
    add("--g_path", metavar="PATH", help="its weights, where none are bundled")
    add("--g_use", nargs="+", default=[], metavar="KEY=VALUE", help="its use: psi=0.7 crop=256 label=3 ...")
    add("--groups", type=int, default=1, metavar="N", help="chunks exchanged at a time (default 1)")
    add("--n_images", type=int, default=10, metavar="N", help="images in a row (default 10)")
    add("--mean", type=float, default=0.0, metavar="X", help="mean of the noise (default 0)")
    add("--std", type=float, default=1.0, metavar="X", help="standard deviation of the noise (default 1)")
    add("--truncation", type=float, default=2.0, metavar="X", help="bound of the noise in stds (default 2)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda ...")
    add("--out", type=Path, default=Path("pictures"), metavar="PATH", help="folder of the pictures (default pictures)")
    a = parser.parse_args(argv)

    if a.n_images < 1:
        raise UsageError(f"--n_images {a.n_images}: must be at least 1")
    device = runtime.resolve_device(a.device)
    generator = load_generator(a.generator, a.g_path, device, a.g_use)
    groups = generator.groups(a.groups)
    distribution = TruncatedNormal(a.mean, a.std, a.truncation)
    shape = (a.n_images, generator.noise_dim)
    z, donors = (distribution.sample(shape, runtime.stream(a.seed, name, 0, 0, device)) for name in ("shown", "donors"))
    many = distribution.sample((a.n_images**2, generator.noise_dim), runtime.stream(a.seed, "samples", 0, 0, device))
    a.out.mkdir(parents=True, exist_ok=True)
    samples = pictures.decode_shown(generator, generator.latents(many))
    written = [save_png(a.out / "samples.png", image_grid(samples, n_columns=a.n_images))]
    written.append(save_png(a.out / "swaps.png", pictures.swaps(generator, z, donors, groups)))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main)
