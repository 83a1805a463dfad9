#!/usr/bin/env python3
"""Search for the small encoder that learns most in an hour of a machine.

    python scripts/search_encoder.py --candidates reference "width=32 halves=true" depth=10 --time_s 60
    python scripts/search_encoder.py --base "Tz=1_4=1 Tx=torchvision_no_color" --candidates reference \\
        "cumulative_bs=256" "base_lr=0.1" --num_samples 48000 200000 --seeds 0 1

Trains each candidate on generated views and probes it on real images. --time_s also measures how fast each is here.
The folder gets search.md and trials.json. The same command resumes; start it several times to divide the work, or with
more --candidates, --num_samples and --seeds to add to what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from mi_ml_gen.core import cells, cli
from mi_ml_gen.experiments.search_settings import SearchConfig


def main(argv: Sequence[str] | None = None) -> int:
    begun = cli.begin(argv, __doc__, SearchConfig)
    if begun is None:
        return 0
    settings, _ = begun
    from mi_ml_gen.experiments.encoder_search import search, search_table

    found = search(settings)
    if found.trials:
        print(search_table(found.trials, found.speeds, settings).to_terminal())
    n_failed = cells.print_failures(found.failures)
    print(f"folder: {settings.save_folder}")
    return 1 if n_failed else 0


if __name__ == "__main__":
    cli.run(main)
