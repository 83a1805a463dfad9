"""Encoders on generated views, with the views of the next step made ahead in a second thread, against in turn.

    OMP_WAIT_POLICY=passive python -m bench.views_ahead      # threads wait as in the scripts
    OMP_WAIT_POLICY=passive python -m bench.views_ahead --networks 10x64 --steps 20 --turns 3

Both ways train the same encoder on the same views, and take turns. Wall time
counts here, so nothing else may use the processors. `share` is the part of a step in turn that makes the views, and
`overlap` the part of the time in which views are made ahead that the training does not wait for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from typing import Literal, cast

import torch

from bench import timing
from mi_ml_gen.core import optimizers, runtime
from mi_ml_gen.encoders.base import accumulate_gradients
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.training import build_encoder, view_sampler
from mi_ml_gen.views import ahead


def trained(settings: EncoderConfig, n_steps: int, is_ahead: bool) -> dict[str, float]:
    """Samples a second, and what came of making views, for steps after the first two."""
    sampler = view_sampler(settings, device=torch.device("cpu"))
    torch.manual_seed(0)
    encoder = build_encoder(settings, sampler.augment.crop_size).to(memory_format=torch.channels_last).train()
    optimizer = optimizers.SGD(encoder.parameter_groups(), lr=0.1, momentum=0.9)
    made_s, began = 0.0, time.perf_counter()
    with ahead.views_of_steps(sampler, n_steps + 2, is_ahead) as views_of:
        for step in range(n_steps + 2):
            if step == 2:
                made_s, began = 0.0, time.perf_counter()
                if isinstance(views_of, ahead.ViewsAhead):
                    views_of.made_s = views_of.waited_s = 0.0
            started = time.perf_counter()
            views = views_of(step)
            made_s += time.perf_counter() - started
            optimizer.zero_grad(set_to_none=True)
            context = runtime.autocast(torch.device("cpu"), settings.precision)
            accumulate_gradients(encoder, *views, 1, context)
            optimizer.step()
            encoder.after_step()
        seconds = time.perf_counter() - began
    found = {"samples/s": n_steps * settings.cumulative_bs / seconds}
    if isinstance(views_of, ahead.ViewsAhead):
        return found | {"overlap": views_of.overlap}
    return found | {"share": made_s / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="tiny-bigbigan")
    parser.add_argument("--networks", nargs="+", default=["10x32", "10x64"], help="depth x width of the ResNet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    runtime.set_precision(options.precision)
    result: dict[str, object] = {
        "what": vars(options), "machine": timing.machine(), "threads": torch.get_num_threads(), "networks": {}
    }  # fmt: skip
    for network in options.networks:
        depth, width = (int(number) for number in network.split("x"))
        settings = EncoderConfig(
            encoder="simclr", generator=options.generator, Tz="1_4=0,1,2", Tx="torchvision", samples_per_epoch=10**6,
            depth=cast(Literal[10, 18, 50], depth), width=width, halves=True, dim=64, cumulative_bs=options.batch,
            precision=options.precision,
            device="cpu",
        )  # fmt: skip
        ways = {"in turn": partial(trained, settings, options.steps, False),
                "ahead": partial(trained, settings, options.steps, True)}  # fmt: skip
        rows: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(options.turns):
            for way, work in ways.items():
                rows[way].append(work())
        faster = sorted(
            there["samples/s"] / here["samples/s"] for here, there in zip(rows["in turn"], rows["ahead"], strict=True)
        )
        share = statistics.median(row["share"] for row in rows["in turn"])
        overlap = statistics.median(row["overlap"] for row in rows["ahead"])
        rates = {way: statistics.median(row["samples/s"] for row in rows[way]) for way in ways}
        print(
            f"{network}: in turn {rates['in turn']:.0f} samples/s, of which views take {share:.0%}; ahead "
            f"{rates['ahead']:.0f}, {statistics.median(faster):.2f} times as fast ({faster[0]:.2f} to "
            f"{faster[-1]:.2f}), overlap {overlap:.0%}",
            flush=True,
        )
        result["networks"][network] = {"rows": rows, "faster": faster, "share": share, "overlap": overlap}  # type: ignore[index]
    timing.RESULTS.mkdir(exist_ok=True)
    (timing.RESULTS / "views_ahead_cpu.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
