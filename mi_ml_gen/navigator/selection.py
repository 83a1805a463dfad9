"""Which walker of a run is kept, and when a run ends (docs/navigator.md)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from mi_ml_gen import delta
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.infonce import infonce_bound
from mi_ml_gen.navigator.settings import NavigatorConfig

SMOOTHING_STEPS = 16
"""Half-life of the smoothed loss and delta, in steps."""


class Selection(NamedTuple):
    """The checkpoint that a run is represented by."""

    samples: int
    reason: str


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
