"""Calibration of the critic's bound: levels, measurements, and that it resumes to the same numbers."""

from __future__ import annotations

import json

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.experiments.critic_calibration import (
    CalibrationConfig,
    Level,
    Problem,
    calibrate,
    calibration_table,
    levels,
    measure,
)
from mi_ml_gen.generators.linear_gaussian import HALF_RANGE_STD, LinearGaussian


def _settings(folder, **changes):
    small = dict(
        nats=[1.0, 2.0],
        eval_pairs=[16],
        n_eval_batches=4,
        n_chunks=2,
        chunk_size=1,
        resolution=2,
        batch_size=8,
        n_steps=6,
        n_steps_more=4,
        critic_width=2,
        save_freq=3,
        save_folder=folder,
        device="cpu",
    )
    return CalibrationConfig(**small | changes)


def test_levels_go_down_and_join():
    plan = levels(_settings("unused", nats=[0.5, 4.0, 2.0]))
    assert [(level.nats, level.start, level.stop) for level in plan] == [
        (4.0, 0, 6),
        (2.0, 6, 10),
        (0.5, 10, 14),
    ]


def test_learning_rate_rises_and_falls():
    level = Level(1.0, 100, 200, 0.5)
    assert level.learning_rate(100) == pytest.approx(0.1)
    assert max(map(level.learning_rate, range(100, 200))) == pytest.approx(0.5, rel=0.01)
    assert 0 < level.learning_rate(199) < 0.001


def test_writes_a_table_and_a_figure(tmp_path):
    measurements = calibrate(_settings(tmp_path), progress=False)
    assert [(m.nats, m.n_candidates) for m in measurements] == [(1.0, 31), (2.0, 31)]
    for m in measurements:
        assert m.critic.nats < m.ceiling_nats and m.critic.standard_error_nats > 0
        assert m.optimal.nats == pytest.approx(m.nats, abs=0.5)
    table = json.loads((tmp_path / "calibration.json").read_text())
    assert [row["saturated"] for row in table] == ["yes" if m.saturated else "no" for m in measurements]
    near = calibration_table([m._replace(saturated=True) for m in measurements])
    assert [row[-1] for row in near.rows] == ["yes", "yes"] and len(table) == 2
    assert (tmp_path / "calibration.md").read_text().count("\n") >= 4
    assert (tmp_path / "images" / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_critic_that_reads_the_truth_measures_as_the_optimal_one(tmp_path):
    """At high correlation the log ratio is a squared distance, which points close on a circle can show."""
    problem = Problem.of(LinearGaussian((1,), noise=0.01, resolution=1), 3.0)

    angle = 0.05

    class OnCircle(torch.nn.Module):
        def forward(self, images):
            x = images[:, 0, 0, :1] / (2 * HALF_RANGE_STD) * 2 * problem.generator.half_range
            return torch.cat([(angle * x).cos(), (angle * x).sin()], 1)

    rho = problem.perturbation.scale
    temperature = angle**2 * (1 - rho**2) / rho
    settings = _settings(tmp_path, temp=temperature, n_eval_batches=40, eval_pairs=[64])
    (m,) = measure(OnCircle(), problem, 3.0, settings)
    assert m.critic.nats == pytest.approx(m.optimal.nats, rel=0.03)
    assert m.critic.nats <= 3.0 + m.critic.standard_error_nats


def test_refuses_nothing_to_measure(tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        calibrate(_settings(tmp_path, nats=[]))
