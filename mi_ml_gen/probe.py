"""The probe: how much a linear layer, or the nearest neighbours, find in the features of a frozen encoder.

Three readouts of the same features: a linear layer by SGD (the paper's classifier: base learning rate 30, momentum
0.9, cosine to a tenth), k nearest neighbours, and ridge regression in closed form. The backbone stays in evaluation
mode throughout, so neither its weights nor its running statistics move.

SGD works on features of unaugmented images, computed once, or, as the paper does, on crops and mirrored images drawn
anew in every epoch (`views="no_color"`), which takes a pass of the backbone for each of them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from mi_ml_gen import config, files, hub, runs, runtime
from mi_ml_gen.backbone import ResNet
from mi_ml_gen.checkpoints import read_checkpoint
from mi_ml_gen.classification import Evaluation, accuracy_table, evaluate_scores, write_evaluations
from mi_ml_gen.config import option
from mi_ml_gen.data.sources import ImageSource, batches, load_source
from mi_ml_gen.errors import CheckpointError, CorruptCheckpointError, Preempted, UsageError
from mi_ml_gen.features import Extraction, Features, extract_features, frozen, labels_of
from mi_ml_gen.readouts import Affine, Linear, fit_ridge, knn_scores, unit_scale
from mi_ml_gen.sharing import Shared
from mi_ml_gen.splits import PUBLISHED_CLASSES, Splits, class_names, has_split
from mi_ml_gen.views import Augment, unit_range

logger = logging.getLogger(__name__)

FORMAT = "mi_ml_gen classifier"
MOMENTUM = 0.9
FINAL_SHARE = 0.1
"""Share of the learning rate that its cosine ends at."""
WEIGHT_STD = 0.01
"""Standard deviation of the linear layer's first weights; its biases start at 0."""
PUBLISHED_IMAGE_SIZE = 128
READOUTS = ("sgd", "knn", "ridge")


@dataclass
class ProbeConfig:
    """What `scripts/train_classifier.py` takes."""

    encoder_path: str | None = option(None, help="the encoder: a run folder, encoder.safetensors, or a published file")
    data_path: str | None = option(None, help="labelled images: fashion-mnist, digits, torchvision:CIFAR10:data, a "
                                   "folder of images or .beton files")  # fmt: skip
    save_folder: str = option("./classifier_runs", help="folder of run folders")
    run_name: str = option("0", help="last part of the run folder's name; the same command resumes it")
    dataset: str | None = option(None, help="name of the set; one of the paper's is checked for its number of classes")
    image_size: int | None = option(None, at_least=8, help="side of the images, of which 7/8 is seen (default: as the "
                                    "encoder was trained on, else the set's own)")  # fmt: skip
    framing: str = option("classification", help="how stored images are cut: whole, bigbigan, stylegan, classification")
    loader: Literal["auto", "torch", "ffcv"] = option("auto", help="how stored images are read")
    hold_out: float = option(0.1, above=0, below=1, help="share of the training images for validation, where the set "
                             "has no validation images of its own")  # fmt: skip
    readouts: list[str] = option(list(READOUTS), choices=READOUTS, help="what reads the features: sgd knn ridge")

    views: Literal["none", "no_color"] = option(
        "none",
        help="none: features of the centre crops, computed once; no_color: new crops in each epoch (the paper's)",
    )
    scale: Literal["unit", "none"] = option(
        "unit", help="features for SGD: unit: standardised, mean squared length 1; none: as they are (the paper's)"
    )  # fmt: skip
    max_epochs: int = option(60, at_least=1, help="passes of SGD over the training images")
    cumulative_bs: int = option(256, at_least=1, help="images a step, over all processes")
    base_lr: float = option(30.0, above=0, help="learning rate at 256 images a step, in proportion for others")
    decay: bool = option(True, help="let the learning rate fall along a cosine to a tenth")
    val_freq: int = option(5, at_least=1, help="epochs between validations; the layer of least loss is kept")

    n_neighbours: int = option(20, at_least=1, help="of kNN")
    knn_temp: float = option(0.1, above=0, help="of kNN: votes weigh exp(cosine / temperature)")

    seed: int = option(0, at_least=0, help="of the held-out images, the first weights and all draws")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", help="arithmetic of the backbone")
    batch_size: int = option(256, at_least=1, help="images at a time where features are computed once")
    state_interval_s: float = option(60.0, at_least=0, help="least seconds between saved states, for resuming")

    def __post_init__(self) -> None:
        if not self.readouts or len(set(self.readouts)) != len(self.readouts):
            raise UsageError(f"--readouts {' '.join(self.readouts)}: give each of {', '.join(READOUTS)} at most once")

    @property
    def folder(self) -> Path:
        data = self.dataset or re.sub(r"[^\w.-]+", "-", self.data_path or "data").strip("-.")
        return Path(self.save_folder) / f"LinCls-{data}-{self.run_name}"


