"""Continuous sampling against stored images: how long an epoch takes, and what of it is waiting for images.

The same small encoder (ResNet-18 with the InfoNCE loss and Adam, batch after batch) is trained for an epoch on images
of a generator, which stays on the device, and on stored ones, read by threads or through FFCV (Serez et al., 2025,
Figure 5). Every number is of whole epochs that were run.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mi_ml_gen.core import config, graphs, loop, optimizers, runs, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, Preempted, UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.experiments.settings import SOURCES, BenchmarkConfig
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.infonce import infonce_loss
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import curves, figure_png
from mi_ml_gen.views.sampler import GeneratedImages, StoredImages, ViewSampler

TEMPERATURE = 0.1
LEARNING_RATE = 1e-4
BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class Measurement:
    """One source at one batch size."""

    source: str
    batch_size: int
    image_size: int
    """Side of the images, in pixels."""
    steps_per_epoch: int
    epoch_s: float
    """Median seconds of an epoch."""
    images_per_s: float
    step_ms: float
    images_ms: float
    """Mean milliseconds of a step until its images are there: sampled and decoded, or read and moved."""
    energy_wh: float | None
    """Of an epoch, all devices together, as codecarbon estimates it; None where it was not measured."""
    device: str

    @property
    def images_share(self) -> float:
        """Share of the step's time until its images are there."""
        return self.images_ms / self.step_ms


