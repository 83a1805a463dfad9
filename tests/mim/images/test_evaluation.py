"""The evaluation of a trained run: numbers, pictures, and that nothing is measured twice."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.runs import read_json
from mi_ml_gen.mim.images import evaluation, pictures
from mi_ml_gen.mim.images.evaluation import evaluate_run, to_table
from mi_ml_gen.mim.images.evaluation_settings import ImageEvaluationConfig
from mi_ml_gen.mim.images.sets import Images, ImageSets
from mi_ml_gen.mim.images.settings import MimImageConfig
from mi_ml_gen.mim.images.training import train_mim_image


def striped_sets(n=200, n_test=80, kind="binary"):
    """Images of horizontal or vertical stripes, by class, as probabilities."""
    rng = torch.Generator().manual_seed(0)

    def part(n):
        labels = torch.randint(2, (n,), generator=rng)
        stripes = (torch.arange(8) % 4 < 2).float().expand(8, 8)
        x = torch.where(labels[:, None, None] == 0, stripes, stripes.T)[:, None]
        return (0.1 + 0.8 * x) * (0.8 + 0.2 * torch.rand(n, 1, 8, 8, generator=rng)), labels

    (x, y), (a, b), (c, d) = part(n), part(n_test), part(n_test)
    if kind == "gray":
        return ImageSets("stripes", kind, Images(x, y), Images(a, b), Images(c, d), 0.4, 0.1, ("across", "down"))
    a, c = (torch.bernoulli(part, generator=rng) for part in (a, c))
    train = Images(x, y, are_probabilities=True)
    return ImageSets("stripes", "binary", train, Images(a, b), Images(c, d), 0.4, 0.1, ("across", "down"))


@pytest.fixture(autouse=True)
def without_scikit_learn(monkeypatch):
    """Whose import and t-SNE take most of these tests' time."""
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)


def trained(path, sets, model_name="hvae_2level-smim", **changes):
    settings = MimImageConfig(
        model_name=model_name, number_components=10, epochs=4, warmup=2, batch_size=20, z1_size=3, z2_size=3,
        device="cpu", lr=2e-3, save_folder=str(path), **changes,
    )  # fmt: skip
    return train_mim_image(settings, sets, progress=False).path


def test_a_run_is_measured_once_with_pictures(tmp_path, monkeypatch):
    sets = striped_sets()
    run = trained(tmp_path, sets)
    settings = ImageEvaluationConfig(S=30, n_likelihood=20, device="cpu", as_published=True)
    results = evaluate_run(run, settings, sets)
    assert results == read_json(run / "evaluation.json")
    likelihood = results["likelihood"]
    assert likelihood["bound"]["value"] < likelihood["mean"]["value"] < 0
    assert likelihood["bits_per_dimension"]["value"] == pytest.approx(-likelihood["mean"]["value"] / 64 / np.log(2))
    assert results["knn5"]["value"] > 0.9 and results["nmi"]["low"] <= results["nmi"]["value"]
    limits = results["information"]
    assert limits["lower"]["value"] < limits["at_most"]["value"] + limits["at_most"]["error"]
    assert limits["top_ceiling"] == pytest.approx(np.log(80))
    assert np.isfinite(results["as_published"]["MI"]) and results["as_published"]["knn5"]["value"] > 0.5
    for name in ("samples", "reconstructions", "pseudo_inputs", "latents"):
        pixels = np.asarray(Image.open(run / "images" / f"{name}.png"))
        assert pixels.std() > 5, name
    text = to_table(results).to_terminal()
    assert "log p(x), nats" in text and "never more than 4.38" in text

    monkeypatch.setattr(evaluation, "log_likelihood", None)  # a second measurement would fail
    assert evaluate_run(run, settings, sets) == results
    with pytest.raises(TypeError):
        evaluate_run(run, ImageEvaluationConfig(S=31, n_likelihood=20, device="cpu"), sets)
    with pytest.raises(UsageError, match="no run of train_mim_image"):
        evaluate_run(tmp_path)


def test_a_model_that_was_trained_further_is_measured_again(tmp_path):
    sets = striped_sets(60, 60)
    run = trained(tmp_path, sets, "vae", prior="standard")
    settings = ImageEvaluationConfig(S=5, n_likelihood=10, device="cpu")
    first = evaluate_run(run, settings, sets)
    few = first["likelihood"]["n_uncertain"]
    assert f"{few} of 10 images have fewer than 10 effective draws of 5: log p(x) is too low" in to_table(
        first
    ).to_terminal().replace("\n", " ")
    other = trained(tmp_path / "other", sets, "vae", prior="standard", seed=15)
    for name in ("best.safetensors", "best.safetensors.sha256"):
        (run / name).write_bytes((other / name).read_bytes())
    second = evaluate_run(run, settings, sets)
    assert second["likelihood"]["mean"] != first["likelihood"]["mean"]
    assert evaluate_run(run, settings, sets) == second


def test_a_set_without_labels_and_an_autoregressive_decoder(tmp_path, monkeypatch):
    sets = striped_sets(60, 45, "gray")
    parts = (Images(part.x) for part in (sets.train, sets.validation, sets.test))
    sets = ImageSets("plain", "gray", *parts, pseudo_mean=0.4, pseudo_std=0.1)
    monkeypatch.setattr(pictures, "N_SAMPLES", 4)
    run = trained(tmp_path, sets, "pixelhvae_2level", prior="standard")
    results = evaluate_run(run, ImageEvaluationConfig(S=4, n_likelihood=3, device="cpu"), sets)
    assert "nmi" not in results and "knn1" not in results and "as_published" not in results
    assert results["likelihood"]["n_images"] == 3
    assert not (run / "images" / "pseudo_inputs.png").exists()
    assert "classes" not in to_table(results).to_terminal()


def test_latents_in_the_plane_without_scikit_learn():
    codes = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5, 0.1, 0.1, 0.1])
    points, how = pictures.plane(codes)
    assert how == "first two principal components"
    assert abs(np.corrcoef(points[:, 0], codes[:, 0])[0, 1]) > 0.99
    assert pictures.embedding_figure(codes, None, ()).axes
