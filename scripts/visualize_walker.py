#!/usr/bin/env python3
"""Show what a walker does: anchors and positives along the training and along the perturbation's strength, and curves.

    python scripts/visualize_walker.py --run walker_runs/0_tiny-bigbigan_0_1_none
    python scripts/visualize_walker.py --Tz w_COPGen_60032.pth --generator bigbigan --g_path BigBiGAN_x1.pth
    python scripts/visualize_walker.py --Tz "0_1=0.5 1_6=walker_runs/fine" --generator tiny-bigbigan

Writes strength.png (a row for each multiple of the perturbation) into --out, and for a run training.png (a row for
each saved walker) and curves.png. The generator and the noise are those that the run recorded. A flag that differs is
used instead, with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config
from mi_ml_gen.experiments.settings import WalkerPicturesConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, WalkerPicturesConfig)
    a = config.from_arguments(WalkerPicturesConfig, parser.parse_args(argv))
    a.check()
    cli.loading()
    from mi_ml_gen.core import runs, runtime
    from mi_ml_gen.navigator.records import Flags, RunRecord, circumstances
    from mi_ml_gen.walkers import budget, pictures
    from mi_ml_gen.walkers.origins import warn_of_differences
    from mi_ml_gen.walkers.spec import load_walker

    records = [RunRecord.read(a.run)] if a.run else []
    beside = Path(a.walker or "")
    out = a.save_folder or (a.run / "images" if a.run else beside.parent if beside.is_file() else Path())
    device = runtime.resolve_device(a.device)
    flags = Flags(a.generator, a.g_path, a.g_use, a.mean, a.std, a.truncation, a.anchors, a.anchors_data)
    found = circumstances(records, flags, device)
    generator = found.generator
    walker = load_walker(a.run, device) if a.run else budget.walker_by(a.walker, generator, found.noise, a.seed, device)
    walker.check(generator)
    if a.run is None:
        warn_of_differences(walker, generator, found.noise)
    z = found.noise.sample((a.n_images, generator.noise_dim), runtime.stream(a.seed, "shown", 0, 0, device))
    rows = runs.read_metrics(a.run, whole=True) if a.run else []
    out.mkdir(parents=True, exist_ok=True)
    written = [pictures.save_strengths(out / "strength.png", generator, walker, z, a.strengths)]
    if a.run:
        written.append(pictures.save_training(out / "training.png", generator, a.run, z, a.n_rows))
        written.append(pictures.save_curves(out / "curves.png", rows))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main)
