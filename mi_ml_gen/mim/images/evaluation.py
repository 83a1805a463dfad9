"""What a trained image model is measured by (Livne, Swersky and Fleet, arXiv 1910.03175, section 5): bound, likelihood,
nearest neighbours and clusters in latent space, mutual information, pictures.

    results = evaluate_run("mim_image_runs/.../seed14")      # evaluation.json and images/*.png in the run's folder
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.core import config, runs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import atomic_write, write_json
from mi_ml_gen.mim.evaluate import NEIGHBOURS, published_ksg
from mi_ml_gen.mim.images import pictures
from mi_ml_gen.mim.images.base import ImageModel
from mi_ml_gen.mim.images.clustering import cluster_agreement, neighbours
from mi_ml_gen.mim.images.evaluation_settings import ImageEvaluationConfig
from mi_ml_gen.mim.images.information import information_bounds
from mi_ml_gen.mim.images.likelihood import FEW_DRAWS, LogLikelihood, log_likelihood
from mi_ml_gen.mim.images.networks import load_model
from mi_ml_gen.mim.images.sets import Images, ImageSets
from mi_ml_gen.mim.images.settings import MimImageConfig
from mi_ml_gen.mim.images.training import BEST, load_sets
from mi_ml_gen.report.figures import figure_png
from mi_ml_gen.report.images import save_png
from mi_ml_gen.report.tables import Estimate, Table

N_PUBLISHED_KSG = 3000
ENCODED_AT_ONCE = 500
"""Images whose embeddings are computed at a time."""
RESULTS = "evaluation.json"


def check_run(folder: Path) -> None:
    """Raise UsageError where a folder is no run of `train_mim_image`, or has no model yet."""
    if not (folder / BEST).is_file():
        raise UsageError(f"{folder}: no run of train_mim_image.py, or none that has ended an epoch ({BEST})")


def evaluate_run(
    folder: str | Path,
    settings: ImageEvaluationConfig | None = None,
    sets: ImageSets | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure the best model of a run of `train_mim_image`, on the test images of its data set; what is measured
    already of the same model with the same settings is read back.

    sets: where they are loaded already. progress: show a bar for the likelihood. Raises UsageError where the folder is
    no such run or has no model yet, and what `load` and `load_model` raise.
    """
    folder = Path(folder)
    settings = ImageEvaluationConfig() if settings is None else settings
    check_run(folder)
    how = {name: value for name, value in config.to_dict(settings).items() if name not in ("device", "again")}
    path = folder / RESULTS
    of_model = {"settings": how, "model_sha256": hashlib.sha256((folder / BEST).read_bytes()).hexdigest()}
    if path.exists() and not settings.again:
        found = runs.read_json(path)
        if all(found.get(name) == value for name, value in of_model.items()):  # training may have gone on since
            return found
    known = {field.name for field in dataclasses.fields(MimImageConfig)}
    about = {name: value for name, value in runs.read_config(folder).items() if name in known}
    trained = config.load(MimImageConfig, None, about)
    if sets is None:
        sets = load_sets(dataclasses.replace(trained, data_root=settings.data_path or trained.data_root))
    device = runtime.resolve_device(settings.device)
    model = load_model(folder / BEST).to(device)
    results = evaluate_model(model, sets.to(device), settings, folder / "images", progress)
    results |= of_model | {"model_name": trained.model_name, "dataset": trained.dataset_name, "run": folder.name}
    write_json(path, results)
    return results


