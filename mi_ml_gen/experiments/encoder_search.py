"""Which small encoder learns most in an hour of this machine? Candidates, trained on generated views and then probed.

Accuracy after so many samples hardly depends on the machine, and samples a second do on nothing else. So a search may
measure the first on a GPU and the second on the CPU that the encoder is meant for. A candidate, a number of samples and
a seed are a cell of a queue (`core/cells.py`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from mi_ml_gen.core import config, optimizers, runs, runtime
from mi_ml_gen.core.cells import Cells, Failure
from mi_ml_gen.core.files import atomic_write, read_json, write_json
from mi_ml_gen.encoders.base import accumulate_gradients
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.training import build_encoder, train_encoder, view_sampler
from mi_ml_gen.experiments.comparison_settings import ComparisonConfig
from mi_ml_gen.experiments.search_settings import REFERENCE, SearchConfig, cell_name
from mi_ml_gen.experiments.view_comparison import probe_splits
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.probe.training import ProbeConfig, train_probe
from mi_ml_gen.report import tables as report

READOUTS = {"sgd": "linear", "knn": "kNN"}
N_STEPS = 2
"""Steps of a candidate in its turn, when speeds are measured."""
CHECKED_PX = 32
"""Side of the images when it is only looked whether they are there."""


class Trial(NamedTuple):
    """What a cell came to."""

    candidate: str
    samples: int
    seed: int
    top1: dict[str, float]
    """By readout, 0 to 1, on the real test images."""
    samples_per_s: float
    """Of the training, on the device below."""
    device: str


class Speed(NamedTuple):
    """How fast a candidate is trained, measured in turns with the others."""

    candidate: str
    samples_per_s: float
    """Median over the turns."""
    samples_per_cpu_s: float
    """For each second that the process had a processor, median over the turns: what other work hardly changes."""
    to_reference: float
    """Median over the turns of its rate over that of the first candidate in the same turn."""
    n_turns: int
    threads: int
    device: str


class Search(NamedTuple):
    """What is in the folder of a search."""

    trials: list[Trial]
    speeds: list[Speed]
    failures: dict[str, Failure]


def search(settings: SearchConfig, progress: bool = True) -> Search:
    """Train and probe what is missing; the same settings resume. Writes search.md, .csv, .json and .tex.

    Several processes may work on one folder. Raises UsageError for wrong settings or those of another folder.
    """
    config.validate(settings)
    settings.check()
    folder = settings.save_folder
    if not (folder / "config.yaml").exists():  # which would keep a wrong set, and refuse the right one
        probe_splits(ComparisonConfig(data_path=settings.data_path), CHECKED_PX, settings.seeds[0])
    queue = Cells(folder / "cells")
    with queue.alone("folder"), runs.RunFolder.open(folder, config.to_dict(settings), **config.resuming(SearchConfig)):
        pass  # the settings agree with the folder's
    if settings.time_s:
        with queue.alone("speeds"):
            if not are_timed(settings):
                write_json(folder / "speeds.json", [one._asdict() for one in measure_speeds(settings)])

    def measured(name: str) -> Mapping[str, Any]:
        return _trial(settings, *settings.cells[name], progress)._asdict()

    for done in queue.work(list(settings.cells), measured):
        if progress:
            print(done.line, flush=True)
        with queue.alone("folder"):
            _write(settings, queue)
    with queue.alone("folder"):
        trials, speeds = _write(settings, queue)
    return Search(trials, speeds, queue.failures(list(settings.cells)))


def _trial(settings: SearchConfig, candidate: str, samples: int, seed: int, progress: bool) -> Trial:
    """Train a candidate, and probe it."""
    own = settings.encoder(candidate, samples, seed)
    name = f"{cell_name(candidate)}_{samples}_seed{seed}"
    path = settings.save_folder / "encoders" / name
    trained = train_encoder(own, path=path, progress=False)
    rate = runs.read_metrics(trained.path)[-1]["images_per_s"]
    encoder = load_encoder(trained.path)
    probe = ProbeConfig(
        dataset=None, readouts=list(READOUTS), max_epochs=settings.probe_epochs, seed=seed, device=settings.device,
        precision=settings.precision,
    )  # fmt: skip
    of_probe = ComparisonConfig(data_path=settings.data_path, probe_images=settings.probe_images)
    splits = probe_splits(of_probe, encoder.about["image_size"], seed)
    result = train_probe(
        probe, encoder.backbone, splits, settings.save_folder / "probes" / name, keep_features=False, progress=False
    )
    top1 = {readout: found.top1.value for readout, found in result.evaluations.items()}
    return Trial(candidate, samples, seed, top1, rate, device_name(runtime.resolve_device(settings.device)))


# --- speeds -------------------------------------------------------------------------------------------------


def stored_speeds(settings: SearchConfig) -> list[Speed]:
    """What the folder has."""
    path = settings.save_folder / "speeds.json"
    return [Speed(**one) for one in read_json(path, list)] if path.exists() else []


def are_timed(settings: SearchConfig) -> bool:
    """Whether the folder has the speeds of all candidates on this device. They are not measured again: while another
    process trains, or this one did before, they would be lower."""
    device = device_name(runtime.resolve_device(settings.device))
    return set(settings.candidates) <= {one.candidate for one in stored_speeds(settings) if one.device == device}


def measure_speeds(settings: SearchConfig) -> list[Speed]:
    """How fast each candidate is trained here, views and all. The candidates take turns of a few steps, so that other
    work on the machine slows all of them; the first turn warms up and does not count."""
    device = runtime.resolve_device(settings.device)
    runtime.set_precision(settings.precision)
    turns = {candidate: _stepping(settings.encoder(candidate, 10**6, 0), device) for candidate in settings.candidates}
    rates: dict[str, list[float]] = {candidate: [] for candidate in turns}
    cpu_rates: dict[str, list[float]] = {candidate: [] for candidate in turns}
    first, began_s, n_turns = settings.candidates[0], time.monotonic(), 0
    while n_turns < 2 or time.monotonic() - began_s < settings.time_s:
        for candidate, steps in turns.items():
            started_s, started_cpu_s = time.monotonic(), time.process_time()
            n = steps(n_turns)
            if n_turns:
                rates[candidate].append(n / (time.monotonic() - started_s))
                cpu_rates[candidate].append(n / (time.process_time() - started_cpu_s))
        n_turns += 1
    found = []
    for candidate, own in rates.items():
        ratio = statistics.median(a / b for a, b in zip(own, rates[first], strict=True))
        rate, cpu_rate = (round(statistics.median(one), 1) for one in (own, cpu_rates[candidate]))
        threads = torch.get_num_threads()
        found.append(Speed(candidate, rate, cpu_rate, round(ratio, 3), len(own), threads, device_name(device)))
    return found


def _stepping(own: EncoderConfig, device: torch.device) -> Callable[[int], int]:
    """A function that makes some steps of a training, views and all, and gives the number of samples in them."""
    assert own.generator is not None
    sampler = view_sampler(own, load_generator(own.generator, own.g_path, device, own.g_use), None, device)
    encoder = build_encoder(own, sampler.augment.crop_size).to(device).to(memory_format=torch.channels_last).train()
    optimizer = optimizers.SGD(encoder.parameter_groups(), lr=1e-3, momentum=own.momentum)

    def steps(turn: int) -> int:
        for step in range(N_STEPS * turn, N_STEPS * (turn + 1)):
            optimizer.zero_grad(set_to_none=True)
            accumulate_gradients(encoder, *sampler(step), own.micro_batches, runtime.autocast(device, own.precision))
            optimizer.step()
            encoder.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return N_STEPS * own.cumulative_bs

    return steps


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# --- the table ----------------------------------------------------------------------------------------------


def search_table(trials: list[Trial], speeds: list[Speed], settings: SearchConfig) -> report.Table:
    """A line for each candidate and number of samples: accuracies, and what the training takes on the machine of the
    speeds."""
    rates = {speed.candidate: speed for speed in speeds}
    lines: list[list[report.Cell]] = []
    for samples in sorted({trial.samples for trial in trials}):
        for candidate in dict.fromkeys(trial.candidate for trial in trials):
            own = [trial for trial in trials if (trial.candidate, trial.samples) == (candidate, samples)]
            if not own:
                continue
            speed = rates.get(candidate)
            hours = None if speed is None else samples / speed.samples_per_s / 3600
            lines.append([candidate, samples, *(_over_seeds(own, readout) for readout in READOUTS), len(own),
                          None if speed is None else speed.samples_per_s, hours])  # fmt: skip
    caption = (
        f"Top-1 on real test images of {settings.data_path}, probes on at most {settings.probe_images:,} labelled "
        "images; mean and standard deviation over seeds, no spread where there is one. "
        f"All candidates begin with {settings.base or 'the defaults of the search'}"
    )
    if devices := sorted({trial.device for trial in trials}):
        caption += f". Trained on: {', '.join(devices)}"
    if speeds:
        one = speeds[0]
        caption += f". Samples a second and hours: {one.device}, {one.threads} threads, median of {one.n_turns} turns"
    columns = ["candidate", "samples", *(f"{name} (%)" for name in READOUTS.values()), "seeds", "samples/s", "hours"]
    formats = {"samples": ",", "samples/s": ".0f", "hours": ".2f"} | dict.fromkeys(columns[2:4], ".2f")
    return report.Table(columns, lines, caption, formats)


def _over_seeds(trials: list[Trial], readout: str) -> report.Cell:
    values = [100 * trial.top1[readout] for trial in trials]
    mean = statistics.fmean(values)
    return report.Estimate(mean, statistics.stdev(values)) if len(values) > 1 else mean


def _write(settings: SearchConfig, queue: Cells) -> tuple[list[Trial], list[Speed]]:
    """The table of all that is in the folder, and the trials as trials.json."""
    results = (queue.result(name) for name in settings.cells)
    trials = [Trial(**result) for result in results if result is not None]
    speeds = stored_speeds(settings)
    if trials:
        search_table(trials, speeds, settings).write(settings.save_folder, "search")
        text = json.dumps([trial._asdict() for trial in trials], indent=2) + "\n"
        atomic_write(settings.save_folder / "trials.json", text.encode())
    return trials, speeds


__all__ = ["REFERENCE", "Search", "Speed", "Trial", "measure_speeds", "search", "search_table"]
