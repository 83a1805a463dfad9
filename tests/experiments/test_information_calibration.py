"""The queue of estimates on tasks of known information, its page, and one estimator on pairs of the generator."""

import json
import math
import signal

import numpy as np
import pytest

from mi_ml_gen.core.errors import CorruptCheckpointError, Preempted, UsageError
from mi_ml_gen.experiments import information_calibration as calibration
from mi_ml_gen.experiments.settings import CalibrationConfig, InformationConfig
from mi_ml_gen.information.estimate import Estimate, Verdict


def small(folder, **changes):
    values = {"estimators": ["gaussian", "ksg"], "tasks": ["normal", "clusters"], "nats": [1.0], "dims": [1],
              "sizes": [300], "n_tasks": 4, "table": False, "picture": False}  # fmt: skip
    return InformationConfig(**values | changes, save_folder=folder)


def test_the_queue_is_every_part_once_in_an_order_that_the_seed_fixes(tmp_path):
    settings = InformationConfig(save_folder=tmp_path)
    queue = calibration.cells(settings)
    assert len({cell.key for cell in queue}) == len(queue)
    assert queue == calibration.cells(settings)
    assert queue != calibration.cells(InformationConfig(save_folder=tmp_path, seed=1))
    parts = {part: [cell for cell in queue if cell.part == part] for part in ("grid", "table", "picture")}
    assert len(parts["grid"]) == 60 * 8
    assert len(parts["table"]) == 4 * 3 * 5
    assert len(parts["picture"]) == 5 * 4


def test_a_run_writes_page_and_json_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    measured = []
    measure = calibration.measure

    def stopped(cell, settings):
        if len(measured) == 2:
            signal.raise_signal(signal.SIGINT)
        measured.append(cell)
        return measure(cell, settings)

    monkeypatch.setattr(calibration, "measure", stopped)
    with pytest.raises(Preempted, match="3 of 4 estimates are done"):
        calibration.calibrate(small(tmp_path), progress=False)
    assert (tmp_path / "information.html").exists()
    results = calibration.calibrate(small(tmp_path), progress=False)
    assert len(measured) == len(set(measured)) == len(results) == 4  # none was done twice

    data = json.loads((tmp_path / "information.json").read_text())
    assert len(data["estimates"]) == 4
    first = data["estimates"][0]
    assert first["truth_nats"] == pytest.approx(1.0, abs=1e-6)
    assert first["verdict"] in set(map(str, Verdict)) and first["interval_nats"][0] < first["nats"]
    page = (tmp_path / "information.html").read_text()
    assert "gaussian" in page and "clusters" in page and "<svg" in page and "http-equiv" not in page
    again = calibration.calibrate(small(tmp_path), progress=False)
    assert again == results and len(measured) == 4


def result(nats, truth=2.0, verdict=Verdict.CONSISTENT, low=None, part="grid", estimator="ksg", **details):
    cell = calibration.Cell(part, "normal", truth, 1, 300, estimator)
    low = nats - 0.1 if low is None else low
    return calibration.Result(cell, truth, nats, low, nats + 0.1, verdict, "", 1.0, details)


def test_summaries_count_right_wrong_and_warned():
    results = [
        result(2.0),
        result(2.05, verdict=Verdict.SATURATED),
        result(1.0),
        result(1.5, verdict=Verdict.NOT_TRUSTED),
        result(2.15),  # neither right nor wrong
        result(math.nan, verdict=Verdict.NOT_TRUSTED),
    ]
    (summary,) = calibration.summarise(results)
    assert (summary.n, summary.n_right, summary.n_right_warned) == (6, 2, 1)
    assert (summary.n_wrong, summary.n_wrong_warned) == (3, 2)
    assert (summary.n_consistent, summary.n_consistent_covered) == (3, 1)
    text = calibration.summary_table([summary]).to_terminal()
    assert "2 (67%)" in text and "1 (50%)" in text


def test_rows_survive_the_file_with_open_intervals_and_broken_numbers(tmp_path):
    for one in (result(1.0)._replace(high=math.inf), result(math.nan, low=math.nan)):
        row = json.loads(json.dumps(calibration._as_row(one)).replace("NaN", "null"))
        back = calibration._from_row(row)
        assert repr(back) == repr(one) or math.isnan(one.nats)
        assert back.is_wrong == one.is_wrong


