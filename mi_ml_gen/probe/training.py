"""The probe: how much a linear layer, or the nearest neighbours, find in the features of a frozen encoder.

Three readouts of the same features: a linear layer by SGD (the paper's classifier: base learning rate 30, momentum
0.9, cosine to a tenth), k nearest neighbours, and ridge regression in closed form. The backbone stays in evaluation
mode throughout, so neither its weights nor its running statistics move.

SGD works on features of unaugmented images, computed once, or, as the paper does, on crops and mirrored images drawn
anew in every epoch (`views="no_color"`), which takes a pass of the backbone for each of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import config, loop, optimizers, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.data.source import ImageSource, batches
from mi_ml_gen.data.splits import Splits, class_names, matched
from mi_ml_gen.probe.accuracy import Evaluation, evaluate_scores, write_evaluations
from mi_ml_gen.probe.classifier import LinearClassifier, _layer, check_classes, save_classifier
from mi_ml_gen.probe.features import Extraction, Features, extract_features, frozen, labels_of
from mi_ml_gen.probe.readouts import Affine, Linear, fit_ridge, knn_scores, unit_scale
from mi_ml_gen.probe.settings import ProbeConfig
from mi_ml_gen.views.augment import Augment, unit_range

logger = logging.getLogger(__name__)

MOMENTUM = 0.9
FINAL_SHARE = 0.1
"""Share of the learning rate that its cosine ends at."""
WEIGHT_STD = 0.01
"""Standard deviation of the linear layer's first weights; its biases start at 0."""
KEPT = {"last": "the last one", "best": "the one of least validation loss"}
"""Which layer of SGD is judged, in words."""


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
    layer: str = ""
    """Which layer of SGD was judged, in words; empty where there was none."""


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
    Raises UsageError for images without labels or of a single class, for a split with classes that the training images
    lack, and for settings that make no sense or differ from the folder's; NonFiniteError for a loss that is no finite
    number; Preempted when a signal asked to stop (the state is saved).
    """
    device = runtime.resolve_device(settings.device)
    runtime.setup_distributed(device)
    runtime.set_precision(settings.precision)
    splits = matched(splits)
    classes = class_names(splits)
    check_classes(settings.dataset, len(classes))
    for source in splits:
        if source is not None:
            labels_of(source)
    if len(classes) < 2:
        raise UsageError(
            f"{splits.train.name}: has only one class, {classes[0]}, so there is nothing to tell apart; give a folder "
            "that holds a folder for each class"
        )

    path = Path(path) if path is not None else settings.folder
    described = config.to_dict(settings) | {"n_processes": runtime.world_size()}
    with loop.Session.open(path, described, **config.resuming(ProbeConfig)) as session:
        run = session.run
        # --- Features of unaugmented images
        how = Extraction(device, settings.precision, settings.batch_size, progress and runtime.is_main())
        needs_all = settings.views == "none" or settings.scale == "unit" or set(settings.readouts) & {"knn", "ridge"}
        cache = run.path if keep_features else None
        seen: dict[str, Features] = {}
        for name, source in splits._asdict().items():
            if source is not None and (needs_all or name != "train"):
                seen[name] = extract_features(backbone, source, how, cache, name)
            session.stop_if_asked(f"features of {name} are saved")
        split = "test" if "test" in seen else "validation"
        judged = seen[split]

        # --- Readouts
        notes: dict[str, Any] = {}
        evaluations: dict[str, Evaluation] = {}
        linear: Linear | None = None
        layer = ""
        if "sgd" in settings.readouts:
            fit = _sgd(session, settings, backbone, splits, seen, len(classes), device, progress, on_row)
            linear = fit.linear
            layer = f"layer of epoch {fit.epoch}, {KEPT[settings.keep]}"
            notes["sgd"] = {"epoch": fit.epoch, "validation_loss": fit.validation_loss, "kept": settings.keep}
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
            caption += f"; sgd: {layer}" if layer else ""
            write_evaluations(run.path, evaluations, settings.readouts[0], caption)
            results = {name: found.as_dict() | notes.get(name, {}) for name, found in evaluations.items()}
            run.write_json("summary.json", {"split": split, "readouts": results})
        runtime.barrier()
    return ProbeResult(path, evaluations, split, classifier, layer)


# ---------------------------------------------------------------------------------------------------------------
# A linear layer by SGD


class SgdFit(NamedTuple):
    """The layer that is judged, see ProbeConfig.keep."""

    linear: Linear
    epoch: int
    validation_loss: float


def learning_rate(settings: ProbeConfig, step: int, n_steps: int, batch_size: int | None = None) -> float:
    """Of step 0, 1 ...: base_lr * images / 256, along a half cosine to a tenth of that.

    batch_size: images of a step, of all processes, where the set is too small for cumulative_bs of them."""
    peak = settings.base_lr * (batch_size or settings.cumulative_bs) / 256
    if not settings.decay:
        return peak
    final = FINAL_SHARE * peak
    return final + (peak - final) * (1 + math.cos(math.pi * step / n_steps)) / 2


def _sgd(
    session: loop.Session,
    settings: ProbeConfig,
    backbone: nn.Module,
    splits: Splits,
    seen: dict[str, Features],
    n_classes: int,
    device: torch.device,
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
    optimizer = optimizers.SGD(layer.parameters(), lr=settings.base_lr, momentum=MOMENTUM)
    course = loop.Course(
        total=torch.zeros((), device=device),  # sum of the loss in this epoch
        best={"loss": math.inf, "epoch": 0, "layer": {}},  # the layer of least validation loss
    )
    session.resume(course, layer=layer, optimizer=optimizer)
    feed = steps.run(session.first, n_steps)
    for step, batch in zip(session.steps(n_steps, title="probe", progress=progress), feed, strict=True):
        # --- A step of the layer
        rate = learning_rate(settings, step, n_steps, steps.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = functional.cross_entropy(layer(on_device(batch.values)), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.average_gradients(layer)
        optimizer.step()
        course.total += loss.detach()
        session.watch("the probe's loss", loss)

        # --- The end of an epoch: a row of metrics, and now and then a validation
        epoch = session.done // steps.per_epoch
        ends_epoch = session.every(steps.per_epoch)
        if ends_epoch:
            session.check()
            row = {"epoch": epoch, "lr": rate, "loss": runtime.all_reduce_mean(course.total).item() / steps.per_epoch}
            course.total.zero_()
            if epoch % settings.val_freq == 0 or session.is_last:
                linear = _folded(layer, standard)
                found = evaluate_scores(
                    linear.scores(validation.values), validation.labels, [""] * n_classes, logits=True
                )
                assert found.loss is not None
                row |= {"validation_loss": found.loss, "validation_top1": found.top1.value}
                if settings.keep == "last" or found.loss < course.best["loss"]:
                    kept = {key: value.detach().cpu().clone() for key, value in layer.state_dict().items()}
                    course.best = {"loss": found.loss, "epoch": epoch, "layer": kept}
            logged = session.log(**row)
            if on_row is not None and runtime.is_main():
                on_row(logged)
            session.show(loss=f"{row['loss']:.3f}")
        session.end_of_step(save=ends_epoch)
    layer.load_state_dict(course.best["layer"])
    return SgdFit(_folded(layer, standard), course.best["epoch"], course.best["loss"])


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
        self.batch_size = self.n_own * world
        if self.batch_size < settings.cumulative_bs:
            logger.warning(
                "%s has %d images, fewer than --cumulative_bs %d: each step takes %d, and the learning rate is scaled",
                source.name, source.n_images, settings.cumulative_bs, self.batch_size,
            )  # fmt: skip
        self.per_epoch = source.n_images // self.batch_size  # a last batch that is smaller is left out
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
                yield from map(self.kept.rows, runtime.to_device(order, self.device))
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
            views = self.augment(unit_range(runtime.to_device(raw, self.device)), rng)
            with frozen(self.backbone), runtime.autocast(self.device, self.settings.precision):
                values = self.backbone(views).float()
            yield Features(values, runtime.to_device(self.labels[chosen], self.device))


def _folded(layer: nn.Linear, standard: Affine) -> Linear:
    """The layer on standardised features as one on features as they are; on the CPU."""
    weight, bias = (tensor.detach().cpu() for tensor in (layer.weight, layer.bias))
    return standard.fold(weight, bias)
