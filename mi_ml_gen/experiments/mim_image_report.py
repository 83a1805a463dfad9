"""Tables and page of the comparison of MIM with contrastive learning on images (`mim_image_comparison`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mi_ml_gen.core import config, runs
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.student import MeanInterval, over_units, paired
from mi_ml_gen.experiments.mim_image_settings import GENERATIVE, METHODS, Cell, MimComparisonConfig
from mi_ml_gen.mim.images.likelihood import of_few_draws
from mi_ml_gen.report.figures import bars, curves
from mi_ml_gen.report.page import Page
from mi_ml_gen.report.tables import Estimate, Table

OWN, FROM_DECODER = "encoder mean", ("decoder states", "decoder states, 4 x 4", "decoder states, mean")
"""The embedding that methods are compared by, and those of the decoder: the first that there is stands in the table."""


@dataclass(frozen=True)
class Measured:
    """The results of one cell."""

    cell: Cell
    path: Path
    results: Mapping[str, Any]

    def value(self, *keys: str) -> float | None:
        """A number within the results by its path, None where it was not measured."""
        found: Any = self.results
        for key in keys:
            if not isinstance(found, Mapping) or key not in found:
                return None
            found = found[key]
        return float(found)

    @property
    def from_decoder(self) -> str | None:
        """The name of the decoder's states that stand in the main table."""
        return next((name for name in FROM_DECODER if name in self.results["embeddings"]), None)


def read_cells(settings: MimComparisonConfig) -> list[Measured]:
    """The cells that are finished, by method and seed."""
    found = []
    for cell in settings.cells:
        path = cell.folder(settings)
        if (path / "results.json").exists():
            found.append(Measured(cell, path, runs.read_json(path / "results.json")))
    order = list(METHODS)
    return sorted(found, key=lambda one: (order.index(one.cell.method), one.cell.seed))


def over_seeds(values: Sequence[float | None], scale: float = 1.0) -> Estimate | float | None:
    """Mean and standard error over seeds; of one seed the number alone, and None where nothing was measured."""
    known = np.array([scale * value for value in values if value is not None])
    if not len(known):
        return None
    if len(known) == 1:
        return float(known[0])
    return Estimate(float(known.mean()), float(known.std(ddof=1) / math.sqrt(len(known))))


def main_table(cells: Sequence[Measured], settings: MimComparisonConfig) -> Table:
    """A row for each method: how well its embeddings tell the classes, and its likelihood."""
    rows: list[list[Any]] = []
    for method, own in by_method(cells).items():
        decoder = [one.value("embeddings", one.from_decoder or "", "ridge", "value") for one in own]
        rows.append(
            [
                METHODS[method], len(own),
                *(over_seeds([one.value("embeddings", OWN, kind, "value") for one in own], 100)
                  for kind in ("ridge", "knn", "nmi")),
                over_seeds(decoder, 100),
                over_seeds([one.value("likelihood", "bits_per_dimension") for one in own]),
                over_seeds([one.value("likelihood", "nats") for one in own]),
                over_seeds([one.value("train_s") for one in own]),
            ]
        )  # fmt: skip
    columns = [
        "method", "seeds", "linear (%)", "kNN (%)", "NMI (%)", "linear, decoder (%)", "bits/dim", "log p(x) (nats)",
        "training (s)",
    ]  # fmt: skip
    formats = {name: ".2f" for name in columns[2:6]} | {
        "bits/dim": ".4f", "log p(x) (nats)": ".2f", "training (s)": ".1f",
    }  # fmt: skip
    n = {one.results["images_seen"] for one in cells}
    seen = f"{min(n):,}" if len(n) == 1 else f"{min(n):,} to {max(n):,}"
    width = int(cells[0].value("embeddings", OWN, "dimensions") or 0)
    few = of_few_draws(one.results["likelihood"] for one in cells if "likelihood" in one.results)
    caption = (
        f"{settings.dataset_name}, {settings.model_name}: mean ± standard error over seeds; a number without ± is of "
        f"one seed. Each method saw {seen} images. Embeddings: the encoder's mean, {width} numbers; decoder: its "
        f"states. {few}".rstrip()
    )
    return Table(columns, rows, caption, formats)


