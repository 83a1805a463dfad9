#!/usr/bin/env python3
"""Make Table 1: how far each walker of a folder moves its latent variable (delta), and what the pair still shares.

    python scripts/monte_carlo_simulation.py --generator tiny-bigbigan --walkers_base_path table1 --all_chunks
    python scripts/monte_carlo_simulation.py --generator tiny-bigbigan --walkers_base_path t4 --all_chunks \\
        --curves --page
    python scripts/monte_carlo_simulation.py --walkers_base_path walkers --walkers_iter 60032 120000 ...
    python scripts/monte_carlo_simulation.py --g_path BigBiGAN_x1.pth --walkers_base_path t1 --all_chunks
    python scripts/monte_carlo_simulation.py --walkers_base_path t1 --Tz 0_1=ganspace:5 0_1=sefa:5 0_1=1

The folder has one subfolder for each chunk or group: run folders of train_navigator.py, or the published layout
(chunk0/w_COPGen_N.pth, F_loss_values.npy). The generator, its weights and options, and the noise are those that the
runs recorded. A flag that differs is used instead; a warning and the table's caption name it.

--all_chunks first trains the missing walkers. For the generators that come with the package it trains four for each
chunk at once, so that delta has an interval over trainings. For others, and with --as-published, it trains one, as the
paper does; --train walkers=4 trains four there, too. If the generator's weights are available, fresh critics
(--fresh_critics) measure what the pairs still share, unless that would cost more than the training did. What they find
is kept in fresh_critics/, so the same command goes on with a table that was interrupted. --Tz adds rows for
perturbations that need no training, such as directions of GANSpace and SeFa, or noise. Prints the table and writes
table1.md, .csv, .json, .tex and .png.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments.settings import Table1Config
from mi_ml_gen.navigator.settings import NavigatorConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, Table1Config)
    about = "settings of train_navigator.py, with --all_chunks"
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help=about)
    arguments = parser.parse_args(argv)
    a = config.from_arguments(Table1Config, arguments)
    a.check()
    given = config.given(NavigatorConfig, arguments.train, "--train", " in --train")
    for name in ("chunks", "generator", "g_path", "g_use", "save_folder", "run_name"):
        if name in given:
            raise UsageError(f"--train {name}=...: the table sets it; see --all_chunks, --groups and --generator")
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.experiments import table1
    from mi_ml_gen.generators.registry import load_generator, load_latent_space
    from mi_ml_gen.information.image_critic import CriticSettings
    from mi_ml_gen.navigator import folders
    from mi_ml_gen.navigator.records import Flags, circumstances

    device = runtime.resolve_device(a.device)
    may_decode = bool(a.all_chunks or a.page or a.curves or a.Tz or a.fresh_critics == "yes")
    load = load_generator if may_decode else load_latent_space
    flags = Flags(a.generator, a.g_path, a.g_use, a.mean, a.std, a.truncation, a.anchors, a.anchors_data)
    found = circumstances(folders.recorded(a.walkers_base_path), flags, device, load, default="bigbigan")
    generator, noise = found.generator, found.noise
    if a.dim_z not in (None, generator.noise_dim):
        raise UsageError(f"--dim_z {a.dim_z}: {generator.name} has noise of length {generator.noise_dim}")
    further = table1.of_tz(a.Tz, generator, noise, a.seed, device)
    if a.all_chunks:
        shared: dict[str, Any] = {
            "generator": found.name,
            "g_path": found.g_path,
            "g_use": list(found.g_use),
            "chunks": "0_1",
        }
        shared |= noise.record()
        shared |= {"seed": a.seed, "device": a.device}
        preset = NavigatorConfig.preset(found.name)
        usual = 1 if preset is None else table1.SEVERAL
        base, asked = a.walkers_base_path, given.get("walkers")
        n_walkers = table1.n_walkers(base, generator, a.groups, asked, a.as_published, usual)
        settings = config.load(NavigatorConfig, preset, shared | given | {"walkers": n_walkers})
        table1.check_iterations(a.walkers_base_path, a.walkers_iter, settings, generator, a.groups)
        table1.train_missing(a.walkers_base_path, settings, generator, a.groups)

    walkers = [*folders.find_walkers(a.walkers_base_path, a.walkers_iter, a.walkers_batch_size), *further]
    rows = table1.estimate_rows(generator, walkers, a.n_samples, noise, a.seed, device, progress=True)
    critic = None
    if may_decode and a.fresh_critics != "no":
        asked = bool(a.fresh_critics == "yes" or a.curves or a.Tz)
        critic = table1.fresh_settings(walkers) or (CriticSettings() if asked else None)
    out = a.save_folder or a.walkers_base_path
    if critic is not None:
        rows = table1.with_remaining(
            generator, rows, critic, noise, a.curves, a.seed, device, progress=True, keep=out / "fresh_critics"
        )
    print(table1.to_table(rows, found.notes).to_terminal())
    if (by_curve := table1.to_curve_table(rows)) is not None:
        print(by_curve.to_terminal())
    for line in table1.warnings(rows):
        print(f"caution: {line}")
    out.mkdir(parents=True, exist_ok=True)
    written = table1.write_table(rows, out, found.notes)
    if a.page:
        command = cli.called("monte_carlo_simulation", argv)
        measured = table1.MeasuredGenerator(generator, rows, noise, a.seed, device, found.notes)
        written.append(table1.write_page(out / "table1.html", [measured], f"Table 1 of {found.name}", command))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    cli.run(main)
