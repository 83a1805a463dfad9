"""Training of image models: what a run leaves, early stopping, draws that are kept, several processes, the script."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from mi_ml_gen.core import config, optimizers, runs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images import base, networks, objectives, training
from mi_ml_gen.mim.images.networks import FAMILIES, load_model
from mi_ml_gen.mim.images.objectives import OBJECTIVES
from mi_ml_gen.mim.images.sets import Images, ImageSets
from mi_ml_gen.mim.images.settings import FAMILY_NAMES, LOSS_ENDINGS, MimImageConfig
from mi_ml_gen.mim.images.training import Standing, train_mim_image

SETTINGS = MimImageConfig(
    dataset_name="tiny", model_name="vae", number_components=4, z1_size=3, z2_size=2, batch_size=4, test_batch_size=5,
    epochs=2, warmup=1, lr=1e-3, use_training_data_init=True, state_interval_s=0.0, device="cpu",
)  # fmt: skip


@contextlib.contextmanager
def small_layers(units: int = 8) -> Iterator[None]:
    """Affine layers of few units."""
    with mock.patch.object(base, "HIDDEN", units), mock.patch.object(networks, "HIDDEN", units):
        yield


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_layers(40):
        yield


def tiny_sets(kind: str = "binary", n: int = 16) -> ImageSets:
    """Images of 8 px, light on one side."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    sides = torch.zeros(2, 1, 8, 8)
    sides[0, :, :, :4], sides[1, :, :, 4:] = 1, 1
    x = (0.1 + 0.7 * sides[labels] + 0.1 * torch.rand(n, 1, 8, 8, generator=generator)).clamp(0, 1)
    train = Images(x, labels, are_probabilities=kind == "binary")
    test = Images((x > 0.5).float() if kind == "binary" else x, labels)
    return ImageSets("tiny", kind, train, test, test, 0.5, 0.1, ("left", "right"))


def test_the_settings_name_what_there_is() -> None:
    assert tuple(FAMILIES) == FAMILY_NAMES
    assert set(LOSS_ENDINGS.values()) == set(OBJECTIVES)


def test_defaults_are_the_published_ones() -> None:
    settings = MimImageConfig(model_name="convhvae_2level-mim")
    assert (settings.batch_size, settings.epochs, settings.lr, settings.warmup, settings.seed) == (
        100,
        2000,
        5e-4,
        100,
        14,
    )
    assert (settings.z1_size, settings.z2_size, settings.number_components, settings.prior) == (
        40,
        40,
        500,
        "vampprior",
    )
    assert (settings.early_stopping_epochs, settings.objective, settings.family) == (50, "amim", "convhvae_2level")
    assert [settings.beta(epoch) for epoch in (1, 50, 100, 300)] == [0.01, 0.5, 1.0, 1.0]
    assert dataclasses.replace(settings, warmup=0).beta(1) == 1.0


@pytest.mark.parametrize("name", ["convhvae", "vae-mims", "vae-"])
def test_a_wrong_name_of_a_model(name: str) -> None:
    if name == "vae-":
        assert MimImageConfig(model_name=name).objective == "vae"
        return
    with pytest.raises(UsageError, match=f"--model_name {name}"):
        MimImageConfig(model_name=name)


