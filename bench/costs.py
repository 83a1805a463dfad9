"""What the paper's 18 encoders cost, counted: `python -m bench.costs` writes bench/results/costs.md.

Each line is what `train_encoder.py --dry-run` prints for the configuration, at one share of the floor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from mi_ml_gen.core import config
from mi_ml_gen.core.costs import FLOOR_TFLOPS, RunCost, StepCost
from mi_ml_gen.encoders import costs
from mi_ml_gen.encoders.settings import PUBLISHED_SETS, EncoderConfig
from mi_ml_gen.report.tables import Table

FOLDERS = ("simsiam_bigbigan", "simsiam_stylegan", "byol_stylegan")
SHARE = 0.45
RESULT = Path(__file__).parent / "results" / "costs.md"


@functools.cache
def counted(key: tuple) -> tuple[StepCost, dict[str, int]]:
    """A step of the settings that decide its cost; many configurations share them."""
    encoder, generator, g_path, Tz, Tx, batch = key
    settings = EncoderConfig(
        encoder=encoder, generator=generator, g_path=g_path, Tz=Tz, Tx=Tx, cumulative_bs=batch, precision="bf16"
    )
    return costs.count_step(settings, batch)


def run_cost(settings: EncoderConfig) -> RunCost:
    """Of one configuration; real images are as many as the generated ones."""
    Tz = None
    if isinstance(settings.Tz, dict):
        starts, stops = zip(*(map(int, text.split("_")) for text in settings.Tz), strict=True)
        Tz = f"{min(starts)}_{max(stops)}=1"
    elif settings.Tz is not None and settings.Tz not in config.NOTHING:
        Tz = settings.Tz
    n_epoch = settings.samples_per_epoch or next(
        n for n, framing in PUBLISHED_SETS.values() if framing == settings.framing
    )
    key = (settings.encoder, settings.generator, settings.g_path, Tz, settings.Tx, settings.cumulative_bs)
    step, files = counted(key)
    return RunCost(settings.max_epochs * n_epoch, settings.cumulative_bs, step, files, precision="bf16")


def rows() -> Iterator[list]:
    for folder in FOLDERS:
        for path in sorted((config.BUNDLED / "encoders" / folder).glob("*.yaml")):
            name = f"{folder}/{path.stem}"
            cost = run_cost(config.load(EncoderConfig, f"encoders/{name}"))
            hours = [cost.hours(n, SHARE) for n in (1, 8, 64)]
            memory = [cost.peak_bytes(n) / 2**30 for n in (1, 8, 64)]
            yield [name, cost.step.total_flops / 1e12, cost.samples_per_s(SHARE), *hours, *memory,
                   cost.files["encoder"] / 2**20]  # fmt: skip
            print(name, flush=True)


def main() -> None:
    columns = ["configuration", "TFLOP a step", "samples/s", "hours, 1 GPU", "8 GPUs", "64 GPUs", "GiB, 1 GPU",
               "GiB, 8", "GiB, 64", "encoder MiB"]  # fmt: skip
    formats = {name: ".1f" for name in columns[1:]} | {"samples/s": ",.0f", "64 GPUs": ".2f", "encoder MiB": ".0f"}
    caption = (
        f"Counted in bf16; hours are predicted for GPUs that reach {SHARE:.0%} of {FLOOR_TFLOPS:.0f} TFLOP/s and lose "
        "nothing on one another. Reading real images is not counted."
    )
    RESULT.write_text(Table(columns, list(rows()), caption, formats).to_markdown(), encoding="utf-8")
    print(f"written: {RESULT.name}")


if __name__ == "__main__":
    main()
