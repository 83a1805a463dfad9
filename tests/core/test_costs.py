"""Predicted costs against what the same counter sees in a real step, and against counts of the published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import workloads
from mi_ml_gen.core.costs import FLOOR_TFLOPS, RunCost, StepCost, lines_or_reason, without_numbers
from mi_ml_gen.core.counting import Counted
from mi_ml_gen.encoders import costs as encoder_costs
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.encoders.training import train_encoder
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.navigator import costs as navigator_costs
from mi_ml_gen.navigator.settings import NavigatorConfig

COUNTED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "cuda_counts.json").read_text())


@pytest.mark.parametrize("Tz", [None, "1_2=0,0.5,2"])
def test_an_encoders_step_is_counted_as_it_runs(tmp_path, Tz):
    settings = EncoderConfig(
        encoder="simclr", generator="tiny-bigbigan", Tz=Tz, samples_per_epoch=80, cumulative_bs=8, depth=18, width=4,
        dim=8, Tx="none", max_epochs=1, device="cpu", save_folder=str(tmp_path),
    )  # fmt: skip
    predicted, _ = encoder_costs.count_step(settings, 8)
    with Counted("cpu") as counted:
        found = workloads.counted_step(lambda path: train_encoder(settings, path=path, progress=False), counted)
    assert predicted.total_flops == pytest.approx(found.flops, rel=0.002) and found.flops > 1e8


def test_a_navigators_step_is_counted_as_it_runs(tmp_path):
    changes = dict(batch_size=8, critic_width=4, device="cpu")
    settings = NavigatorConfig(generator="tiny-bigbigan", chunks="1_2", **changes)
    predicted, _ = navigator_costs.count_step(settings, 8)
    generator = load_generator("tiny-bigbigan")
    with Counted("cpu") as counted:
        found = workloads.counted_step(
            lambda path: workloads.train_navigator(path, generator, "1_2", **changes), counted
        )
    assert predicted.total_flops == pytest.approx(found.flops, rel=0.002) and found.flops > 1e8


def test_the_published_navigator_costs_what_was_counted_on_the_pretended_gpu():
    """Per pair, at a batch of 2 here and of 64 there."""
    predicted, _ = navigator_costs.count_step(NavigatorConfig(generator="bigbigan", chunks="1_6"), 2)
    counted = COUNTED["per_step"]["navigator BigBiGAN 1_6, bf16"]["gflop"] * 1e9
    assert 32 * predicted.total_flops == pytest.approx(counted, rel=0.01)


def test_the_sheet_is_arithmetic_on_the_step():
    step = StepCost(64, {"generator": 3 * 10**12, "simclr": 10**12}, peak_bytes=5 << 30, fixed_bytes=1 << 30)
    run = RunCost(6_400_000, 64, step, {"encoder": 100 << 20})
    hours = 100_000 * 4 / (0.45 * FLOOR_TFLOPS) / 3600
    assert run.hours(1, 0.45) == pytest.approx(hours) and run.hours(8, 0.45) == pytest.approx(hours / 8)
    assert run.samples_per_s(0.5) == pytest.approx(64 * 0.5 * FLOOR_TFLOPS / 4)
    assert run.peak_bytes(1) == 5 << 30 and run.peak_bytes(8) == pytest.approx(1.5 * 2**30)
    text = "\n".join(run.lines())
    assert "4 TFLOP (generator 3, simclr 1)" in text and "encoder 100 MiB" in text
    assert "this run is in fp32: it takes longer than these hours" in text
    assert not any("takes longer" in line for line in RunCost(64, 64, step, {}, precision="bf16").lines())
    odd = RunCost(640, 100, step, {})
    assert any("does not divide into 8" in line for line in odd.lines())


def test_what_cannot_be_counted_is_said_in_one_line():
    def wrong() -> RunCost:
        return 1 / 0

    (line,) = lines_or_reason(wrong)
    assert line.startswith("cost not counted: ZeroDivisionError")
    settings = EncoderConfig(encoder="simclr", generator="nvae", Tz=None, samples_per_epoch=10)
    (line,) = encoder_costs.cost_lines(settings)
    assert "its size is known from its weights alone" in line or "not bundled" in line
    with without_numbers():
        assert torch.nn.Linear(2, 2).to(torch.float64).weight.dtype == torch.float64
    assert torch.nn.Linear(2, 2).weight.sum().isfinite()
