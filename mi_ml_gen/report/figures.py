"""Figures: curves and bars, in one manner."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.report.tables import _INK, _LINE, _PAPER, _SOFT, Estimate
from mi_ml_gen.report.text import LONGEST_IN_FIGURES, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Figures

PALETTE = ("#3a6fb0", "#d07a2d", "#3c9468", "#c2504c", "#8262ab", "#2b98a5", "#96704f", "#b0569a")
"""Colours of series, in order: each is told from white and from near black, and from its neighbours."""

QUANTITIES = {
    "loss": "Critic loss (InfoNCE)",
    "bound_nats": "Bound on mutual information (nats)",
    "delta": "Delta (length of the perturbation)",
}
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
    is set on its smoothed lines, such as the selected checkpoint. panel_size: inches. Rows may hold the ends of an
    interval, {"loss_low": 3.9, "loss_high": 4.3}: each value then is a dot with a line from end to end, an open one
    where "loss_warned" says that the value carries a warning.
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
                literal(name, LONGEST_IN_FIGURES),
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
    names = [literal(name, LONGEST_IN_FIGURES) for name in values]
    figure = _new_figure(max(width, 3.2 + 0.085 * max(map(len, names))), 0.36 * len(values) + 1.0, title)
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
            literal(name, LONGEST_IN_FIGURES),
            (position, 1),
            (3, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=_SOFT,
        )
    axes.set_yticks(range(len(values)), names, fontsize=9.5, color=_INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(values) - 0.4, -0.6)  # from top to bottom
    left, right = min(lowest, 0.0), max(largest, 0.0)
    width_of_text = 0.3  # of the bars' own range, kept free to the right of them
    axes.set_xlim(left * 1.05, right + width_of_text * ((right - left) or 1.0))
    return figure


def scatter(
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    x_label: str = "",
    title: str = "",
    size: tuple[float, float] = (3.8, 2.8),
) -> Figure:
    """A point for each pair of numbers, with its label beside it. size: inches.

    Raises UsageError where the lists are empty or of different lengths.
    """
    if not len(x) == len(y) == len(labels) > 0:
        raise UsageError(f"scatter: {len(x)} and {len(y)} numbers, {len(labels)} labels")
    figure = _new_figure(*size, "")
    axes = figure.add_subplot()
    _dress(axes, title, x_label)
    axes.scatter(x, y, color=PALETTE[0], s=28, zorder=3)
    for place in zip(x, y, labels, strict=True):
        axes.annotate(place[2], place[:2], xytext=(5, 4), textcoords="offset points", fontsize=8, color=_SOFT)
    axes.margins(0.15)
    return figure


def triangle(
    values: Mapping[tuple[int, int], tuple[float, str]], n: int, title: str = "", color: str = PALETTE[0]
) -> Figure:
    """A quantity of ranges of n things as a triangle: a row for the first of a range, a column for its last.

    values: (start, stop) of a half-open range -> the number, and a mark that is written before it. The ink of a cell
    grows with its number, from none at 0 to full at the largest. Raises UsageError where there are no values.
    """
    if not values:
        raise UsageError("triangle: no values")
    from matplotlib.patches import Rectangle

    most = max((abs(value) for value, _ in values.values() if math.isfinite(value)), default=0.0) or 1.0
    size = 1.0 + 0.5 * n
    figure = _new_figure(size, size + 0.3, "")
    axes = figure.add_subplot()
    for (start, stop), (value, mark) in values.items():
        strength = max(0.0, min(1.0, value / most)) if math.isfinite(value) else 0.0
        axes.add_patch(Rectangle((stop - 1.48, start - 0.48), 0.96, 0.96, facecolor=color, alpha=0.9 * strength,
                                 edgecolor="none"))  # fmt: skip
        ink = "white" if strength > 0.6 else _INK
        axes.text(stop - 1, start, f"{mark}{value:.2f}", ha="center", va="center", fontsize=8.5, color=ink)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(n))
    axes.set_yticks(range(n))
    _dress(axes, title, "last chunk")
    axes.set_ylabel("first chunk", fontsize=9, color=_SOFT)
    axes.grid(False)
    return figure


class TruthPoint(NamedTuple):
    """An estimate of a known number: its interval may end in nan where it has none, and in inf where it is open."""

    truth: float
    value: float
    low: float
    high: float
    group: str


def against_truth(
    panels: Mapping[str, Sequence[TruthPoint]],
    groups: Mapping[str, str],
    ceilings: Mapping[str, float] | None = None,
    columns: int = 4,
    labels: tuple[str, str] = ("truth", "estimate"),
    panel_size: tuple[float, float] = (2.7, 2.8),
) -> Figure:
    """Estimates over the truth, a panel each, with intervals and the line on which they should lie.

    groups: a colour for each group of points, in the order of the legend. ceilings: a dashed line for some panels.
    Raises UsageError where there is nothing to draw.
    """
    if not any(panels.values()):
        raise UsageError("against_truth: no points")
    n_columns = min(columns, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = _new_figure(panel_size[0] * n_columns, panel_size[1] * n_rows + 0.3, "")
    grid = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    highest = max(point.truth for points in panels.values() for point in points)
    lowest_shown, highest_shown = -0.06 * highest - 0.2, 1.25 * highest + 0.3
    for axes in grid[::n_columns]:
        axes.set_ylabel(labels[1], color=_SOFT)
    for axes, (name, points) in zip(grid, panels.items(), strict=False):
        _dress(axes, name, labels[0])
        axes.plot([0, highest], [0, highest], color=_SOFT, linewidth=1, zorder=1)
        if ceilings and name in ceilings:
            axes.axhline(ceilings[name], color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for group, color in groups.items():
            own = [point for point in points if point.group == group and math.isfinite(point.value)]
            value = np.clip([point.value for point in own], lowest_shown, highest_shown)
            truth = [point.truth for point in own]
            for at, middle, point in zip(truth, value, own, strict=True):
                low = point.low if math.isfinite(point.low) else middle
                high = point.high if math.isfinite(point.high) else middle
                ends = np.clip([low, high], lowest_shown, highest_shown)
                axes.plot([at, at], ends, color=color, linewidth=1, alpha=0.6, zorder=2)
            axes.scatter(truth, value, color=color, s=16, zorder=3, label=literal(group), edgecolors="none", alpha=0.85)
        axes.set_ylim(lowest_shown, highest_shown)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _add_legend(figure, grid[0], "")
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
        figure.suptitle(literal(title), x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=_INK)
    return figure


def _dress(axes: Axes, title: str, x_label: str) -> None:
    """The look of every panel: two spines, a faint grid, the quantity written above and not sideways."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if title:
        axes.set_title(literal(title), loc="left", fontsize=10, color=_INK, pad=8)
    axes.set_xlabel(literal(x_label), fontsize=9, color=_SOFT)
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
        title=literal(title) or None,
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
    shown_name = literal(name, LONGEST_IN_FIGURES) or " "  # an empty one would not be in the legend
    pairs = [(float(row[x]), _as_float(row[quantity])) for row in rows if _is_finite(row.get(x)) and quantity in row]
    if not pairs:
        axes.plot([], [], color=color, linewidth=1.8, label=shown_name)  # still in the legend: the run is there
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
    axes.plot(position[thin], mean[thin], color=color, linewidth=1.8, solid_capstyle="round", label=shown_name)
    drawn = np.isfinite(mean[thin])
    alone = drawn & ~np.append(drawn[1:], False) & ~np.append(False, drawn[:-1])  # a line through one point is nothing
    if alone.any():
        axes.plot(position[thin][alone], mean[thin][alone], "o", color=color, markersize=5)
    for row in rows:
        if f"{quantity}_low" in row and _is_finite(row.get(quantity)):
            at, middle = float(row[x]), float(row[quantity])
            ends = [_as_float(row[f"{quantity}_{end}"]) for end in ("low", "high")]
            axes.plot([at, at], [end if math.isfinite(end) else middle for end in ends], color=color, linewidth=1)
            inside = _PAPER if row.get(f"{quantity}_warned") else color
            axes.plot(at, middle, "o", color=color, markerfacecolor=inside, markersize=5)
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
