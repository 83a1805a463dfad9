"""Names are names: through tables, figures and pages, whatever characters they hold."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mi_ml_gen.probe.accuracy import evaluate_scores, write_evaluations
from mi_ml_gen.report.figures import bars, curves, figure_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Table
from mi_ml_gen.report.text import LONGEST_IN_FIGURES, encoded, literal, markdown, one_line

ODD = [
    "a$^$b", "5$", "$5 bill$", r"\$x\$", r"$\frac$", "_hidden", "__dunder__", "a|b", "[x](javascript:alert(1))", "*",
    "**b**", "`code`", "<b>&amp;</b>", "a\nb", "\x1b[31mred", "nul\x00", "caf\udce9", "\u202eevil", "x" * 300, "~~s~~",
    "%d {0} #1", "猫", "",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_warnings_but_glyphs():
    """matplotlib's own font has no Chinese; all other warnings of ours are failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib")  # older ones
        yield


def test_every_form_of_a_table_takes_every_name(tmp_path: Path) -> None:
    table = Table(["class", "images"], [[name, i] for i, name in enumerate(ODD)], caption="Of `$x$` and $y$")
    table.write(tmp_path, "t")
    assert [row["images"] for row in json.loads((tmp_path / "t.json").read_text())] == list(range(len(ODD)))
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows[:5]] == ODD[:5] and rows[13]["class"] == "a\nb"
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[: len(ODD) + 2])  # no cell ends early
    assert not re.search(r"(?<!\\)\$", "\n".join(lines))  # no formula
    terminal = table.to_terminal()
    assert "\x1b" not in terminal and "\x00" not in terminal and "\u202e" not in terminal
    terminal.encode()  # nothing that has no encoding
    assert "\\\\\n[" not in table.to_latex() and "\\\\\n*" not in table.to_latex()
    page = table.to_html()
    assert "<b>" not in page and "&lt;b&gt;&amp;amp;" in page
    page.encode()


@pytest.mark.parametrize("name", ODD)
def test_figures_take_every_name(name: str) -> None:
    rows, title = [{"step": i, "loss": float(i)} for i in range(3)], name[:40]
    lines = {"loss": {name: 1.0}}
    figures = [
        curves({name: rows, "other": rows}, ("loss",), title=title, labels={"loss": title}, references=lines),
        bars({name: 1.0, "other": 2.0}, title=title, x_label=title, references={name: 1.5}),
    ]
    for figure in figures:
        with Image.open(io.BytesIO(figure_png(figure))) as image:
            assert np.asarray(image.convert("L")).min() < 200
    legend = figures[0].legends[0].get_texts()
    assert len(legend) == 2  # matplotlib leaves out names that begin with an underscore
    Page("t", name).figure(figures[0], name, name).table(Table(["n"], [[name]], name)).html().encode()


def test_figures_write_names_as_they_are() -> None:
    figure = bars({"a$^$b": 1.0, "5$": 2.0})
    figure.canvas.draw()
    for label, name in zip(figure.axes[0].get_yticklabels(), ("a$^$b", "5$"), strict=True):
        shown, is_math = label._preprocess_math(label.get_text())
        assert (shown, is_math) == (name, False)


def test_long_names_are_cut_in_the_middle() -> None:
    cut = literal("a" * 100 + "z" * 100, LONGEST_IN_FIGURES)
    assert len(cut) == LONGEST_IN_FIGURES and cut.startswith("aaa") and cut.endswith("zzz")
    assert literal("short", LONGEST_IN_FIGURES) == "short"


def test_plain_names_stay_as_they_are() -> None:
    for name in ("Sneaker", "n01440764", "Ankle boot", "top_1", "a-b.c", "猫", "R&B"):
        assert one_line(name) == literal(name) == markdown(name, is_cell=True) == name
        assert encoded(name).decode() == name


@pytest.mark.parametrize("odd", [ODD[:5], ODD[5:12], ODD[12:]])
def test_a_probe_of_classes_with_odd_names(tmp_path: Path, odd: list[str]) -> None:
    labels = torch.arange(len(odd)).repeat(3)
    scores = torch.eye(len(odd))[labels]
    found = evaluate_scores(scores, labels, tuple(odd), logits=True)
    write_evaluations(tmp_path, {"sgd": found}, "sgd", "caption with $x$")
    with Image.open(tmp_path / "images" / "confusion.png") as image:
        assert max(image.size) < 4000
    assert len((tmp_path / "confusion.csv").read_bytes()) > 0
