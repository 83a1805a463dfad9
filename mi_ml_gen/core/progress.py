"""Progress bars: one that moves on a terminal, and whole lines now and then in a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

LINE_INTERVAL_S = 30.0
"""Seconds between two lines where stderr is no terminal. Work that takes less time prints none."""


class Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar. Where stderr is no terminal, its moves are lines of their own, and rare."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._moves = sys.stderr.isatty()
        if not self._moves:
            options |= {"file": _Lines(sys.stderr), "mininterval": LINE_INTERVAL_S, "delay": LINE_INTERVAL_S}
        super().__init__(*arguments, **options)

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **values: Any) -> None:
        """Values behind the bar; on a terminal they show at once."""
        super().set_postfix(ordered_dict, bool(refresh) and self._moves, **values)


class _Lines:
    """What tqdm writes, frames that each begin with a carriage return, as lines."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if frame := text.strip():
            self._file.write(f"{frame}\n")

    def flush(self) -> None:
        self._file.flush()

    def isatty(self) -> bool:
        return False
