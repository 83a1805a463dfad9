"""Evaluation of a trained linear classifier on labelled images."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from mi_ml_gen.core import files, runs, runtime
from mi_ml_gen.data.classes import aligned, class_key
from mi_ml_gen.data.known import published_framing
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import ImageSource
from mi_ml_gen.data.splits import check_split
from mi_ml_gen.probe.accuracy import Evaluation, accuracy_table, evaluate_scores, write_evaluations
from mi_ml_gen.probe.classifier import LinearClassifier, check_classes, load_classifier
from mi_ml_gen.probe.features import Extraction, extract_features, labels_of
from mi_ml_gen.probe.readouts import Linear
from mi_ml_gen.probe.settings import EvaluationConfig
from mi_ml_gen.report.text import encoded

logger = logging.getLogger(__name__)


def evaluate_probe(
    classifier: LinearClassifier,
    source: ImageSource,
    device: torch.device | str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    progress: bool = False,
) -> Evaluation:
    """Hold a classifier against the labels of a source's images.

    Classes are matched by name (see `data.classes`). A published classifier names none: numbered classes are its own
    numbers, and classes with names are taken in the order of the names, which a warning says.
    Raises UsageError for a source without labels, and where it has a class that the classifier does not know.
    """
    labels_of(source)
    source = _of_its_classes(source, classifier)
    resolved = runtime.resolve_device(device)
    features = extract_features(
        classifier.backbone, source, Extraction(resolved, precision, batch_size, progress and runtime.is_main())
    )
    linear = Linear(classifier.fc.weight.detach().cpu(), classifier.fc.bias.detach().cpu())
    classes = source.classes or classifier.classes
    return evaluate_scores(linear.scores(features.values), features.labels, classes, logits=True)


def _of_its_classes(source: ImageSource, classifier: LinearClassifier) -> ImageSource:
    """The source with labels that are the classifier's outputs."""
    known = {class_key(name) for name in classifier.classes}
    are_numbers = all(class_key(name) in known for name in source.classes)
    if classifier.has_names or are_numbers or len(source.classes) != len(classifier.classes):
        return aligned(source, classifier.classes, "the classifier")
    in_text_order = tuple(sorted(source.classes))
    logger.warning(
        "the classifier knows its classes by number only; they are matched to the classes of %s in the order of their "
        "names: 0 is %s, %d is %s",
        source.name, in_text_order[0], len(in_text_order) - 1, in_text_order[-1],
    )  # fmt: skip
    return aligned(source, in_text_order, "the classifier")


def run_evaluation(settings: EvaluationConfig, progress: bool = True) -> Evaluation:
    """Load, evaluate and, where `out_log_file` says so, write: NAME.csv, and in the folder NAME all tables and the
    confusion figure. Raises as `load_classifier`, `load_source` and `evaluate_probe`."""
    runtime.set_precision(settings.precision)
    classifier = load_classifier(settings.lin_cls_path)
    check_classes(settings.dataset, len(classifier.classes))
    check_split(settings.data_path, settings.split)
    size = settings.image_size or classifier.image_size
    source = load_source(
        settings.data_path,
        settings.split,
        size,
        framing=_framing(settings),
        loader=settings.loader,
        skip_bad=settings.skip_bad,
    )
    if size != classifier.image_size:
        known = classifier.image_size
        logger.warning("images of %d px where the classifier was trained on %d px; the flag is used", size, known)
    found = evaluate_probe(classifier, source, settings.device, settings.batch_size, settings.precision, progress)
    if settings.out_log_file is not None:
        out = settings.out_log_file
        csv = accuracy_table({"linear": found}).to_csv()
        files.atomic_write(out.with_name(out.name + ".csv"), encoded(csv))
        write_evaluations(out, {"linear": found}, "linear")
    return found


def _framing(settings: EvaluationConfig) -> str:
    """The framing of the images: the flag's, else that of the classifier's run, else the published one of the set."""
    path = Path(settings.lin_cls_path)
    folder = path if path.is_dir() else path.parent
    recorded = runs.read_config(folder) if (folder / "config.yaml").is_file() else {}
    known = recorded.get("framing")
    if known is None:
        return published_framing(settings.framing, settings.dataset or recorded.get("dataset"))
    if settings.framing not in ("auto", known):
        logger.warning("framing %s where the classifier's run had %s; the flag is used", settings.framing, known)
        return published_framing(settings.framing, None)
    return published_framing(known, None)
