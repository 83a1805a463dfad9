"""Which walker of a run is kept, and when a run ends (docs/navigator.md)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from mi_ml_gen import delta
from mi_ml_gen.core import cli
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import verdicts
from mi_ml_gen.information.estimate import MonteCarloMean, Verdict
from mi_ml_gen.information.infonce import infonce_bound
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.spread import over_walkers
from mi_ml_gen.walkers.base import Walker

SMOOTHING_STEPS = 16
"""Half-life of the smoothed loss and delta, in steps."""


class Selection(NamedTuple):
    """The checkpoint that a run is represented by."""

    samples: int
    reason: str


LEAST_RISE = 0.05
"""A smoothed loss that has risen by less than this from its trough has not turned: batches differ by as much."""
RISE = 0.8
"""Share of the loss's rise from its trough that the selected walker must have reached for good."""


def select_checkpoint(rows: Sequence[dict[str, Any]], independent: float) -> Selection:
    """The saved walker to keep, from rows of metrics; a rule in place of a look at the curves.

    The critic first learns to tell the pairs (the loss falls to a trough), then the walker takes information away
    (it rises). Kept is the earliest walker after the trough from which on the smoothed loss never again lies below
    80% of the rise to its last value: what is gained later is little, and is paid for with a longer perturbation; a
    critic that stumbles for a moment counts for nothing. Walkers whose delta, smoothed or not (it may grow faster than
    a mean follows), exceeds `independent`, the length between independent draws, have left what the generator knows
    and are out.
    """
    saved = [row for row in rows if row["saved"]]
    if not saved:
        raise UsageError("no walker has been saved yet")
    within = [row for row in saved if max(row["delta"], row["smoothed_delta"]) <= independent]
    if not within:
        return Selection(
            saved[0]["samples"], "every walker perturbs further than independent draws lie apart: the first"
        )
    trough = min(range(len(within)), key=lambda i: within[i]["smoothed_loss"])
    after = within[trough:]
    lasting = list(accumulate((row["smoothed_loss"] for row in reversed(after)), min))[::-1]  # least from here on
    low, high = lasting[0], lasting[-1]
    chosen = next(row for row, loss in zip(after, lasting, strict=True) if loss >= low + RISE * (high - low))
    if high - low < LEAST_RISE:
        return Selection(
            chosen["samples"], f"though the loss has not turned: from its trough, {low:.3f}, it came to {high:.3f}"
        )
    reason = f"the first that keeps {RISE:.0%} of the loss's rise from its trough, {low:.3f}, to {high:.3f}"
    return Selection(chosen["samples"], reason)


def should_stop(rows: Sequence[dict[str, Any]], settings: NavigatorConfig, independent: float) -> str | None:
    """Why a run should end after the last of these rows, or None. Nothing stops it before the least of samples."""
    saved = [row for row in rows if row["saved"]]
    now = rows[-1]
    if now["samples"] <= settings.early_stopping_min_steps:
        return None
    threshold = settings.early_stopping_threshold
    if threshold is not None and now["smoothed_loss"] > threshold:
        return f"the smoothed loss {now['smoothed_loss']:.3f} is above the threshold {threshold:g}"
    if settings.patience is None:
        return None
    if now["smoothed_delta"] > 1.25 * independent:
        return f"delta {now['smoothed_delta']:.3f} is beyond 1.25 times that of independent draws, {independent:.3f}"
    trough = min(range(len(saved)), key=lambda i: saved[i]["smoothed_loss"])
    peak = max(saved[trough:], key=lambda row: row["smoothed_loss"])
    if now["samples"] - peak["samples"] >= settings.patience:
        return f"the smoothed loss has not risen for {now['samples'] - peak['samples']:,} samples"
    return None


def near(rows: Sequence[dict[str, Any]], samples: int, window: int = 2 * SMOOTHING_STEPS) -> dict[str, float]:
    """Means of loss and bound over the rows within `window` steps before and after a checkpoint."""
    step = min(rows, key=lambda row: abs(row["samples"] - samples))["step"]
    close = [row for row in rows if abs(row["step"] - step) <= window]
    return {key: sum(row[key] for row in close) / len(close) for key in ("loss", "bound_nats")}


def summary(
    rows: Sequence[dict[str, Any]],
    selection: Selection,
    independent: delta.DeltaEstimate,
    n_pairs: int,
    temperature: float,
    reason: str,
) -> dict[str, Any]:
    """What a run came to, as plain values: the content of summary.json."""
    at = near(rows, selection.samples)
    bound = infonce_bound(at["loss"], n_pairs, temperature)
    return {
        "selected_samples": selection.samples,
        "selected_because": selection.reason,
        "stopped_because": reason,
        "trained_samples": rows[-1]["samples"],
        "infonce": at["loss"],
        "bound_nats": bound.nats,
        "ceiling_nats": bound.ceiling_nats,
        "bound_is_saturated": bound.saturated,
        "independent_delta": independent.mean,
        "n_candidates": 2 * n_pairs - 1,
        "chance_infonce": bound.ceiling_nats * temperature / 0.07,
    }


