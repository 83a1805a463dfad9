"""Publish what was trained: weights, configuration and a model card from the run's own record, on the Hugging Face Hub.

    python scripts/share_model.py walker_runs/0_tiny-bigbigan_0_1_none --repo me/my-walker
    python scripts/share_model.py walker_runs/0_tiny-bigbigan_0_1_none --repo me/my-walker --license mit --push

FOLDER is a run folder of any training script, or a folder written before. Without --push nothing is sent: the files
are written to --out and listed, and the card there may be read and edited before it is pushed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.hub import sharing


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="run folder, or a folder that this script wrote")
    add("--repo", required=True, metavar="OWNER/NAME", help="where it goes on the Hub; made if it is not there")
    add("--license", metavar="ID", help="of the weights: mit, apache-2.0, cc-by-4.0 ...; needed to push")
    add("--private", action="store_true", help="make the repository a private one")
    add("--out", type=Path, metavar="PATH", help="where the files are written (default: FOLDER/shared)")
    add("--push", action="store_true", help="send it; without this it is only shown")
    a = parser.parse_args(argv)

    folder = sharing.prepare(a.folder, a.repo, a.license, a.out)
    upload = sharing.push(folder, a.repo, dry_run=not a.push, private=a.private)
    print(upload)
    if not a.push:
        print(f"nothing was sent; read {folder / sharing.CARD}, then add --push")


if __name__ == "__main__":
    cli.run(main)