@pytest.mark.parametrize(
    "name", ["vae", "hvae_2level-smim", "convhvae_2level-cmim", "pixelhvae_2level-smim", "vae-infonce"]
)
def test_a_run_leaves_its_models_and_rows(name: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, model_name=name)
    record = train_mim_image(settings, tiny_sets(), tmp_path / "run", progress=False)
    rows = runs.read_metrics(record.path)
    assert [row["epoch"] for row in rows] == [1, 2] and record.epochs == 2
    assert record.best_loss == min(row["validation_loss"] for row in rows)
    assert (rows[1]["train_sampled"] > 0) == name.endswith("smim")
    assert (rows[1]["validation_contrast"] > 0) == name.endswith(("cmim", "infonce"))
    best = load_model(record.path / "best.safetensors")
    found = training.validate(settings, best, tiny_sets(), OBJECTIVES[settings.objective], torch.device("cpu"))
    assert float(found.loss) == pytest.approx(record.best_loss, rel=1e-6)
    assert load_model(record.path / "last.safetensors").spec == best.spec
    assert json.loads((record.path / "summary.json").read_text())["best_epoch"] == record.best_epoch
    assert (record.path / "images" / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("optimizer", ["adamnormgrad", "adamw"])
def test_the_loss_falls(optimizer: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=12, lr=3e-3, optimizer=optimizer, prior="standard")
    record = train_mim_image(settings, tiny_sets(), tmp_path / "run", progress=False)
    rows = runs.read_metrics(record.path)
    assert rows[-1]["validation_reconstruction"] < 0.8 * rows[0]["validation_reconstruction"]
    wanted = optimizers.AdamW if optimizer == "adamw" else optimizers.AdamNormGrad
    assert isinstance(training.make_optimizer(settings, load_model(record.path / "best.safetensors")), wanted)


def test_early_stopping() -> None:
    settings = dataclasses.replace(SETTINGS, warmup=3, early_stopping_epochs=1)

    def standing(*losses: float) -> Standing:
        return Standing.of([dict(epoch=i, validation_loss=loss) for i, loss in enumerate(losses, 1)], settings)

    assert standing() == Standing(0, float("inf"), 0, False)
    assert standing(5, 6) == Standing(1, 5, 0, False), "in the warm-up nothing counts"
    assert standing(5, 6, 7) == Standing(1, 5, 1, False)
    assert standing(5, 6, 7, 8) == Standing(1, 5, 2, True)
    assert standing(5, 6, 7, 4) == Standing(4, 4, 0, False)


def test_a_run_ends_early_and_stays_so(tmp_path: Path, monkeypatch) -> None:
    losses = iter([3.0, 4.0, 5.0, 6.0, 7.0])
    plain = training.validate
    monkeypatch.setattr(
        training, "validate", lambda *arguments: plain(*arguments)._replace(loss=torch.tensor(next(losses)))
    )
    settings = dataclasses.replace(SETTINGS, epochs=9, early_stopping_epochs=2)
    record = train_mim_image(settings, tiny_sets(), tmp_path / "run", progress=False)
    assert (record.epochs, record.best_epoch, record.best_loss) == (4, 1, 3.0)
    assert record.reason == "3 epochs were no better than epoch 1"
    again = train_mim_image(settings, tiny_sets(), tmp_path / "run", progress=False)
    assert again == record, "a finished run is not gone on with"


def test_draws_are_kept_for_as_many_steps_as_asked_for(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    plain = training.draw_from_model
    monkeypatch.setattr(training, "draw_from_model", lambda *a: (drawn.append(a[3]), plain(*a)))
    settings = dataclasses.replace(SETTINGS, model_name="vae-smim", sampling_every=3, warmup=2, epochs=3)
    train_mim_image(settings, tiny_sets(), tmp_path / "run", progress=False)
    assert drawn == [4, 7, 8, 11], "from the end of the warm-up, and anew in each epoch"
    assert MimImageConfig(model_name="pixelhvae_2level-smim").keeps_draws > 1
    assert MimImageConfig(model_name="vae-smim").keeps_draws == 1


@pytest.mark.parametrize("family", ["convhvae_2level", "pixelhvae_2level"])
def test_draws_of_the_sampling_half(family: str) -> None:
    settings = dataclasses.replace(SETTINGS, model_name=f"{family}-smim")
    cpu = torch.device("cpu")
    for as_published in (False, True):
        own = dataclasses.replace(settings, as_published=as_published, number_components=3 if as_published else 4)
        model = training.build(own, tiny_sets())
        kept = training.kept_draws(own, model, cpu)
        training.draw_from_model(own, model, kept, 0, cpu)
        sampled = training.kept_as_sampled(own, model, kept)
        if as_published:
            assert sampled.noise.picked.tolist() == [0, 1, 2], "the first pseudo-inputs, no more than there are"
            assert (sampled.x is None) == (family == "convhvae_2level")
        else:
            assert sampled.x.shape == (4, 1, 8, 8) and set(sampled.x.unique().tolist()) == {0.0, 1.0}
        half = objectives.sampling_half(model, sampled, 1.0, model.components(), as_published=as_published)
        assert half.isfinite().all()


def test_pseudo_inputs_start_from_data_or_noise() -> None:
    sets = tiny_sets()
    from_data = training.build(SETTINGS, sets).pseudo_inputs()
    assert (from_data - sets.train.x[:4]).abs().max() < 0.06
    other = dataclasses.replace(SETTINGS, use_training_data_init=False, pseudoinputs_mean=0.9, pseudoinputs_std=0.001)
    assert (training.build(other, sets).pseudo_inputs() - 0.9).abs().max() < 0.01


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 17}, "--batch_size 17: more than the 16"),
        ({"number_components": 17}, "--number_components 17: more than the 16"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        train_mim_image(dataclasses.replace(SETTINGS, **changes), tiny_sets(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_processes_share_a_batch(monkeypatch) -> None:
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    monkeypatch.setattr(runtime, "rank", lambda: 1)
    assert runtime.own_rows(6) == slice(3, 6)
    assert list(training.own_batches(11, 4)) == [(1, slice(4, 8))]
    assert list(training.own_batches(13, 4)) == [(1, slice(4, 8)), (3, slice(12, 13))]
    with pytest.raises(UsageError, match="multiple of the 2 processes"):
        training.check_sizes(dataclasses.replace(SETTINGS, batch_size=5), tiny_sets())


def test_folders_differ_where_runs_do() -> None:
    changes = [
        {}, {"model_name": "vae-amim"}, {"prior": "standard"}, {"seed": 3}, {"as_published": True}, {"tag": "x"},
        {"dataset_name": "some/file.py:make"}, {"warmup": 7}, {"z1_size": 9}, {"q_x_prior": "vampprior"},
    ]  # fmt: skip
    folders = {str(dataclasses.replace(SETTINGS, **change).folder) for change in changes}
    assert len(folders) == len(changes)
    assert all(
        "/file.py" not in folder.removeprefix("mim_image_runs") or "some_file.py_make" in folder for folder in folders
    )


def test_settings_come_back_from_a_run_folder(tmp_path: Path) -> None:
    record = train_mim_image(
        dataclasses.replace(SETTINGS, epochs=1), tiny_sets("gray"), tmp_path / "run", progress=False
    )
    assert config.load(MimImageConfig, record.path / "config.yaml") == dataclasses.replace(SETTINGS, epochs=1)