def embedding_table(cells: Sequence[Measured]) -> Table:
    """A row for each method and embedding."""
    rows: list[list[Any]] = []
    for method, own in by_method(cells).items():
        for name in own[0].results["embeddings"]:
            scores = [
                over_seeds([one.value("embeddings", name, kind, "value") for one in own], 100)
                for kind in ("ridge", "knn", "nmi")
            ]
            rows.append([METHODS[method], name, int(own[0].value("embeddings", name, "dimensions") or 0), *scores])
    columns = ["method", "embedding", "dimensions", "linear (%)", "kNN (%)", "NMI (%)"]
    caption = "What embeddings are read from: mean ± standard error over seeds; a number without ± is of one seed."
    return Table(columns, rows, caption, {name: ".2f" for name in columns[3:]})


def cell_table(cells: Sequence[Measured]) -> Table:
    """A row for each cell, with intervals of 95% over its test images."""
    rows: list[list[Any]] = []
    for one in cells:
        row: list[Any] = [one.cell.method, one.cell.seed]
        for kind in ("ridge", "knn", "nmi"):
            row += [one.value("embeddings", OWN, kind, part) for part in ("value", "low", "high")]
        row += [one.value("likelihood", key) for key in ("nats", "nats_error", "draws_error", "n_uncertain")]
        row += [one.value("likelihood", key) for key in ("bound_nats", "kl_nats")]
        row += [one.value("likelihood", "bits_per_dimension"), one.value("train_s"), one.value("n_parameters")]
        rows.append(row)
    columns = ["method", "seed"]
    columns += [f"{kind}{part}" for kind in ("linear", "knn", "nmi") for part in ("", " low", " high")]
    columns += ["log p(x)", "its error", "error of draws", "images with few effective draws", "bound", "KL"]
    columns += ["bits/dim", "training s", "parameters"]
    return Table(columns, rows)


