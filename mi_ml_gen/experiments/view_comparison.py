"""Which views make the better encoder? The same small SimCLR on real, generated and perturbed images, then probed.

Every encoder sees the same number of samples (up to whole batches of an epoch), with the T_x that the paper pairs with
its T_z (Serez et al., 2025, section 6), and is judged on the real test images of a labelled set: by a linear layer,
nearest neighbours and ridge regression. References: the pixels themselves, a backbone that was never trained, and
features learned on ImageNet.

A row and a seed are a cell of a queue (`core/cells.py`). `comparison_report` has the tables and figures.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.core import config, runs, runtime
from mi_ml_gen.core.cells import MOST_FAILURES, Cells, Failure
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import read_json, write_json
from mi_ml_gen.core.resnet import resnet
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages, ImageSource, Paired, held
from mi_ml_gen.data.splits import Splits, load_splits, some
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.training import train_encoder
from mi_ml_gen.experiments import table1
from mi_ml_gen.experiments.comparison_report import OUT_OF_REACH, READOUTS, Cell, write_report
from mi_ml_gen.experiments.comparison_settings import METHODS, ComparisonConfig, Method
from mi_ml_gen.features.base import FeatureNetwork
from mi_ml_gen.features.registry import load_network
from mi_ml_gen.generators.anchors import anchor_distribution
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.hub.assets import is_reference
from mi_ml_gen.latents import Chunks
from mi_ml_gen.navigator import folders
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.probe.training import ProbeConfig, train_probe
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.walkers import budget, spec
from mi_ml_gen.walkers.spec import walker_from


class Pixels(nn.Module):
    """The views themselves as features; grey ones once, not three times."""

    def __init__(self, image_size: int, is_grey: bool) -> None:
        super().__init__()
        self.is_grey = is_grey
        self.feature_dim = (1 if is_grey else 3) * image_size**2

    def forward(self, views: Tensor) -> Tensor:
        return (views[:, :1] if self.is_grey else views).flatten(1)


class OfViews(nn.Module):
    """A feature network as a backbone of normalised views."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: FeatureNetwork, view_px: int) -> None:
        super().__init__()
        self.network, self.feature_dim = network, network.feature_dim
        augment = Augment("none", view_px)
        self.register_buffer("mean", augment.mean)
        self.register_buffer("std", augment.std)

    def forward(self, views: Tensor) -> Tensor:
        return self.network(views * self.std + self.mean)


class Comparison(NamedTuple):
    """What is in the folder of a comparison."""

    cells: list[Cell]
    """The finished ones among those asked for."""
    failures: dict[str, Failure]
    """Those that failed, by name; they were tried at most twice."""
    in_work: list[str]
    """Those that other processes are working on."""


def compare(settings: ComparisonConfig, progress: bool = True) -> Comparison:
    """Train and probe what is missing of the table; the same settings resume an interrupted comparison.

    Several processes, on one machine or several, may work on one folder: each takes the next cell that is free. Writes
    comparison.md, .csv, .json, .tex, .png, differences.*, nats.*, shape.*, index.html and cells.json into the folder
    after every cell. A cell that fails leaves the others alone. Raises UsageError for settings that make no sense or
    differ from the folder's, Preempted when a signal asked to stop, and EnvironmentFault for faults of the machine.
    """
    config.validate(settings)
    device = runtime.resolve_device(settings.device)
    folder = settings.save_folder
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    work = Work(settings, generator, fine_chunks(settings, generator), progress)
    check_inputs(work)
    queue = Cells(folder / "cells", most_failures=10**6 if settings.retry else MOST_FAILURES)
    described = config.to_dict(settings) | fingerprint_record(folder, generator)
    with queue.alone("folder"), runs.RunFolder.open(folder, described, **config.resuming(ComparisonConfig)):
        pass  # the settings agree with the folder's
    if any(map(needs_walkers, settings.methods)) and queue.waiting(list(settings.cells)):
        with queue.alone("walkers"):
            if work.walkers is None:
                work.walkers = learned_walkers(settings, generator, work.fine, progress)
            if "random_equal" in settings.rows:
                learned = work.once("nats", "learned", lambda: nats_of(work.walkers, work))
                work.learned_nats = round(float(learned["nats"]), 2)

    def begin(name: str) -> None:
        if progress:
            row, seed = settings.cells[name]
            place = list(settings.cells).index(name) + 1
            print(f"{place} of {len(settings.cells)}: {settings.methods[row].title}, seed {seed}", flush=True)

    def measured(name: str) -> dict[str, Any]:
        return work.cell(*settings.cells[name])._asdict()

    for done in queue.work(list(settings.cells), measured, begin):
        if done.failure is not None and progress:
            print(done.line, flush=True)
        with queue.alone("folder"):
            write_report(_found(settings, queue), settings, folder)
    found = Comparison(
        _found(settings, queue), queue.failures(list(settings.cells)), queue.in_work(list(settings.cells))
    )
    with queue.alone("folder"):
        write_report(found.cells, settings, folder)
    return found


