"""The training of encoders: what a run leaves, that stopping changes nothing, and what it notices."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mi_ml_gen.core import runs, runtime
from mi_ml_gen.core.errors import CollapseError, NonFiniteError, Preempted, UsageError
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.encoders import training
from mi_ml_gen.encoders.base import Outputs
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.encoders.monitor import KnnMonitor, effective_rank, feature_std, health
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.encoders.training import build_encoder, train_encoder, view_sampler
from mi_ml_gen.probe.features import Extraction
from mi_ml_gen.report.images import pair_grid
from tests.conftest import StopAt, assert_same_weights, make_small_generator
from tests.distributed import run_processes

SETTINGS = EncoderConfig(
    encoder="simclr", samples_per_epoch=40, max_epochs=3, cumulative_bs=8, depth=18, width=4, dim=8, pred=4,
    Tz="0_1=0,0.3,2", Tx="simclr", base_lr=1.0, warmup=True, device="cpu", state_interval_s=0.0, save_freq=2, seed=3,
)  # fmt: skip
METHODS = ("simclr", "simsiam", "byol")
STEPS = 15


def train(path, generator=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return train_encoder(settings, generator or make_small_generator(), path=path, progress=False)


def rows_of(path):
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in runs.read_metrics(path)]


def stripes(n: int = 60, size: int = 8) -> HeldImages:
    """Noisy images of two classes: bright above, or bright on the left."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (n, 3, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    images[labels == 0, :, : size // 2] += 180
    images[labels == 1, :, :, : size // 2] += 180
    return HeldImages("stripes", images, labels, ("above", "left"))


@pytest.fixture
def no_report(monkeypatch):
    """Curves and page left out, which take most of such a small run's time."""
    monkeypatch.setattr(training, "report_run", lambda *arguments: None)


@pytest.fixture(scope="module", params=METHODS)
def whole_run(request, tmp_path_factory):
    """An uninterrupted run of three epochs of five steps."""
    return request.param, train(tmp_path_factory.mktemp("encoder") / "whole", encoder=request.param).path


# --- what a run is


def test_a_run_folder_holds_what_a_run_is(whole_run):
    method, path = whole_run
    assert runs.read_config(path)["encoder"] == method
    rows = runs.read_metrics(path)
    assert [row["step"] for row in rows] == [5, 10, 15] and [row["epoch"] for row in rows] == [1, 2, 3]
    names = ("loss", "lr", "feature_std", "effective_rank", "images_per_s")
    assert all(math.isfinite(row[name]) for row in rows for name in names)
    assert rows[-1]["lr"] < rows[0]["lr"] == max(row["lr"] for row in rows)
    for name in ("encoder.safetensors", "summary.json", "images/curves.png", "index.html"):
        assert (path / name).stat().st_size > 0
    assert sorted(p.name for p in (path / "encoders").glob("*.safetensors")) == [
        "e_0002.safetensors",
        "e_0003.safetensors",
    ]
    loaded = load_encoder(path)
    assert loaded.method == method and loaded.about["samples"] == 120 and loaded.about["crop_size"] == 7
    features = loaded.backbone(torch.zeros(2, 3, 7, 7))
    assert features.shape == (2, 32) and not features.requires_grad
    last, saved = (load_tensors(path / name).tensors for name in ("encoder.safetensors", "encoders/e_0003.safetensors"))
    assert all(torch.equal(last[key], saved[key]) for key in last)


def test_the_grid_shows_the_views_that_were_used(whole_run):
    _, path = whole_run
    sampler = view_sampler(SETTINGS, make_small_generator())
    views = sampler(0)
    shown = [half * sampler.augment.std + sampler.augment.mean for half in views]
    wanted = pair_grid(*shown, n_columns=8, labels=("view 1", "view 2"))
    np.testing.assert_array_equal(np.asarray(Image.open(path / "images" / "views_0000.png")), wanted)
    assert sorted(p.name for p in (path / "images").glob("views_*")) == ["views_0000.png", "views_0002.png"]


# --- stopping and resuming


def stopped(path, monkeypatch, n_steps: int, **changes):
    with monkeypatch.context() as patch:
        StopAt(patch, n_steps)
        with pytest.raises(Preempted, match="the same command resumes"):
            train(path, **changes)


def test_resumed_equals_uninterrupted(no_report, whole_run, tmp_path, monkeypatch):
    """Each method, stopped at the first step, at an epoch's end and within one; tests/faults has the other faults."""
    method, whole = whole_run
    for n_steps in (1, 4, 2):
        stopped(tmp_path / "run", monkeypatch, n_steps, encoder=method)
    train(tmp_path / "run", encoder=method)
    assert_same_run(tmp_path / "run", whole)


def assert_same_run(one: Path, other: Path) -> None:
    assert rows_of(one) == rows_of(other)
    assert_same_weights(one, other, ["encoder.safetensors", "encoders/e_0002.safetensors"], f"state_{STEPS:012d}.pt")


def test_the_target_is_not_the_online_network(no_report, tmp_path, monkeypatch):
    """What the published code does whenever it resumes would be noticed."""
    train(tmp_path / "whole", encoder="byol")
    stopped(tmp_path / "run", monkeypatch, 7, encoder="byol")
    latest = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[-1]
    saved = torch.load(latest, weights_only=True)
    for key in [key for key in saved["state"]["encoder"] if key.startswith("target.")]:
        saved["state"]["encoder"][key] = saved["state"]["encoder"][key.replace("target.", "online.")]
    with runs.RunFolder.open(tmp_path / "run", runs.read_config(tmp_path / "run")) as run:
        run.save_state(saved["step"], saved["state"])
    train(tmp_path / "run", encoder="byol")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_stored_images_resume_within_an_epoch(no_report, tmp_path, monkeypatch):
    changes = dict(samples_per_epoch=None, Tz=None, max_epochs=2, encoder="simsiam")
    settings = dataclasses.replace(SETTINGS, **changes)
    train_encoder(settings, source=stripes(), path=tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        StopAt(patch, 9)  # 60 // 8 = 7 steps an epoch
        with pytest.raises(Preempted):
            train_encoder(settings, source=stripes(), path=tmp_path / "run", progress=False)
    train_encoder(settings, source=stripes(), path=tmp_path / "run", progress=False)
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    mine, theirs = (load_tensors(tmp_path / n / "encoder.safetensors").tensors for n in ("run", "whole"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert all("knn_accuracy" in row for row in rows_of(tmp_path / "run")[-1:])  # its own labels


@pytest.fixture
def one_thread():
    """Sums in one order, whoever makes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("changes", [dict(), dict(precision="bf16", Tx="torchvision")])
def test_views_made_ahead_give_the_same_encoder(no_report, one_thread, tmp_path, monkeypatch, changes):
    train(tmp_path / "whole", **changes)
    stopped(tmp_path / "run", monkeypatch, 7, views_ahead=True, **changes)
    train(tmp_path / "run", views_ahead=True, **changes)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_stored_images_read_ahead_give_the_same_encoder(no_report, one_thread, tmp_path):
    settings = dataclasses.replace(SETTINGS, samples_per_epoch=None, Tz=None, max_epochs=2)
    for name in ("in turn", "ahead"):
        own = dataclasses.replace(settings, views_ahead=name == "ahead")
        train_encoder(own, source=stripes(), path=tmp_path / name, progress=False)
    assert rows_of(tmp_path / "ahead") == rows_of(tmp_path / "in turn")
    assert_same_weights(tmp_path / "ahead", tmp_path / "in turn", ["encoder.safetensors"], f"state_{14:012d}.pt")


def test_a_finished_run_is_left_as_it_is(whole_run):
    method, path = whole_run
    before = {p: p.read_bytes() for p in path.rglob("*.safetensors")}
    assert train(path, encoder=method).samples == 120
    assert {p: p.read_bytes() for p in path.rglob("*.safetensors")} == before


# --- what a step is


def test_the_plain_way_takes_the_same_steps(no_report, tmp_path):
    """The slow twin of BYOL's training: written out, with SGD by hand."""
    path = train(tmp_path / "run", encoder="byol", max_epochs=1, samples_per_epoch=24, warmup=False, decay=False).path
    settings = dataclasses.replace(SETTINGS, encoder="byol")
    sampler = view_sampler(settings, make_small_generator())
    torch.manual_seed(settings.seed)
    encoder = build_encoder(settings, 7).to(memory_format=torch.channels_last).train()
    trained = [*encoder.online.parameters(), *encoder.predictor.parameters()]
    velocity = [torch.zeros_like(parameter) for parameter in trained]
    for step in range(3):
        first, second = sampler(step)
        p1, p2 = encoder.predictor(encoder.online(first)), encoder.predictor(encoder.online(second))
        with torch.no_grad():
            t1, t2 = encoder.target(first), encoder.target(second)
        one, other = (
            functional.normalize(p1) - functional.normalize(t2),
            functional.normalize(p2) - functional.normalize(t1),
        )
        loss = (one.square().sum(1) + other.square().sum(1)).mean()
        with torch.no_grad():
            for i, (parameter, slope) in enumerate(zip(trained, torch.autograd.grad(loss, trained), strict=True)):
                slope = slope + 1e-4 * parameter
                velocity[i] = slope if step == 0 else 0.9 * velocity[i] + slope
                parameter -= 1.0 * 8 / 256 * velocity[i]
            for target, online in zip(encoder.target.parameters(), encoder.online.parameters(), strict=True):
                target.copy_(0.996 * target + 0.004 * online)
    found = load_tensors(path / "encoder.safetensors").tensors
    for key, wanted in encoder.state_dict().items():
        torch.testing.assert_close(found[key].float(), wanted.float(), rtol=0, atol=5e-3, msg=key)
    start = build_start(settings)["online.encoder.conv1.weight"]
    assert (found["online.encoder.conv1.weight"] - start).abs().mean() > 0.02  # which is much more than that


def build_start(settings) -> dict:
    torch.manual_seed(settings.seed)
    return build_encoder(settings, 7).state_dict()


def test_training_separates_what_differs(no_report, tmp_path):
    """SimCLR on two kinds of stripes: kNN finds them, the loss falls."""
    settings = dataclasses.replace(
        SETTINGS, samples_per_epoch=None, Tz=None, Tx="no_crop", cumulative_bs=16, max_epochs=6, knn_freq=6
    )
    result = train_encoder(settings, source=stripes(96), path=tmp_path / "run", progress=False)
    rows = runs.read_metrics(result.path)
    assert result.knn_accuracy == rows[-1]["knn_accuracy"] > 0.9
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert json.loads((result.path / "summary.json").read_text())["knn_accuracy_by_epoch"] == {"6": result.knn_accuracy}


@pytest.mark.parametrize("changes", [dict(precision="bf16"), dict(micro_batches=2), dict(Tx=None, decode_at_once=3)])
def test_other_ways_of_working_train_too(no_report, tmp_path, changes):
    rows = runs.read_metrics(train(tmp_path / "run", max_epochs=1, **changes).path)
    assert len(rows) == 1 and math.isfinite(rows[0]["loss"])


# --- what is noticed


def test_measures_of_spread_and_rank():
    rng = torch.Generator().manual_seed(0)
    even = torch.randn(2000, 16, generator=rng)
    assert feature_std(even) == pytest.approx(1, abs=0.02) and effective_rank(even) == pytest.approx(16, rel=0.02)
    plane = torch.zeros(2000, 16)
    plane[:, :2] = even[:, :2]
    assert effective_rank(plane) == pytest.approx(2, rel=0.02)
    point = torch.ones(2000, 16) + 1e-3 * even
    assert feature_std(point) < 0.01 and effective_rank(point) < 1.1
    wide = torch.randn(8, 50, generator=rng)  # fewer samples than dimensions
    singular = torch.linalg.svdvals(functional.normalize(wide, dim=1).double())
    share = singular / singular.sum()
    assert effective_rank(wide) == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-5)
    assert health(torch.zeros(4, 3)).isfinite().all()


def _pull_together(self, first, second):
    """SimSiam without what keeps it from collapsing: cosines of the features themselves."""
    one, other = self.encoder(first), self.encoder(second)
    return Outputs(one.detach(), (one, other, one, other))


def _follow_both(parts):
    return -functional.cosine_similarity(parts[0].mean(0), parts[1], dim=1).mean()


def test_a_collapse_is_announced_and_may_stop_the_run(no_report, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(SimSiam, "forward", _pull_together)
    monkeypatch.setattr(SimSiam, "loss", lambda self, parts: _follow_both(parts))
    changes = dict(encoder="simsiam", max_epochs=14, base_lr=20.0, warmup=False, momentum=0.9, Tx="none")
    path = train(tmp_path / "run", **changes).path
    rows = runs.read_metrics(path)
    assert not rows[0]["collapsed"] and rows[-1]["collapsed"]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "collapsed" in caplog.text
    with pytest.raises(CollapseError, match="spread"):
        train(tmp_path / "stopped", **changes, abort_on_collapse=True)
    n_rows = len(runs.read_metrics(tmp_path / "stopped"))
    assert n_rows == next(i for i in range(3, len(rows) + 1) if all(row["collapsed"] for row in rows[i - 3 : i]))
    assert not (tmp_path / "stopped" / "encoder.safetensors").exists()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(BYOL, "loss", lambda self, parts: parts[0].sum() * math.nan)
    with pytest.raises(NonFiniteError, match="loss"):
        train(tmp_path / "run", encoder="byol")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_knn_judges_by_the_labels():
    """A backbone that shows the class is right, one that shows nothing is at chance; modes are put back."""

    class Backbone(torch.nn.Module):
        def forward(self, views):
            assert not self.training
            return torch.stack([views[:, :, :3].mean((1, 2, 3)), views[..., :3].mean((1, 2, 3))], dim=1)

    class Blind(torch.nn.Module):
        def forward(self, views):
            return torch.ones(len(views), 2)

    judge = KnnMonitor(stripes(200), Extraction(torch.device("cpu")), n_bank=100)
    backbone = Backbone().train()
    assert judge.accuracy(backbone) == 1.0 and backbone.training
    assert 0.2 < judge.accuracy(Blind()) < 0.8
    assert not set(judge.bank.indices.tolist()) & set(judge.queries.indices.tolist())
    with pytest.raises(UsageError, match="no labels"):
        KnnMonitor(HeldImages("bare", stripes(20).images), Extraction(torch.device("cpu")))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(Tz=None, samples_per_epoch=None), "--generator NAME, or --data_path"),
        (dict(generator="tiny-bigbigan", data_path="fashion-mnist"), "one of them"),
        (dict(data_path="digits-of-nobody", Tz=None), "no such file or folder"),
        (dict(data_path="fashion-mnist"), "--Tz"),
        (dict(generator="tiny-bigbigan", Tz=None, samples_per_epoch=None), "--samples_per_epoch must be given"),
        (dict(generator="tiny-bigbigan", Tz=None, samples_per_epoch=4), "an epoch has only 4"),
        (dict(generator="tiny-bigbigan", micro_batches=3), "--cumulative_bs 8"),
        (dict(generator="tiny-bigbigan", micro_batches=8), "at least 2 samples"),
        (dict(generator="tiny-bigbigan", Tz=None, img_size=64), "--img_size 64"),
        (dict(generator="tiny-bigbigan", Tz="9_10=0,1,2"), "stop must be at most 4"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train_encoder(dataclasses.replace(SETTINGS, **changes), path=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- several processes


def _train_here(folder: str, method: str) -> dict:
    kept = []
    plain = runtime.broadcast_module
    runtime.broadcast_module = lambda module: (kept.append(module), plain(module))[1]
    train(folder, encoder=method, max_epochs=1, samples_per_epoch=48, cumulative_bs=16)
    runtime.broadcast_module = plain
    sampler = view_sampler(dataclasses.replace(SETTINGS, cumulative_bs=16), make_small_generator())
    parameters = {name: value.detach() for name, value in kept[0].named_parameters()}
    return {"parameters": parameters, "views": sampler(0).first}


def _train_all(folder: str) -> dict:
    return {method: _train_here(f"{folder}/{method}", method) for method in METHODS}


def test_processes_share_one_encoder_and_no_view(tmp_path):
    one, two = run_processes(_train_all, 2, str(tmp_path))
    for method in METHODS:
        for name, value in one[method]["parameters"].items():
            assert torch.equal(value, two[method]["parameters"][name]), (method, name)
        assert one[method]["views"].shape[0] == 8
        assert not torch.equal(one[method]["views"], two[method]["views"])
        [row] = runs.read_metrics(tmp_path / method)
        assert row["samples"] == 48 and row["step"] == 3
