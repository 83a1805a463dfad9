"""What a run shows of itself: one HTML page that holds image grids, figures and tables.

A page is one file: the styles of page.css inside, images as data, nothing fetched, and no script but that of a
`widget`. It reads on a phone and on paper, and follows the reader's light or dark setting, the figures too: they are
drawn in named inks that the page defines.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.report.images import image_grid, png_bytes
from mi_ml_gen.report.tables import _INK, _LINE, _PAPER, _SOFT, Table, _cell_text, _escape
from mi_ml_gen.report.text import encoded, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        self._styles: list[str] = []

    def section(self, title: str) -> Page:
        """A head line, reached from the contents at the top where there are three or more."""
        anchor = f"part-{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        return self._add(f'<h2 id="{anchor}">{_inline(title)}</h2>')

    def text(self, text: str) -> Page:
        """Paragraphs, apart by empty lines."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._add(f"<p>{_inline(one_line(paragraph))}</p>")
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
        label = _escape(one_line(table.caption).replace("`", "") or "Table")
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

    def widget(self, body: str, style: str, script: str, data: object) -> Page:
        """A part that moves: HTML of the caller's own, with its style, a script, and plain values that the script finds
        as the variable `data`.

        The caller escapes what stands in `body`. `data` is written as JSON, in which no text can end the script.
        """
        self._styles.append(style)
        values = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        code = f'"use strict";\n(() => {{\nconst data = {values};\n{script}}})();'
        return self._add(f"{body}\n<script>\n{code}\n</script>")

    def html(self) -> str:
        """The whole page."""
        contents = ""
        if len(self._sections) >= 3:
            links = "".join(f'<li><a href="#{anchor}">{_inline(title)}</a></li>' for anchor, title in self._sections)
            contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        lead = f'<p class="lead">{_inline(one_line(self.lead))}</p>' if self.lead else ""
        style = _styles() + "".join(self._styles)
        footer = f"<footer>{_inline(self.footer)}</footer>" if self.footer else ""
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n'
            f"<title>{_escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{_inline(self.title)}</h1>{lead}{contents}</header>\n"
            + "\n".join(self._parts)
            + f"\n{footer}</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        atomic_write(path, encoded(self.html()))
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


@functools.cache
def _styles() -> str:
    return resources.files("mi_ml_gen.report").joinpath("page.css").read_text(encoding="utf-8")


def _caption(text: str) -> str:
    return f"<figcaption>{_inline(one_line(text))}</figcaption>" if text else ""


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))
