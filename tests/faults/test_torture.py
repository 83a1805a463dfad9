"""A few cases of each family of the fault harness, always the same; `make torture` runs all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import cases, torture
from tests.faults.cases import FAMILIES, ROWS

SAMPLE = cases.sample()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of the sample, in a process of its own: cases are forked off one without threads."""
    folder = tmp_path_factory.mktemp("torture")
    words = [sys.executable, "-m", "tests.faults.torture", "--sample", "--no-page", "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=torture.ROOT, env=environment, capture_output=True, text=True, timeout=600)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {row["case"]: row for row in rows}, done


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_case_of_the_sample(outcomes, case):
    found, _ = outcomes
    if found[str(case)]["passed"] is None:
        pytest.skip(found[str(case)]["why"])
    assert found[str(case)]["passed"], found[str(case)]["why"]


def test_the_runner_says_what_it_did(outcomes):
    found, done = outcomes
    n_failed = sum(row["passed"] is False for row in found.values())
    assert f"{len(SAMPLE):,} cases, {n_failed:,} failed" in done.stdout
    assert done.returncode == int(n_failed > 0)


def test_every_promise_has_cases():
    assert {each.row for each in FAMILIES} == set(ROWS)
    everything = cases.all_cases()
    assert len({str(case) for case in everything}) == len(everything) >= 3000
    for each in FAMILIES:  # the order is spread: the first tenth of it holds a tenth of each family
        members = sum(case.family == each.name for case in everything[: len(everything) // 10])
        assert members == pytest.approx(sum(case.family == each.name for case in everything) / 10, abs=1.5)


# --- the runner itself


def _case(check) -> cases.Case:
    return cases.Case("hostile", "of this test", "one", check, limit_s=1.0)


def _run_here(folder: Path) -> list[dict]:
    """In a process without threads: outcomes of a case that passes, fails, hangs, dies, and leaves a child behind."""

    def leave_a_child(folder: Path) -> None:
        if os.fork() == 0:
            while True:
                pass
        (folder.parent / "left").write_text("")

    def fail(folder: Path) -> None:
        raise AssertionError("so it is")

    checks = (lambda folder: None, fail, lambda folder: __import__("time").sleep(60), lambda folder: os.abort())
    return [torture.run(_case(check), folder / "case") for check in (*checks, leave_a_child)]


def test_the_runner_notices_what_a_case_does(tmp_path):
    program = "import json, sys, pathlib; from tests.faults import test_torture as t; "
    program += "print(json.dumps(t._run_here(pathlib.Path(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=torture.ROOT, capture_output=True, text=True
    )
    passes, fails, hangs, dies, leaves = json.loads(done.stdout)
    assert passes["passed"] and leaves["passed"] and (tmp_path / "left").exists()
    assert not fails["passed"] and fails["why"].startswith("AssertionError: so it is [test_torture.py:")
    assert not hangs["passed"] and hangs["why"] == "not done after 1 s"
    assert not dies["passed"] and dies["why"] == "the case's process ended with -6"


def test_the_table(tmp_path):
    members = [cases.Case("rot", "a", str(i), lambda folder: None, 1.0) for i in range(3)]
    found = {str(members[0]): {"case": str(members[0]), "passed": True, "why": ""},
             str(members[1]): {"case": str(members[1]), "passed": False, "why": "it burnt"}}  # fmt: skip
    text = torture.table(members, found, seed=7)
    assert "| Damage to a file is noticed | rot | 3 | 2 | 1 | 1 |" in text and "- rot / a / 1: it burnt" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{torture.BEGIN}\nold\n{torture.END}\nafter\n")
    torture.write_page(page, text)
    assert page.read_text() == f"before\n{torture.BEGIN}\n{text}\n{torture.END}\nafter\n"


def test_results_of_other_code_do_not_count(tmp_path, monkeypatch):
    case = _case(lambda folder: None)
    torture.Results(tmp_path / "r.jsonl", 0).add(case, {"passed": True, "why": ""})
    with open(tmp_path / "r.jsonl", "a") as file:
        file.write('{"case": "cut sho')
    assert set(torture.Results(tmp_path / "r.jsonl", 0).found) == {str(case)}
    assert not torture.Results(tmp_path / "r.jsonl", 1).found
    monkeypatch.setattr(torture, "fingerprint", lambda: "other")
    assert not torture.Results(tmp_path / "r.jsonl", 0).found