# ---------------------------------------------------------------------------------------------------------------
# The answer at the end of a run

STILL_RISING = 0.1
"""Share of the loss's rise that the last fifth of a run may add, if it is to count as converged."""


def convergence(rows: Sequence[dict[str, Any]], stopped_by_rule: bool) -> tuple[bool, str]:
    """Whether a run was long enough, from its rows of metrics, and the reason in words.

    It was where a stopping rule ended it, or where the smoothed loss, in the mean over the last fifth of the saved
    walkers, lies above that of the fifth before by at most STILL_RISING of its rise from the trough. A loss that has
    not risen by LEAST_RISE has not turned yet.
    """
    if stopped_by_rule:
        return True, "a stopping rule ended the training"
    losses = [row["smoothed_loss"] for row in rows if row["saved"]]
    fifth = len(losses) // 5
    if fifth == 0:
        return False, f"{len(losses)} saved walkers are too few to tell"
    last, before = fmean(losses[-fifth:]), fmean(losses[-2 * fifth : -fifth])
    if losses.index(min(losses)) >= len(losses) - fifth:
        return False, "the critic was still learning to recognise pairs: the loss was still falling"
    if last - min(losses) < LEAST_RISE:
        return False, "the loss has not turned: the walker has not yet removed any information"
    if last - before > STILL_RISING * (last - min(losses)):
        return False, "the walker was still removing information: the loss was still rising"
    return True, "the loss had stopped rising"


def answer(
    rows: Sequence[dict[str, Any]],
    walker: Walker,
    measured: delta.DeltaEstimate,
    independent: delta.DeltaEstimate,
    stopped_by_rule: bool,
    path: Path,
) -> dict[str, Any]:
    """What a run found, as plain values for summary.json: delta, its scale, convergence, and the next command.

    walker, measured: the selected walker and its delta. independent: the length between independent draws.
    path: the run folder.
    """
    converged, why = convergence(rows, stopped_by_rule)
    return {
        "delta": measured.mean,
        "delta_std": measured.std,
        "delta_of_independent": measured.mean / independent.mean,
        "converged": converged,
        "convergence": why,
        "walker_kind": walker.config()["kind"],
        "walker_parameters": sum(parameter.numel() for parameter in walker.parameters()),
        "next_command": cli.command("visualize_walker", "--run", str(path)),
    }


NOT_CHECKED = (
    f"up to {math.log(2):.2f} nats of the bound may say that positives look like no anchor, which was not checked"
)
"""What is said of a bound whose candidates come from both sides."""


def bound_finding(
    bound_nats: float,
    ceiling_nats: float,
    converged: bool,
    why: str,
    from_both_sides: bool = True,
    marginals: MonteCarloMean | None = None,
) -> verdicts.Finding:
    """Whether the bound of the critic that trained against the walker may be believed.

    Only what its own run shows enters: its ceiling, whether the training converged, and how far anchors and positives
    differ. from_both_sides: whether they are candidates together, as with one walker. Then up to log 2 nats of the
    bound may say that positives look like no anchor. marginals: what a discriminator finds of that; None where it was
    not looked for, and the reason says so. A fresh critic has no such part.
    """
    found = [verdicts.near_ceiling(bound_nats, ceiling_nats)]
    if not converged:
        found.append(verdicts.Finding(Verdict.NOT_CONVERGED, why))
    if marginals is not None:
        found.append(verdicts.marginals_differ(bound_nats, marginals))
    verdict, reason = verdicts.decide([finding for finding in found if finding is not None])
    if from_both_sides and marginals is None:
        reason = f"{reason}; {NOT_CHECKED}"
    return verdicts.Finding(verdict, reason)


def recorded_marginals(summary: Mapping[str, Any]) -> MonteCarloMean | None:
    """What a run's summary.json says of the difference of anchors and positives; None where it was not measured."""
    found = summary.get("marginals")
    return None if found is None else MonteCarloMean(found["nats"], found["standard_error_nats"])


def finding_of(summary: Mapping[str, Any]) -> verdicts.Finding:
    """`bound_finding` of a run of one walker, from its summary.json."""
    bound, ceiling, converged, why = (summary[k] for k in ("bound_nats", "ceiling_nats", "converged", "convergence"))
    return bound_finding(bound, ceiling, converged, why, marginals=recorded_marginals(summary))


PLURALS = {"loss": "losses", "delta": "deltas", "smoothed_loss": "smoothed_losses", "smoothed_delta": "smoothed_deltas"}
"""Names of the lists in a row of metrics that hold a value of each of several walkers."""


def of_walker(rows: Sequence[dict[str, Any]], walker: int) -> list[dict[str, Any]]:
    """Rows of metrics as they would be of one of several walkers alone; the bound is log of the batch less the loss."""
    own = []
    for row in rows:
        values = {name: row[plural][walker] for name, plural in PLURALS.items()}
        own.append(row | values | {"bound_nats": row["bound_nats"] + row["loss"] - values["loss"]})
    return own


