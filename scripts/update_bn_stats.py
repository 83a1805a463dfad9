#!/usr/bin/env python3
"""Estimate an NVAE's batch statistics for a temperature, and write a generator that uses them at that temperature.

    python scripts/update_bn_stats.py --g_path last.pt --temperature 0.6 --output nvae-0.6.safetensors

At a temperature below 1 the features are distributed otherwise than in training, so images improve with statistics of
their own. The output holds those of all temperatures that the input had, and the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.known import check_generator_settings


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--generator", default="nvae", metavar="NAME", help="an NVAE by its name (default: nvae)")
    parser.add_argument(
        "--g_path", metavar="PATH", help="file with the weights; needed unless they come with the package"
    )
    parser.add_argument("--temperature", type=float, required=True, metavar="T", help="factor of sigma, above 0")
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="the generator to write")
    parser.add_argument("--batches", type=int, default=500, metavar="N", help="batches of samples (default: 500)")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="samples in a batch (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--device", default="auto", help="device to work on: auto, cpu, cuda, cuda:1 or mps")
    arguments = parser.parse_args(argv)
    if min(arguments.batches, arguments.batch_size - 1) < 1:
        raise UsageError("--batches must be at least 1, --batch-size at least 2")
    if Path(arguments.output).suffix != ".safetensors":
        raise UsageError(f"--output {arguments.output}: must end in .safetensors")
    check_generator_settings(arguments.generator, arguments.g_path)
    cli.loading()
    from mi_ml_gen.core import runtime
    from mi_ml_gen.generators.nvae.evaluation import estimate_statistics
    from mi_ml_gen.generators.nvae.generator import NVAE
    from mi_ml_gen.generators.registry import load_generator, save_generator

    use = {"temperature": arguments.temperature}
    generator = load_generator(arguments.generator, arguments.g_path, runtime.resolve_device(arguments.device))
    if not isinstance(generator, NVAE):
        raise UsageError(f"--generator {arguments.generator}: is not an NVAE")
    generator.use(use)
    estimate_statistics(generator, generator.temperature, arguments.batches, arguments.batch_size, arguments.seed)
    save_generator(arguments.output, generator, "nvae")
    print(f"{arguments.output}: statistics for temperature {', '.join(map(str, generator.temperatures))}")


if __name__ == "__main__":
    cli.run(main)
