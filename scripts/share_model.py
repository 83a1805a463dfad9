#!/usr/bin/env python3
"""Publish a trained model on the Hugging Face Hub: weights, configuration, and a model card made from the run's record.

    python scripts/share_model.py walker_runs/0_tiny-bigbigan_0_1_none --repo me/my-walker
    python scripts/share_model.py walker_runs/0_tiny-bigbigan_0_1_none --repo me/my-walker --license mit --push

FOLDER is a run folder of any training script, or a folder that this script has written. Without --push, nothing is
sent: the files are written to --out and listed. You can read and edit the card there before you push it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="run folder, or a folder that this script wrote")
    add("--repo", required=True, metavar="OWNER/NAME", help="repository on the Hub; it is created if it does not exist")
    add("--license", metavar="ID", help="licence of the weights: mit, apache-2.0, cc-by-4.0 ...; needed to push")
    add("--private", action="store_true", help="make the repository private")
    add("--out", type=Path, metavar="PATH", help="folder for the files (default: FOLDER/shared)")
    add("--push", action="store_true", help="upload the files; without this they are only written and listed")
    a = parser.parse_args(argv)

    if not a.folder.is_dir():
        raise UsageError(f"{a.folder}: no such folder; give a run folder")
    cli.loading()
    from mi_ml_gen.hub import sharing

    folder = sharing.prepare(a.folder, a.repo, a.license, a.out, to_push=a.push)
    upload = sharing.push(folder, a.repo, dry_run=not a.push, private=a.private)
    print(upload)
    if not a.push:
        print(f"nothing was sent; read {folder / sharing.CARD}, then add --push")


if __name__ == "__main__":
    cli.run(main)
