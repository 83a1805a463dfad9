"""The rules by which an estimate gets its verdict. Any estimator can use them: they take numbers, not networks.

Each rule looks for one fault. It returns a `Finding`, or None where it finds nothing. `judge` applies every rule for
which it was given the numbers. The first finding, in the order below, is the verdict; the reason names the others too.

| order | rule | verdict | the fault that it looks for |
| --- | --- | --- | --- |
| 1 | `no_number` | not to be trusted | the estimate or an end of its interval is nan, or the estimate is infinite |
| 2 | `near_ceiling` | lower bound, saturated | the estimate lies within log 2 of the most that it can show |
| 3 | `rises_with_candidates` | lower bound, saturated | it was lower with half as many candidates |
| 4 | `still_rising` | not converged | the held-out value still rose in the last quarter of the training |
| 5 | `marginals_differ` | marginals differ | a discriminator tells anchors from positives |
| 6 | `changes_with_n` | not to be trusted | it was different with half as many pairs |
| 7 | `changes_with_seed` | not to be trusted | other seeds of the same training give other numbers |
| 8 | `overfitted` | not to be trusted | training and held-out pairs give different numbers |
| 9 | `rests_on_few_draws` | not to be trusted | a few draws decide a mean of exponentials |
| 10 | `below_floor` | not to be trusted | something that cannot exceed the information is higher (floors.py) |
| 11 | `too_uncertain` | not to be trusted | the interval is wide |

**What the rules promise.** An estimate is *wrong* where it is off by more than 10% of the truth and by more than 0.1
nats, and *right* where it is off by at most 5% of the truth. Of the wrong ones at least 95% must carry a warning, and
of the right ones at most 10%. tests/information/ holds the estimators to it on a few tasks of known truth, and
`scripts/calibrate_information.py` measures it on many.

So a change counts from 7% of the estimate and 0.07 nats on (`tolerance`), between the two. A change that noise explains
(below two standard errors) never counts.

Estimators that take pairs as jointly normal add the findings of `normality.not_normal`, which come after these.

**Noise.** Where nothing is wrong, a rule should fire in at most about one case of twenty. So what a rule compares must
come with the noise of the comparison, not of one of its sides: another network on the same pairs has noise of its own,
and a floor from all pairs does not share that of 25% of them.

**What they cannot see.** A fault that more pairs, more candidates, more training and other seeds do not show: a critic
that cannot express the dependence, or pairs that were copied. A verdict is the absence of known faults, not a proof.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.information.infonce import SATURATION_MARGIN_NATS

RELATIVE_TOLERANCE = 0.07
ABSOLUTE_TOLERANCE_NATS = 0.07
WRONG_RELATIVE, WRONG_NATS, RIGHT_RELATIVE = 0.10, 0.10, 0.05
"""An estimate is wrong beyond both of the first two, and right within the third."""
WIDE_RELATIVE, WIDE_NATS = 0.15, 0.15
"""An interval is wide beyond both, to one side. Noise that makes a 95% interval of this width puts 49% of the estimates
that have no bias within 5% of the truth, and 19% off by more than 10%: with less noise, right ones are more than 2.5
times as frequent as wrong ones, and no rule can tell them apart."""
FEWEST_DRAWS = 30.0
"""Effective draws on which a mean of exponentials must rest."""
LEAST_POINTS = 4
"""Held-out values, at equal distances in training, from which `still_rising` can tell anything."""


class Finding(NamedTuple):
    """A verdict and its reason: one sentence in plain English, without a full stop."""

    verdict: Verdict
    reason: str


CONSISTENT = Finding(Verdict.CONSISTENT, "nothing that was checked speaks against it")


def tolerance(nats: float) -> float:
    """The change of an estimate, in nats, from which on it counts."""
    return max(ABSOLUTE_TOLERANCE_NATS, RELATIVE_TOLERANCE * abs(nats))


def is_wrong(nats: float, truth_nats: float) -> bool:
    """Whether an estimate is off by more than 10% of the truth and by more than 0.1 nats. One that is no finite number
    is wrong."""
    error = abs(nats - truth_nats)
    return not math.isfinite(nats) or (error > WRONG_RELATIVE * abs(truth_nats) and error > WRONG_NATS)


def is_right(nats: float, truth_nats: float) -> bool:
    """Whether an estimate is off by at most 5% of the truth; where the truth is 0, by at most 0.05 nats."""
    return abs(nats - truth_nats) <= RIGHT_RELATIVE * (abs(truth_nats) if truth_nats else 1.0)


# --- the rules ------------------------------------------------------------------------------------------------


def no_number(nats: float, low_nats: float, high_nats: float) -> Finding | None:
    """Rule 1. An infinite end of the interval is none, as bounds have it; a nan is a fault."""
    if math.isfinite(nats) and not math.isnan(low_nats) and not math.isnan(high_nats):
        return None
    return Finding(Verdict.NOT_TRUSTED, f"the estimate is {nats} with the interval {low_nats} to {high_nats}")


def near_ceiling(nats: float, ceiling_nats: float, margin_nats: float = SATURATION_MARGIN_NATS) -> Finding | None:
    """Rule 2. ceiling_nats: the most that the estimator can show: log of the number of candidates for InfoNCE (van den
    Oord et al. 2018, section 2.3), log of the number of draws for Donsker-Varadhan and its relatives (McAllester and
    Stratos 2020, theorem 3.1, up to a constant)."""
    if nats < ceiling_nats - margin_nats:
        return None
    return Finding(
        Verdict.SATURATED,
        f"{nats:.2f} nats are within {margin_nats:.2f} of the ceiling, {ceiling_nats:.2f}: more candidates would raise "
        "it",
    )


def rises_with_candidates(nats: float, with_half: MonteCarloMean) -> Finding | None:
    """Rule 3. with_half: the same critic's value with half as many candidates, and the standard error of the
    difference. What InfoNCE lacks for want of candidates falls as 1 over their number, or slower where scores have long
    tails, so what is still missing is what the last doubling brought, or more: half a tolerance counts."""
    rise = nats - with_half.nats
    if rise <= max(tolerance(nats) / 2, 2 * with_half.standard_error_nats):
        return None
    return Finding(Verdict.SATURATED, f"half as many candidates give {with_half.nats:.2f} nats, so more would raise it")


def still_rising(curve_nats: Sequence[float], standard_error_nats: float = 0.0) -> Finding | None:
    """Rule 4. curve_nats: held-out values at equal distances in training, oldest first, up to the end of training.
    standard_error_nats: that of the mean of a quarter of them, where it is known.

    The rule compares the mean of the last quarter with the quarter before. A rise of half a tolerance counts: what is
    still to come is often more than what the last quarter brought. Fewer than four values say nothing.
    """
    values = [value for value in curve_nats if math.isfinite(value)]
    if len(values) < LEAST_POINTS:
        return None
    quarter = len(values) // 4
    last = statistics.fmean(values[-quarter:])
    rise = last - statistics.fmean(values[-2 * quarter : -quarter])
    if rise <= max(tolerance(last) / 2, 2 * math.sqrt(2) * standard_error_nats):
        return None
    return Finding(
        Verdict.NOT_CONVERGED, f"the held-out value rose by {rise:.2f} nats in the last quarter of the training"
    )


def marginals_differ(nats: float, divergence: MonteCarloMean) -> Finding | None:
    """Rule 5. divergence: the Jensen-Shannon divergence of anchors and positives (0 to log 2), as a discriminator
    finds it. Only for bounds whose candidates come from both sides: they approach the information plus this."""
    if divergence.nats <= max(tolerance(nats), 2 * divergence.standard_error_nats):
        return None
    return Finding(
        Verdict.MARGINALS_DIFFER,
        f"anchors and positives are distributed differently, which may explain up to {divergence.nats:.2f} nats",
    )


def changes_with_n(nats: float, at_half: MonteCarloMean, rate: float = 0.5) -> Finding | None:
    """Rule 6. at_half: the estimate from half as many pairs, and the standard error of the difference.

    rate: the error is taken to fall as n to the power -rate, so what is left is the change over (2**rate - 1). 0.5
    suits parametric fits; estimators by neighbours are slower in many dimensions and give their own.
    """
    change = nats - at_half.nats
    left = change / (2**rate - 1)
    if abs(change) <= 2 * at_half.standard_error_nats or abs(left) <= tolerance(nats):
        return None
    return Finding(
        Verdict.NOT_TRUSTED,
        f"half as many pairs give {at_half.nats:.2f} nats: with more pairs it would move by about {left:+.2f}",
    )


def changes_with_seed(nats: float, other_seeds_nats: Sequence[float]) -> Finding | None:
    """Rule 7. other_seeds_nats: estimates from the same pairs by other seeds."""
    values = [nats, *other_seeds_nats]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    spread = max(values) - min(values)
    if spread <= 2 * tolerance(statistics.fmean(values)):
        return None
    return Finding(
        Verdict.NOT_TRUSTED, f"{len(values)} seeds give {min(values):.2f} to {max(values):.2f} nats for the same pairs"
    )


def overfitted(nats: float, train_nats: float, standard_error_nats: float = 0.0) -> Finding | None:
    """Rule 8. train_nats: the same critic's value on the pairs that it was trained on. standard_error_nats: that of the
    difference.

    The value of the best critic lies between the two in the mean: training pairs flatter the critic that was fitted to
    them, and held-out pairs show its faults. So the gap says how much the number may miss.
    """
    gap = train_nats - nats
    if gap <= max(2 * tolerance(nats), 2 * standard_error_nats):
        return None
    return Finding(
        Verdict.NOT_TRUSTED,
        f"the training pairs give {train_nats:.2f} nats, the held-out ones {nats:.2f}: there are too few pairs",
    )


def rests_on_few_draws(effective_draws: float) -> Finding | None:
    """Rule 9. effective_draws: (sum of w)**2 / sum of w**2, with w the exponentials whose mean an estimate contains
    (Donsker-Varadhan, NWJ). The mean is too small, and the estimate too high, where few draws decide it."""
    if effective_draws >= FEWEST_DRAWS:
        return None
    return Finding(
        Verdict.NOT_TRUSTED,
        f"a mean of exponentials rests on {effective_draws:.0f} effective draws, so the estimate may be too high",
    )


def below_floor(nats: float, floor: MonteCarloMean, found_by: str, standard_error_nats: float = 0.0) -> Finding | None:
    """Rule 10. floor: an estimate that errs downwards, with its standard error (floors.py). found_by: its source.
    standard_error_nats: that of the estimate, where it comes from fewer pairs than the floor, so that the noise of one
    is not that of the other."""
    noise = math.hypot(floor.standard_error_nats, standard_error_nats)
    if floor.nats - nats <= max(tolerance(floor.nats), 2 * noise):
        return None
    return Finding(Verdict.NOT_TRUSTED, f"{found_by} give {floor.nats:.2f} nats")


def too_uncertain(nats: float, low_nats: float, high_nats: float) -> Finding | None:
    """Rule 11. The wider side of the 95% interval must not pass 15% of the estimate and 0.15 nats (`WIDE_NATS`). The
    upper side of a lower bound, which is infinite, does not count."""
    width = max(nats - low_nats, 0.0 if high_nats == math.inf else high_nats - nats)
    if width <= max(WIDE_NATS, WIDE_RELATIVE * abs(nats)):
        return None
    return Finding(Verdict.NOT_TRUSTED, f"its interval is wide: {width:.2f} nats to one side")


# --- all of them ----------------------------------------------------------------------------------------------


def findings(
    nats: float,
    low_nats: float,
    high_nats: float,
    *,
    ceiling_nats: float | None = None,
    with_half_candidates: MonteCarloMean | None = None,
    curve_nats: Sequence[float] = (),
    curve_error_nats: float = 0.0,
    marginals: MonteCarloMean | None = None,
    at_half_n: MonteCarloMean | None = None,
    rate: float = 0.5,
    other_seeds_nats: Sequence[float] = (),
    train_nats: float | None = None,
    train_error_nats: float = 0.0,
    effective_draws: float | None = None,
    floors: Mapping[str, MonteCarloMean] | None = None,
    floor_error_nats: float = 0.0,
) -> list[Finding]:
    """What every rule finds for which there are numbers, in the order of the rules. See each rule for its arguments."""
    if (nothing := no_number(nats, low_nats, high_nats)) is not None:
        return [nothing]
    found = [
        None if ceiling_nats is None else near_ceiling(nats, ceiling_nats),
        None if with_half_candidates is None else rises_with_candidates(nats, with_half_candidates),
        still_rising(curve_nats, curve_error_nats),
        None if marginals is None else marginals_differ(nats, marginals),
        None if at_half_n is None else changes_with_n(nats, at_half_n, rate),
        changes_with_seed(nats, other_seeds_nats),
        None if train_nats is None else overfitted(nats, train_nats, train_error_nats),
        None if effective_draws is None else rests_on_few_draws(effective_draws),
        *(below_floor(nats, floor, name, floor_error_nats) for name, floor in (floors or {}).items()),
        too_uncertain(nats, low_nats, high_nats),
    ]
    return [finding for finding in found if finding is not None]


def decide(found: Sequence[Finding]) -> Finding:
    """The first finding, with the reasons of all; `CONSISTENT` where there is none."""
    if not found:
        return CONSISTENT
    return Finding(found[0].verdict, "; ".join(finding.reason for finding in found))


def judge(nats: float, low_nats: float, high_nats: float, **checks: object) -> Finding:
    """The verdict of an estimate with its 95% interval. `checks` are the keyword arguments of `findings`.

    verdict, reason = judge(4.5, 4.4, math.inf, ceiling_nats=math.log(127))
    """
    return decide(findings(nats, low_nats, high_nats, **checks))  # type: ignore[arg-type]
