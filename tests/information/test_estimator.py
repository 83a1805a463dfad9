"""The one call, the registry, and verdicts on tasks of known truth."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.estimate import Estimate, Verdict
from mi_ml_gen.information.estimation import estimate_information
from mi_ml_gen.information.estimator import Estimator
from mi_ml_gen.information.registry import DEFAULT_ESTIMATOR, ESTIMATORS, register_estimator
from mi_ml_gen.information.tasks import make_task
from mi_ml_gen.information.verdicts import is_right, is_wrong


def pairs(nats=1.0, dim=1, n=400, seed=0, name="normal"):
    return make_task(name, nats, dim).sample(n, torch.Generator().manual_seed(seed))


def test_every_name_has_a_class_that_knows_it_and_says_what_it_assumes():
    assert DEFAULT_ESTIMATOR in ESTIMATORS
    for name in ESTIMATORS.names():
        cls = ESTIMATORS[name]
        assert cls.name == name and issubclass(cls, Estimator)
        assert cls.assumes.endswith(".") and cls.__doc__
        cls()


def test_nothing_is_printed_below_nought_that_rounds_to_it():
    some = Estimate(-0.001, -0.004, 0.003, 300, "ksg", "", Verdict.CONSISTENT, "")
    assert str(some) == "0.00 nats (95% interval 0.00 to 0.00): consistent"
    assert str(dataclasses.replace(some, low_nats=-0.006, high_nats=math.inf)).startswith(
        "0.00 nats (at least -0.01 at"
    )


def test_arrays_lists_and_tensors_give_the_same():
    x, y = pairs()
    expected = estimate_information(x, y, "ksg")
    assert estimate_information(x.numpy(), y.float().double().numpy(), "ksg").nats == pytest.approx(expected.nats)
    assert estimate_information(x[:, 0], y[:, 0].tolist(), "ksg") == expected
    assert expected.estimator == "ksg" and expected.n == 400


def test_the_seed_fixes_the_estimate():
    x, y = pairs(n=300)
    first, again, other = (estimate_information(x, y, "infonce", seed=seed, n_steps=20) for seed in (3, 3, 4))
    assert first == again
    assert first.nats != other.nats


def test_the_sides_may_change_places():
    x, y = make_task("normal", 1.0, 3).sample(1000, torch.Generator().manual_seed(0))
    one, other = (estimate_information(*both, "doe", n_steps=50) for both in ((x, y[:, :1]), (y[:, :1], x)))
    assert one.nats == pytest.approx(other.nats, abs=0.02)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((50, 2, 2)), np.zeros(50), r"x of shape \(50, 2, 2\): must be \(n, d\) or \(n,\)"),
        (np.zeros(50), np.zeros(51), "x holds 50 points and y 51: they must come in pairs"),
        (np.full(50, np.nan), np.zeros(50), "x holds 50 values that are not finite"),
        (np.zeros(50, complex), np.zeros(50), "x holds complex numbers"),
        (np.zeros(10), np.zeros(10), "10 pairs: estimator gaussian needs at least 20"),
        (np.array(["a"] * 50), np.zeros(50), "x: must be an array of numbers"),
        (np.zeros((50, 0)), np.zeros(50), r"x of shape \(50, 0\)"),
    ],
)
def test_bad_pairs_are_refused(x, y, message):
    with pytest.raises(UsageError, match=message):
        estimate_information(x, y, "gaussian")


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UsageError, match="estimator kgs: must be one of ksg"):
        estimate_information(*pairs(), "kgs")
    with pytest.raises(UsageError, match="estimator infonce has no option 'critics'; nearest known option: critic"):
        estimate_information(*pairs(), "infonce", critics="joint")


def test_a_users_estimator_joins_the_registry():
    class Constant(Estimator):
        assumes = "Nothing."

        def estimate(self, x, y, seed, device, progress):
            return self.result(1.0, 0.9, 1.1, len(x), [])

    register_estimator("constant")(Constant)
    try:
        estimate = estimate_information(*pairs(), "constant")
        assert isinstance(estimate, Estimate) and estimate.verdict is Verdict.CONSISTENT
    finally:
        ESTIMATORS._entries.pop("constant")
        ESTIMATORS._order.pop("constant")


def test_too_many_dimensions_for_ksg_are_not_trusted():
    estimate = estimate_information(*pairs(4.0, 20, 1000), "ksg")
    assert estimate.nats < 1.5 and estimate.verdict.is_warning


def test_ksg_takes_discrete_and_mixed_pairs_at_their_word():
    estimate = estimate_information(*pairs(1.2, 1, 2000, name="normal-and-bits"), "ksg")
    assert estimate.nats == pytest.approx(1.2, abs=0.12) and "correlations" not in estimate.reason


TASKS = [("normal", 0.0, 1), ("normal", 3.0, 3), ("half-cube", 2.0, 2), ("student", 1.0, 2), ("spiral", 2.0, 2),
         ("additive-uniform", 1.0, 1), ("clusters", 1.5, 1), ("normal", 6.0, 10), ("wiggly", 1.0, 20)]  # fmt: skip
CHEAP = [(name, *task) for task in TASKS for name in ("gaussian", "ksg")]
TRAINED = [("doe", "normal", 3.0, 3), ("doe", "additive-uniform", 1.0, 1), ("doe", "spiral", 2.0, 2)]


def test_verdicts_warn_of_wrong_numbers_and_seldom_of_right_ones():
    """21 estimates from 2,000 pairs: no wrong number may pass, and two right ones may be warned of."""
    missed, warned, n_right, n_wrong = [], [], 0, 0
    for estimator, name, nats, dim in CHEAP + TRAINED:
        options = {"n_steps": 200, "hidden": 32} if estimator == "doe" else {}
        estimate = estimate_information(*pairs(nats, dim, 2000, 0, name), estimator, **options)
        told = f"{name} {nats:g} nats {dim} + {dim}, {estimator}: {estimate}: {estimate.reason}"
        if is_wrong(estimate.nats, nats):
            n_wrong += 1
            missed += [told] * (not estimate.verdict.is_warning)
        elif is_right(estimate.nats, nats):
            n_right += 1
            warned += [told] * estimate.verdict.is_warning
    assert n_right >= 8 and n_wrong >= 4
    assert not missed, missed
    assert len(warned) <= 2, warned
