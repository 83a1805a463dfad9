"""`make bench`: rates and floors are those of the timings, and a bench that fails is named."""

from __future__ import annotations

import json

import pytest
import torch

from bench import run, timing
from mi_ml_gen.core.errors import EnvironmentFault


def test_the_flops_of_a_product_are_counted():
    a, b = torch.rand(30, 40), torch.rand(40, 50)
    assert timing.gflop_of(lambda: a @ b) == pytest.approx(2 * 30 * 40 * 50 / 1e9)


def test_a_row_says_rates_floor_and_share(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(timing, "gflop_per_s", lambda clock: 50.0)
    seconds = {"plain": [4.0, 5.0, 3.0], "lean": [2.0, 2.0, 2.0], "lean, without": [1.0, 1.0, 1.0]}
    timing.write("a", "work", seconds, "plain", n=8, unit="images", here="lean", gflop=20.0)
    timing.write("b", "draws", {"plain": 4.0, "here": 1.0}, "plain", n=8, unit="draws")
    rows = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"]
    result = dict(machine="m", date="d", commit="c", quick=False, benches={"one": rows, "two": [{"failed": 3}]})
    lines = run.markdown(result).splitlines()[-4:]
    assert lines.pop(1) == "| - lean, without | images | 2 | 8 | 3 | 4.00 (3.00 to 5.00) | 1 (wall) | | |"
    assert lines[0] == "| work | images | 2 | 4 | 3 | 2.00 (1.50 to 2.50) | 2 (wall) | 0.4 | 0.20 |"
    assert lines[1] == "| draws | draws | 2 | 8 | 1 | 4.00 | 1 (wall) | | |"
    assert lines[2].startswith("| two: failed with exit code 3 |")
    assert len({line.count("|") for line in lines}) == 1


def test_the_summary_replaces_what_stood_there(tmp_path):
    row = dict(what="w", seconds={"plain": 4.0, "lean": 2.0}, turns={"plain": [4.0, 5.0], "lean": [2.0, 2.0]},
               plain="plain", here="lean", times_faster_than_plain={"lean": [2.25, 2.0, 2.5]})  # fmt: skip
    result = dict(machine="m", date="d", commit="c", quick=True, benches={"one": [row]})
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{run.BEGIN}\nold\n{run.END}\n\nAfter\n")
    run.write_page(result, page)
    assert page.read_text().splitlines()[2:-2] == [
        run.BEGIN, "| work | plain, s | here, s | times faster | turns |", "| --- | ---: | ---: | --- | ---: |",
        "| w | 4 | 2 | 2.25 (2.00 to 2.50) | 2 |", "", "m, d, commit c, with `--quick`; seconds of the processor.",
        run.END,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("per_s", "text"),
    [(0.012345, "0.0123"), (2.0, "2"), (732.4, "732"), (231_456.0, "231,000"), (4.5678e9, "4,570,000,000")],
)
def test_rates_have_three_digits(per_s, text):
    assert run.rate(per_s) == text


def test_what_fails_is_named_and_the_rest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULT", tmp_path / "cpu")
    monkeypatch.setattr(run, "BENCHES", {"good": ("bench.sampling --n 200", "--repeats 1"), "bad": ("bench.none", "")})
    with pytest.raises(EnvironmentFault, match="failed, see above: bad"):
        run.main(["--quick"])
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["quick"] and [row["what"] for row in found["benches"]["good"]] == ["200 x 120 truncated normals"]
    assert found["benches"]["bad"] == [{"failed": 1}]
    assert "bad: failed with exit code 1" in (tmp_path / "cpu.md").read_text()
