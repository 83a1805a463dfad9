"""Names and captions as text that every form of a report can show as it is meant.

Class folders, files and runs have any name: with dollar signs, pipes, brackets, control characters, or bytes that are
no UTF-8. A name is shown as a name: it is never a formula, a link, emphasis or an escape sequence, and never a failure.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

LONGEST_IN_FIGURES = 40
"""Characters of a name in a figure; what is longer is cut in its middle."""
_UNSHOWN = {"Cc", "Cs"}
"""Categories of characters without a shape: control characters and halves of surrogate pairs."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text after them."""


def shown(text: object) -> str:
    """The text with a replacement character for what has no shape: escape codes, bytes that were no UTF-8."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if (unicodedata.category(c) in _UNSHOWN and c not in "\n\t") or c in _DIRECTIONS
        else c
        for c in str(text)
    )


def one_line(text: object) -> str:
    """As `shown`, on one line."""
    return shown(" ".join(str(text).split()))


def encoded(text: str) -> bytes:
    """The text as UTF-8, with a question mark for halves of surrogate pairs, which have no encoding."""
    return text.encode("utf-8", "replace")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows of comma-separated values. NUL, at which many readers stop, becomes a replacement character."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (cell.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(cell, str) else cell for cell in row)
        writer.writerow(list(cells))
    return text.getvalue()


def literal(text: object, longest: int | None = None) -> str:
    r"""The text for matplotlib, which reads what stands between two dollar signs as a formula and leaves names that
    begin with an underscore out of its legends.

    longest: more characters than this are cut in the middle.
    """
    line = one_line(text)
    if longest is not None and len(line) > longest:
        half = (longest - 1) // 2
        line = f"{line[: longest - 1 - half]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def markdown(text: object, is_cell: bool = False) -> str:
    r"""The text in GitHub's Markdown, with its marks as plain characters.

    is_cell: whether it is a name, in which backquotes are characters; in a caption they set code.
    """
    line = one_line(text)
    marks = r"([\\|*\[\]$~" + ("`" if is_cell else "") + "]"
    if line.count("_") > 1:  # a pair of underscores at the borders of words is emphasis
        marks += r"|(?<![^\W_])_|_(?![^\W_])"
    escaped = re.sub(marks + ")", r"\\\1", line)
    return re.sub(r"&(?=#?\w+;)", "&amp;", escaped).replace("<", "&lt;")
