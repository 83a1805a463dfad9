"""Tables: columns and rows, written as Markdown, LaTeX, terminal text, CSV, JSON or HTML."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write, write_with_hash
from mi_ml_gen.report.text import csv_text, encoded, markdown, one_line, shown

# Tables


@dataclass(frozen=True)
class Estimate:
    """A number with its spread (a standard deviation or error; the column says which): 12.3 ± 0.4."""

    value: float
    spread: float


Cell = str | int | float | Estimate | None

LONG_TEXT = 40
"""Characters of a cell beyond which a page gives it the width of a sentence."""
_LONG = ' class="long"'


@dataclass
class Table:
    """Columns and rows, written as Markdown, LaTeX, terminal text, CSV, JSON or HTML.

    rows: one cell for each column. A cell is text, a number, an Estimate, or None where there is no value.
    caption: `code` between backquotes is set as code where the form of writing has it.
    formats: format specification of a column's numbers, such as ".2f" or ","; without one, floating point
    numbers of a column get as many decimals as show four digits of the largest. latex_columns: the head of
    each column in LaTeX as it is to stand there; without it `columns`, escaped.
    Raises UsageError where a row has another number of cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    latex_columns: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise UsageError(f"table row {i} has {len(row)} cells, expected {len(self.columns)}")
        unknown = set(self.formats) - set(self.columns)
        if unknown:
            raise UsageError(f"table formats for unknown columns {sorted(unknown)}; columns: {', '.join(self.columns)}")
        if self.latex_columns is not None and len(self.latex_columns) != len(self.columns):
            raise UsageError(f"{len(self.latex_columns)} LaTeX columns for {len(self.columns)} columns")

    def is_numeric(self, column: int) -> bool:
        """Whether the column holds numbers and nothing else: such columns are aligned to the right."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown, padded so that it reads as plain text too."""
        head = [markdown(column) for column in self.columns]
        body = [[markdown(cell, is_cell=True) for cell in row] for row in self._texts()]
        widths = [max(3, *(len(row[j]) for row in [head, *body])) for j in range(len(head))]
        right = [self.is_numeric(j) for j in range(len(head))]
        rule = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, right, strict=True)]
        lines = [_aligned(row, widths, right) for row in (head, rule, *body)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
        return f"{table}\n{markdown(self.caption)}\n" if self.caption else table

    def to_latex(self) -> str:
        r"""A tabular with the rules of \usepackage{booktabs}; with a caption, in a table environment."""
        heads = self.latex_columns or [_latex_escape(column) for column in self.columns]
        alignment = "".join("r" if self.is_numeric(j) else "l" for j in range(len(self.columns)))
        body = [
            " & ".join(_latex_cell(text, cell) for text, cell in zip(*pair, strict=True)) + r" \\"
            for pair in zip(self._texts(), self.rows, strict=True)
        ]
        lines = [
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        if self.caption:
            lines = [
                r"\begin{table}[t]",
                r"\centering",
                rf"\caption{{{_latex_escape(self.caption)}}}",
                *lines,
                r"\end{table}",
            ]
        return "\n".join(lines) + "\n"

    def to_terminal(self) -> str:
        """Columns apart by two spaces under a ruled head; no escape sequences."""
        texts = [
            [one_line(column) for column in self.columns],
            *([one_line(cell) for cell in row] for row in self._texts()),
        ]
        widths = [max(len(row[j]) for row in texts) for j in range(len(self.columns))]
        right = [self.is_numeric(j) for j in range(len(self.columns))]
        lines = ["  ".join(_aligned(row, widths, right)).rstrip() for row in texts]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(([one_line(self.caption).replace("`", ""), ""] if self.caption else []) + lines) + "\n"

    def to_csv(self) -> str:
        """Comma-separated values at full precision; an Estimate takes two columns, name and "name spread"."""
        records = self.to_records()
        names = list(records[0]) if records else list(self.columns)
        lines = (["" if record[name] is None else record[name] for name in names] for record in records)
        return csv_text([names, *lines])

    def to_records(self) -> list[dict[str, str | int | float | None]]:
        """One mapping from column name to value for each row, at full precision; Estimates as in to_csv."""
        spread_columns = {j for row in self.rows for j, cell in enumerate(row) if isinstance(cell, Estimate)}
        records: list[dict[str, str | int | float | None]] = []
        for row in self.rows:
            record: dict[str, str | int | float | None] = {}
            for j, (column, cell) in enumerate(zip(self.columns, row, strict=True)):
                record[column] = cell.value if isinstance(cell, Estimate) else cell
                if j in spread_columns:
                    record[f"{column} spread"] = cell.spread if isinstance(cell, Estimate) else None
            records.append(record)
        return records

    def to_json(self) -> str:
        """The records as JSON; what is not finite becomes null, as JSON has no word for it."""
        records = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            }
            for row in self.to_records()
        ]
        return json.dumps(records, indent=2, ensure_ascii=False) + "\n"

    def to_html(self) -> str:
        """A <table> without its caption; columns of numbers have the class "num", cells with sentences "long"."""
        marks = [' class="num"' if self.is_numeric(j) else "" for j in range(len(self.columns))]
        head = "".join(f'<th scope="col"{mark}>{_escape(c)}</th>' for c, mark in zip(self.columns, marks, strict=True))
        rows = []
        for row in self._texts():
            row = [text.replace("-", "\N{MINUS SIGN}") if mark else text for text, mark in zip(row, marks, strict=True)]
            cells = "".join(
                f"<td{mark or _LONG * (len(cell) > LONG_TEXT)}>{_escape(cell)}</td>"
                for cell, mark in zip(row, marks, strict=True)
            )
            rows.append(f"<tr>{cells}</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def write(self, folder: str | Path, stem: str) -> dict[str, Path]:
        """Write stem.md, stem.tex, stem.csv and stem.json into folder, each whole or not at all. The SHA-256 of
        stem.json lies beside it."""
        texts = {
            "md": self.to_markdown(),
            "tex": self.to_latex(),
            "csv": self.to_csv(),
            "json": self.to_json(),
        }
        paths = {suffix: Path(folder) / f"{stem}.{suffix}" for suffix in texts}
        for suffix, text in texts.items():
            if suffix == "json":  # which other commands read
                write_with_hash(paths[suffix], encoded(text))
            else:
                atomic_write(paths[suffix], encoded(text))
        return paths

    def _texts(self) -> list[list[str]]:
        """All cells as text, numbers in their column's format."""
        formats = [self.formats.get(name) for name in self.columns]
        defaults = [_default_format([row[j] for row in self.rows]) for j in range(len(self.columns))]
        return [[_cell_text(cell, formats[j], defaults[j]) for j, cell in enumerate(row)] for row in self.rows]


def _default_format(cells: Iterable[Cell]) -> str:
    numbers = [
        cell.value if isinstance(cell, Estimate) else cell for cell in cells if isinstance(cell, (float, Estimate))
    ]
    largest = max((abs(number) for number in numbers if math.isfinite(number)), default=0.0)
    if largest == 0:
        return ".1f"
    decimals = 3 - math.floor(math.log10(largest))
    return f".{max(0, decimals)}f" if decimals <= 6 else ".3e"


def _cell_text(cell: Cell, given: str | None, default: str) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        return f"{_cell_text(cell.value, given, default)} ± {_cell_text(cell.spread, given, default)}"
    if isinstance(cell, (bool, int)) and given is None:
        return str(cell)
    text = format(cell, given or default)
    return text.removeprefix("-") if not text.strip("-0.%") else text  # no "-0.00"


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)]


def _escape(text: object) -> str:
    return html.escape(shown(text), quote=True)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _latex_escape(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in one_line(text))
    return re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)


def _latex_cell(text: str, cell: Cell) -> str:
    escaped = _latex_escape(text)
    if escaped.startswith(("[", "*")):  # after the end of a row LaTeX would read them as its options
        escaped = "{}" + escaped
    # A minus sign, not a hyphen.
    return re.sub(r"-(?=[\d.])", "$-$", escaped) if isinstance(cell, (int, float, Estimate)) else escaped


# Inks of text, lesser text, grid and ground. No other colour equals them: a page puts its own in their place.
_INK, _SOFT, _LINE, _PAPER = "#22262b", "#626973", "#dcdfe3", "#fefefe"