def several_answer(
    rows: Sequence[dict[str, Any]],
    selections: Sequence[Selection],
    measured: Sequence[delta.DeltaEstimate],
    independent: delta.DeltaEstimate,
    n_pairs: int,
    reason: str,
    median: int,
    walker: Walker,
    path: Path,
) -> dict[str, Any]:
    """What a run of several walkers found, as plain values for summary.json.

    selections, measured: of each walker. independent: the length between independent draws. n_pairs: candidates of each
    anchor. median: the walker that stands for the run in walker.safetensors. walker: one of them. path: the run folder.
    """
    mean = over_walkers([one.mean for one in measured], [one.standard_error for one in measured])
    assert mean is not None
    each: list[dict[str, Any]] = []
    for i, (selection, found) in enumerate(zip(selections, measured, strict=True)):
        own = of_walker(rows, i)
        at = near(own, selection.samples)
        converged, why = convergence(own, stopped_by_rule=False)
        bound = at["bound_nats"]
        finding = bound_finding(bound, math.log(n_pairs), converged, why, from_both_sides=False)
        each.append(
            {"selected_samples": selection.samples, "selected_because": selection.reason, "delta": found.mean,
             "delta_std": found.std, "bound_nats": bound, "bound_verdict": str(finding.verdict),
             "bound_verdict_because": finding.reason, "converged": converged, "convergence": why}
        )  # fmt: skip
    left = [one["convergence"] for one in each if not one["converged"]]
    highest = max(one["bound_nats"] for one in each)  # the first to be saturated
    whole = bound_finding(highest, math.log(n_pairs), not left, left[0] if left else "", from_both_sides=False)
    return {
        "walkers": each,
        "n_walkers": len(each),
        "delta": mean.mean,
        "delta_interval": [mean.low, mean.high],
        "delta_of_independent": mean.mean / independent.mean,
        "independent_delta": independent.mean,
        "converged": not left,
        "convergence": f"{len(left)} of {len(each)} walkers have not: {left[0]}"
        if left
        else "all walkers' losses had stopped rising",
        "stopped_because": reason,
        "trained_samples": rows[-1]["samples"],
        "bound_nats": statistics.fmean(one["bound_nats"] for one in each),
        "bound_verdict": str(whole.verdict),
        "bound_verdict_because": whole.reason,
        "ceiling_nats": math.log(n_pairs),
        "median_walker": median,
        "selected_samples": selections[median].samples,
        "walker_kind": walker.config()["kind"],
        "walker_parameters": sum(parameter.numel() for parameter in walker.parameters()),
        "next_command": cli.command("visualize_walker", "--run", str(path)),
    }


def several_report(summary: Mapping[str, Any]) -> list[str]:
    """The lines that a run of several walkers ends with, from the content of summary.json."""
    s = summary
    low, high = s["delta_interval"]
    longer = f"; the same command with --num_samples {2 * s['trained_samples']} continues from here"
    return [
        f"stopped: {s['stopped_because']}",
        *(
            f"walker {i}: delta {one['delta']:.3f} after {one['selected_samples']:,} samples, "
            f"{one['selected_because']}; its critic finds {one['bound_nats']:.2f} nats ({one['bound_verdict']})"
            for i, one in enumerate(s["walkers"])
        ),
        f"delta: {s['delta']:.3f} (95% interval {low:.3f} to {high:.3f} over {s['n_walkers']} walkers), "
        f"{s['delta_of_independent']:.1%} of the distance between independent draws ({s['independent_delta']:.3f})",
        f"converged: {s['convergence']}" if s["converged"] else f"not yet converged: {s['convergence']}{longer}",
        f"next: {s['next_command']}",
    ]


def report(summary: Mapping[str, Any]) -> list[str]:
    """The lines that a run ends with, from the content of summary.json."""
    s = summary
    bound = (
        f"bound: the critic finds {s['bound_nats']:.2f} nats of information shared by anchor and positive; "
        f"{s['n_candidates']} candidates can show at most {s['ceiling_nats']:.2f}"
    )
    delta_line = (
        f"delta: {s['delta']:.3f} \N{PLUS-MINUS SIGN} {s['delta_std']:.3f} over anchors, "
        f"{s['delta_of_independent']:.1%} of the distance between independent draws ({s['independent_delta']:.3f})"
    )
    finding = finding_of(s)
    if s["bound_is_saturated"]:
        bound += ". The bound is saturated: a larger --batch_size could show more"
    elif finding.verdict.is_warning:
        bound += f" ({finding.verdict})"
    longer = f"; the same command with --num_samples {2 * s['trained_samples']} continues from here"
    return [
        f"stopped: {s['stopped_because']}",
        f"selected: the walker of {s['selected_samples']:,} samples, {s['selected_because']}",
        delta_line,
        bound,
        f"converged: {s['convergence']}" if s["converged"] else f"not yet converged: {s['convergence']}{longer}",
        f"next: {s['next_command']}",
    ]
