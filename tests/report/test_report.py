"""Grids pixel by pixel, tables read back by other readers, figures by data, pages by an HTML parser."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.report.figures import bars, curves, figure_png, series_colors, smooth
from mi_ml_gen.report.images import image_grid, pair_grid, save_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Estimate, Table

# Images


def plain(values: list[float], size: int = 2) -> torch.Tensor:
    """One grey image of each value: (n, 3, size, size)."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, size, size)


def test_grid_places_images_row_by_row() -> None:
    grid = image_grid(plain([0.0, 0.2, 0.4, 0.6, 0.8]), n_columns=3, padding=1)
    assert grid.dtype == np.uint8 and grid.shape == (5, 8, 3)
    assert [grid[0, 0, 0], grid[0, 3, 0], grid[0, 6, 0], grid[3, 0, 0], grid[3, 3, 0]] == [
        0,
        51,
        102,
        153,
        204,
    ]
    assert (grid[2] == 255).all() and (grid[:, 2] == 255).all()  # gaps
    assert (grid[3:, 6:] == 255).all()  # the empty place


@pytest.mark.parametrize(
    ("n", "n_rows", "n_columns", "shape"),
    [
        (9, None, None, (3, 3)),
        (5, None, None, (2, 3)),
        (6, 1, None, (1, 6)),
        (6, None, 4, (2, 4)),
        (9, 2, 2, (2, 2)),
    ],
)
def test_grid_shape(n: int, n_rows: int | None, n_columns: int | None, shape: tuple[int, int]) -> None:
    grid = image_grid(torch.zeros(n, 1, 4, 4), n_rows, n_columns, padding=0)
    assert grid.shape == (4 * shape[0], 4 * shape[1], 3)


def test_values_become_bytes() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, -3.0, 7.0, float("nan")]).view(1, 1, 1, 6)
    assert image_grid(values)[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0]
    assert image_grid(values, value_range=(-1, 1))[0, :3, 0].tolist() == [128, 191, 255]
    as_bytes = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    np.testing.assert_array_equal(image_grid(as_bytes)[0, 1], [1, 5, 9])  # channels last
    assert image_grid(np.zeros((2, 3, 3), np.float32), padding=0).shape == (3, 6, 3)


@pytest.mark.parametrize("side", [28, 32, 64, 128])
def test_labels_stand_beside_their_rows_and_above_their_columns(side):
    """The images lie where they did, next to margins; each row and column has its own ink there."""
    names = {"row_labels": ["anchor", "chunks 0_4", "x 1.5"], "column_labels": ["a", "positive"]}
    images = interpolate(plain([0.2, 0.4, 0.6, 0.8, 0.2, 0.4]), size=(side, side))
    bare = image_grid(images, n_columns=2)
    grid = image_grid(images, n_columns=2, **names)
    top, left = grid.shape[0] - bare.shape[0], grid.shape[1] - bare.shape[1]
    np.testing.assert_array_equal(grid[top:, left:], bare)
    for i in range(3):
        assert (grid[top + i * (side + 2) : top + i * (side + 2) + side, :left] < 128).any()
    for i in range(2):
        assert (grid[:top, left + i * (side + 2) : left + i * (side + 2) + side] < 128).any()
    assert (grid[:top, :left] == 255).all() and (grid[:, left - 2 : left] == 255).all()
    rows = [grid[top + i * (side + 2) : top + i * (side + 2) + side, :left] for i in range(3)]
    assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[1], rows[2])


def test_small_images_are_enlarged_beside_labels():
    grid = image_grid(plain([0.0, 1.0]), n_rows=2, row_labels=["a", "b"])
    assert grid.shape[0] == 2 * 24 + 2
    assert (grid[:24, -2:] == 0).all() and (grid[26:, -2:] == 255).all()


def test_labels_are_light_on_dark():
    grid = image_grid(plain([0.5]), row_labels=["a"], background=0)
    assert grid[:, :-24].max() > 200 and grid[0, 0].tolist() == [0, 0, 0]


