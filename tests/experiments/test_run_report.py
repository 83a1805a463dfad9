"""Runs side by side: what differs, what they came to, and the page in a browser."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.runs import RunFolder
from mi_ml_gen.experiments.run_report import (
    differing_settings,
    final_numbers,
    last_value,
    pictures,
    read_runs,
    verdict_of,
    write_report,
)
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.report.images import save_png
from tests.browser import Browser
from tests.conftest import make_small_generator
from tests.navigator.test_training import SETTINGS as NAVIGATOR

SUMMARY = {"delta": 1.4, "delta_std": 0.5, "delta_of_independent": 0.25, "bound_nats": 2.45, "ceiling_nats": 4.84,
           "bound_is_saturated": False, "converged": True, "selected_samples": 4096}  # fmt: skip


def make_run(path, summary=None, lr=1e-3, **columns):
    with RunFolder.open(path, {"lr": lr, "seed": 0, "chunks": "0_1"}) as run:
        for step in range(1, 41):
            run.log(step, samples=64 * step, **{name: base + step for name, base in columns.items()})
        if summary is not None:
            run.write_json("summary.json", summary)
    return path


@pytest.fixture
def two(tmp_path):
    first = make_run(tmp_path / "a" / "0", SUMMARY, loss=1.0, bound_nats=0.0, delta=2.0)
    return [first, make_run(tmp_path / "b" / "0", SUMMARY | {"converged": False, "convergence": "still rising"},
                            lr=1e-4, loss=3.0, bound_nats=1.0, delta=1.0)]  # fmt: skip


def test_only_settings_that_differ_are_listed(two):
    table = differing_settings(read_runs(two))
    assert table.columns == ["setting", "a/0", "b/0"] and table.rows == [["lr", "0.001", "0.0001"]]
    assert "the same settings" in differing_settings(read_runs(two[:1])).caption


def test_numbers_of_the_navigator_carry_their_verdict(two):
    (table,) = final_numbers(read_runs(two))
    first, second = table.to_records()
    assert first["bound (nats)"] == 2.45 and first["95% interval"] == "none" and first["verdict"] == "none"
    assert second["verdict"] == "not converged" and second["why"] == "still rising"
    assert verdict_of(SUMMARY | {"bound_is_saturated": True})[0] == "lower bound, saturated"


def test_verdicts_are_those_that_runs_write():
    """By the names that `train_navigator` gives them, of one walker and of several."""
    one = SUMMARY | {"bound_verdict": "consistent", "bound_verdict_because": "as checked"}
    assert verdict_of(one) == ("consistent", "as checked")
    two = {"bound_verdict": "not converged", "bound_verdict_because": "still rising"}
    assert verdict_of({"walkers": [one, two, one]}) == ("not converged", "1 of 3 walkers: still rising")
    assert verdict_of({"walkers": [one, one]}) == ("consistent", "as checked")


def test_several_walkers_have_an_interval(tmp_path):
    own = {"bound_verdict": "consistent", "bound_verdict_because": "as checked"}
    summary = {"delta": 1.26, "delta_interval": [1.111, 1.4112], "bound_nats": 2.6, "walkers": [own, own]}
    (table,) = final_numbers(read_runs([make_run(tmp_path / "run", summary, loss=1.0)]))
    (record,) = table.to_records()
    assert record["95% interval"] == "1.111 to 1.411" and record["verdict"] == "consistent"


def test_a_real_run_tells_its_verdict(tmp_path):
    path = tmp_path / "run"
    result = train_navigator(NAVIGATOR, make_small_generator(), path, progress=False)
    (table,) = final_numbers(read_runs([path]))
    (record,) = table.to_records()
    assert record["verdict"] == result.summary["bound_verdict"] and record["why"]


def test_other_runs_are_shown_by_their_rows(tmp_path):
    found = read_runs([make_run(tmp_path / "encoder", top1=0.5)])
    (table,) = final_numbers(found)
    assert table.columns == ["run", "top1", "last step"]
    (record,) = table.to_records()
    assert record["top1"] == pytest.approx(0.5 + (37 + 38 + 39 + 40) / 4) and record["last step"] == 40
    assert record["top1 spread"] == pytest.approx(1.2909944 / 2)
    assert last_value([{"step": 1, "x": 2.0}], "x") == 2.0 and last_value([{"step": 1}], "x") is None


def test_the_newest_picture_of_each_name(tmp_path):
    for name in ("pairs_2", "pairs_10", "curves", "1"):
        save_png(tmp_path / "images" / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    assert [path.name for path in pictures(tmp_path)] == ["1.png", "curves.png", "pairs_10.png"]


def test_what_is_no_run_is_refused(tmp_path, two):
    with pytest.raises(UsageError, match="not a run folder"):
        read_runs([tmp_path])
    with pytest.raises(UsageError, match="given twice"):
        read_runs([two[0], two[0]])
    (two[0] / "summary.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        read_runs(two)


def test_the_page_in_a_browser(two, tmp_path):
    save_png(two[0] / "images" / "pairs_1.png", np.full((20, 2000, 3), 90, np.uint8))
    other = make_run(tmp_path / "<b>other", top1=0.5)
    path = write_report([*two, other], tmp_path / "report.html")
    with Browser.start() as browser:
        for width in (1280, 390):
            browser.open(path, width)
            assert browser.run("document.querySelectorAll('table').length") == 3
            assert browser.run("document.querySelectorAll('svg').length") == 4
            assert browser.run("document.querySelector('img').naturalWidth") == 1200
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.complaints == []
    assert json.dumps("<b>other") not in path.read_text() and "&lt;b&gt;other" in path.read_text()
