"""The rules of the verdict, one by one, and their order."""

import math

import pytest

from mi_ml_gen.information import verdicts
from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.information.verdicts import Finding


@pytest.mark.parametrize(
    ("nats", "truth", "wrong", "right"),
    [
        (1.0, 1.0, False, True),
        (1.04, 1.0, False, True),
        (1.08, 1.0, False, False),
        (1.2, 1.0, True, False),
        (0.15, 0.1, False, False),  # far off in percent, but by 0.05 nats
        (0.04, 0.0, False, True),
        (0.06, 0.0, False, False),
        (0.2, 0.0, True, False),
        (10.4, 10.0, False, True),
        (8.5, 10.0, True, False),
        (math.nan, 1.0, True, False),
        (math.inf, 1.0, True, False),
    ],
)
def test_wrong_and_right(nats, truth, wrong, right):
    assert verdicts.is_wrong(nats, truth) is wrong
    assert verdicts.is_right(nats, truth) is right


CHECKS = [
    # rule, arguments that show nothing, arguments that show its fault, its verdict
    (verdicts.no_number, (1.0, 0.9, math.inf), (math.nan, 0.9, 1.1), Verdict.NOT_TRUSTED),
    (verdicts.near_ceiling, (4.0, math.log(127)), (4.3, math.log(127)), Verdict.SATURATED),
    (
        verdicts.rises_with_candidates,
        (3.0, MonteCarloMean(2.9, 0.01)),
        (3.0, MonteCarloMean(2.7, 0.01)),
        Verdict.SATURATED,
    ),
    (
        verdicts.still_rising,
        ([0, 1, 2, 2.6, 2.9, 3, 3, 3],),
        ([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5],),
        Verdict.NOT_CONVERGED,
    ),
    (
        verdicts.marginals_differ,
        (2.0, MonteCarloMean(0.05, 0.01)),
        (2.0, MonteCarloMean(0.4, 0.01)),
        Verdict.MARGINALS_DIFFER,
    ),
    (
        verdicts.changes_with_n,
        (1.0, MonteCarloMean(0.98, 0.001)),
        (1.0, MonteCarloMean(0.9, 0.01)),
        Verdict.NOT_TRUSTED,
    ),
    (verdicts.changes_with_seed, (1.0, [1.02, 0.99]), (4.67, [1.60, 4.80]), Verdict.NOT_TRUSTED),
    (verdicts.overfitted, (1.0, 1.1), (1.0, 1.5), Verdict.NOT_TRUSTED),
    (verdicts.rests_on_few_draws, (100.0,), (3.0,), Verdict.NOT_TRUSTED),
    (
        verdicts.below_floor,
        (1.0, MonteCarloMean(1.05, 0.01), "neighbours"),
        (0.2, MonteCarloMean(1.0, 0.01), "neighbours"),
        Verdict.NOT_TRUSTED,
    ),
    (verdicts.too_uncertain, (1.0, 0.86, math.inf), (1.0, 0.84, math.inf), Verdict.NOT_TRUSTED),
    (verdicts.too_uncertain, (4.0, 3.9, 4.55), (4.0, 3.9, 4.65), Verdict.NOT_TRUSTED),
]


@pytest.mark.parametrize(
    ("rule", "sound", "faulty", "verdict"), CHECKS, ids=lambda value: getattr(value, "__name__", "")
)
def test_each_rule_finds_its_fault_and_nothing_else(rule, sound, faulty, verdict):
    assert rule(*sound) is None
    found = rule(*faulty)
    assert found.verdict is verdict
    assert found.reason and not found.reason.endswith(".")


def test_noise_is_no_change():
    assert verdicts.rises_with_candidates(3.0, MonteCarloMean(2.7, 0.2)) is None
    assert verdicts.changes_with_n(1.0, MonteCarloMean(0.9, 0.06)) is None
    assert verdicts.marginals_differ(1.0, MonteCarloMean(0.1, 0.06)) is None
    assert verdicts.still_rising([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5], standard_error_nats=1.0) is None
    assert verdicts.overfitted(1.0, 1.5, standard_error_nats=0.4) is None
    assert verdicts.below_floor(0.2, MonteCarloMean(1.0, 0.5), "neighbours") is None
    assert verdicts.below_floor(0.2, MonteCarloMean(1.0, 0.01), "neighbours", standard_error_nats=0.5) is None
    assert (
        verdicts.findings(0.2, 0.1, 0.3, floors={"neighbours": MonteCarloMean(1.0, 0.01)}, floor_error_nats=0.5) == []
    )


def test_a_slower_estimator_has_more_left_to_move():
    at_half = MonteCarloMean(0.975, 0.001)
    assert verdicts.changes_with_n(1.0, at_half, rate=0.5) is None
    assert verdicts.changes_with_n(1.0, at_half, rate=0.1).verdict is Verdict.NOT_TRUSTED


def test_short_or_broken_curves_say_nothing():
    assert verdicts.still_rising([0.0, 1.0, 2.0]) is None
    assert verdicts.still_rising([0.0, 1.0, 2.0, 3.0]) is not None
    assert verdicts.still_rising([math.nan] * 20) is None


def test_one_seed_says_nothing_about_seeds():
    assert verdicts.changes_with_seed(1.0, []) is None


def test_the_first_rule_decides_and_all_reasons_are_named():
    verdict, reason = verdicts.judge(
        4.5, 4.4, math.inf, ceiling_nats=math.log(127), other_seeds_nats=[1.0], curve_nats=range(10)
    )
    assert verdict is Verdict.SATURATED
    assert "ceiling" in reason and "last quarter" in reason and "seeds" in reason


def test_what_passes_every_rule_is_consistent():
    verdict, reason = verdicts.judge(
        1.0, 0.95, 1.05, ceiling_nats=5.0, with_half_candidates=MonteCarloMean(0.99, 0.01), curve_nats=[1.0] * 20,
        marginals=MonteCarloMean(0.0, 0.01), at_half_n=MonteCarloMean(0.99, 0.02), other_seeds_nats=[1.01, 0.98],
        train_nats=1.05, effective_draws=500.0,
    )  # fmt: skip
    assert (verdict, reason) == verdicts.CONSISTENT
    assert not verdict.is_warning


def test_no_number_stands_alone():
    assert verdicts.findings(math.nan, math.nan, math.nan, ceiling_nats=1.0) == [
        Finding(Verdict.NOT_TRUSTED, "the estimate is nan with the interval nan to nan")
    ]


def test_an_interval_without_finite_ends_is_too_uncertain():
    assert verdicts.judge(1.0, -math.inf, math.inf).verdict is Verdict.NOT_TRUSTED