def test_as_many_labels_as_rows():
    with pytest.raises(UsageError, match="1 row labels for 2 rows"):
        image_grid(plain([0.0, 1.0]), n_rows=2, row_labels=["a"])
    with pytest.raises(UsageError, match="3 column labels for 1 columns"):
        image_grid(plain([0.0, 1.0]), n_rows=2, column_labels=["a", "b", "c"])


def test_pairs_may_have_labels():
    anchors, positives = plain([0.0, 0.2, 0.4]), plain([0.6, 0.8, 1.0])
    anchors, positives = (interpolate(images, size=(32, 32)) for images in (anchors, positives))
    bare = pair_grid(anchors, positives, n_columns=2)
    grid = pair_grid(anchors, positives, n_columns=2, labels=("anchor", "positive"))
    left = grid.shape[1] - bare.shape[1]
    np.testing.assert_array_equal(grid[:, left:], bare)
    assert (grid[:32, :left] < 128).any() and (grid[34:66, :left] < 128).any()


def test_pairs_stand_above_each_other() -> None:
    grid = pair_grid(plain([0.0, 0.2, 0.4]), plain([0.6, 0.8, 1.0]), n_columns=2, padding=1, gap=3)
    column = grid[:, 0, 0].tolist()
    assert column == [0, 0, 255, 153, 153, 255, 255, 255, 102, 102, 255, 255, 255]


def test_wrong_images_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 4, 8, 8\)"):
        image_grid(torch.zeros(2, 4, 8, 8))
    with pytest.raises(UsageError, match="no images"):
        image_grid(torch.zeros(0, 3, 8, 8))
    with pytest.raises(UsageError, match="anchors"):
        pair_grid(torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8))


def test_png_comes_back(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    path = save_png(tmp_path / "new" / "grid.png", array)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), array)
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


# Tables

TABLE = Table(
    ["chunk", "delta", "draws", "note"],
    [
        ["0_1", Estimate(12.345678, 0.5), 500000, "a|b & 50%_x"],
        ["10_11", Estimate(-1.5, 0.25), 7, "line\nbreak"],
        ["all", None, None, None],
    ],
    caption="Delta of `tiny`",
    formats={"draws": ","},
)


def test_numbers_share_their_decimals_and_are_right_aligned() -> None:
    lines = TABLE.to_terminal().splitlines()
    assert lines[0] == "Delta of tiny"
    head, rule, first, second, third = lines[2:]
    assert first.startswith("0_1    12.35 ± 0.50  500,000  a|b & 50%_x")
    assert second.startswith("10_11  -1.50 ± 0.25        7  line break")
    assert head.index("delta") + len("delta") == first.index("0.50") + len("0.50")
    assert set(rule) == {"-", " "} and third.split() == ["all", "–", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0"), (123456.7, "123457"), (1.0, "1.000"), (0.00123456, "0.001235"), (1.2e-7, "1.200e-07")],
)
def test_decimals_follow_the_largest_number(value: float, text: str) -> None:
    assert Table(["x"], [[value]]).to_csv() == f"x\n{value}\n"  # csv keeps full precision
    assert Table(["x"], [[value]]).to_terminal().split()[-1] == text


def test_nothing_that_rounds_to_nought_is_below_it() -> None:
    table = Table(["nats", "share"], [[-0.001, -0.0001], [-0.01, 0.5]], formats={"nats": ".2f", "share": ".1%"})
    assert table.to_terminal().split()[-4:] == ["0.00", "0.0%", "-0.01", "50.0%"]


def test_markdown() -> None:
    lines = TABLE.to_markdown().splitlines()
    assert lines[1].replace(" ", "").split("|")[1:-1] == ["-----", "-" * 11 + ":", "-" * 6 + ":", "-" * 12]
    assert r"a\|b & 50%_x" in lines[2]
    assert len({len(line) for line in lines[:5]}) == 1  # reads as plain text
    cells = [re.split(r"(?<!\\)\|", line) for line in lines[:5]]
    assert {len(row) for row in cells} == {6}
    assert lines[-1] == "Delta of `tiny`"