def test_the_public_table_and_the_picture_show_what_was_measured():
    results = [result(2.1, 2.0, part="table"), result(4.0, 4.0, Verdict.SATURATED, part="table")]
    results += [
        result(nats, nats, part="picture", estimator=name, batch_nats=nats - 1, batch_std_nats=0.5, batch_pairs=64)
        for nats in (2.0, 4.0) for name in calibration.BOUNDS
    ]  # fmt: skip
    table = calibration.public_table(results)
    assert table.rows[-1] == ["ksg", "0.100", "0.000 (1 of 1 warned)", None, None]
    assert calibration.public_table(results[2:]) is None
    assert len(calibration.picture_figure(results).axes) == 4
    assert len(calibration.picture_table(results).rows) == 8


def test_details_that_are_not_finite_become_null(tmp_path, monkeypatch):
    """Rows of metrics hold no infinity."""
    assert calibration._plain([math.inf, 1.5, [math.nan], "text", 3]) == [None, 1.5, [None], "text", 3]
    estimate = Estimate(1.0, 0.9, 1.1, 75, "ksg", "", Verdict.CONSISTENT, "", {"ceiling_nats": math.inf})
    monkeypatch.setattr(calibration, "estimate_information", lambda *pairs, **options: estimate)
    results = calibration.calibrate(small(tmp_path, estimators=["ksg"], tasks=["normal"]), progress=False)
    assert results[0].details["ceiling_nats"] is None
    assert json.loads((tmp_path / "information.json").read_text())["estimates"][0]["details"]["ceiling_nats"] is None


def test_unknown_names_are_refused_before_anything_is_written(tmp_path):
    for changes, message in (
        ({"estimators": ["kgs"]}, "estimator kgs"),
        ({"tasks": ["gauss"]}, "tasks gauss"),
        ({"nats": [0.0], "tasks": ["clusters"]}, "no task reaches"),
    ):
        with pytest.raises(UsageError, match=message):
            calibration.calibrate(small(tmp_path / "run", **changes), progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="--nats: must hold at least one value"):
        small(tmp_path, nats=[])


def test_an_estimator_on_pairs_of_the_generator_and_on_a_file(tmp_path):
    settings = CalibrationConfig(estimator="gaussian", nats=[2.0], n_pairs=2000)
    (known,) = calibration.estimates(settings)
    assert known.truth == 2.0 and known.estimate.nats == pytest.approx(2.0, abs=0.15)

    x = np.random.default_rng(0).normal(size=(500, 2))
    np.savez(tmp_path / "pairs.npz", x=x, y=x + 1)
    np.savez(tmp_path / "other.npz", a=x)
    (tmp_path / "text.npz").write_text("no")
    (known,) = calibration.estimates(CalibrationConfig(estimator="gaussian", pairs=tmp_path / "pairs.npz"))
    assert known.truth is None and known.estimate.verdict.is_warning  # x and y determine one another
    wrong = {
        "other": (UsageError, "--pairs .*arrays named x and y"),
        "text": (CorruptCheckpointError, "not a whole .npz file"),
        "none": (UsageError, "--pairs .*No such file"),
    }
    for name, (kind, message) in wrong.items():
        with pytest.raises(kind, match=message):
            list(calibration.estimates(CalibrationConfig(estimator="ksg", pairs=tmp_path / f"{name}.npz")))
    with pytest.raises(UsageError, match="--pairs needs --estimator"):
        CalibrationConfig(pairs=tmp_path / "pairs.npz")


@pytest.mark.parametrize(("part", "whole", "shown"), [
    (3, 25, "3 (12%)"), (210, 211, "210 (99.5%)"), (211, 211, "211 (100%)"), (9999, 10000, "9999 (99.99%)"),
    (0, 7, "0 (0%)"), (1, 400, "1 (0.2%)"), (0, 0, "–"),
])  # fmt: skip
def test_all_and_none_are_said_of_all_and_none_alone(part, whole, shown):
    assert calibration._share(part, whole) == shown
