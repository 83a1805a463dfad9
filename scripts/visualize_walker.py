"""Look at a walker: anchors and positives along training and along the size of the perturbation, and the curves.

    python scripts/visualize_walker.py --run walker_runs/0_tiny-bigbigan_0_1_none
    python scripts/visualize_walker.py --walker w_COPGen_60032.pth --generator bigbigan --g_path BigBiGAN_x1.pth
    python scripts/visualize_walker.py --walker "0_1=0.5 1_6=walker_runs/fine" --generator tiny-bigbigan

Writes training.png (a row per saved walker, runs only), strength.png (a row per multiple of the perturbation) and
curves.png into --out. Generator and noise are those that the run recorded; a flag that says something else is used, and
named in a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, runs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.navigator.records import Flags, RunRecord, circumstances
from mi_ml_gen.walkers import pictures
from mi_ml_gen.walkers.origins import warn_of_differences
from mi_ml_gen.walkers.spec import load_walker, walker_from


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, metavar="PATH", help="run folder of train_navigator.py")
    add("--walker", metavar="T_Z", help='in place of a run: a walker\'s file, "0_1=0.5 1_4=FILE" (docs/navigator.md)')
    add("--generator", metavar="NAME", help="generator of the walker (default: the run's)")
    add("--g_path", metavar="PATH", help="weights of the generator, where none are bundled")
    add("--g_use", nargs="+", metavar="KEY=VALUE", help="its use: psi=0.7 crop=256 ... (default: the run's)")
    add("--n_images", type=int, default=10, metavar="N", help="anchors, one column each (default 10)")
    add("--n_rows", type=int, default=6, metavar="N", help="saved walkers shown along training (default 6)")
    add("--strengths", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5, 2.0], metavar="X", help="multiples shown")
    add("--mean", type=float, metavar="X", help="mean of the anchors' noise (default: the run's, else 0)")
    add("--std", type=float, metavar="X", help="standard deviation of the anchors' noise (default: the run's, else 1)")
    add("--truncation", type=float, metavar="X", help="bound of the noise in stds (default: the run's, else 2)")
    add("--seed", type=int, default=0, metavar="N", help="of the anchors (default 0)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda ...")
    add("--out", type=Path, metavar="PATH", help="folder of the pictures (default: the run's images/)")
    a = parser.parse_args(argv)

    if (a.run is None) == (a.walker is None):
        raise UsageError("give either --run, a run folder, or --walker, a walker's file")
    if a.n_images < 1 or a.n_rows < 1:
        raise UsageError(f"--n_images {a.n_images} --n_rows {a.n_rows}: must be at least 1")
    if a.run is None and a.generator is None:
        raise UsageError("--generator must be given with --walker")
    records = [RunRecord.read(a.run)] if a.run else []
    beside = Path(a.walker or "")
    out = a.out or (a.run / "images" if a.run else beside.parent if beside.is_file() else Path())
    device = runtime.resolve_device(a.device)
    flags = Flags(a.generator, a.g_path, a.g_use, a.mean, a.std, a.truncation)
    found = circumstances(records, flags, device)
    generator = found.generator
    walker = load_walker(a.run, device) if a.run else walker_from(a.walker, generator, device, "--walker")
    walker.check(generator)
    if a.run is None:
        warn_of_differences(walker, generator, found.noise)
    z = found.noise.sample((a.n_images, generator.noise_dim), runtime.stream(a.seed, "shown", 0, 0, device))
    out.mkdir(parents=True, exist_ok=True)
    written = [pictures.save_strengths(out / "strength.png", generator, walker, z, a.strengths)]
    if a.run:
        written.append(pictures.save_training(out / "training.png", generator, a.run, z, a.n_rows))
        written.append(pictures.save_curves(out / "curves.png", runs.read_metrics(a.run)))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main)
