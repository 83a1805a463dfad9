"""How well scores name the class: top-1 and top-5 with confidence intervals, per class, and who is taken for whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core.errors import NonFiniteError, UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import PALETTE, figure_png
from mi_ml_gen.report.text import LONGEST_IN_FIGURES, csv_text, encoded, literal

Z_95 = 1.959963984540054
"""Two-sided 95% point of the normal."""
MOST_CELLS_WITH_TEXT = 12
"""Classes up to which each cell of a confusion figure has its number."""
MOST_NAMED_CLASSES = 40


class Interval(NamedTuple):
    """Bounds that hold the true share in 95 of 100 repetitions."""

    low: float
    high: float


class Accuracy(NamedTuple):
    """A share of right answers."""

    n_correct: int
    n: int

    @property
    def value(self) -> float:
        return self.n_correct / self.n if self.n else math.nan

    @property
    def interval(self) -> Interval:
        return wilson(self.n_correct, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} (95%: {low:.2%} to {high:.2%}, n = {self.n:,})"


def wilson(n_correct: int, n: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a binomial share (Wilson 1927): all shares that a test at z would not reject.

    Unlike value +- z times its standard error it stays within 0 and 1 and has a width at 0 and n correct.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    share = n_correct / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if n_correct == 0 else max(0.0, center - half)
    high = 1.0 if n_correct == n else min(1.0, center + half)
    return Interval(low, high)


@dataclass(frozen=True)
class Evaluation:
    """What scores of labelled images came to.

    confusion: int64 (true class, class taken for). classes: their names. loss: mean cross entropy in nats, where the
    scores are logits.
    """

    top1: Accuracy
    top5: Accuracy
    confusion: Tensor
    classes: tuple[str, ...]
    loss: float | None = None

    @property
    def per_class(self) -> tuple[Accuracy, ...]:
        """Top-1 accuracy among the images of each class; classes without images have n = 0."""
        totals = self.confusion.sum(dim=1).tolist()
        return tuple(Accuracy(*both) for both in zip(self.confusion.diagonal().tolist(), totals, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "top1": self.top1.value,
            "top1_interval_95": list(self.top1.interval),
            "top5": self.top5.value,
            "top5_interval_95": list(self.top5.interval),
            "n": self.top1.n,
            "n_correct": self.top1.n_correct,
            "n_correct_top5": self.top5.n_correct,
            "loss_nats": self.loss,
            "n_classes": len(self.classes),
        }


def evaluate_scores(scores: Tensor, labels: Tensor, classes: Sequence[str], logits: bool = False) -> Evaluation:
    """Hold scores (n, n_classes), higher for likelier, against labels int64 (n,).

    A right class that shares its score with others counts as the last of them: equal scores know nothing. logits:
    whether the scores are logits, so that their cross entropy means something.
    Raises NonFiniteError for a score that is nan or infinite, UsageError for no images and for labels beyond classes.
    """
    scores, labels = scores.detach().cpu(), labels.cpu()
    n, n_classes = scores.shape
    assert labels.shape == (n,) and len(classes) == n_classes, (scores.shape, labels.shape, len(classes))
    if n == 0:
        raise UsageError("no images to evaluate on")
    if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise UsageError(f"labels {int(labels.min())} to {int(labels.max())}: the classifier has {n_classes} classes")
    if not scores.isfinite().all():
        raise NonFiniteError("the classifier's scores hold nan or infinity")
    own = scores.gather(1, labels[:, None])
    rank = (scores >= own).sum(dim=1) - 1  # classes at least as likely as the right one
    others = scores.scatter(1, labels[:, None], -math.inf).argmax(dim=1)
    taken_for = torch.where(rank == 0, labels, others)
    confusion = torch.bincount(labels * n_classes + taken_for, minlength=n_classes**2).view(n_classes, n_classes)
    loss = functional.cross_entropy(scores.double(), labels).item() if logits else None
    top1, top5 = (Accuracy(int((rank < k).sum()), n) for k in (1, 5))
    return Evaluation(top1, top5, confusion, tuple(classes), loss)


# ---------------------------------------------------------------------------------------------------------------
# Tables, figure, files


def accuracy_table(evaluations: dict[str, Evaluation], caption: str = "") -> report.Table:
    """A row for each way of reading the features: top-1 and top-5 in percent with their intervals."""
    rows: list[list[report.Cell]] = []
    for name, found in evaluations.items():
        row: list[report.Cell] = [name]
        for accuracy in (found.top1, found.top5):
            low, high = accuracy.interval
            row += [100 * accuracy.value, f"{100 * low:.2f} to {100 * high:.2f}"]
        rows.append([*row, found.top1.n])
    columns = ["readout", "top-1 (%)", "95% interval", "top-5 (%)", "95% interval of top-5", "images"]
    return report.Table(columns, rows, caption, {"top-1 (%)": ".2f", "top-5 (%)": ".2f", "images": ","})


def class_table(evaluation: Evaluation) -> report.Table:
    """A row for each class: its accuracy, and the class that it is most often taken for."""
    rows: list[list[report.Cell]] = []
    for i, accuracy in enumerate(evaluation.per_class):
        mistaken = evaluation.confusion[i].clone()
        mistaken[i] = 0
        worst = int(mistaken.argmax())
        low, high = accuracy.interval
        has_mistakes = accuracy.n > 0 and int(mistaken[worst]) > 0
        rows.append(
            [
                evaluation.classes[i],
                100 * accuracy.value if accuracy.n else None,
                f"{100 * low:.1f} to {100 * high:.1f}" if accuracy.n else None,
                accuracy.n,
                evaluation.classes[worst] if has_mistakes else None,
                100 * int(mistaken[worst]) / accuracy.n if has_mistakes else None,
            ]
        )
    columns = ["class", "top-1 (%)", "95% interval", "images", "most often taken for", "of its images (%)"]
    return report.Table(columns, rows, formats={"top-1 (%)": ".1f", "of its images (%)": ".1f", "images": ","})


def confusion_figure(evaluation: Evaluation, title: str = "") -> Any:
    """Rows: the true class with its accuracy; columns: what it was taken for, in percent of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    ink, soft = "#22262b", "#626973"
    n = len(evaluation.classes)
    counts = evaluation.confusion.double()
    share = (100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    side = min(9.0, max(3.2, 0.48 * n)) if n <= MOST_NAMED_CLASSES else 7.0
    named = n <= MOST_NAMED_CLASSES
    names = [literal(name, LONGEST_IN_FIGURES) for name in evaluation.classes] if named else []
    margin = 0.085 * max(map(len, names)) + 0.6 if named else 0.7
    figure = Figure(figsize=(side + margin, side + 0.7 * margin + (0.2 if title else 0.0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if title:
        figure.suptitle(literal(title), x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=ink)
    shades = LinearSegmentedColormap.from_list("share", ["#fefefe", "#9db9dc", PALETTE[0], "#163a66"])
    # By the square root: what matters off the diagonal is a few percent.
    axes.imshow(np.sqrt(share), cmap=shades, vmin=0, vmax=10, interpolation="nearest", aspect="equal")
    axes.set_xlabel("taken for", fontsize=9, color=soft)
    axes.set_ylabel("true class" + (" (top-1)" if named else ""), fontsize=9, color=soft)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=ink, labelsize=9)
    if named:
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        rows = zip(names, evaluation.per_class, strict=True)
        axes.set_yticks(range(n), [f"{name}  {a.value:.0%}" if a.n else name for name, a in rows])
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if n <= MOST_CELLS_WITH_TEXT:
        for i, j in zip(*np.nonzero(evaluation.confusion.numpy()), strict=True):
            percent = share[i, j]
            color = "#fefefe" if percent > 25 else ink
            text = f"{percent:.0f}" if percent >= 0.95 else f"{percent:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    return figure


def write_evaluations(folder: str | Path, evaluations: dict[str, Evaluation], shown: str, caption: str = "") -> None:
    """accuracy.md, .csv, .json, .tex; and of the readout `shown`: classes.*, confusion.csv and images/confusion.png."""
    folder, chosen = Path(folder), evaluations[shown]
    accuracy_table(evaluations, caption).write(folder, "accuracy")
    class_table(chosen).write(folder, "classes")
    counts = ([name, *row] for name, row in zip(chosen.classes, chosen.confusion.tolist(), strict=True))
    atomic_write(folder / "confusion.csv", encoded(csv_text([["true class", *chosen.classes], *counts])))
    figure = confusion_figure(chosen, f"{shown}: {chosen.top1.value:.2%} of {chosen.top1.n:,} images")
    atomic_write(folder / "images" / "confusion.png", figure_png(figure))


__all__ = [
    "Accuracy",
    "Evaluation",
    "Interval",
    "accuracy_table",
    "class_table",
    "confusion_figure",
    "evaluate_scores",
    "wilson",
    "write_evaluations",
]