@torch.no_grad()
def evaluate_model(
    model: ImageModel,
    sets: ImageSets,
    settings: ImageEvaluationConfig,
    images: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """All measurements of a model as plain values; pictures go into the folder `images`. model, sets: on one device.
    progress: show a bar for the likelihood, which takes most of the time.

    An estimate is a mapping of value, low and high (an interval of 95%), or of value and error (a standard error).
    """
    model.eval()
    x = sets.test.pixels(slice(settings.n_likelihood))
    likelihood = log_likelihood(model, x, settings.S, settings.seed, progress=progress)
    results: dict[str, Any] = {"likelihood": likelihood_values(likelihood)}
    train, test = (part.rows(slice(settings.n_embedded)) for part in (sets.train, sets.test))
    codes = embed(model, sets, test, settings.seed)
    if sets.n_classes:
        seen = embed(model, sets, train, settings.seed)
        results |= readouts(seen, train, codes, test)
        if settings.as_published:
            drawn = (embed(model, sets, part, settings.seed, as_drawn=True) for part in (train, test))
            own, other = drawn
            results["as_published"] = readouts(own, train, other, test)
    pixels = test.pixels()
    found = information_bounds(model, pixels, settings.seed)
    names = ("at_most", "lower", "upper", "rate", "top_lower")
    results["information"] = {name: _estimate(getattr(found, name)) for name in names}
    results["information"] |= {"ceiling": found.ceiling, "top_ceiling": found.top_ceiling}
    if settings.as_published:
        n = min(len(pixels), N_PUBLISHED_KSG)
        z = embed(model, sets, test.rows(slice(n)), settings.seed, as_drawn=True)
        ksg = published_ksg(pixels[:n].flatten(1).cpu(), z)
        results.setdefault("as_published", {})["MI"] = ksg.nats
    if images is not None:
        save_pictures(model, sets, codes, test, images, settings.seed)
    return results


def likelihood_values(found: LogLikelihood) -> dict[str, Any]:
    values = {name: _estimate(getattr(found, name)) for name in ("mean", "bound", "kl", "bits_per_dimension")}
    return {
        **values,
        "error_of_draws": found.draws_error,
        "n_images": len(found.nats),
        "n_draws": found.n_draws,
        "n_uncertain": found.n_uncertain,
    }


def readouts(train: Tensor, train_images: Images, test: Tensor, test_images: Images) -> dict[str, Any]:
    """Nearest neighbours and clusters of embeddings, which lie on the CPU."""
    assert train_images.labels is not None and test_images.labels is not None
    own, other = train_images.labels.cpu(), test_images.labels.cpu()
    known = tuple(k for k in NEIGHBOURS if k <= len(train))
    found = neighbours(train, own, test, other, known)
    results: dict[str, Any] = {
        f"knn{k}": {"value": a.value, "low": a.interval.low, "high": a.interval.high} for k, a in found.items()
    }
    if len(other.unique()) > 1:
        nmi = cluster_agreement(test, other)
        results["nmi"] = {"value": nmi.nmi, "low": nmi.low, "high": nmi.high}
    return results


@torch.no_grad()
def embed(model: ImageModel, sets: ImageSets, images: Images, seed: int, as_drawn: bool = False) -> Tensor:
    """Embeddings (n, d), float32 on the CPU: the encoder's means, or draws of it; binary training images are drawn
    once."""
    parts = []
    for step, rows in enumerate(torch.arange(len(images), device=images.x.device).split(ENCODED_AT_ONCE)):
        x = sets.draw(images, rows, runtime.stream(seed, "embedded images", step, 0, rows.device))
        if as_drawn:
            noise = model.noise(len(x), runtime.stream(seed, "embedding noise", step, 0, rows.device))
            parts.append(model.q_z(model.features(x), noise).z.flat.cpu())
        else:
            parts.append(model.encoder_mean(x).cpu())
    return torch.cat(parts)


def save_pictures(model: ImageModel, sets: ImageSets, codes: Tensor, test: Images, folder: Path, seed: int) -> None:
    """samples.png, reconstructions.png, latents.png, and pseudo_inputs.png with the VampPrior."""
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / "samples.png", pictures.samples_picture(model, seed))
    shown = test.pixels(slice(3 * pictures.N_COLUMNS))
    if len(shown) >= pictures.N_COLUMNS:
        save_png(folder / "reconstructions.png", pictures.reconstructions_picture(model, shown, seed))
    if (picture := pictures.pseudo_inputs_picture(model)) is not None:
        save_png(folder / "pseudo_inputs.png", picture)
    figure = pictures.embedding_figure(codes, test.labels, sets.classes, "Latents of test images")
    atomic_write(folder / "latents.png", figure_png(figure))


def to_table(results: dict[str, Any]) -> Table:
    """A row for each quantity, with its interval or error."""
    likelihood = results["likelihood"]
    rows: list[list[Any]] = []
    names = {
        "mean": "log p(x), nats", "bound": "lower bound, nats", "kl": "KL of q(z|x) from p(z), nats",
        "bits_per_dimension": "bits per dimension",
    }  # fmt: skip
    for key, name in names.items():
        found = likelihood[key]
        rows.append([name, found["value"], f"± {found['error']:.3g} (standard error over images)"])
    few, n_images, n_draws = (likelihood[name] for name in ("n_uncertain", "n_images", "n_draws"))
    told = f"{few:,} of {n_images:,} images have fewer than {FEW_DRAWS:.0f} effective draws of {n_draws:,}"
    told += ": log p(x) is too low" if few else ""
    rows.append(["error of log p(x) from its draws", likelihood["error_of_draws"], told])
    for key, name in ((f"knn{k}", f"{k} nearest neighbours") for k in NEIGHBOURS):
        if key in results:
            rows.append([f"accuracy of {name}", results[key]["value"], _interval(results[key])])
    if "nmi" in results:
        rows.append(["NMI of clusters and classes", results["nmi"]["value"], _interval(results["nmi"])])
    known = results["information"]
    for key, name, most in (
        ("at_most", "I(x; z), at most, nats", None),
        ("lower", "I(x; z), at least, nats", known["ceiling"]),
        ("top_lower", "I(x; z2), at least, nats", known["top_ceiling"]),
    ):
        told = f"± {known[key]['error']:.3g} (standard error over images)"
        rows.append([name, known[key]["value"], told + ("" if most is None else f"; never more than {most:.2f}")])
    if "MI" in results.get("as_published", {}):
        rows.append(["MI by KSG, as published, nats", results["as_published"]["MI"], "says nothing of binary images"])
    return Table(["quantity", "value", "interval"], rows, formats={"value": ".4g"})


def _interval(found: dict[str, Any]) -> str:
    return f"{found['low']:.4g} to {found['high']:.4g} (95%)"


def _estimate(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "error": found.spread}


__all__ = ["evaluate_model", "evaluate_run", "to_table"]
