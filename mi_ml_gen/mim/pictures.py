"""Pictures of MIM models: a frame of training, the animation of all frames, and figures of quantities over seeds.

A frame shows, above, the data: black level lines of P(x), grey test points, red reconstructions; and below, the
latent space: for the same points the ellipse of one standard deviation of q(z|x), in the colour of the point's
label, and dashed circles at one, two and three standard deviations of P(z) = N(0, I).
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.mim.datasets import SIDE_PX, Dataset
from mi_ml_gen.mim.model import MIM
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import series_colors
from mi_ml_gen.report.images import pair_grid, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_SHOWN = 300
"""Test points in a frame."""
LATENT_LIMIT = 4.0
WILD = 1e4
"""Above it a panel's axis is logarithmic from 10 on."""
_RED, _GREY, _INK = "#c8201e", "#b4b9bf", "#22262b"
_GIF_COLOURS = 48


@torch.no_grad()
def progress_frame(
    model: MIM,
    dataset: Dataset,
    rng: torch.Generator,
    title: str = "",
    n_shown: int = N_SHOWN,
    width_px: int = 260,
    latent_limit: float = LATENT_LIMIT,
) -> np.ndarray:
    """One picture of what a model (not a stack) makes of the test set: uint8 (2 width_px, width_px, 3), about.

    Of more than two dimensions the first two are shown; of one, the second is 0. Images are shown as themselves
    instead, each above its reconstruction. Frames of one data set have the same axes, so that they make an
    animation; rng should give each frame the same numbers for the same reason.
    """
    assert model.n_models is None, "a picture is of one model, not of a stack"
    x, labels = dataset.test.x[:n_shown], dataset.test.labels[:n_shown]
    encoding = model.encode(x)
    decoding = model.decode(encoding.rsample(rng))
    if dataset.binary:
        above, below = (t[:64].unflatten(1, (1, SIDE_PX, SIDE_PX)) for t in (x, decoding.mean))
        return pair_grid(above, below, n_columns=8)
    x_recon = decoding.rsample(rng)

    figure = _figure(width_px / 100, 2 * width_px / 100)
    upper, lower = figure.subplots(2, 1)
    _draw_data(upper, dataset, _plane(x), _plane(x_recon))
    _draw_latents(lower, _plane(encoding.mean), _plane(encoding.stddev), labels.cpu().numpy(), latent_limit)
    if title:
        upper.set_title(title, loc="left", fontsize=9, color=_INK, pad=3)
    return _pixels(figure)


def save_frame(path: str | Path, frame: np.ndarray) -> Path:
    """Write a frame as a PNG."""
    return save_png(path, frame)


def animate(path: str | Path, frames: Sequence[np.ndarray], frame_s: float = 0.15, hold_s: float = 2.0) -> list[Path]:
    """Write frames, uint8 (h, w, 3) of one size, as PATH.gif and, where ffmpeg is installed, PATH.mp4 beside.

    frame_s: seconds of a frame; hold_s: of the last one. Gives the files that were written.
    Raises UsageError where there are no frames or their sizes differ, EnvironmentFault where ffmpeg fails.
    """
    if not frames:
        raise UsageError(f"{path}: an animation needs at least one frame")
    if len({frame.shape for frame in frames}) > 1:
        raise UsageError(f"{path}: the frames of an animation must have one size")
    path = Path(path).with_suffix(".gif")
    atomic_write(path, _gif(frames, frame_s, hold_s))
    written = [path]
    if shutil.which("ffmpeg"):
        written.append(_write_mp4(path.with_suffix(".mp4"), frames, frame_s, hold_s))
    return written


def band_figure(
    series: Mapping[str, Mapping[float, Mapping[str, report.Estimate]]],
    quantities: Mapping[str, str],
    x_label: str,
) -> Figure:
    """A panel per quantity: the mean over seeds as a line, one standard error about it as a band.

    series: for each name, for each x, the estimates by quantity. quantities: title of each panel.
    Raises UsageError where there is nothing to draw.
    """
    if not any(points for points in series.values()):
        raise UsageError("band_figure: no results")
    figure = _figure(3.3 * len(quantities), 2.9)
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axes, (quantity, title) in zip(panels, quantities.items(), strict=True):
        _dress(axes, title, x_label)
        for color, (name, points) in zip(series_colors(len(series)), series.items(), strict=True):
            _draw_band(axes, points, quantity, color, name)
        means = [row[quantity].value for points in series.values() for row in points.values() if quantity in row]
        if means and max(map(abs, means)) > WILD:  # a model that diverged must not hide the others
            axes.set_yscale("symlog", linthresh=10.0)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False, fontsize=9)
    return figure


# --- the parts ----------------------------------------------------------------------------------------------


