"""Steps of every trainer and family on the pretended device: nothing waits, nothing is in float64, nothing is too much.

The ceilings are counts of the published networks at batch 64 (see docs/speed.md). A ceiling that is passed is a step
that has become more expensive on a GPU; one that is far off should be lowered.
"""

from __future__ import annotations

import pytest

from bench import workloads
from bench.pretended import IS_POSSIBLE, pretended_cuda

pytestmark = pytest.mark.skipif(not IS_POSSIBLE, reason="fake CUDA tensors need torch 2.11")


class Ceiling:
    """The most that a step may ask for."""

    def __init__(self, launches: int, traffic_gb: float, peak_gib: float, gflop: float) -> None:
        self.launches, self.traffic_gb, self.peak_gib, self.gflop = launches, traffic_gb, peak_gib, gflop


BUDGET = {
    ("navigator BigBiGAN 1_6", "fp32"): Ceiling(833, 55.2, 3.94, 5764),
    ("navigator BigBiGAN 1_6", "bf16"): Ceiling(629, 27.2, 2.07, 5764),
    ("navigator StyleGAN2-512 0_16", "bf16"): Ceiling(906, 131.4, 11.09, 15904),
    ("SimCLR ResNet-50 on BigBiGAN", "bf16"): Ceiling(561, 26.0, 2.10, 4234),
    ("SimSiam ResNet-50 on BigBiGAN", "bf16"): Ceiling(995, 26.8, 2.18, 4240),
    ("BYOL ResNet-50 on BigBiGAN", "bf16"): Ceiling(1333, 34.5, 2.63, 4539),
}
"""FLOPs are those that the plan asks for, and may differ by 2%; the rest are ceilings."""


@pytest.mark.parametrize(("work", "precision"), BUDGET)
def test_budget(work, precision):
    found, ceiling = workloads.count(work, precision), BUDGET[work, precision]
    assert not found.waits and not found.float64 and not found.device_draws
    assert found.flops / 1e9 == pytest.approx(ceiling.gflop, rel=0.02)
    assert found.launches <= ceiling.launches
    assert found.traffic_bytes / 1e9 <= ceiling.traffic_gb
    assert found.peak_bytes / 2**30 <= ceiling.peak_gib


@pytest.mark.parametrize("name", workloads.TRAINERS)
def test_every_trainer(name):
    """Networks of a few pixels: a tensor on the wrong device or a value that is read raises."""
    with pretended_cuda() as counted:
        found = workloads.TRAINERS[name](counted)
    assert found.launches > 0
    assert not found.waits, f"the host waits for {dict(found.waits)}"
    assert not found.float64, f"float64 on the device: {dict(found.float64)}"
    assert not found.device_draws, f"drawn on the device, which changes the numbers: {dict(found.device_draws)}"


@pytest.mark.parametrize("name", ["navigator, bigbigan, bf16", "simsiam, bf16"])
def test_with_two_processes(name):
    with pretended_cuda(n_processes=2) as counted:
        found = workloads.TRAINERS[name](counted)
    assert not found.waits, f"the host waits for {dict(found.waits)}"


def test_with_two_processes_and_no_batch_norm_between_them():
    with pretended_cuda(n_processes=2) as counted:
        found = workloads.TRAINERS["probe"](counted)
    assert not found.waits, f"the host waits for {dict(found.waits)}"
