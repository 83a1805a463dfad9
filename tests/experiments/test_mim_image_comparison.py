"""The comparison of MIM with contrastive learning: all methods train on one encoder, resume exactly, and are tabled."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.core.runs import read_json
from mi_ml_gen.experiments import mim_image_comparison as comparison
from mi_ml_gen.experiments import mim_image_report as report
from mi_ml_gen.experiments.mim_image_learners import Draws, augmentation, make_learner
from mi_ml_gen.experiments.mim_image_settings import FAMILIES, GENERATIVE, METHODS, Cell, MimComparisonConfig
from mi_ml_gen.mim.images.networks import FAMILIES as NETWORKS
from mi_ml_gen.mim.images.objectives import OBJECTIVES
from mi_ml_gen.report.tables import Estimate
from tests.conftest import StopAt
from tests.mim.images.test_evaluation import striped_sets


def settings_in(folder, **changes):
    sizes = dict(
        model_name="vae", z1_size=4, epochs=2, batch_size=20, n_likelihood=5, S=5, seeds=1, device="cpu", warmup=0.5,
        state_interval_s=0.0,
    )  # fmt: skip
    return MimComparisonConfig(save_folder=folder, **(sizes | changes))


@pytest.fixture
def sets(monkeypatch):
    found = striped_sets(60, 40)
    monkeypatch.setattr(comparison, "_load", lambda settings: found)
    return found


def test_names_are_those_of_the_files_below():
    assert set(GENERATIVE) == set(OBJECTIVES) and set(FAMILIES) <= set(NETWORKS)


def test_methods_and_seeds_become_one_table_and_one_page(tmp_path, sets):
    methods = ["vae", "cmim", "infonce_mim", "simclr", "simsiam"]
    settings = settings_in(tmp_path, methods=methods)
    assert [one.failure for one in comparison.run_comparison(settings, progress=False)] == [None] * len(methods)
    more = dataclasses.replace(settings, seeds=2, methods=["cmim"])
    assert [one.name for one in comparison.run_comparison(more, progress=False)] == ["cmim_seed1"]  # only what is new
    assert list(comparison.run_comparison(more, progress=False)) == []

    both = dataclasses.replace(more, methods=methods)
    written = report.write_report(both, "python scripts/compare_mim_image.py")
    rows = {row["method"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(rows) == [METHODS[name] for name in methods]
    assert rows["cMIM"]["seeds"] == 2 and rows["cMIM"]["linear (%) spread"] is not None
    assert rows["VAE"]["linear (%)"] > 80 and rows["VAE"]["bits/dim"] > 0  # stripes are easy
    assert rows["SimCLR"]["bits/dim"] is None and rows["SimCLR"]["linear, decoder (%)"] is None
    of = [row["embedding"] for row in json.loads((tmp_path / "embeddings.json").read_text()) if row["method"] == "cMIM"]
    assert of == ["encoder mean", "encoder, hidden layers", "decoder states"]
    page = (tmp_path / "index.html").read_text()
    assert written[-1] == tmp_path / "index.html" and "Not finished" in page and "VAE, seed 1" in page
    assert "20 of the 20 estimates of log p(x) rest on fewer than 10 effective draws" in page  # 5 draws of each
    assert "samples of cMIM" in page and (tmp_path / "cells.csv").read_text().count("\n") == 7

    with pytest.raises(UsageError, match="made with temperature"):
        list(comparison.run_comparison(dataclasses.replace(settings, temperature=0.5)))


def test_the_backbone_starts_the_same_and_a_method_sees_the_same_images(tmp_path, sets):
    settings = settings_in(tmp_path, model_name="hvae_2level", z2_size=3)
    x = sets.test.pixels()
    with torch.no_grad():
        found = {name: make_learner(name, settings, sets, 3).embeddings(x)["encoder mean"] for name in METHODS}
    assert all(torch.equal(values, found["vae"]) for values in found.values())
    draws = [Draws(sets, augmentation(sets), torch.arange(5), seed=1, step=2) for _ in range(2)]
    assert torch.equal(draws[0].images(), draws[1].images())
    one, other = draws[0].views()
    assert set(one.unique().tolist()) <= {0.0, 1.0} and not torch.equal(one, other) and one.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("method", ["byol", "smim"])
def test_an_interrupted_cell_goes_on_exactly(tmp_path, sets, monkeypatch, method):
    monkeypatch.setattr(comparison, "measure", lambda *arguments: {})
    monkeypatch.setattr(comparison, "save_pictures", lambda *arguments: None)
    settings, cell = settings_in(tmp_path), Cell(method, 0)
    comparison.train_cell(settings, cell, sets, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        StopAt(patch, 4)
        with pytest.raises(Preempted):
            comparison.train_cell(settings, cell, sets, tmp_path / "parts", progress=False)
    comparison.train_cell(settings, cell, sets, tmp_path / "parts", progress=False)
    states = (tmp_path / name / "checkpoints" / "state_000000000006.pt" for name in ("whole", "parts"))
    whole, parts = (torch.load(state)["state"]["learner"] for state in states)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_cell_that_fails_leaves_the_others_alone(tmp_path, sets, monkeypatch):
    real = comparison.make_learner

    def failing(method, *arguments):
        if method == "amim":
            raise UsageError("this one fails")
        return real(method, *arguments)

    monkeypatch.setattr(comparison, "make_learner", failing)
    settings = settings_in(tmp_path, methods=["vae", "amim", "simclr"])
    found = {one.name: one.failure and one.failure.error for one in comparison.run_comparison(settings, progress=False)}
    assert found == {"vae_seed0": None, "amim_seed0": "this one fails", "simclr_seed0": None}
    assert len(report.read_cells(settings)) == 2
    monkeypatch.setattr(comparison, "make_learner", real)
    assert [one.name for one in comparison.run_comparison(settings, progress=False)] == ["amim_seed0"]
    assert read_json(tmp_path / "cells" / "amim_seed0" / "results.json")["images_seen"] == 120


def test_differences_are_paired_by_seed():
    def one(method, seed, value):
        results = {"embeddings": {"encoder mean": {"ridge": {"value": value}}}}
        return report.Measured(Cell(method, seed), None, results)

    cells = [one("amim_x", seed, seed / 100) for seed in range(3)]
    cells += [one("cmim", seed, (2 * seed + 1) / 100) for seed in range(3)] + [one("vae", 7, 0.5)]
    first, *others = report.answers(cells)
    assert "+2.00 (95% interval -0.48 to +4.48, 3 seeds). Not decided" in first
    assert others == []
    alone = report.answers([one("amim_x", 0, 0.5), one("cmim", 0, 0.25)])
    assert "-25.00 (one seed: no interval)." in alone[0]
    assert report.over_seeds([1.0, None, 3.0]) == Estimate(2.0, 1.0) and report.over_seeds([5.0]) == 5.0


def test_data_that_are_not_there_are_said_once(tmp_path):
    settings = settings_in(tmp_path, workers=3, data_path=str(tmp_path / "none"), dataset_name="omniglot")
    with pytest.raises(UsageError, match="omniglot"):
        list(comparison.run_comparison(settings))
    assert not any(tmp_path.iterdir())


def test_data_that_do_not_fit_are_said_once_and_leave_nothing(tmp_path, sets, monkeypatch):
    with pytest.raises(UsageError, match="--batch_size 61: there are only 60 training images"):
        list(comparison.run_comparison(settings_in(tmp_path, batch_size=61)))
    parts = (dataclasses.replace(part, x=part.x[..., :6]) for part in (sets.train, sets.validation, sets.test))
    narrow = dataclasses.replace(sets, **dict(zip(("train", "validation", "test"), parts, strict=True)))
    monkeypatch.setattr(comparison, "_load", lambda settings: narrow)
    with pytest.raises(UsageError, match="images of 8 x 6 px; the views need square ones"):
        list(comparison.run_comparison(settings_in(tmp_path, methods=["vae", "infonce_mim"])))
    assert not any(tmp_path.iterdir())
    [found] = comparison.run_comparison(settings_in(tmp_path, methods=["cmim"], epochs=1), progress=False)
    assert found.failure is None, "without views any shape will do"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(methods=["cmin"]), "--methods cmin: must be one of .* nearest known method: cmim"),
        (dict(model_name="pixelhvae_2level"), "autoregressive decoder is not compared"),
        (dict(dataset_name="mnits"), "--dataset_name mnits: must be one of"),
    ],
)
def test_wrong_settings_are_refused_at_once(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        settings_in(tmp_path, **changes)


def test_nothing_finished_is_said(tmp_path):
    with pytest.raises(UsageError, match="no cell is finished"):
        report.write_report(settings_in(tmp_path))