def test_latex_is_escaped() -> None:
    latex = TABLE.to_latex()
    assert r"0\_1 & 12.35 $\pm$ 0.50 & 500,000 & a|b \& 50\%\_x \\" in latex
    assert r"$-$1.50 $\pm$ 0.25" in latex
    assert r"\caption{Delta of \texttt{tiny}}" in latex and r"\begin{tabular}{lrrl}" in latex
    hostile = Table(["x"], [["\\ { } $ # ^ ~ <"]]).to_latex()
    assert r"\textbackslash{} \{ \} \$ \# \textasciicircum{} \textasciitilde{} \textless{} \\" in hostile
    assert "table" not in hostile  # without a caption, the tabular alone
    given = Table(["d"], [[1.0]], latex_columns=[r"$\delta$"]).to_latex()
    assert "$\\delta$ \\\\\n\\midrule" in given


def test_csv_and_json_hold_every_digit() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert rows[0] == {
        "chunk": "0_1",
        "delta": "12.345678",
        "delta spread": "0.5",
        "draws": "500000",
        "note": "a|b & 50%_x",
    }
    assert rows[1]["note"] == "line\nbreak" and rows[2]["delta"] == rows[2]["draws"] == ""
    records = json.loads(TABLE.to_json())
    assert records[0]["delta"] == 12.345678 and records[2]["delta spread"] is None
    assert json.loads(Table(["x"], [[float("nan")]]).to_json()) == [{"x": None}]
    assert Table(["x", "y"], []).to_csv() == "x,y\n"


def test_tables_are_written_in_four_forms(tmp_path: Path) -> None:
    paths = TABLE.write(tmp_path / "out", "table1")
    forms = ("md", "tex", "csv", "json", "json.sha256")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"table1.{form}" for form in forms}
    assert paths["tex"].read_text(encoding="utf-8") == TABLE.to_latex()


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(UsageError, match="row 1 has 1 cells, expected 2"):
        Table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(UsageError, match="unknown columns"):
        Table(["a"], [[1]], formats={"b": ".1f"})
    with pytest.raises(UsageError, match="LaTeX"):
        Table(["a"], [[1]], latex_columns=["x", "y"])


# Figures


def rows(n: int = 50, offset: float = 0.0) -> list[dict[str, float]]:
    return [{"step": 10 * i, "loss": 5.0 - 0.01 * i + offset, "delta": 0.1 * i} for i in range(n)]


def test_smoothing_equals_the_plain_sum() -> None:
    values = np.random.default_rng(0).normal(size=40)
    keep = 1 - 2 / (7 + 1)
    for i in (0, 5, 39):
        weights = keep ** np.arange(i, -1, -1.0)
        assert smooth(values, 7)[i] == pytest.approx((weights * values[: i + 1]).sum() / weights.sum())
    np.testing.assert_array_equal(smooth([3.0] * 5, 100), [3.0] * 5)
    np.testing.assert_array_equal(smooth(values, 1), values)
    gaps = smooth([np.nan, 1.0, np.inf, 3.0], 3)
    assert np.isnan(gaps[0]) and gaps[1] == gaps[2] == 1.0 and gaps[3] == pytest.approx((0.5 + 3) / 1.5)