def _draw_data(axes: Axes, dataset: Dataset, x: np.ndarray, x_recon: np.ndarray) -> None:
    reference = _plane(dataset.test.x)
    low, high = np.percentile(reference, [0.2, 99.8], axis=0)
    center, half = (low + high) / 2, 0.62 * max((high - low).max(), 1e-3)
    axes.set_xlim(center[0] - half, center[0] + half)
    axes.set_ylim(center[1] - half, center[1] + half)
    if dataset.anchor is not None and dataset.x_dim == 2:
        lines = [np.linspace(c - half, c + half, 96) for c in center]
        grid = np.stack(np.meshgrid(*lines), axis=-1)  # (96, 96, 2)
        points = torch.from_numpy(grid).to(dataset.test.x)
        density = dataset.anchor.log_prob(points).exp().cpu().numpy()
        levels = density.max() * np.exp([-4.5, -2.0, -0.5])
        axes.contour(lines[0], lines[1], density, levels=levels, colors=_INK, linewidths=0.6)
    axes.plot(*x.T, ".", color=_GREY, markersize=3, markeredgewidth=0)
    axes.plot(*x_recon.T, ".", color=_RED, markersize=3.5, markeredgewidth=0)
    _bare(axes)


def _draw_latents(axes: Axes, mean: np.ndarray, std: np.ndarray, labels: np.ndarray, limit: float) -> None:
    from matplotlib.collections import EllipseCollection
    from matplotlib.patches import Circle

    colors = np.array(series_colors(8), dtype=object)[labels % 8]
    widths, heights = np.maximum(2 * std, 0.015 * limit).T  # a point stays to be seen
    ellipses = EllipseCollection(
        widths, heights, np.zeros(len(mean)), units="xy", offsets=mean, transOffset=axes.transData,
        facecolors="none", edgecolors=list(colors), linewidths=0.5,
    )  # fmt: skip
    axes.add_collection(ellipses)
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, linestyle=(0, (4, 3)), color=_INK, linewidth=0.6))
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    _bare(axes)


def _draw_band(
    axes: Axes, points: Mapping[float, Mapping[str, report.Estimate]], quantity: str, color: str, name: str
) -> None:
    known = [(x, row[quantity]) for x, row in sorted(points.items()) if quantity in row]
    if not known:
        axes.plot([], [], color=color, label=name)  # still in the legend
        return
    x = np.array([place for place, _ in known])
    mean = np.array([estimate.value for _, estimate in known])
    error = np.nan_to_num(np.array([estimate.spread for _, estimate in known]))
    axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
    axes.plot(x, mean, color=color, linewidth=1.6, marker="o", markersize=3, label=name)


def _dress(axes: Axes, title: str, x_label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(title, loc="left", fontsize=10, color=_INK, pad=6)
    axes.set_xlabel(x_label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=3)
    axes.grid(color="#dcdfe3", linewidth=0.7)
    axes.set_axisbelow(True)


def _bare(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#dcdfe3")


def _plane(points: Tensor) -> np.ndarray:
    """(n, d) -> (n, 2): the first two coordinates, with zeros for a missing second."""
    if points.shape[1] == 1:
        points = torch.cat([points, torch.zeros_like(points)], dim=1)
    return points[:, :2].cpu().double().numpy()


def _figure(width: float, height: float) -> Figure:
    """A figure on the Agg canvas, unknown to pyplot and its list of open figures. Inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _gif(frames: Sequence[np.ndarray], frame_s: float, hold_s: float) -> bytes:
    """All frames in one palette, taken from a few of them side by side: colours must not flicker."""
    some = [frames[i] for i in sorted({0, len(frames) // 2, len(frames) - 1})]
    palette = Image.fromarray(np.concatenate(some, axis=1)).quantize(_GIF_COLOURS)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * frame_s)] * (len(frames) - 1) + [round(1000 * hold_s)]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _write_mp4(path: Path, frames: Sequence[np.ndarray], frame_s: float, hold_s: float) -> Path:
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])  # the usual codec wants even sides
    still = [frames[-1]] * max(0, math.ceil(hold_s / frame_s) - 1)
    raw = b"".join(np.ascontiguousarray(frame[:height, :width]).tobytes() for frame in [*frames, *still])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "animation.mp4"
        command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        command += ["-r", f"{1 / frame_s:g}", "-i", "-", "-pix_fmt", "yuv420p", str(made)]
        done = subprocess.run(command, input=raw, capture_output=True, check=False)
        if done.returncode != 0 or not made.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise EnvironmentFault(f"{path}: ffmpeg failed: {said[-1] if said else f'exit {done.returncode}'}")
        atomic_write(path, made.read_bytes())
    return path
