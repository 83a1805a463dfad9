#!/usr/bin/env python3
"""Examine a generator of yours: every promise of the interface, and one line for each that is broken.

    python scripts/check_generator.py mine.py:Mine
    python scripts/check_generator.py my_package.models:Mine --g_path weights.pt
    python scripts/check_generator.py tiny-bigbigan            (a name, or a file or folder that was saved)

Prints each promise with "kept" or "BROKEN", and ends with exit code 2 where one is broken. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli, config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.known import check_generator_settings
from mi_ml_gen.generators.settings import CheckConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    about = "FILE.py:CLASS, MODULE:CLASS, a name such as tiny-bigbigan, or a saved generator (file or folder)"
    parser.add_argument("generator", metavar="GENERATOR", help=about)
    config.add_arguments(parser, CheckConfig, file=False)
    arguments = parser.parse_args(argv)
    settings = config.from_arguments(CheckConfig, arguments, file=False)
    name = arguments.generator
    is_saved = ":" not in name and Path(name).exists()
    if not is_saved:
        check_generator_settings(name, settings.g_path, settings.g_use)
    elif settings.g_path is not None:
        raise UsageError(f"--g_path {settings.g_path}: {name} holds its own weights; leave it out")
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.generators.base import MultiLatentGenerator
    from mi_ml_gen.generators.checking import examine_generator
    from mi_ml_gen.generators.registry import load_generator, load_own

    device = runtime.resolve_device(settings.device)
    if is_saved:
        folder = Path(name).is_dir()
        generator = MultiLatentGenerator.from_pretrained(name) if folder else load_own(name)
        generator = generator.use(settings.g_use).to(device)
    else:
        generator = load_generator(name, settings.g_path, device, settings.g_use)

    findings = examine_generator(generator, settings.n, settings.seed, settings.skip)
    sizes = ", ".join(map(str, generator.layout.sizes))
    print(f"{generator.name}: {generator.layout.n_chunks} chunks ({sizes} numbers), {generator.resolution} px")
    for finding in findings:
        state = "BROKEN" if finding.broken else "skipped" if finding.is_skipped else "kept"
        print(f"  {state:8s} {finding.promise:22s} {finding.broken or finding.note}".rstrip())
    broken = [finding.promise for finding in findings if finding.broken]
    if broken:
        raise UsageError(f"{generator.name} breaks {len(broken)} of {len(findings)} promises: {', '.join(broken)}")
    print(f"{generator.name} keeps all promises that were examined")


if __name__ == "__main__":
    cli.run(main)