FREE = ("save_folder", "run_name", "loader", "device", "batch_size", "state_interval_s")
"""Settings that may differ when a probe is resumed."""


class LinearClassifier(Shared):
    """A frozen backbone and a linear layer: normalised views (n, 3, H, W) -> logits (n, n_classes).

    image_size: side in pixels of the images whose centre crops it was trained on. classes: their names.
    Whatever mode is asked for, the backbone stays in evaluation mode, and it is never part of a graph.
    """

    def __init__(
        self, backbone: nn.Module, fc: nn.Linear, classes: tuple[str, ...], image_size: int = PUBLISHED_IMAGE_SIZE
    ) -> None:
        super().__init__()
        if len(classes) != fc.out_features:
            raise UsageError(f"{len(classes)} classes for a layer of {fc.out_features} outputs")
        self.backbone = backbone.requires_grad_(False)
        self.fc = fc
        self.classes = classes
        self.image_size = image_size
        self.train(self.training)

    def config(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "n_classes": len(self.classes), "classes": list(self.classes)}

    def train(self, mode: bool = True) -> LinearClassifier:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, views: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(views)
        return self.fc(features.float())


class ProbeResult(NamedTuple):
    """What a probe found."""

    path: Path
    """The run folder: tables, figures, classifier.safetensors."""
    evaluations: dict[str, Evaluation]
    """By readout, on the test images, or on the validation images where there are none."""
    split: str
    """Which of both."""
    classifier: LinearClassifier | None
    """The layer by SGD, else by ridge; None where neither was asked for."""


