"""From a bundled generator to Table 1 in a few minutes: train a walker per chunk, measure delta, write a page.

    python scripts/quickstart.py                      (what `make quickstart` runs)
    python scripts/quickstart.py --num_samples 64000  (longer, nearer to convergence)

The settings are those of mi_ml_gen/configs/quickstart.yaml, and every flag of train_navigator.py overrides them.
Interrupted, the same command goes on. The page is quickstart/index.html.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen import cli, config, pictures, runtime, table1
from mi_ml_gen.generators import load_generator
from mi_ml_gen.navigator import NavigatorConfig


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    parser = cli.Parser(description=__doc__)
    config.add_arguments(parser, NavigatorConfig)
    parser.add_argument("--n_samples", type=int, default=500_000, metavar="N", help="draws for each delta")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), metavar="PATH", help="folder of all results")
    arguments = parser.parse_args(argv)
    arguments.config = arguments.config or "quickstart"
    settings = config.from_arguments(NavigatorConfig, arguments)
    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    n_chunks = generator.layout.n_chunks

    print(f"1 of 3: a walker for each of the {n_chunks} chunks of {generator.name}")
    walkers = arguments.out / "walkers"
    table1.train_missing(walkers, settings, generator)

    print(f"2 of 3: delta of each, over {arguments.n_samples:,} draws")
    found = table1.find_walkers(walkers)
    rows = table1.estimate_rows(generator, found, arguments.n_samples, settings.law, settings.seed, device, True)
    table1.write_table(rows, arguments.out)
    print("\n" + table1.to_table(rows).to_terminal() + "\n")

    print("3 of 3: the page")
    command = shlex.join(["python", "scripts/quickstart.py", *(argv or [])])
    page = table1.write_page(
        arguments.out / "index.html", generator, rows, f"What each latent variable of {generator.name} does",
        command, settings.law, settings.seed, device=device,
    )  # fmt: skip
    z = settings.law.sample((12, generator.noise_dim), runtime.stream(settings.seed, "page", 0, 0, device))
    pictures.save_chunks(arguments.out / "chunks.png", generator, [one.walker for one in found], z)
    print(f"done in {time.monotonic() - started:.0f} s; open {page}")


if __name__ == "__main__":
    cli.run(main)
