"""Sweeps of image models: what is trained, measured, resumed and reported."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim.images import sweep, training
from mi_ml_gen.mim.images.sweep_settings import MODELS, ImageSweepConfig, Point
from tests.mim.images.test_training import small_layers, tiny_sets

ROOT = Path(__file__).parents[3]
RUN = ["epochs=2", "warmup=1", "batch_size=8", "number_components=4", "z1_size=3", "z2_size=2"]


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(training, "load_sets", lambda settings: tiny_sets(n=64))
    with small_layers(16):
        yield


def settings_in(folder: Path, **changes) -> ImageSweepConfig:
    sizes = dict(models=["vae", "vae-cmim"], n_likelihood=4, S=3, n_embedded=64)
    return ImageSweepConfig(**(sizes | dict(run_settings=RUN, device="cpu", save_folder=str(folder)) | changes))


def test_the_published_loop(tmp_path: Path) -> None:
    settings = ImageSweepConfig(seeds=2)
    assert len(settings.points) == 6 * 2 * 2 == len(set(settings.points)) and len(MODELS) == 6
    own = settings.settings_of(Point("dynamic_mnist", "convhvae_2level-smim", "standard", 15))
    assert (own.dataset_name, own.objective, own.prior, own.seed) == ("dynamic_mnist", "smim", "standard", 15)
    assert own.use_training_data_init and own.epochs == 2000
    changed = settings_in(tmp_path).settings_of(Point("dynamic_mnist", "vae", "vampprior", 14))
    assert (changed.epochs, changed.z1_size) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": ["vae-mims"]}, "--model_name vae-mims"),
        ({"datasets": ["mnist"]}, "mnist"),
        ({"run_settings": ["epoch=3"]}, "unknown key epoch"),
        ({"run_settings": ["epochs=0"]}, "--set epochs=0: must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(changes: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        settings_in(tmp_path, **changes)


def test_runs_are_measured_once(tmp_path: Path, monkeypatch) -> None:
    settings = settings_in(tmp_path, priors=["vampprior"])
    assert [found.failure for found in sweep.run_sweep(settings, progress=False)] == [None] * 2
    found = sweep.read_results(settings)
    assert len(found) == 2
    for one in found:
        results = one.results
        assert results["is_complete"] and results["epochs"] == 2 and results["likelihood"]["n_images"] == 4
        assert results["likelihood"]["bound"]["value"] <= results["likelihood"]["mean"]["value"] + 1e-6
        assert results["information"]["lower"]["value"] <= results["information"]["ceiling"] + 1e-6
        assert 0 <= results["knn5"]["low"] <= results["knn5"]["value"] <= 1
    monkeypatch.setattr(training, "train_mim_image", None)
    assert list(sweep.run_sweep(settings)) == [], "nothing is done twice"

    more = settings_in(tmp_path, priors=["vampprior"], models=["vae", "vae-cmim", "vae-amim"])
    assert [one.point.model for one in sweep.read_results(more)] == ["vae", "vae-cmim"]
    with pytest.raises(UsageError, match="run_settings"):
        next(sweep.run_sweep(settings_in(tmp_path, run_settings=[*RUN, "lr=0.1"])))

    written = sweep.write_report(more, "python scripts/sweep_mim_image.py")
    page = (tmp_path / "index.html").read_text()
    assert tmp_path / "index.html" in written and "vae-cmim" in page and "Not measured" in page
    lines = json.loads((tmp_path / "table.json").read_text())
    assert "vae-cmim" in json.dumps(lines)


def test_a_run_that_the_clock_stopped_is_measured_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    settings = settings_in(tmp_path, models=["vae"], priors=["standard"], run_settings=[*RUN, "epochs=100000"],
                           train_seconds=1000.0)  # fmt: skip
    is_time, n_epochs = threading.Event(), 0

    class Bell(threading.Event):
        """Rings after some epochs, where the sweep would wait for the time."""

        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None or timeout < 10:
                return super().wait(timeout)
            while not (is_time.is_set() or self.is_set()):
                time.sleep(0.01)
            return self.is_set()

    monkeypatch.setattr(sweep, "RING_S", 0.05)
    monkeypatch.setattr(sweep, "threading", SimpleNamespace(Event=Bell, Thread=threading.Thread))
    plain = training.end_epoch

    def end_epoch(*arguments) -> None:
        nonlocal n_epochs
        plain(*arguments)
        n_epochs += 1
        if n_epochs in (3, 1003):
            is_time.set()
        time.sleep(0.02 if is_time.is_set() else 0)

    monkeypatch.setattr(training, "end_epoch", end_epoch)
    [found] = sweep.run_sweep(settings, progress=False)
    assert found.failure is None
    first = sweep.read_results(settings)[0].results
    assert not first["is_complete"] and 3 <= first["epochs"] < 1000
    assert sweep.cells_of(settings).waiting([settings.points[0].name])
    is_time.clear()
    n_epochs = 1000
    list(sweep.run_sweep(settings, progress=False))
    assert sweep.read_results(settings)[0].results["epochs"] >= first["epochs"] + 3

    [late] = sweep.run_sweep(dataclasses.replace(settings, save_folder=str(tmp_path / "other"), train_seconds=1e-9))
    assert "before its first epoch" in late.failure.error


def test_a_run_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, priors=["vampprior"], models=["pixelhvae_2level-amim", "vae"],
                           run_settings=[*RUN, "q_x_prior=vampprior"])  # fmt: skip
    first, second = sweep.run_sweep(settings, progress=False)
    assert "pixelhvae_2level cannot decode" in first.failure.error and second.failure is None
    assert main_of_script()(as_flags(settings)) == 1, "a run that failed is not passed over in silence"


def test_data_that_are_not_there_are_said_once_and_leave_nothing(tmp_path: Path, monkeypatch) -> None:
    def missing(settings):
        raise UsageError("no files of that set")

    monkeypatch.setattr(training, "load_sets", missing)
    with pytest.raises(UsageError, match="no files of that set"):
        list(sweep.run_sweep(settings_in(tmp_path), progress=False))
    assert not any(tmp_path.iterdir())


def test_a_set_smaller_than_a_batch_is_said_once_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--batch_size 65: more than the 64"):
        list(sweep.run_sweep(settings_in(tmp_path, run_settings=[*RUN, "batch_size=65"]), progress=False))
    assert not any(tmp_path.iterdir())


def test_pictures_are_those_of_the_first_seed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, models=["vae"], priors=["standard"], seeds=2)
    list(sweep.run_sweep(settings, progress=False))
    first, second = sweep.read_results(settings)
    assert (first.path / "images" / "samples.png").exists() and not (second.path / "images" / "samples.png").exists()


def test_several_seeds_are_one_line() -> None:
    def one(seed: int, nats: float) -> sweep.Measured:
        likelihood = {name: {"value": nats, "error": 9.0} for name in ("mean", "bound", "kl")}
        likelihood |= {"n_images": 1000, "n_uncertain": 700 + seed}
        information = {"lower": {"value": 1.0, "error": 0.1}, "at_most": {"value": 2.0, "error": 0.1}}
        results = {"epochs": seed, "likelihood": likelihood, "information": information}
        results |= {"knn5": {"value": 0.5, "low": 0.4, "high": 0.6}}
        return sweep.Measured(Point("data", "vae", "standard", seed), Path(), results)

    table = sweep.sweep_table([one(14, -90.0), one(15, -92.0)])
    assert "1,429 of the 2,000 estimates of log p(x) rest on fewer than 10 effective draws" in table.caption
    (line,) = table.rows
    assert line[3:5] == [2, "14 to 15"]
    assert (line[5].value, line[5].spread) == pytest.approx((-91.0, 1.0))
    (alone,) = sweep.sweep_table([one(14, -90.0)]).rows
    assert (alone[5].value, alone[5].spread) == (-90.0, 9.0)
    assert (alone[10].value, alone[10].spread) == pytest.approx((50.0, 10 / 1.96), rel=1e-3) and alone[11] is None


def test_differences_from_the_vae_are_paired_by_seed() -> None:
    def one(model: str, seed: int, nats: float, nmi: float | None = None) -> sweep.Measured:
        results = {"likelihood": {"mean": {"value": nats}}, "information": {"lower": {"value": 1.0}}}
        return sweep.Measured(
            Point("data", model, "standard", seed), Path(), results | ({"nmi": {"value": nmi}} if nmi else {})
        )

    seeds = range(14, 17)
    found = [one("vae", seed, -100.0 * seed, 0.5) for seed in seeds]
    found += [one("vae-smim", seed, -100.0 * seed - (seed - 14), 0.51) for seed in seeds] + [one("vae-amim", 14, 0.0)]
    [line] = sweep.differences_table(found).rows
    assert line[:3] == ["data", "vae-smim", "standard"] and line[-1] == 3
    assert line[3] == pytest.approx(-1.0) and line[4] == "-3.5 to +1.5"  # t of 2 degrees of freedom, 4.303 / sqrt(3)
    assert line[7:9] == [None, None] and line[9] == pytest.approx(1.0)
    assert sweep.differences_table(found[:1] + found[3:4]) is None


def main_of_script():
    spec = importlib.util.spec_from_file_location("script_sweep_mim_image", ROOT / "scripts" / "sweep_mim_image.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main


def as_flags(settings: ImageSweepConfig) -> list[str]:
    sizes = ["--n_likelihood", "4", "--S", "3", "--n_embedded", "64", "--device", "cpu"]
    return [
        "--models", *settings.models, "--priors", *settings.priors, *sizes, "--out", settings.save_folder,
        "--set", *settings.run_settings,
    ]  # fmt: skip


def test_the_script(tmp_path: Path, capsys) -> None:
    main, folder = main_of_script(), tmp_path / "a folder"
    assert main(as_flags(settings_in(folder, models=["vae-smim"], priors=["standard"]))) == 0
    output = capsys.readouterr().out
    assert "finished" in output and "index.html" in output
    assert f"--out '{folder}'" in (folder / "index.html").read_text().replace("&#x27;", "'")
    with pytest.raises(UsageError, match="no run is measured"):
        main(["--report-only", "--out", str(tmp_path / "none")])
