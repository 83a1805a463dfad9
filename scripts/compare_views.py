#!/usr/bin/env python3
"""Compare encoders trained on real images, on generated ones, and on generated ones that a walker perturbs.

    python scripts/compare_views.py                          (tiny-bigbigan against Fashion-MNIST, on a CPU)
    python scripts/compare_views.py --num_samples 60000 --seeds 0 --out short
    python scripts/compare_views.py --width 64 --num_samples 3000000 --device cuda --precision bf16 --out large
    python scripts/compare_views.py --budgets 1 2 3 4 --budget_chunks fine all

Trains a SimCLR encoder for every row and seed, and probes it on real images. Also trains a walker for each chunk if
you give none. Each encoder adds to comparison.md, differences.md (paired by seed), nats.md (what pairs share, and
whether that may be believed), shape.md (is it an inverse U?), comparison.png, nats.png and index.html. The same
command resumes after a stop, and you can add --seeds, --rows and --budgets later. Start it in several processes, or on
several machines that share the folder, and they divide the work.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cells, cli
from mi_ml_gen.experiments.comparison_settings import ComparisonConfig


def main(argv: Sequence[str] | None = None) -> int:
    begun = cli.begin(argv, __doc__, ComparisonConfig)
    if begun is None:
        return 0
    settings, _ = begun
    from mi_ml_gen.experiments.comparison_report import comparison_table, not_asked_for
    from mi_ml_gen.experiments.view_comparison import compare

    found = compare(settings)
    if found.cells:
        print(comparison_table(found.cells, settings).to_terminal())
    for name in found.in_work:
        print(f"in work elsewhere: {name}")
    if others := not_asked_for(settings):
        print(f"in the folder, but not asked for: {', '.join(others)}")
    n_failed = cells.print_failures(found.failures)
    print(f"folder: {settings.save_folder}")
    return 1 if n_failed else 0


if __name__ == "__main__":
    cli.run(main)
