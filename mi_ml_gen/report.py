"""What a run shows of itself: image grids, figures, tables, and one HTML page that holds them all.

A page is one file: styles inside, images as data, no script, nothing fetched. It reads on a phone and on
paper, and follows the reader's light or dark setting, the figures too: they are drawn in named inks that the
page defines.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mi_ml_gen.errors import UsageError
from mi_ml_gen.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Images


def image_grid(
    images: Tensor | np.ndarray,
    n_rows: int | None = None,
    n_columns: int | None = None,
    padding: int = 2,
    value_range: tuple[float, float] = (0.0, 1.0),
    background: int = 255,
) -> np.ndarray:
    """Images side by side, row after row, as one uint8 array (H, W, 3).

    images: (n, c, h, w) with c 1 or 3, or (n, h, w); floating point within value_range, which becomes 0 to
    255 (values outside are clipped, what is not a number becomes black), or uint8, which stays. Without
    n_rows and n_columns the grid is about square; with one of them, the other follows; with both, images
    beyond them are left out. padding: pixels between images, none around. background: grey of the gaps and of
    empty places.
    Raises UsageError for other shapes.
    """
    pixels = _to_bytes(images, value_range)  # (n, h, w, 3)
    n, height, width, _ = pixels.shape
    if n == 0:
        raise UsageError("image_grid: no images")
    if n_columns is None:
        n_columns = math.ceil(n / n_rows) if n_rows is not None else math.ceil(n**0.5)
    if n_rows is None:
        n_rows = math.ceil(n / n_columns)

    step_y, step_x = height + padding, width + padding
    canvas = np.full((n_rows * step_y - padding, n_columns * step_x - padding, 3), background, np.uint8)
    for i in range(min(n, n_rows * n_columns)):
        top, left = i // n_columns * step_y, i % n_columns * step_x
        canvas[top : top + height, left : left + width] = pixels[i]
    return canvas


def pair_grid(anchors: Tensor, positives: Tensor, n_columns: int = 8, padding: int = 2, gap: int = 8) -> np.ndarray:
    """Anchors above their positives, in double rows that stand apart: uint8 (H, W, 3).

    anchors, positives: (n, c, h, w) in [0, 1].
    """
    if anchors.shape != positives.shape:
        raise UsageError(f"pair_grid: anchors {tuple(anchors.shape)}, positives {tuple(positives.shape)}")
    n_columns = min(n_columns, len(anchors))
    double_rows: list[np.ndarray] = []
    for start in range(0, len(anchors), n_columns):
        part = slice(start, start + n_columns)
        pair = [
            image_grid(images[part], n_rows=1, n_columns=n_columns, padding=padding) for images in (anchors, positives)
        ]
        between = np.full((padding, pair[0].shape[1], 3), 255, np.uint8)
        if double_rows:
            double_rows.append(np.full((gap, pair[0].shape[1], 3), 255, np.uint8))
        double_rows += [pair[0], between, pair[1]]
    return np.concatenate(double_rows)


def png_bytes(array: np.ndarray) -> bytes:
    """The PNG file of a uint8 array (H, W, 3) or (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, array: np.ndarray) -> Path:
    """Write a uint8 array (H, W, 3) or (H, W) as a PNG, whole or not at all."""
    path = Path(path)
    atomic_write(path, png_bytes(array))
    return path


