"""The bench of a GPU: what it says where there is none, what it plans, and its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu, workloads

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    environment = os.environ | {"PYTHON": sys.executable}
    command = [ROOT / "bench" / "gpu.sh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert done.returncode == 4
    assert done.stderr == "error: --device cuda: no CUDA GPU to measure; on the CPU there is `make bench`\n"


def test_it_measures_each_work_in_each_way_and_names_what_it_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    asked = []

    def time_one(work, way, device):
        asked.append((work, way))
        if way == "plain" and "StyleGAN2" in work:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(asked) == n_planned - 1:
            clock["now"] += 1000
        return {
            "ms": 10.0 if way == "plain" else 4.0,
            "quartiles_ms": [3.0, 11.0],
            "peak_gib": 2.0,
            "date": "today",
            "commit": "abc",
        }

    n_planned = len(workloads.PUBLISHED) * len(gpu.WAYS)
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    steps: dict[str, dict] = {work: {} for work in workloads.PUBLISHED}
    for work, way, row in gpu.measured(torch.device("cuda"), 500.0, time_one):
        steps[work][way] = row
    for ways in steps.values():
        assert set(ways) == set(gpu.WAYS)
    assert set(gpu.PLAN) == set(gpu.WAYS)
    left_out = [row["not_measured"] for ways in steps.values() for row in ways.values() if "ms" not in row]
    assert sorted(left_out) == ["out of memory", "the time was up"]

    steps["navigator BigBiGAN 1_6"]["bf16"]["floor_ms"] = 2.0
    page = gpu.markdown({"machine": "a card", "tests": {"says": "9 passed"}, "steps": steps})
    assert "on a card" in page and "9 passed" in page
    assert "| navigator BigBiGAN 1_6 | bf16 | 4.0 | 3.0 to 11.0 | 2.50 | 0.50 | 2.00 |" in page
    assert "| navigator StyleGAN2-512 0_16 | plain | out of memory | | | | |" in page
    assert "| navigator StyleGAN2-512 0_16 | bf16 | 4.0 | 3.0 to 11.0 |  |" in page  # nothing to be faster than


def test_the_kept_counts_are_of_todays_workloads():
    kept = json.loads((ROOT / "bench" / "results" / "cuda_counts.json").read_text())["per_step"]
    plain = {f"{work}, {precision}" for work in workloads.PUBLISHED for precision in workloads.PRECISIONS}
    assert plain == set(kept)
    assert set(gpu.floors()) == set(workloads.PUBLISHED)
