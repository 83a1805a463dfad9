"""A page of docs/ as something that can be tried: its files written into a folder, its commands and programs run.

page = Page("extending.md")
page.write(folder)                                   # the blocks that begin with "# NAME.py"
page.run(SMALL, monkeypatch, capsys)                 # its commands, made small, in this process and folder
elsewhere(folder, "-m", "pytest", ...)               # Python in a process of its own, in that folder
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.scripts.test_scripts import call

DOCS = Path(__file__).parents[1] / "docs"


class Page:
    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text(encoding="utf-8")

    def blocks(self, language: str = "") -> list[str]:
        """The contents of the fenced blocks of a language; of commands it is the empty one."""
        found = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return [text for name, text in found if name == language]

    def write(self, folder: Path) -> set[str]:
        """Write the Python blocks that begin with the name of a file; the names."""
        files = [(name[1], text) for text in self.blocks("python") if (name := re.match(r"# (\w+\.py)\n", text))]
        for name, text in files:
            (folder / name).write_text(text)
        return {name for name, _ in files}

    def run(self, small: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        """Run the page's commands one after the other. small: for each script, in their order, flags that make it so;
        the settings of the page come first."""
        seen = []
        for _, script, *flags in [shlex.split(line) for text in self.blocks() for line in text.splitlines() if line]:
            name = Path(script).stem
            code, out, err = call(monkeypatch, capsys, name, *flags, *shlex.split(small[name]), "--device", "cpu")
            assert code == 0, (name, out, err)
            seen.append(name)
        assert list(dict.fromkeys(seen)) == list(small)


def elsewhere(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, in a folder whose files can be imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