def _to_bytes(images: Tensor | np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """(n, c, h, w) or (n, h, w) -> uint8 (n, h, w, 3)."""
    tensor = torch.as_tensor(images).detach()
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise UsageError(f"images of shape {tuple(tensor.shape)}: expected (n, 1 or 3, h, w) or (n, h, w)")
    if tensor.dtype != torch.uint8:
        low, high = value_range
        scaled = (tensor.float() - low) / (high - low)
        tensor = (scaled.nan_to_num(nan=0.0) * 255).round().clamp(0, 255).to(torch.uint8)
    return tensor.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


# Tables


@dataclass(frozen=True)
class Estimate:
    """A number with its spread (a standard deviation or error; the column says which): 12.3 ± 0.4."""

    value: float
    spread: float


Cell = str | int | float | Estimate | None


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
        head = [_markdown_escape(column) for column in self.columns]
        body = [[_markdown_escape(cell) for cell in row] for row in self._texts()]
        widths = [max(3, *(len(row[j]) for row in [head, *body])) for j in range(len(head))]
        right = [self.is_numeric(j) for j in range(len(head))]
        rule = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, right, strict=True)]
        lines = [_aligned(row, widths, right) for row in (head, rule, *body)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
        return f"{table}\n{_markdown_escape(self.caption)}\n" if self.caption else table

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
            [_one_line(column) for column in self.columns],
            *([_one_line(cell) for cell in row] for row in self._texts()),
        ]
        widths = [max(len(row[j]) for row in texts) for j in range(len(self.columns))]
        right = [self.is_numeric(j) for j in range(len(self.columns))]
        lines = ["  ".join(_aligned(row, widths, right)).rstrip() for row in texts]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(([_one_line(self.caption).replace("`", ""), ""] if self.caption else []) + lines) + "\n"

    def to_csv(self) -> str:
        """Comma-separated values at full precision; an Estimate takes two columns, name and "name spread"."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        records = self.to_records()
        names = list(records[0]) if records else list(self.columns)
        writer.writerow(names)
        for record in records:
            writer.writerow(["" if record[name] is None else record[name] for name in names])
        return buffer.getvalue()

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
        """A <table> without its caption; columns of numbers have the class "num"."""
        marks = [' class="num"' if self.is_numeric(j) else "" for j in range(len(self.columns))]
        head = "".join(f'<th scope="col"{mark}>{_escape(c)}</th>' for c, mark in zip(self.columns, marks, strict=True))
        rows = []
        for row in self._texts():
            row = [text.replace("-", "\N{MINUS SIGN}") if mark else text for text, mark in zip(row, marks, strict=True)]
            cells = "".join(f"<td{mark}>{_escape(cell)}</td>" for cell, mark in zip(row, marks, strict=True))
            rows.append(f"<tr>{cells}</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def write(self, folder: str | Path, stem: str) -> dict[str, Path]:
        """Write stem.md, stem.tex, stem.csv and stem.json into folder, each whole or not at all."""
        texts = {
            "md": self.to_markdown(),
            "tex": self.to_latex(),
            "csv": self.to_csv(),
            "json": self.to_json(),
        }
        paths = {suffix: Path(folder) / f"{stem}.{suffix}" for suffix in texts}
        for suffix, text in texts.items():
            atomic_write(paths[suffix], text.encode())
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
    return format(cell, given or default)


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\|*])", r"\\\1", _one_line(text)).replace("<", "&lt;")


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
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    return re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)


def _latex_cell(text: str, cell: Cell) -> str:
    escaped = _latex_escape(text)
    # A minus sign, not a hyphen.
    return re.sub(r"-(?=[\d.])", "$-$", escaped) if isinstance(cell, (int, float, Estimate)) else escaped


# Figures

PALETTE = ("#3a6fb0", "#d07a2d", "#3c9468", "#c2504c", "#8262ab", "#2b98a5", "#96704f", "#b0569a")
"""Colours of series, in order: each is told from white and from near black, and from its neighbours."""

QUANTITIES = {
    "loss": "Critic loss (InfoNCE)",
    "bound_nats": "Bound on mutual information (nats)",
    "delta": "Delta (length of the perturbation)",
}

# Inks of text, lesser text, grid and ground. No other colour equals them: a page puts its own in their place.
_INK, _SOFT, _LINE, _PAPER = "#22262b", "#626973", "#dcdfe3", "#fefefe"
_SPINE_WIDTH = 0.8
_MOST_POINTS = 1500

Rows = Sequence[Mapping[str, Any]]


def curves(
    runs: Rows | Mapping[str, Rows],
    quantities: Sequence[str] = tuple(QUANTITIES),
    x: str = "step",
    x_label: str | None = None,
    labels: Mapping[str, str] | None = None,
    span: int | None = None,
    references: Mapping[str, Mapping[str, float]] | None = None,
    marks: Mapping[str, float] | None = None,
    title: str = "",
    panel_size: tuple[float, float] = (3.8, 2.8),
) -> Figure:
    """Quantities over a run: a panel each, the smoothed line over the raw values.

    runs: rows of metrics ({"step": 10, "loss": 4.1, ...}), or several runs by name. Quantities that no row
    holds are left out; rows without a quantity, or where it is not finite, leave a gap. x: the key on the
    horizontal axis. labels: the title of a panel, for quantities that QUANTITIES does not name. span: that of
    `smooth`, in rows; by default a fiftieth of the run. references: per quantity, horizontal lines by name,
    such as {"loss": {"threshold": 2.5}}. marks: per run (the name "" for a single one), the x at which a dot
    is set on its smoothed lines, such as the selected checkpoint. panel_size: inches.
    Raises UsageError where there is nothing to draw.
    """
    named = dict(runs) if isinstance(runs, Mapping) else {"": runs}
    shown = [q for q in quantities if any(_is_finite(row.get(q)) for rows in named.values() for row in rows)]
    if not shown:
        raise UsageError(f"curves: no row holds a finite value of {', '.join(quantities)}")
    colors = series_colors(len(named))
    with_legend = len(named) > 1
    height = panel_size[1] + (0.3 if with_legend else 0)
    figure = _new_figure(panel_size[0] * len(shown), height, "" if with_legend else title)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, quantity in zip(panels, shown, strict=True):
        _dress(axes, (labels or {}).get(quantity) or QUANTITIES.get(quantity, quantity), x_label or x)
        for color, (name, rows) in zip(colors, named.items(), strict=True):
            _draw_run(axes, rows, x, quantity, color, name, span, (marks or {}).get(name))
        for name, height in (references or {}).get(quantity, {}).items():
            axes.axhline(height, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                name,
                (1, height),
                (-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=_SOFT,
            )
        axes.margins(x=0.02, y=0.08)
    if with_legend:
        _add_legend(figure, panels[0], title)
    return figure


def bars(
    values: Mapping[str, float | Estimate],
    title: str = "",
    x_label: str = "",
    number_format: str = ".3g",
    references: Mapping[str, float] | None = None,
    width: float = 5.0,
) -> Figure:
    """A horizontal bar for each value, in the order given, with its spread and the number written out.

    references: vertical lines by name. width: inches.
    Raises UsageError where there are no values.
    """
    if not values:
        raise UsageError("bars: no values")
    figure = _new_figure(width, 0.36 * len(values) + 1.0, title)
    axes = figure.subplots()
    _dress(axes, "", x_label)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    estimates = [value if isinstance(value, Estimate) else Estimate(float(value), 0.0) for value in values.values()]
    finite = [e for e in estimates if math.isfinite(e.value)]
    largest = max((e.value + e.spread for e in finite), default=0.0)
    lowest = min((e.value - e.spread for e in finite), default=0.0)
    for place, (color, estimate) in enumerate(zip(series_colors(len(estimates)), estimates, strict=True)):
        axes.barh(place, estimate.value, height=0.62, color=color, zorder=2)
        if estimate.spread:
            axes.errorbar(
                estimate.value,
                place,
                xerr=estimate.spread,
                color=_INK,
                elinewidth=1.1,
                capsize=2.5,
                capthick=1.1,
                zorder=3,
            )
        text = f"{estimate.value:{number_format}}" + (
            f" ± {estimate.spread:{number_format}}" if estimate.spread else ""
        )
        text = text.replace("-", "\N{MINUS SIGN}")
        end = max(0.0, estimate.value + estimate.spread)  # 0 where the value is not a number
        axes.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=_INK)
    for name, position in (references or {}).items():
        axes.axvline(position, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            name,
            (position, 1),
            (3, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=_SOFT,
        )
    axes.set_yticks(range(len(values)), list(values), fontsize=9.5, color=_INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(values) - 0.4, -0.6)  # from top to bottom
    left, right = min(lowest, 0.0), max(largest, 0.0)
    width_of_text = 0.3  # of the bars' own range, kept free to the right of them
    axes.set_xlim(left * 1.05, right + width_of_text * ((right - left) or 1.0))
    return figure


def smooth(values: Sequence[float] | np.ndarray, span: int) -> np.ndarray:
    """Exponential moving average with weight 2 / (span + 1) on the newest value.

    The early mean is over what has been seen (no pull to zero). Values that are not finite are passed over:
    the mean stands still there, and is not a number before the first finite one.
    """
    keep = 1 - 2 / (max(1, span) + 1)
    total = weight = 0.0
    result = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + float(value), keep * weight + 1
        if weight:
            result[i] = total / weight
    return result


def series_colors(n: int) -> list[str]:
    """n colours: of the palette while it lasts, then along a dark to light scale."""
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps["viridis"](np.linspace(0.12, 0.85, n))]


def figure_png(figure: Figure, dpi: int = 160) -> bytes:
    """The PNG file of a figure, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _new_figure(width: float, height: float, title: str) -> Figure:
    """A figure on the Agg canvas, unknown to pyplot and its list of open figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=_INK)
    return figure


def _dress(axes: Axes, title: str, x_label: str) -> None:
    """The look of every panel: two spines, a faint grid, the quantity written above and not sideways."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if title:
        axes.set_title(title, loc="left", fontsize=10, color=_INK, pad=8)
    axes.set_xlabel(x_label, fontsize=9, color=_SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_SOFT)
        axes.spines[side].set_linewidth(_SPINE_WIDTH)
    axes.tick_params(labelsize=9, labelcolor=_SOFT, color=_SOFT, width=_SPINE_WIDTH, length=3)
    axes.grid(color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    axes.patch.set_alpha(0)


def _add_legend(figure: Figure, axes: Axes, title: str) -> None:
    """The series of one panel, named once for the figure above all panels, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    points_per_name = 32 + 4.9 * max(len(name) for name in names)  # line, gaps and 9-point letters
    legend = figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=max(1, min(len(names), int(figure.get_figwidth() * 72 // points_per_name))),
        title=title or None,
        title_fontproperties={"size": 11.5, "weight": "bold"},
        alignment="left",
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.4,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    legend.get_title().set_color(_INK)


def _draw_run(
    axes: Axes, rows: Rows, x: str, quantity: str, color: str, name: str, span: int | None, mark: float | None
) -> None:
    pairs = [(float(row[x]), _as_float(row[quantity])) for row in rows if _is_finite(row.get(x)) and quantity in row]
    if not pairs:
        axes.plot([], [], color=color, linewidth=1.8, label=name)  # still in the legend: the run is there
        return
    position, value = np.array(pairs).T
    value = np.where(np.isfinite(value), value, np.nan)
    mean = smooth(value, span or max(1, len(value) // 50))
    mean[np.isnan(value)] = np.nan
    if len(value) <= _MOST_POINTS:
        axes.plot(position, value, color=color, linewidth=0.7, alpha=0.35)
    else:  # the range of each stretch stands for its points
        stretches = np.array_split(np.arange(len(value)), _MOST_POINTS // 3)
        middles = [position[part].mean() for part in stretches]
        low, high = (
            [reduce(value[part], initial=edge, where=~np.isnan(value[part])) for part in stretches]
            for reduce, edge in ((np.min, np.inf), (np.max, -np.inf))
        )
        axes.fill_between(middles, low, high, where=np.isfinite(low), color=color, alpha=0.2, linewidth=0)
    thin = np.unique(np.linspace(0, len(value) - 1, min(len(value), _MOST_POINTS)).round().astype(int))
    axes.plot(position[thin], mean[thin], color=color, linewidth=1.8, solid_capstyle="round", label=name)
    if mark is not None:
        nearest = int(np.abs(position - mark).argmin())
        axes.plot(
            position[nearest],
            mean[nearest],
            "o",
            color=color,
            markersize=6,
            markeredgecolor=_PAPER,
            markeredgewidth=1.2,
            zorder=5,
        )


def _short_number(value: float, _: int | None = None) -> str:
    """1500 -> 1.5k, 2000000 -> 2M; with a minus sign, not a hyphen."""
    unit, size = next(((u, s) for u, s in (("M", 1e6), ("k", 1e3)) if abs(value) >= s), ("", 1.0))
    return f"{value / size:g}{unit}".replace("-", "\N{MINUS SIGN}")


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# Pages


class Page:
    """One HTML file, made from top to bottom; every method adds a part and returns the page.

    title: the head line. lead: what the page says, in a sentence or two.
    In texts and captions `code` between backquotes is set as code; everything else is shown as it is.
    """

    def __init__(self, title: str, lead: str = "", footer: str = "") -> None:
        self.title = title
        self.lead = lead
        self.footer = footer
        self._parts: list[str] = []
        self._sections: list[tuple[str, str]] = []

    def section(self, title: str) -> Page:
        """A head line, reached from the contents at the top where there are three or more."""
        anchor = f"part-{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        return self._add(f'<h2 id="{anchor}">{_inline(title)}</h2>')

    def text(self, text: str) -> Page:
        """Paragraphs, apart by empty lines."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._add(f"<p>{_inline(_one_line(paragraph))}</p>")
        return self

    def code(self, text: str) -> Page:
        """Commands or output, as typed."""
        return self._add(f"<pre><code>{_escape(text.strip(chr(10)))}</code></pre>")

    def facts(self, facts: Mapping[str, str | int | float]) -> Page:
        """A few numbers that matter, large, each with its name."""
        items = "".join(
            f"<div><dt>{_inline(name)}</dt><dd>{_escape(_cell_text(value, None, '.4g'))}</dd></div>"
            for name, value in facts.items()
        )
        return self._add(f'<dl class="facts">{items}</dl>')

    def table(self, table: Table) -> Page:
        """A table under its caption; it scrolls sideways where the window is narrow."""
        label = _escape(_one_line(table.caption).replace("`", "") or "Table")
        scrolled = f'<div tabindex="0" role="region" aria-label="{label}">{table.to_html()}</div>'
        return self._add(f'<figure class="table">{_caption(table.caption)}{scrolled}</figure>')

    def image(self, array: np.ndarray, alt: str, caption: str = "", scale: float = 1.0) -> Page:
        """An image, uint8 (H, W, 3), as a PNG within the page, at `scale` times its size where there is room.

        alt: what it shows, for those who do not see it.
        """
        return self._add(f"<figure>{_img(array, alt, scale)}{_caption(caption)}</figure>")

    def rows(
        self, rows: Mapping[str, Tensor], alt: str, caption: str = "", scale: float = 1.0, padding: int = 2
    ) -> Page:
        """Rows of images, each under or beside its name: anchors and positives, say.

        rows: name -> images (n, 3, h, w) in [0, 1]; images of different rows in one place belong together.
        """
        strips = []
        for name, images in rows.items():
            grid = image_grid(images, n_rows=1, padding=padding)
            opaque = image_grid(torch.ones_like(images), n_rows=1, padding=padding, background=0)
            strip = np.concatenate([grid, opaque[..., :1]], axis=2)  # the page shows between the images
            image = _img(strip, f"{alt}: {name}", scale)
            strips.append(f'<div class="strip"><span>{_inline(name)}</span>{image}</div>')
        return self._add(f'<figure class="strips">{"".join(strips)}{_caption(caption)}</figure>')

    def figure(self, figure: Figure | Sequence[Figure], alt: str, caption: str = "") -> Page:
        """A figure of this module, or several side by side where there is room, in the reader's colours."""
        figures = list(figure) if isinstance(figure, Sequence) else [figure]
        names = [alt] if len(figures) == 1 else [f"{alt} ({i + 1} of {len(figures)})" for i in range(len(figures))]
        drawings = "".join(_svg(one, name) for one, name in zip(figures, names, strict=True))
        return self._add(f'<figure><div class="drawings">{drawings}</div>{_caption(caption)}</figure>')

    def html(self) -> str:
        """The whole page."""
        contents = ""
        if len(self._sections) >= 3:
            links = "".join(f'<li><a href="#{anchor}">{_inline(title)}</a></li>' for anchor, title in self._sections)
            contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        lead = f'<p class="lead">{_inline(_one_line(self.lead))}</p>' if self.lead else ""
        footer = f"<footer>{_inline(self.footer)}</footer>" if self.footer else ""
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n'
            f"<title>{_escape(self.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{_inline(self.title)}</h1>{lead}{contents}</header>\n"
            + "\n".join(self._parts)
            + f"\n{footer}</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        atomic_write(path, self.html().encode())
        return path

    def _add(self, part: str) -> Page:
        self._parts.append(part)
        return self


def _img(array: np.ndarray, alt: str, scale: float) -> str:
    height, width = array.shape[:2]
    data = base64.b64encode(png_bytes(array)).decode()
    sharp = ' class="sharp"' if scale >= 2 else ""  # enlarged pixels are shown as squares, not as a blur
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return f'<img{sharp} {size} alt="{_escape(alt)}" src="data:image/png;base64,{data}">'


def _svg(figure: Figure, alt: str) -> str:
    """A figure as SVG, its inks replaced by the page's variables and its size left to the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mi_ml_gen", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    for ink, name in ((_INK, "ink"), (_SOFT, "soft"), (_LINE, "line"), (_PAPER, "paper")):
        drawing = drawing.replace(ink, f"var(--{name})")
    width, height = (float(inches) * 72 for inches in figure.get_size_inches())  # the SVG's unit is a point
    opening = re.match(r"<svg[^>]*>", drawing)
    assert opening is not None
    head = (
        f'<svg role="img" aria-label="{_escape(alt)}" style="max-width: {width * 4 / 3:.0f}px" '
        f'viewBox="0 0 {width:g} {height:g}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + drawing[opening.end() :]


def _caption(text: str) -> str:
    return f"<figcaption>{_inline(_one_line(text))}</figcaption>" if text else ""


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))


_CSS = """
:root {
  --paper: #fcfcfa; --ink: #22262b; --soft: #626973; --line: #dcdfe3; --tint: #f2f3f1; --accent: #2f619f;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e4e6e8; --soft: #9aa2ab; --line: #343a41; --tint: #1e2228; --accent: #8ab4e8;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 var(--serif); }
main { max-width: 66rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem) 4rem; }
h1 {
  font: 700 clamp(1.7rem, 1.2rem + 2.4vw, 2.6rem)/1.15 var(--serif);
  letter-spacing: -0.015em; margin: 0 0 0.75rem; text-wrap: balance;
}
h2 {
  font: 700 1.4rem/1.25 var(--serif); margin: 3.2rem 0 0.8rem; padding-top: 1rem;
  border-top: 1px solid var(--line); text-wrap: balance;
}
p { max-width: 42rem; margin: 0 0 1rem; overflow-wrap: break-word; }
.lead { font-size: 1.2rem; line-height: 1.5; color: var(--soft); margin-bottom: 1.5rem; }
a { color: var(--accent); text-underline-offset: 0.15em; }
nav ul {
  display: flex; flex-wrap: wrap; gap: 0.35rem 1.4rem; list-style: none; margin: 0; padding: 0;
  font: 0.92rem/1.5 var(--sans);
}
code { font: 0.88em var(--mono); }
pre {
  background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: 0.9rem 1.1rem;
  margin: 1.2rem 0; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere;
}
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1.2rem 1.6rem;
  margin: 1.8rem 0;
}
.facts div { border-top: 2px solid var(--ink); padding-top: 0.5rem; }
.facts dt { font: 0.86rem/1.35 var(--sans); color: var(--soft); }
.facts dd { font: 600 1.6rem/1.25 var(--sans); font-variant-numeric: tabular-nums; margin: 0.1rem 0 0; }
figure { margin: 1.6rem 0 2rem; }
figcaption { font: 0.9rem/1.5 var(--sans); color: var(--soft); max-width: 42rem; margin-top: 0.7rem; }
.table figcaption { margin: 0 0 0.8rem; }
.table > div { /* a shade at the edge beyond which there is more */
  overflow-x: auto; background:
    linear-gradient(90deg, var(--paper) 40%, transparent) 0 / 2.5rem 100% no-repeat local,
    linear-gradient(270deg, var(--paper) 40%, transparent) 100% / 2.5rem 100% no-repeat local,
    radial-gradient(farthest-side at 0 50%, var(--line), transparent) 0 / 0.6rem 100% no-repeat scroll,
    radial-gradient(farthest-side at 100% 50%, var(--line), transparent) 100% / 0.6rem 100% no-repeat scroll;
}
table {
  border-collapse: collapse; border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink);
  font: 0.93rem/1.4 var(--sans); font-variant-numeric: tabular-nums lining-nums;
}
th, td { padding: 0.45rem 1.3rem 0.45rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
td:last-child:not(.num) { min-width: 9rem; }
tbody tr + tr td { border-top: 1px solid var(--line); }
th.num, td.num { text-align: right; }
td.num { white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; border-radius: 2px; }
img.sharp { image-rendering: pixelated; }
.strip + .strip { margin-top: 0.35rem; }
.strip span { display: block; font: 0.82rem/1.5 var(--sans); color: var(--soft); }
@media (min-width: 44rem) {
  .strip { display: grid; grid-template-columns: 5rem minmax(0, 1fr); align-items: center; gap: 0.6rem; }
}
.drawings {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1.4rem 1.8rem;
}
.drawings svg { width: 100%; height: auto; display: block; }
footer {
  margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line);
  font: 0.86rem/1.5 var(--sans); color: var(--soft);
}
@media print {
  html { font-size: 72%; }
  body { background: none; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h1, h2, .table figcaption { break-after: avoid; }
  figure, pre, .facts, tr { break-inside: avoid; }
  .table > div { overflow: visible; background: none; }
}
@page { margin: 18mm; }
"""