def train_probe(
    settings: ProbeConfig,
    backbone: nn.Module,
    splits: Splits,
    path: str | Path | None = None,
    keep_features: bool = True,
    progress: bool = True,
    on_row: Callable[[Mapping[str, Any]], object] | None = None,
) -> ProbeResult:
    """Read a backbone's features in the ways asked for and evaluate each; the same call resumes an interrupted one.

    backbone: normalised images (n, 3, H, W) -> features (n, d); it is moved to the device and otherwise left as it is.
    path: the run folder (default: settings.folder). keep_features: whether features are kept in it. on_row: called with
    each line of metrics, in the main process. The settings' paths of encoder and data only say what was given.
    Raises UsageError for images without labels and settings that make no sense or differ from the folder's,
    NonFiniteError for a loss that is no finite number, Preempted when a signal asked to stop (the state is saved).
    """
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    runtime.set_precision(settings.precision)
    classes = class_names(splits)
    check_classes(settings.dataset, len(classes))
    for source in splits:
        if source is not None:
            labels_of(source)

    path = Path(path) if path is not None else settings.folder
    described = config.to_dict(settings) | {"n_processes": runtime.world_size()}
    with runs.RunFolder.open(path, described, free=FREE) as run, runs.Preemption() as preemption:
        # --- Features of unaugmented images
        how = Extraction(device, settings.precision, settings.batch_size, progress and runtime.is_main())
        needs_all = settings.views == "none" or settings.scale == "unit" or set(settings.readouts) & {"knn", "ridge"}
        cache = run.path if keep_features else None
        seen: dict[str, Features] = {}
        for name, source in splits._asdict().items():
            if source is not None and (needs_all or name != "train"):
                seen[name] = extract_features(backbone, source, how, cache, name)
            if runtime.broadcast_flag(preemption.requested):
                raise Preempted(f"{path}: features of {name} are saved; the same command goes on from there")
        split = "test" if "test" in seen else "validation"
        judged = seen[split]

        # --- Readouts
        notes: dict[str, Any] = {}
        evaluations: dict[str, Evaluation] = {}
        linear: Linear | None = None
        if "sgd" in settings.readouts:
            fit = _sgd(run, settings, backbone, splits, seen, len(classes), device, preemption, progress, on_row)
            linear = fit.linear
            notes["sgd"] = {"epoch": fit.epoch, "validation_loss": fit.validation_loss}
            evaluations["sgd"] = evaluate_scores(linear.scores(judged.values), judged.labels, classes, logits=True)
        if "ridge" in settings.readouts:
            ridge = fit_ridge(seen["train"], seen["validation"], len(classes), device=device)
            linear = linear or Linear(ridge.linear.weight.float(), ridge.linear.bias.float())
            notes["ridge"] = {"penalty": ridge.penalty, "at_the_edge": ridge.at_the_edge, "tried": ridge.validation}
            evaluations["ridge"] = evaluate_scores(ridge.linear.scores(judged.values), judged.labels, classes)
        if "knn" in settings.readouts:
            votes = knn_scores(
                seen["train"], judged.values, len(classes), settings.n_neighbours, settings.knn_temp, device
            )
            evaluations["knn"] = evaluate_scores(votes, judged.labels, classes)
        evaluations = {name: evaluations[name] for name in settings.readouts}

        # --- Files
        classifier = None
        if linear is not None:
            classifier = LinearClassifier(backbone, _layer(linear), classes, splits.train.image_size)
            if runtime.is_main() and isinstance(backbone, ResNet):
                save_classifier(run.path / "classifier.safetensors", classifier)
        if runtime.is_main():
            caption = f"{len(classes)} classes, {judged.labels.numel():,} {split} images"
            write_evaluations(run.path, evaluations, settings.readouts[0], caption)
            results = {name: found.as_dict() | notes.get(name, {}) for name, found in evaluations.items()}
            run.write_json("summary.json", {"split": split, "readouts": results})
        runtime.barrier()
    return ProbeResult(path, evaluations, split, classifier)


def evaluate_probe(
    classifier: LinearClassifier,
    source: ImageSource,
    device: torch.device | str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    progress: bool = False,
) -> Evaluation:
    """Hold a classifier against the labels of a source's images.

    Raises UsageError for a source without labels, and where its classes are not as many as the classifier's.
    """
    resolved = runtime.resolve_device(device)
    features = extract_features(
        classifier.backbone, source, Extraction(resolved, precision, batch_size, progress and runtime.is_main())
    )
    n_classes = len(classifier.classes)
    if source.classes and len(source.classes) != n_classes:
        raise UsageError(f"{source.name}: has {len(source.classes)} classes, the classifier {n_classes}")
    linear = Linear(classifier.fc.weight.detach().cpu(), classifier.fc.bias.detach().cpu())
    classes = source.classes or classifier.classes
    return evaluate_scores(linear.scores(features.values), features.labels, classes, logits=True)


def check_classes(dataset: str | None, n_classes: int) -> None:
    """Warn where a set of the paper's has another number of classes than the paper's classifiers of it."""
    expected = PUBLISHED_CLASSES.get(dataset or "")
    if expected is not None and expected != n_classes:
        logger.warning("%s: %d classes here, %d in the paper's classifiers", dataset, n_classes, expected)


@dataclass
class EvaluationConfig:
    """What `scripts/eval_classifier.py` takes."""

    lin_cls_path: str = option(help="the classifier: a run folder, classifier.safetensors, or a published file")
    data_path: str = option(help="labelled images, as train_classifier.py takes them")
    dataset: str | None = option(None, help="name of the set; one of the paper's is checked for its number of classes")
    split: Literal["train", "validation", "test"] = option("test", help="which of its images")
    image_size: int | None = option(None, at_least=8, help="side of the images (default: as the classifier's were)")
    framing: str = option("classification", help="how stored images are cut: whole, bigbigan, stylegan, classification")
    loader: Literal["auto", "torch", "ffcv"] = option("auto", help="how stored images are read")
    batch_size: int = option(256, at_least=1, help="images at a time")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "tf32", "bf16"] = option("fp32", help="arithmetic of the network")
    out_log_file: Path | None = option(None, help="where results go: this name with .csv, and a folder of this name")


