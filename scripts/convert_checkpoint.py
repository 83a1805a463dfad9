#!/usr/bin/env python3
"""Convert a published file to safetensors with its configuration. No code in the file is run.

    python scripts/convert_checkpoint.py stylegan2-car-config-f.pkl cars.safetensors
    python scripts/convert_checkpoint.py BigBiGAN_x1.pth bigbigan.safetensors
    python scripts/convert_checkpoint.py w_COPGen_60032.pth walker.safetensors
    python scripts/convert_checkpoint.py encoder_imagenet_chunks_learned/last.ckpt encoder.safetensors

Reads StyleGAN2 pickles (TensorFlow's and PyTorch's), BigBiGAN state dicts, NVAE checkpoints, walkers, and encoders
(Lightning's checkpoints of SimSiam and BYOL, COP-Gen's and torchvision's ResNets). The kind is detected from the
content. A walker's description goes to a .json file beside it. Existing files are not overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.hub.assets import check_path


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="the published file, or a reference to it")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    arguments = parser.parse_args(argv)
    check_path("IN", arguments.source)
    if arguments.target.suffix != ".safetensors":
        raise UsageError(f"OUT {arguments.target}: must end in .safetensors")
    cli.loading()
    from mi_ml_gen.hub.convert import convert

    conversion = convert(arguments.source, arguments.target)
    print(conversion.what)
    print("written: " + ", ".join(map(str, conversion.written)))
    print(f"use it with {conversion.flags}")


if __name__ == "__main__":
    cli.run(main)