class Clock:
    """Time spent in the parts of steps: by events on CUDA, without a wait in a step; by the wall elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[Any, Any]] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        start = self._now()
        yield
        self._marks.append((start, self._now()))

    def total_s(self) -> float:
        """Seconds in all parts since the last call. Waits for the device."""
        marks, self._marks = self._marks, []
        if self.device.type != "cuda":
            return sum(stop - start for start, stop in marks)
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(stop) for start, stop in marks) / 1000

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def benchmark(settings: BenchmarkConfig, progress: bool = True) -> list[Measurement]:
    """Measure every source at every batch size; what the folder holds already is not measured again.

    Writes measurements.jsonl, sampling.md, .csv, .json, .tex and images/sampling.png into the run folder. Raises
    UsageError for sources without images, EnvironmentFault where FFCV is missing, Preempted when a signal asked to
    stop (finished measurements are kept).
    """
    if len(set(settings.source)) != len(settings.source) or not settings.source or not settings.batch_sizes:
        raise UsageError("--source and --batch_sizes: must hold at least one value each, and no source twice")
    if max(settings.batch_sizes) > settings.samples_per_epoch:
        raise UsageError(
            f"--batch_sizes {max(settings.batch_sizes)}: an epoch has only {settings.samples_per_epoch} samples"
        )
    device = runtime.resolve_device(settings.device)
    runtime.set_precision(settings.precision)
    measure_energy = energy_meter(settings.energy)
    described = config.to_dict(settings) | {"device_name": device_name(device)}
    with (
        runs.RunFolder.open(settings.save_folder, described, **config.resuming(BenchmarkConfig)) as run,
        loop.Preemption() as preemption,
    ):
        kept = [_measurement(row, run.path) for row in run.metrics()]
        for source in settings.source:
            wanted = [size for size in settings.batch_sizes if not _holds(kept, source, size)]
            if not wanted:
                continue
            origin = make_origin(settings, source, device)
            if other := next((m for m in kept if m.image_size != origin.image_size), None):
                raise UsageError(
                    f"--source {source}: gives images of {origin.image_size} px, but {other.source} of "
                    f"{other.image_size} px; only the same work can be compared (--image_size sizes stored images)"
                )
            for batch_size in wanted:
                found = measure(settings, origin, source, batch_size, device, measure_energy, preemption, progress)
                if found is None:
                    raise Preempted(f"{run.path} holds {len(kept)} measurements; the same command resumes from there")
                run.log(len(kept), **vars(found))
                kept.append(found)
        shown = sorted(kept, key=lambda m: (SOURCES.index(m.source), m.batch_size))
        sampling_table(shown, settings).write(run.path, "sampling")
        atomic_write(run.images / "sampling.png", figure_png(figure(shown)))
    return shown


def make_origin(settings: BenchmarkConfig, source: str, device: torch.device) -> GeneratedImages | StoredImages:
    """The images of a source; stored ones at the size that the generator has."""
    if source == "generator":
        generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
        origin = GeneratedImages(generator)
        if settings.compile:
            origin.compile()
        if settings.cuda_graphs and graphs.why_not(device) is None:
            origin.record()
        return origin
    if settings.data_path is None:
        raise UsageError(f"--source {source}: reads stored images; give --data_path, or leave it out")
    return StoredImages(
        load_source(
            settings.data_path, "train", settings.image_size, framing=settings.framing, loader=source,
            skip_bad=settings.skip_bad, n_workers=settings.workers,
        )
    )  # fmt: skip


def measure(
    settings: BenchmarkConfig,
    origin: GeneratedImages | StoredImages,
    source: str,
    batch_size: int,
    device: torch.device,
    measure_energy: Callable[[], Any],
    preemption: loop.Preemption,
    progress: bool = True,
) -> Measurement | None:
    """Train the encoder for the epochs of one source and batch size; None where a signal asked to stop."""
    torch.manual_seed(settings.seed)
    sampler = ViewSampler(origin, "simclr", batch_size, settings.seed, device, precision=settings.precision)
    encoder = Critic(sampler.augment.crop_size, width=settings.width).to(device)
    encoder = encoder.to(memory_format=torch.channels_last).train()
    fused = device.type == "cuda"
    optimizer = optimizers.Adam(encoder.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=fused)
    score: Callable[..., torch.Tensor] = torch.compile(encoder) if settings.compile else encoder

    def gradients(views: torch.Tensor) -> torch.Tensor:
        with runtime.autocast(device, settings.precision):
            points = score(views.contiguous(memory_format=torch.channels_last))
        loss = infonce_loss(torch.stack(points.chunk(2), dim=1), TEMPERATURE)
        loss.backward()
        return loss.detach()

    run: Callable[..., torch.Tensor] = gradients
    if settings.cuda_graphs and graphs.why_not(device) is None:
        run = graphs.Recorded(gradients, "the encoder's step", encoder.parameters())
    clock = Clock(device)
    steps_per_epoch = settings.samples_per_epoch // batch_size
    epochs: list[tuple[float, float]] = []  # seconds, of which for images

    def train_step(step: int) -> None:
        with clock.part():
            images = sampler.images(step)
        rng = sampler.key(step).rng("crops")
        views = torch.cat([sampler.augment(half, rng) for half in images])
        optimizer.zero_grad(set_to_none=True)
        run(views)
        optimizer.step()

    for step in range(settings.warm_up_steps):
        train_step(step)
    clock.total_s()
    n_steps = settings.num_epochs * steps_per_epoch
    bar = Bar(total=n_steps, desc=f"{source}, {batch_size} a step", unit="step", disable=not progress)
    with bar, measure_energy() as energy_wh:
        for epoch in range(settings.num_epochs):
            started = time.perf_counter()
            for step in range(steps_per_epoch):
                train_step(settings.warm_up_steps + epoch * steps_per_epoch + step)
                bar.update()
                if preemption.requested:
                    return None
            images_s = clock.total_s()  # waits for the device
            epochs.append((time.perf_counter() - started, images_s))
    epoch_s = statistics.median(seconds for seconds, _ in epochs)
    whole_s, images_s = (sum(column) for column in zip(*epochs, strict=True))
    return Measurement(
        source=source,
        batch_size=batch_size,
        image_size=origin.image_size,
        steps_per_epoch=steps_per_epoch,
        epoch_s=epoch_s,
        images_per_s=steps_per_epoch * batch_size / epoch_s,
        step_ms=1000 * whole_s / n_steps,
        images_ms=1000 * images_s / n_steps,
        energy_wh=energy_wh[0] / settings.num_epochs if energy_wh else None,
        device=device_name(device),
    )


def energy_meter(wanted: bool) -> Callable[[], Any]:
    """A context that gives a list, which at its end holds the energy spent within, in watt hours; or stays empty where
    codecarbon is not installed or not wanted."""

    @contextmanager
    def meter() -> Iterator[list[float]]:
        found: list[float] = []
        if not wanted or importlib.util.find_spec("codecarbon") is None:
            yield found
            return
        from codecarbon import OfflineEmissionsTracker

        tracker = OfflineEmissionsTracker(country_iso_code="USA", log_level="error", save_to_file=False)
        tracker.start()
        try:
            yield found
        finally:
            tracker.stop()
        found.append(1000 * float(tracker.final_emissions_data.energy_consumed))

    return meter


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


class _Scale(NamedTuple):
    column: str
    title: str


PANELS = (
    _Scale("epoch_s", "seconds per epoch"),
    _Scale("images_per_s", "images per second"),
    _Scale("energy_wh", "energy per epoch (Wh)"),
)


def sampling_table(measurements: Sequence[Measurement], settings: BenchmarkConfig) -> report.Table:
    """A line for each source and batch size."""
    cells = [
        [m.source, m.batch_size, m.epoch_s, m.images_per_s, m.step_ms, m.images_ms, m.images_share, m.energy_wh]
        for m in measurements
    ]
    columns = [
        "source", "batch size", "epoch (s)", "images/s", "step (ms)", "of it images (ms)", "share", "energy (Wh)",
    ]  # fmt: skip
    formats = {"epoch (s)": ".1f", "images/s": ",.0f", "step (ms)": ".1f", "of it images (ms)": ".1f"}
    formats |= {"share": ".1%", "energy (Wh)": ".2f"}
    devices = ", ".join(dict.fromkeys(m.device for m in measurements))
    caption = (
        f"An epoch of {settings.samples_per_epoch:,} images of {measurements[0].image_size} px, ResNet-18 of width "
        f"{settings.width}, {settings.precision}, on {devices}; share: of a step's time until its images are there."
    )
    if all(m.energy_wh is None for m in measurements):
        columns, cells = columns[:-1], [row[:-1] for row in cells]
        del formats["energy (Wh)"]
    return report.Table(columns, cells, caption, formats)


def figure(measurements: Sequence[Measurement]) -> Any:
    """Seconds and energy of an epoch, and images per second, over the batch size: a line for each source."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for m in measurements:
        lines.setdefault(m.source, []).append(vars(m))
    shown = [panel for panel in PANELS if any(getattr(m, panel.column) is not None for m in measurements)]
    marks = {name: max(row["batch_size"] for row in rows) for name, rows in lines.items()}
    drawn = curves(
        lines, [panel.column for panel in shown], x="batch_size", x_label="batch size", span=1,
        labels={panel.column: panel.title for panel in shown}, marks=marks,
    )  # fmt: skip
    for axes in drawn.axes:
        axes.set_ylim(bottom=0)
    return drawn


def _holds(measurements: Sequence[Measurement], source: str, batch_size: int) -> bool:
    return any((m.source, m.batch_size) == (source, batch_size) for m in measurements)


def _measurement(row: dict[str, Any], folder: Path) -> Measurement:
    values = {key: value for key, value in row.items() if key != "step"}
    try:
        return Measurement(**values)
    except TypeError:
        raise CorruptCheckpointError(f"{folder / 'metrics.jsonl'}: not a measurement: {json.dumps(row)[:80]}") from None


__all__ = ["BenchmarkConfig", "Measurement", "benchmark"]
