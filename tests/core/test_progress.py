"""Progress: a bar on a terminal, whole lines elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mi_ml_gen.core import progress
from mi_ml_gen.core.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, interval_s: float = 0.0) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", interval_s)
    bar = Bar(total=4, desc="work", mininterval=0, miniters=1, ascii=True)
    for i in range(4):
        bar.set_postfix(loss=i)
        bar.update()
    bar.close()
    return stderr.getvalue()


def test_a_pipe_gets_whole_lines(monkeypatch):
    text = work(monkeypatch, io.StringIO())
    assert "\r" not in text and text.endswith("\n")
    lines = text.splitlines()
    assert len(lines) >= 2 and all(line.startswith("work:") and line.count("work:") == 1 for line in lines)
    assert "4/4" in lines[-1] and "loss=3" in lines[-1]


def test_a_pipe_hears_nothing_of_short_work(monkeypatch):
    assert work(monkeypatch, io.StringIO(), interval_s=1000.0) == ""


def test_a_terminal_gets_a_bar_that_moves(monkeypatch):
    text = work(monkeypatch, Terminal(), interval_s=1000.0)
    assert text.count("\r") >= 4 and text.count("\n") == 1


def test_every_bar_of_the_package_is_of_this_kind():
    package = Path(progress.__file__).parents[1]
    own = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "import tqdm" in path.read_text()}
    assert own == {"core/progress.py", "hub/downloads.py"}  # a download shows one on a terminal alone
