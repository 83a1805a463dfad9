"""Table 1: how far each walker of a folder moves its latent variable (delta), and what the pair still shares.

    python scripts/monte_carlo_simulation.py --generator tiny-bigbigan --walkers_base_path table1 --all-chunks
    python scripts/monte_carlo_simulation.py --walkers_base_path walkers --walkers_iter 60032 120000 ...
    python scripts/monte_carlo_simulation.py --g_path BigBiGAN_x1.pth --walkers_base_path t1 --all-chunks

The folder has one subfolder per chunk or group: run folders of train_navigator.py, or the published layout
(chunk0/w_COPGen_N.pth, F_loss_values.npy). --all-chunks first trains what is missing there. Prints the table and
writes table1.md, .csv, .json, .tex and .png.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments import table1
from mi_ml_gen.generators.registry import load_generator, load_latent_space
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.navigator.settings import NavigatorConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--walkers_base_path", type=Path, required=True, metavar="PATH", help="folder with a subfolder per walker")
    add("--walkers_iter", type=int, nargs="+", metavar="N", help="checkpoint of each subfolder, by trained samples")
    add("--walkers_batch_size", type=int, default=64, metavar="N", help="batch size of published runs (default 64)")
    add("--n_samples", type=int, default=500_000, metavar="N", help="draws of each walker (default 500000)")
    add("--mean", type=float, default=0.0, metavar="X", help="mean of the anchors' noise (default 0)")
    add("--std", type=float, default=1.0, metavar="X", help="standard deviation of the anchors' noise (default 1)")
    add("--trunc", type=float, default=2.0, metavar="X", help="bound of the noise in standard deviations (default 2)")
    add("--generator", default="bigbigan", metavar="NAME", help="generator of the walkers (default bigbigan)")
    add("--g_path", metavar="PATH", help="its weights, where delta or training needs them and none are bundled")
    add("--g_use", nargs="+", default=[], metavar="KEY=VALUE", help="its use: psi=0.7 crop=256 label=3 ...")
    add("--dim_z", type=int, metavar="N", help="length of z, checked against the generator's")
    add("--all-chunks", action="store_true", help="first train a walker for every chunk that has none")
    add("--groups", type=int, default=1, metavar="N", help="with --all-chunks: chunks per walker (default 1)")
    add("--train", nargs="*", default=[], metavar="KEY=VALUE", help="with --all-chunks: settings of train_navigator.py")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 ...")
    add("--out", type=Path, metavar="PATH", help="folder of the table's files (default: --walkers_base_path)")
    add("--page", action="store_true", help="also write table1.html with images of every walker")
    a = parser.parse_args(argv)

    if a.n_samples < 1:
        raise UsageError(f"--n_samples {a.n_samples}: must be at least 1")
    if a.walkers_batch_size < 1:
        raise UsageError(f"--walkers_batch_size {a.walkers_batch_size}: must be at least 1")
    device = runtime.resolve_device(a.device)
    distribution = TruncatedNormal(a.mean, a.std, a.trunc)
    needs_images = a.all_chunks or a.page
    generator = (load_generator if needs_images else load_latent_space)(a.generator, a.g_path, device, a.g_use)
    if a.dim_z not in (None, generator.noise_dim):
        raise UsageError(f"--dim_z {a.dim_z}: {generator.name} has noise of length {generator.noise_dim}")
    if a.all_chunks:
        given = [f"generator={a.generator}", "chunks=0_1", f"mean={a.mean}", f"std={a.std}", f"truncation={a.trunc}"]
        given += [f"seed={a.seed}", f"device={a.device}", *([f"g_path={a.g_path}"] if a.g_path else [])]
        given += [*([f"g_use={','.join(a.g_use)}"] if a.g_use else []), *a.train]
        settings = config.load(NavigatorConfig, NavigatorConfig.preset(a.generator), given)
        table1.train_missing(a.walkers_base_path, settings, generator, a.groups)

    found = table1.find_walkers(a.walkers_base_path, a.walkers_iter, a.walkers_batch_size)
    rows = table1.estimate_rows(generator, found, a.n_samples, distribution, a.seed, device, progress=True)
    print(table1.to_table(rows).to_terminal())
    out = a.out or a.walkers_base_path
    out.mkdir(parents=True, exist_ok=True)
    written = table1.write_table(rows, out)
    if a.page:
        command = shlex.join(["python", "scripts/monte_carlo_simulation.py", *(sys.argv[1:] if argv is None else argv)])
        study = table1.Study(generator, rows, distribution, a.seed, device)
        written.append(table1.write_page(out / "table1.html", [study], f"Table 1 of {a.generator}", command))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main)