def needs_walkers(row: str) -> bool:
    """Whether a row is about learned walkers."""
    return row in METHODS and (METHODS[row].Tz.startswith("learned") or row == "random_equal")


def check_inputs(work: Work) -> None:
    """Refuse what no cell could be done with, before anything is written: a folder keeps the settings that it was made
    with, so a wrong one in it would have to be removed.

    Raises UsageError for chunks, walkers, images, pairs and budgets that are not there or do not fit, EnvironmentFault
    where the network of the row `imagenet` is not installed. What only finished cells needed may be gone.
    """
    settings, folder = work.settings, work.settings.save_folder
    for method in settings.methods.values():
        budget_chunks(work, method)
        if method.budget_nats is not None and method.budget_nats > budget.MOST_NATS:
            raise UsageError(f"--budgets {method.budget_nats:g}: must be at most {budget.MOST_NATS:.1f} nats")
    left = {row for name, (row, _) in settings.cells.items() if not (folder / "cells" / f"{name}.json").exists()}
    if not left:
        return
    probe_splits(settings, work.generator.resolution, settings.seeds[0])
    if "imagenet" in left:
        load_network("imagenet")
    if any(settings.methods[row].images == "pairs" for row in left):
        _ = work.pairs
    if settings.walkers is not None and any(map(needs_walkers, left)):
        work.walkers = learned_walkers(settings, work.generator, work.fine, work.progress)


def _found(settings: ComparisonConfig, queue: Cells) -> list[Cell]:
    """The finished cells, in the order of work."""
    results = (queue.result(name) for name in settings.cells)
    return [Cell(**result) for result in results if result is not None]