def run_evaluation(settings: EvaluationConfig, progress: bool = True) -> Evaluation:
    """Load, evaluate and, where `out_log_file` says so, write: NAME.csv, and in the folder NAME all tables and the
    confusion figure. Raises as `load_classifier`, `load_source` and `evaluate_probe`."""
    runtime.set_precision(settings.precision)
    classifier = load_classifier(settings.lin_cls_path)
    check_classes(settings.dataset, len(classifier.classes))
    if settings.split != "train" and not has_split(settings.data_path, settings.split):
        raise UsageError(f"--data_path {settings.data_path}: has no images of the {settings.split} split")
    size = settings.image_size or classifier.image_size
    source = load_source(settings.data_path, settings.split, size, framing=settings.framing, loader=settings.loader)
    found = evaluate_probe(classifier, source, settings.device, settings.batch_size, settings.precision, progress)
    if settings.out_log_file is not None:
        out = settings.out_log_file
        csv = accuracy_table({"linear": found}).to_csv()
        files.atomic_write(out.with_name(out.name + ".csv"), csv.encode())
        write_evaluations(out, {"linear": found}, "linear")
    return found


# ---------------------------------------------------------------------------------------------------------------
# A linear layer by SGD


class SgdFit(NamedTuple):
    """The layer of least validation loss."""

    linear: Linear
    epoch: int
    validation_loss: float


def learning_rate(settings: ProbeConfig, step: int, n_steps: int) -> float:
    """Of step 0, 1 ...: base_lr * images / 256, along a half cosine to a tenth of that."""
    peak = settings.base_lr * settings.cumulative_bs / 256
    if not settings.decay:
        return peak
    final = FINAL_SHARE * peak
    return final + (peak - final) * (1 + math.cos(math.pi * step / n_steps)) / 2


