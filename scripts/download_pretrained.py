#!/usr/bin/env python3
"""Download published weights by name, kind or pattern. Downloads are checked, and resume after an interruption.

    python scripts/download_pretrained.py --list
    python scripts/download_pretrained.py bigbigan-x1 walker-bigbigan-1_6
    python scripts/download_pretrained.py --walkers bigbigan --convert
    python scripts/download_pretrained.py 'runs/walkers/*chunk0*' hf://owner/repo/file.pth@v1 --out weights

Files go into the Hugging Face cache (HF_HOME), or into --out. --list asks the repositories for their files, unless
HF_HUB_OFFLINE is set. --convert writes NAME.safetensors into --out, or into the current folder. Each file has its own
licence, which is shown before the download. All scripts accept these names in place of paths: --g_path bigbigan-x1.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.hub import catalogue
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub.assets import KINDS, is_reference


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="a name from --list, hf://owner/repo/file, a web address, or a pattern such as 'runs/*'",
    )
    for kind in KINDS:
        add(f"--{kind}s", nargs="?", const="*", metavar="FAMILY", help=f"all {kind}s, or those of a family")
    add("--list", action="store_true", help="list what can be downloaded, and stop")
    add("--dry-run", action="store_true", help="list what would be downloaded, and stop")
    add("--revision", metavar="NAME", help="branch, tag or commit of the repositories (default: main)")
    add("--out", type=Path, metavar="PATH", help="folder for the files (default: the Hugging Face cache)")
    add("--local-dir", type=Path, dest="out", help=argparse.SUPPRESS)
    add(
        "--convert",
        action="store_true",
        help="also write generators and walkers as safetensors",
    )
    add(
        "--accept-change",
        action="store_true",
        help="accept files whose hash differs from the one recorded at the first download",
    )
    a = parser.parse_args(argv)

    kinds = {kind: getattr(a, f"{kind}s") for kind in KINDS if getattr(a, f"{kind}s") is not None}
    if not (a.list or a.names or kinds):
        raise UsageError("name what to fetch, or give --list (see --help)")
    if a.list and not hub.is_offline() and not a.dry_run:
        return _show(a.revision, a.names, kinds)
    needs_listing = a.list or a.dry_run or kinds or not all(map(is_reference, a.names))
    known = catalogue.catalogue(bool(needs_listing) and not hub.is_offline(), a.revision)
    chosen = _chosen(known, a.names, kinds)
    if a.list or a.dry_run:
        print(catalogue.to_text(chosen))
        if a.dry_run:
            print(catalogue.plan(chosen, a.out))
        return
    for entry in chosen:
        path = hub.fetch(entry.name, a.revision, a.out, a.accept_change)
        print(f"{entry.name}: {path}", flush=True)
        if a.convert and entry.kind in ("generator", "walker"):
            from mi_ml_gen.hub.convert import convert_beside

            print(convert_beside(path, entry.name, a.out or Path()))


def _chosen(known: catalogue.Catalogue, names: Sequence[str], kinds: Mapping[str, str]) -> list[catalogue.Entry]:
    for fault in known.faults:
        print(f"warning: not listed: {fault}", file=sys.stderr)
    return catalogue.select(known.entries, names, kinds) if names or kinds else known.entries


def _show(revision: str | None, names: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Print what there is. Where the repositories are slow, or out of reach, the table comes first: it is here."""
    known, answer = catalogue.soon(revision)
    shown: list[catalogue.Entry] = []
    if answer is not None:
        with contextlib.suppress(UsageError):  # a word that only the repositories may know
            shown = _chosen(known, names, kinds)
            print(catalogue.to_text(shown), flush=True)
        print("waiting for the repositories to list what they hold ...", file=sys.stderr, flush=True)
        known = answer.result()
    new = [entry for entry in _chosen(known, names, kinds) if entry not in shown]
    if new:
        print(catalogue.to_text(new))


if __name__ == "__main__":
    cli.run(main)
