"""Floors: numbers that a right estimate does not fall below, on pairs whose information is known."""

import pytest
import torch

from mi_ml_gen.information import copula
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.floors import coordinate_floor, floors, gaussian_floor, one_number_floors
from mi_ml_gen.information.tasks import bmi_tasks, make_task


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def student():
    return next(task for task in bmi_tasks() if task.name == "student-identity-5-5-2")


def every_floor(task, n, seed=0):
    x, y = task.sample(n, rng(seed))
    pairs = copula.canonical(x, y)
    return floors(x, y, pairs, copula.gaussian_part(pairs))


@pytest.mark.parametrize(
    ("name", "nats", "dim"),
    [("normal", 2.0, 2), ("additive-uniform", 2.0, 3), ("spiral", 1.0, 3), ("tangled", 1.0, 4), ("student", 1.0, 2),
     ("normal-dense", 1.0, 8), ("clusters", 1.5, 2), ("normal-first", 1.0, 10), ("gamma-exponential", 1.0, 10),
     ("normal", 0.0, 20)],
)  # fmt: skip
def test_no_floor_is_above_the_truth(name, nats, dim):
    found = every_floor(make_task(name, nats, dim), 2000)
    assert len(found) >= 2
    for what, floor in found.items():
        assert floor.nats - 2.6 * floor.standard_error_nats < nats, (what, floor)


def test_lengths_tell_of_a_common_scale():
    """All of this information is in the lengths: x and y are independent but for one common factor."""
    task = student()
    floor = every_floor(task, 3000)["the lengths of x and of y alone"]
    assert floor.nats == pytest.approx(task.nats, abs=2.6 * floor.standard_error_nats)
    estimate = estimate_information(*task.sample(1500, rng()), "ksg")
    assert estimate.nats < 0.3 and "the lengths of x and of y alone give" in estimate.reason


def test_independent_coordinates_are_added_up():
    """The information of two sides is the sum over pairs here, which no linear map of all coordinates shows."""
    task = make_task("additive-uniform", 2.0, 5)
    x, y = task.sample(2000, rng())
    floor = coordinate_floor(x, y[:, [2, 0, 1, 4, 3]])
    assert floor.nats == pytest.approx(2.0, abs=2.6 * floor.standard_error_nats + 0.1)
    estimate = estimate_information(x, y, "gaussian")
    assert estimate.nats < 1.4 and "single coordinates, added up, give" in estimate.reason


def test_coordinates_that_depend_on_one_another_are_not_added_up():
    x, y = make_task("normal-dense", 1.0, 3).sample(1000, rng())
    assert coordinate_floor(x, y) is None
    # One side with independent coordinates is enough: the information with each of them adds up.
    assert coordinate_floor(x, torch.cat([y[:, :1], torch.randn(1000, 1, generator=rng(1)).double()], 1)) is not None


def test_nothing_is_added_up_where_nothing_depends():
    for seed in range(10):
        assert coordinate_floor(*make_task("normal", 0.0, 6).sample(500, rng(seed))) is None


def test_single_numbers_and_repeated_values_have_no_such_floor():
    x, y = make_task("normal", 1.0, 1).sample(500, rng())
    assert one_number_floors(x, y, copula.canonical(x, y)) == {}
    x, y = (side.round() for side in make_task("normal", 1.0, 2).sample(500, rng()))
    pairs = copula.canonical(x, y)
    assert one_number_floors(x, y, pairs) == gaussian_floor(pairs, copula.gaussian_part(pairs)) == {}