def _sgd(
    run: runs.RunFolder,
    settings: ProbeConfig,
    backbone: nn.Module,
    splits: Splits,
    seen: dict[str, Features],
    n_classes: int,
    device: torch.device,
    preemption: runs.Preemption,
    progress: bool,
    on_row: Callable[[Mapping[str, Any]], object] | None,
) -> SgdFit:
    validation = seen["validation"]
    d = validation.values.shape[1]
    standard = unit_scale(seen["train"].values) if settings.scale == "unit" else None
    standard = standard or Affine(torch.zeros(d), torch.ones(d))
    steps = _Steps(settings, splits.train, seen.get("train"), backbone, device)
    n_steps = settings.max_epochs * steps.per_epoch

    layer = nn.Linear(d, n_classes)
    with torch.no_grad():
        layer.weight.normal_(0, WEIGHT_STD, generator=runtime.stream(settings.seed, "probe weights", 0, 0))
        layer.bias.zero_()
    layer.to(device)
    on_device = Affine(standard.mean.to(device), standard.scale.to(device))
    optimizer = torch.optim.SGD(layer.parameters(), lr=settings.base_lr, momentum=MOMENTUM)
    best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "layer": {}}
    total = torch.zeros((), device=device)
    first = 0
    if (saved := run.load_latest()) is not None:
        first, state = saved
        layer.load_state_dict(state["layer"])
        optimizer.load_state_dict(state["optimizer"])
        best, total = state["best"], state["total"].to(device)
    guard = runtime.FiniteGuard()
    last_state = time.monotonic()

    bar = tqdm(total=n_steps, initial=first, desc="probe", unit="step", disable=not (progress and runtime.is_main()))
    step = first
    for step, batch in zip(range(first, n_steps), steps.run(first, n_steps), strict=True):
        # --- A step of the layer
        rate = learning_rate(settings, step, n_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = functional.cross_entropy(layer(on_device(batch.values)), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.average_gradients(layer)
        optimizer.step()
        total += loss.detach()
        guard.watch("the probe's loss", loss)
        bar.update()

        # --- The end of an epoch: a row of metrics, and now and then a validation
        done = step + 1
        epoch, is_last = done // steps.per_epoch, done == n_steps
        at_end = done % steps.per_epoch == 0
        if at_end:
            guard.check(done, run.last_state)
            row = {"epoch": epoch, "lr": rate, "loss": runtime.all_reduce_mean(total).item() / steps.per_epoch}
            total.zero_()
            if epoch % settings.val_freq == 0 or is_last:
                linear = _folded(layer, standard)
                found = evaluate_scores(
                    linear.scores(validation.values), validation.labels, [""] * n_classes, logits=True
                )
                assert found.loss is not None
                row |= {"validation_loss": found.loss, "validation_top1": found.top1.value}
                if found.loss < best["loss"]:
                    kept = {key: value.detach().cpu().clone() for key, value in layer.state_dict().items()}
                    best = {"loss": found.loss, "epoch": epoch, "layer": kept}
            run.log(done, **row)
            if on_row is not None and runtime.is_main():
                on_row({"step": done} | row)
            bar.set_postfix(loss=f"{row['loss']:.3f}")

        # --- The state
        stop_now = runtime.broadcast_flag(preemption.requested)
        is_due = at_end and runtime.broadcast_flag(time.monotonic() - last_state >= settings.state_interval_s)
        if stop_now or is_last or is_due:
            guard.check(done, run.last_state)
            state = {"layer": layer.state_dict(), "optimizer": optimizer.state_dict(), "best": best, "total": total}
            run.save_state(done, state)
            last_state = time.monotonic()
        if stop_now and not is_last:
            raise Preempted(f"{run.path} is saved at step {done:,}; the same command goes on from there")
    bar.close()
    layer.load_state_dict(best["layer"])
    return SgdFit(_folded(layer, standard), best["epoch"], best["loss"])


class _Steps:
    """The batches of all steps: features kept on the device, or of views drawn anew and run through the backbone."""

    def __init__(
        self,
        settings: ProbeConfig,
        source: ImageSource,
        kept: Features | None,
        backbone: nn.Module,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.source = source
        self.backbone = backbone
        self.device = device
        self.labels = labels_of(source)
        world = runtime.world_size()
        if settings.cumulative_bs % world:
            raise UsageError(f"--cumulative_bs {settings.cumulative_bs}: must be divisible by the {world} processes")
        self.n_own = min(settings.cumulative_bs, source.n_images // world * world) // world
        if self.n_own == 0:
            raise UsageError(f"{source.name}: {source.n_images} images are too few for {world} processes")
        self.per_epoch = source.n_images // (self.n_own * world)  # a last batch that is smaller is left out
        self.kept = None
        if settings.views == "none":
            assert kept is not None
            self.kept = Features(kept.values.to(device), kept.labels.to(device))
        else:
            self.augment = Augment(settings.views, source.image_size).to(device)

    def run(self, first: int, n_steps: int) -> Iterator[Features]:
        """From step `first` on, this process's share of each step's batch."""
        for epoch in range(first // self.per_epoch, math.ceil(n_steps / self.per_epoch)):
            start = max(first - epoch * self.per_epoch, 0)
            order = self.order(epoch)[start:]
            if self.kept is not None:
                yield from map(self.kept.rows, order.to(self.device))
            else:
                yield from self._augmented(order, epoch * self.per_epoch + start)

    def order(self, epoch: int) -> Tensor:
        """The images of this process in each step of an epoch, (per_epoch, n_own)."""
        rng = runtime.stream(self.settings.seed, "probe order", epoch, 0)
        world = runtime.world_size()
        order = torch.randperm(self.source.n_images, generator=rng)[: self.per_epoch * self.n_own * world]
        return order.view(self.per_epoch, world, self.n_own)[:, runtime.rank()]

    def _augmented(self, order: Tensor, step: int) -> Iterator[Features]:
        images = batches(self.source, order.flatten(), self.n_own)
        for i, (chosen, raw) in enumerate(zip(order, images, strict=True)):
            rng = runtime.stream(self.settings.seed, "probe views", step + i, runtime.rank(), self.device)
            views = self.augment(unit_range(raw.to(self.device, non_blocking=True)), rng)
            with frozen(self.backbone), runtime.autocast(self.device, self.settings.precision):
                values = self.backbone(views).float()
            yield Features(values, self.labels[chosen].to(self.device))


def _folded(layer: nn.Linear, standard: Affine) -> Linear:
    """The layer on standardised features as one on features as they are; on the CPU."""
    weight, bias = (tensor.detach().cpu() for tensor in (layer.weight, layer.bias))
    return standard.fold(weight, bias)


def _layer(linear: Linear) -> nn.Linear:
    layer = nn.Linear(linear.weight.shape[1], len(linear.weight))
    layer.load_state_dict(linear._asdict())
    return layer.requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------
# Files


def save_classifier(path: str | Path, classifier: LinearClassifier) -> None:
    """Write a classifier on a `ResNet`, under the published names: model.conv1.weight ... model.fc.bias."""
    tensors = {f"model.{key}": value for key, value in classifier.backbone.state_dict().items()}
    tensors |= {f"model.fc.{key}": value for key, value in classifier.fc.state_dict().items()}
    header = {
        "format": FORMAT,
        "image_size": str(classifier.image_size),
        "classes": json.dumps(list(classifier.classes)),
    }
    files.save_tensors(path, tensors, header)


def load_classifier(path: str | Path) -> LinearClassifier:
    """The classifier of a probe's run folder, of its classifier.safetensors, or of a published Lightning checkpoint, a
    path or a reference (see hub.py).

    Every tensor of the network must be there, and no other. A published file names no classes, so they are "0", "1"
    ..., and was trained on images of 128 px.
    Raises UsageError for a missing file, UnsafeCheckpointError or CorruptCheckpointError for one that is refused.
    """
    path = hub.local_path(path)
    if path.is_dir():
        path = next((path / name for name in ("classifier.safetensors", "last.ckpt") if (path / name).is_file()), path)
        if path.is_dir():
            raise UsageError(f"{path}: no classifier.safetensors or last.ckpt is in it")
    header: dict[str, str] = {}
    if path.suffix == ".safetensors":
        tensors, header = files.load_tensors(path)
    else:
        tensors = read_checkpoint(path, keys=("state_dict",)).get("state_dict")
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise CorruptCheckpointError(f"{path}: holds no state_dict of tensors")
    try:
        return _build_classifier(tensors, header)
    except (CheckpointError, UsageError, RuntimeError, KeyError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CorruptCheckpointError(f"{path}: no linear classifier: {reason}") from None


def _build_classifier(tensors: dict[str, Tensor], header: dict[str, str]) -> LinearClassifier:
    own = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    if other := sorted(set(tensors) - {f"model.{key}" for key in own}):
        raise CheckpointError(f"unknown {', '.join(other[:3])}")
    weight, bias = own.pop("fc.weight"), own.pop("fc.bias")
    stem = own["conv1.weight"]
    if stem.ndim != 4 or weight.ndim != 2:
        raise CheckpointError("conv1.weight must have 4 axes and fc.weight 2")
    depth = 50 if "layer1.0.conv3.weight" in own else 18
    backbone = ResNet(depth, small_images=stem.shape[-1] == 3, width=stem.shape[0])
    backbone.load_state_dict(own)
    layer = nn.Linear(backbone.feature_dim, len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    classes = json.loads(header["classes"]) if "classes" in header else range(len(weight))
    image_size = int(header.get("image_size", PUBLISHED_IMAGE_SIZE))
    classifier = LinearClassifier(backbone, layer.requires_grad_(False), tuple(map(str, classes)), image_size)
    return classifier.eval()


__all__ = [
    "EvaluationConfig",
    "LinearClassifier",
    "ProbeConfig",
    "ProbeResult",
    "evaluate_probe",
    "load_classifier",
    "run_evaluation",
    "save_classifier",
    "train_probe",
]