def by_method(cells: Sequence[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for one in cells:
        found.setdefault(one.cell.method, []).append(one)
    return found


def difference(
    cells: Sequence[Measured], method: str, other: str, get: Callable[[Measured], float | None]
) -> MeanInterval | None:
    """method minus other, paired by seed; None where no seed has both."""
    found: dict[str, dict[int, float]] = {method: {}, other: {}}
    for one in cells:
        value = get(one) if one.cell.method in found else None
        if value is not None:
            found[one.cell.method][one.cell.seed] = value
    return paired(found[method], found[other])


QUESTIONS = (
    ("cmim", "amim_x", "ridge", "Does the contrastive term of cMIM help a linear probe of the MIM that it stands on?"),
    ("cmim", "amim_x", "knn", "Does it help nearest neighbours?"),
    ("cmim", "amim_x", "nmi", "Does it help clusters (NMI)?"),
    ("cmim", "amim", "ridge", "Does cMIM beat A-MIM in a linear probe?"),
    ("cmim", "vae", "ridge", "Does cMIM beat VAE in a linear probe?"),
    ("infonce_mim", "cmim", "ridge", "Do positive pairs help beyond cMIM in a linear probe?"),
    ("simclr", "cmim", "ridge", "Does SimCLR beat cMIM in a linear probe?"),
    ("amim", "vae", "nmi", "Does A-MIM cluster better than VAE (NMI)?"),
    ("smim", "vae", "nmi", "Does S-MIM cluster better than VAE (NMI)?"),
)
"""method, other, readout, question; in percentage points."""


def answers(cells: Sequence[Measured]) -> list[str]:
    """The questions with the measured differences, where there are any."""
    found = []
    for method, other, kind, question in QUESTIONS:
        gap = difference(cells, method, other, lambda one, kind=kind: _percent(one, OWN, kind))  # type: ignore[misc]
        if gap is not None:
            found.append(f"{question} Difference in points: {told(gap)}")
    for method in ("amim", "smim", "cmim"):
        gap = difference(cells, method, "vae", lambda one: one.value("likelihood", "nats"))
        if gap is not None:
            found.append(f"Estimated log-likelihood of {METHODS[method]} less that of VAE, in nats: {told(gap)}")
    gains = []
    for one in cells:
        own, states = _percent(one, OWN, "ridge"), _percent(one, one.from_decoder or "", "ridge")
        if one.cell.method == "cmim" and own is not None and states is not None:
            gains.append(states - own)
    if gains:
        gap = over_units(gains)
        found.append(f"Decoder's states less the encoder's mean of cMIM in a linear probe, in points: {told(gap)}")
    return found


def told(gap: MeanInterval) -> str:
    """A difference over seeds with its interval, and whether it is decided."""
    if gap.n < 2:
        return f"{gap.mean:+.2f} (one seed: no interval)."
    verdict = "Not decided by these seeds."
    if gap.low > 0 or gap.high < 0:
        verdict = f"{'More' if gap.low > 0 else 'Less'}, beyond the spread of seeds."
    return f"{gap.mean:+.2f} (95% interval {gap.low:+.2f} to {gap.high:+.2f}, {gap.n} seeds). {verdict}"


def _percent(one: Measured, embedding: str, kind: str) -> float | None:
    value = one.value("embeddings", embedding, kind, "value")
    return None if value is None else 100 * value


def write_report(settings: MimComparisonConfig, command: str = "") -> list[Path]:
    """The tables and the page of what is finished; gives the files. Raises UsageError where nothing is."""
    cells, folder = read_cells(settings), Path(settings.save_folder)
    if not cells:
        raise UsageError(f"{folder}: no cell is finished there; leave out --report-only to train")
    table, ablation, single = main_table(cells, settings), embedding_table(cells), cell_table(cells)
    written = [*table.write(folder, "table").values(), *ablation.write(folder, "embeddings").values()]
    written.append(single.write(folder, "cells")["csv"])
    page = Page(
        "MIM, cMIM and contrastive learning on images",
        "The same encoder, trained in several ways on the same images for the same number of steps.",
    )
    missing = [cell.title for cell in settings.cells if cell not in {one.cell for one in cells}]
    if missing:
        page.text(f"Not finished, and not in the tables: {', '.join(missing)}.")
    page.section("Results").table(table)
    page.text(
        "linear: ridge regression on the embeddings of all training images, its penalty chosen on validation images. "
        "kNN: 20 neighbours by cosine. NMI: k-means with as many clusters as classes. log p(x): importance sampling, "
        f"{settings.S:,} draws for each of at most {settings.n_likelihood:,} test images. cells.csv has an interval of "
        "95% over test images for each cell. A method on views has no likelihood and no decoder."
    )
    shown = {METHODS[name]: over_seeds([_percent(one, OWN, "ridge") for one in own]) for name, own in
             by_method(cells).items()}  # fmt: skip
    known = {name: value for name, value in shown.items() if value is not None}
    if known:
        page.figure(
            bars(known, "Linear probe of the encoder's mean", "top-1 (%)", ".1f"),
            "Accuracy of a linear probe, by method",
            "Mean and standard error over seeds.",
        )
    page.section("What follows")
    for line in answers(cells):
        page.text(line)
    page.section("Embeddings from the encoder and from the decoder").table(ablation)
    page.section("Course of training")
    rows = {one.cell.title: runs.read_metrics(one.path, whole=True) for one in cells if one.cell.seed == 0}
    for family in (True, False):
        own = {name: found for (name, found), one in zip(rows.items(), _first_seeds(cells), strict=True)
               if (one.cell.method in GENERATIVE) == family and found}  # fmt: skip
        if own:
            about = "Loss of the methods with a decoder" if family else "Loss of the methods on views"
            page.figure(curves(own, ("loss",), x="images", x_label="images", labels={"loss": "loss"}), about)
    pictures(page, cells)
    page.section("Settings").code(config.to_yaml(settings))
    if command:
        page.section("Command").code(command)
    return [*written, page.write(folder / "index.html")]


def _first_seeds(cells: Sequence[Measured]) -> list[Measured]:
    return [one for one in cells if one.cell.seed == 0]


def pictures(page: Page, cells: Sequence[Measured]) -> None:
    """Reconstructions and samples of the first seed's models."""
    found = [one for one in _first_seeds(cells) if (one.path / "images" / "samples.png").exists()]
    if not found:
        return
    page.section("Reconstructions and samples").text(
        "Above: test images and their reconstructions. Below: mean images of draws from the prior. Seed 0."
    )
    for one in found:
        for name in ("reconstructions", "samples"):
            with Image.open(one.path / "images" / f"{name}.png") as picture:
                pixels = np.asarray(picture.convert("RGB"))
            page.image(pixels, f"{name} of {METHODS[one.cell.method]}", scale=1.5)


__all__ = ["Measured", "embedding_table", "main_table", "read_cells", "write_report"]