@dataclass
class Work:
    """What the cells of a comparison share."""

    settings: ComparisonConfig
    generator: MultiLatentGenerator
    fine: Chunks
    progress: bool
    walkers: dict[str, Any] | None = None
    learned_nats: float | None = None
    """What the learned walkers leave, for the row random_equal."""

    @functools.cached_property
    def stored(self) -> HeldImages:
        """The real images to train on."""
        source = load_source(
            self.settings.data_path, "train", self.generator.resolution, skip_bad=self.settings.skip_bad
        )
        return held(source)

    @functools.cached_property
    def pairs(self) -> ImageSource:
        """The pairs that people made. Raises UsageError where the source has none."""
        source = load_source(self.settings.pairs, "train", self.generator.resolution)
        if not isinstance(source, Paired):
            raise UsageError(f"--pairs {self.settings.pairs}: must be pairs, such as emoji-pairs")
        return source

    def cell(self, row: str, seed: int) -> Cell:
        """Train the encoder of a row and seed, and probe it."""
        settings, method = self.settings, self.settings.methods[row]
        seconds, nats, samples = None, None, None
        view_px = Augment("none", self.generator.resolution).crop_size
        if row == "pixels":
            grey = bool((self.stored.images == self.stored.images[:, :1]).all())
            backbone: nn.Module = Pixels(view_px, grey)
        elif row == "untrained":
            torch.manual_seed(seed)
            backbone = resnet(settings.depth, view_px, settings.width, halves=settings.halves)
        elif row == "imagenet":
            backbone = OfViews(load_network("imagenet"), view_px)
        else:
            path = settings.save_folder / "encoders" / f"{row}_seed{seed}"
            own = encoder_settings(self, method, seed)
            source = None
            if method.images != "generated":
                images = self.stored if method.images == "real" else self.pairs
                source = real_images(settings, images, seed)
            generator = self.generator if method.images == "generated" else None
            nats = self.shared(row, own, path)
            is_new, started = not (path / "checkpoints").exists(), time.monotonic()
            trained = train_encoder(own, generator, source, path=path, progress=self.progress)
            per_epoch = source.n_images if source is not None else own.samples_per_epoch or 0
            samples = own.max_epochs * (per_epoch // own.cumulative_bs) * own.cumulative_bs
            seconds = round(time.monotonic() - started, 1) if is_new else None
            backbone = load_encoder(trained.path).backbone
        probe = ProbeConfig(
            dataset=None, readouts=list(READOUTS), max_epochs=settings.probe_epochs, seed=seed, device=settings.device,
            precision=settings.precision,
        )  # fmt: skip
        splits = probe_splits(settings, self.generator.resolution, seed)
        result = train_probe(
            probe, backbone, splits, settings.save_folder / "probes" / f"{row}_seed{seed}", keep_features=False,
            progress=self.progress,
        )  # fmt: skip
        top1 = {name: found.top1.value for name, found in result.evaluations.items()}
        return Cell(row, seed, top1, result.evaluations["sgd"].top1.n, seconds, nats, samples)

    def shared(self, row: str, own: EncoderConfig, path: Path) -> float | None:
        """What the pairs of a row share before T_x, in nats; None where they are twice the same image, or a mixture.

        It is measured once for all seeds. A budget is solved once for all seeds, and what was found is left in the
        encoder's run folder, which goes by it; its nats are those that the search found on new pairs. A budget that
        cannot be reached is remembered, too. Raises UsageError for one.
        """
        if own.Tz is None or own.mixture is not None:
            return None
        if not budget.budgets(own.Tz):
            return float(self.once("nats", row, lambda: nats_of(own.Tz, self))["nats"])
        noise = anchor_distribution(own, self.generator)

        def solve() -> dict[str, Any]:
            device = device_of(self.generator)
            try:
                (solved,) = budget.solved(budget.walker_by(own.Tz, self.generator, noise, 0, device))
            except UsageError as error:
                return {OUT_OF_REACH: str(error)}
            return solved

        found = self.once("budgets", row, solve)
        if OUT_OF_REACH in found:
            raise UsageError(found[OUT_OF_REACH])
        if not (path / budget.RECORD).exists():
            write_json(path / budget.RECORD, [found])
        return float(found["achieved"]["nats"])

    def once(self, what: str, row: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `find` gives for a row, in a file of the folder: found once for all seeds and processes."""
        folder = self.settings.save_folder
        path = folder / what / f"{row}.json"
        with Cells(folder / "cells").alone(f"{what} of {row}"):
            if not path.exists():
                write_json(path, find())
        return read_json(path)  # type: ignore[no-any-return]


def nats_of(Tz: Any, work: Work) -> dict[str, Any]:
    """What the pairs of a T_z share, by a critic like the one that checks a budget."""
    walker = walker_from(Tz, work.generator, device_of(work.generator))
    return budget.measured(work.generator, walker).to_json()


# ---------------------------------------------------------------------------------------------------------------
# What encoders are trained on


def fine_chunks(settings: ComparisonConfig, generator: MultiLatentGenerator) -> Chunks:
    """The chunks that walkers per chunk perturb: all but the first, which decides what is seen, unless told."""
    n_chunks = generator.layout.n_chunks
    if settings.fine_chunks is None:
        if n_chunks < 2:
            raise UsageError(f"{generator.name} has one chunk; there is none that walkers could leave alone")
        return Chunks(1, n_chunks)
    return generator.chunks(settings.fine_chunks, "--fine_chunks")


def learned_walkers(
    settings: ComparisonConfig, generator: MultiLatentGenerator, fine: Chunks, progress: bool = True
) -> dict[str, Any]:
    """Learned walkers for the fine chunks, chunks -> file or run folder; they are trained here where none are given."""
    base = settings.walkers
    if base is not None and (not base.is_dir() or (base / "walker.safetensors").exists()):
        return _given_walkers(base, generator, fine)
    if base is None:
        base = settings.save_folder / "walkers"
        given = {"generator": settings.generator, "chunks": "0_1", "device": settings.device}
        own = config.load(NavigatorConfig, NavigatorConfig.preset(settings.generator), given)
        own = replace(own, g_path=settings.g_path, g_use=settings.g_use)
        table1.train_missing(base, own, generator, progress=progress)
    found = {str(one.walker.chunks[0]): str(one.folder) for one in folders.find_walkers(base)}
    wanted = [str(Chunks(start, start + 1)) for start in range(fine.start, fine.stop)]
    if missing := [chunks for chunks in wanted if chunks not in found]:
        there = ", ".join(found)
        raise UsageError(f"--walkers {base}: no walker of chunks {', '.join(missing)}; there: {there}")
    return {chunks: found[chunks] for chunks in wanted}


def _given_walkers(written: Path, generator: MultiLatentGenerator, fine: Chunks) -> dict[str, Any]:
    """The walkers of a T_z, which must perturb all fine chunks and no others."""
    text = str(written)
    if not spec.is_groups(text) and not written.exists() and not is_reference(text):
        raise UsageError(f'--walkers {text}: no such folder or file; groups are written "1_2=runs/a 2_3=runs/b"')
    if spec.is_groups(text) or written.suffix in (".yaml", ".yml"):
        groups = spec.read_groups(text, "--walkers")
        groups = {chunks: str(member) if isinstance(member, Path) else member for chunks, member in groups.items()}
    else:
        groups = {str(chunks): text for chunks in spec.load_walker(text).chunks}
    walker = spec.walker_from(groups, generator, flag="--walkers")
    perturbed = sorted(i for chunks in walker.chunks for i in range(chunks.start, chunks.stop))
    if perturbed != list(range(fine.start, fine.stop)):
        names = ", ".join(map(str, walker.chunks))
        raise UsageError(f"--walkers {text}: must perturb all of chunks {fine}, and no others; these perturb {names}")
    return groups


def budget_chunks(work: Work, method: Method) -> Chunks | None:
    """The chunks of a row by budget; None for others. Raises UsageError for chunks that the generator does not have."""
    if method.budget_nats is None:
        return None
    if method.chunks == "fine":
        return work.fine
    return (
        work.generator.layout.all if method.chunks == "all" else work.generator.chunks(method.chunks, "--budget_chunks")
    )


def Tz_of(work: Work, method: Method) -> dict[str, Any] | None:
    """The T_z of a row, as an encoder's settings have it."""
    settings = work.settings
    whole = Chunks(0, work.generator.layout.n_chunks)
    if (chunks := budget_chunks(work, method)) is not None:
        return {str(chunks): f"{budget.WORD}{method.budget_nats:g}"}
    if method is METHODS["random_equal"]:
        assert work.learned_nats is not None
        return {str(work.fine): f"{budget.WORD}{work.learned_nats:g}"}
    if method.Tz == "random, all chunks":
        return {str(whole): [0.0, settings.random_all_std, 2.0]}
    if method.Tz == "random, fine chunks":
        return {str(work.fine): [0.0, settings.random_std, 2.0]}
    if method.Tz == "learned, fine chunks":
        assert work.walkers is not None
        return dict(work.walkers)
    return None


def encoder_settings(work: Work, method: Method, seed: int) -> EncoderConfig:
    """The settings of one encoder; those of all rows differ in what the row is about alone."""
    settings = work.settings
    is_generated = method.images == "generated"
    n_epochs, per_epoch = course(settings, work.pairs if method.images == "pairs" else work.stored)
    return EncoderConfig(
        encoder="simclr",
        generator=settings.generator if is_generated else None,
        g_path=settings.g_path if is_generated else None,
        g_use=settings.g_use if is_generated else [],
        Tz=Tz_of(work, method),
        mixture=method.mixture,
        samples_per_epoch=per_epoch if is_generated else None,
        Tx=method.Tx,
        crop_size=settings.crop_size,
        depth=settings.depth,
        width=settings.width,
        halves=settings.halves,
        dim=settings.dim,
        temperature=settings.temperature,
        max_epochs=n_epochs,
        cumulative_bs=settings.batch_size,
        base_lr=settings.base_lr,
        warmup=True,
        weight_decay=settings.weight_decay,
        knn_freq=n_epochs,
        save_freq=n_epochs,
        seed=seed,
        device=settings.device,
        precision=settings.precision,
        compile=settings.compile,
        cuda_graphs=settings.cuda_graphs,
        views_ahead=settings.views_ahead,
    )


def course(settings: ComparisonConfig, stored: ImageSource) -> tuple[int, int]:
    """Number of epochs, and samples in each: the fewest epochs in which the images suffice for all samples.

    An epoch has whole batches, so that all of its samples are trained on. One epoch more is taken where that comes
    nearer to the steps asked for, so rows of few images are trained as long as those of many.
    """
    size = min(settings.batch_size, stored.n_images)
    n_steps, most = max(1, settings.samples // size), stored.n_images // size

    def steps_of(n_epochs: int) -> int:
        return min(most, round(n_steps / n_epochs))

    fewest = max(1, n_steps // most)
    n_epochs = min(fewest, fewest + 1, key=lambda n: abs(n * steps_of(n) - n_steps))
    return n_epochs, steps_of(n_epochs) * size


def real_images(settings: ComparisonConfig, stored: ImageSource, seed: int) -> ImageSource:
    """As many of the stored images (or pairs) as an epoch has samples, chosen by the seed; all of them where those that
    are left fill no batch, since each epoch leaves out others."""
    n = course(settings, stored)[1]
    if stored.n_images - n < settings.batch_size:
        return stored
    order = torch.randperm(stored.n_images, generator=runtime.stream(seed, "compared images", 0, 0))
    return some(stored, order[:n], f"{stored.name}, {n:,} images")


def probe_splits(settings: ComparisonConfig, image_size: int, seed: int) -> Splits:
    """The real images that probes are trained on, at most `probe_images` with those for validation, and judged by."""
    splits = load_splits(settings.data_path, image_size, seed, skip_bad=settings.skip_bad)
    if splits.test is None:
        raise UsageError(f"--data_path {settings.data_path}: has no test images to judge by")
    n = splits.train.n_images + splits.validation.n_images
    if settings.probe_images >= n:
        return splits

    def chosen(source: ImageSource) -> ImageSource:
        n_some = max(1, round(settings.probe_images * source.n_images / n))
        rng = runtime.stream(seed, "probed images", 0, 0)
        return some(source, torch.randperm(source.n_images, generator=rng)[:n_some], source.name)

    return splits._replace(train=chosen(splits.train), validation=chosen(splits.validation))


__all__ = ["METHODS", "Cell", "Comparison", "ComparisonConfig", "Work", "compare"]