def test_curves_draw_what_is_there() -> None:
    figure = curves({"a": rows(), "b": rows(30, 1.0)}, span=1, references={"loss": {"threshold": 2.5}}, marks={"a": 99})
    loss, delta = figure.axes  # bound_nats is in no row
    assert "loss" in loss.get_title(loc="left") and "Delta" in delta.get_title(loc="left")
    lines = {line.get_label(): line for line in loss.lines if not str(line.get_label()).startswith("_")}
    np.testing.assert_allclose(lines["b"].get_ydata(), [row["loss"] for row in rows(30, 1.0)])
    np.testing.assert_allclose(lines["a"].get_xdata(), [row["step"] for row in rows()])
    dots = [line for line in loss.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [100.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert any(list(line.get_ydata()) == [2.5, 2.5] for line in loss.lines)


def test_values_with_intervals_are_dots_and_warned_ones_open() -> None:
    rows = [
        {"delta": 1.0, "nats": 3.0, "nats_low": 2.5, "nats_high": math.inf, "nats_warned": False},
        {"delta": 2.0, "nats": 2.0, "nats_low": 1.8, "nats_high": 2.3, "nats_warned": True},
    ]
    (axes,) = curves(rows, ["nats"], "delta").axes
    ends = [list(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) in ([1.0, 1.0], [2.0, 2.0])]
    assert ends == [[2.5, 3.0], [1.8, 2.3]]  # what has no upper end stops at the value
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == dot.get_color() for dot in dots] == [True, False]


def test_points_without_neighbours_are_seen() -> None:
    """A run with one row, or with gaps around one, has a dot where a line would draw nothing."""

    def dots(values: list[float]) -> list[list[float]]:
        rows: list[dict[str, float]] = [{"step": step, "loss": value} for step, value in enumerate(values)]
        (axes,) = curves(rows, ["loss"]).axes
        return [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]

    nothing = float("nan")
    assert dots([2.5]) == [[2.5]] and dots([nothing, 1.5, nothing, 3.0, 3.5]) == [[1.5]]
    assert dots([1.0, 2.0, nothing, 4.0]) == [[4.0]] and dots([1.0, 2.0]) == []


def test_gaps_stay_gaps() -> None:
    broken = rows()
    broken[20]["loss"] = float("nan")
    del broken[21]["loss"]
    figure = curves(broken, ("loss",), span=1)
    line = figure.axes[0].lines[-1]
    assert len(line.get_xdata()) == 49 and np.isnan(line.get_ydata()).sum() == 1


def test_long_runs_stay_small() -> None:
    figure = curves(rows(40_000), ("loss",))
    assert max(len(line.get_xdata()) for line in figure.axes[0].lines) <= 1500
    assert len(figure_png(figure)) < 200_000


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(UsageError, match="no row holds"):
        curves([{"step": 1, "loss": float("nan")}])
    with pytest.raises(UsageError, match="no values"):
        bars({})


def test_bars_show_value_and_spread() -> None:
    figure = bars({"0_1": Estimate(3.0, 0.5), "1_2": Estimate(-1.0, 0.25), "2_3": float("nan")}, number_format=".2f")
    axes = figure.axes[0]
    assert [patch.get_width() for patch in axes.patches[:2]] == [3.0, -1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0_1", "1_2", "2_3"]
    assert [text.get_text() for text in axes.texts] == ["3.00 ± 0.50", "−1.00 ± 0.25", "nan"]
    assert axes.get_xlim()[0] <= -1.25 and axes.get_xlim()[1] >= 3.5
    figure_png(figure)


def test_pyplot_is_left_alone() -> None:
    figure_png(curves(rows()))
    figure_png(bars({"a": 1.0}))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("n", [1, 8, 9, 16])
def test_colours_differ(n: int) -> None:
    assert len(set(series_colors(n))) == n


# Pages


class Outline(HTMLParser):
    """Tags that are open, all tags with their attributes, and the text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> Page:
    page = Page("A <title> & more", lead="What it `says`", footer="The end")
    page.facts({"Draws": 500_000, "Delta": 1.23456})
    page.section("Table").text("One\n\nTwo <script>alert(1)</script>").table(TABLE)
    page.section("Curves").figure(
        [curves({"a": rows(), "b": rows()}, (q,), title="T") for q in ("loss", "delta")], alt="Two curves"
    )
    page.figure(bars({"a": Estimate(1.0, 0.1)}), alt="A bar", caption="Caption")
    page.section("Images").rows(
        {"anchor": plain([0.0, 1.0]), "positive": plain([1.0, 0.0])}, alt='Pairs "here"', scale=3
    )
    page.image(image_grid(plain([0.5])), alt="Grey").code("make <all>")
    return page


def test_page_is_well_formed_and_escaped(page: Page) -> None:
    outline = Outline(page.html())
    assert outline.open == []
    assert not outline.all("script") and "Two <script>alert(1)</script>" in outline.words
    assert "A <title> & more" in outline.words and "make <all>" in outline.words
    assert {"500000", "1.235"} <= set(outline.words.split() + re.findall(r"[\d.]+", outline.words))
    assert len(outline.all("p")) == 3 and len(outline.all("h2")) == 3


def test_page_needs_nothing_else(page: Page) -> None:
    """No address to fetch: every source is data, every link is within, every other URL is a name space."""
    outline = Outline(page.html())
    for _, attributes in outline.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset"):
                assert value is not None and value.startswith(("data:image/png;base64,", "#"))
    text = re.sub(r"base64,[^\"]*", "", page.html())
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert not outline.all("link") and "@import" not in text and not re.search(r"url\((?!#)", text)


def test_page_can_be_heard(page: Page) -> None:
    outline = Outline(page.html())
    assert [image["alt"] for image in outline.all("img")] == [
        'Pairs "here": anchor',
        'Pairs "here": positive',
        "Grey",
    ]
    drawings = [(svg["role"], svg["aria-label"]) for svg in outline.all("svg")]
    assert drawings == [("img", "Two curves (1 of 2)"), ("img", "Two curves (2 of 2)"), ("img", "A bar")]
    assert {link["href"] for link in outline.all("a")} == {f"#{head['id']}" for head in outline.all("h2")}
    assert outline.all("html")[0]["lang"] == "en"


def test_images_on_the_page_are_the_images(page: Page) -> None:
    sources = [str(image["src"]).split(",")[1] for image in Outline(page.html()).all("img")]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[0]))))
    assert strip.shape == (2, 6, 4)
    assert strip[0, :, 3].tolist() == [255, 255, 0, 0, 255, 255]  # the gap lets the page through
    assert strip[0, [0, 1, 4, 5], 0].tolist() == [0, 0, 255, 255]
    assert Outline(page.html()).all("img")[0]["width"] == "18"


def test_numbers_on_the_page_are_right_aligned(page: Page) -> None:
    cells = [attributes.get("class") for attributes in Outline(page.html()).all("td")]
    assert cells == [None, "num", "num", None] * 3
    assert "th.num, td.num { text-align: right; }" in page.html()


def test_figures_follow_the_readers_colours(page: Page) -> None:
    """Nothing in a drawing is black or white by itself: text and lines use the page's variables."""
    drawings = re.findall(r"<svg.*?</svg>", page.html(), flags=re.DOTALL)
    for drawing in drawings:
        assert "var(--ink)" in drawing and "var(--soft)" in drawing and "var(--line)" in drawing
        assert not re.search(r"#0{6}|#f{6}|black|white", drawing)
        texts = re.findall(r'<g id="text_\d+">\s*<!--.*?-->\s*<g ([^>]*)>', drawing, flags=re.DOTALL)
        assert len(texts) == drawing.count('<g id="text_') >= 4
        assert all(text.startswith('style="fill: var(--') for text in texts)  # without a fill it would be black


def test_page_is_the_same_each_time_and_written_whole(page: Page, tmp_path: Path) -> None:
    path = page.write(tmp_path / "index.html")
    assert path.read_text(encoding="utf-8") == page.html()
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    figure = curves(rows())
    assert Page("x").figure(figure, alt="y").html() == Page("x").figure(figure, alt="y").html()
