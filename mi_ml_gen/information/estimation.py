"""The one call that runs any estimator of mutual information.

from mi_ml_gen.information import estimate_information

estimate = estimate_information(x, y)                       # (n, d_x) and (n, d_y), arrays or tensors
print(estimate)                                             # 1.98 nats (95% interval 1.94 to 2.02): consistent
estimate_information(x, y, "infonce", critic="joint")       # options are the fields of the estimator's class
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.information.estimate import Estimate
from mi_ml_gen.information.registry import DEFAULT_ESTIMATOR, ESTIMATORS


def estimate_information(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    estimator: str = DEFAULT_ESTIMATOR,
    *,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    progress: bool = False,
    **options: Any,
) -> Estimate:
    """Estimate I(x; y) in nats, with a 95% interval and a verdict, from independent pairs.

    x: (n, d_x) or (n,), y: (n, d_y) or (n,), real numbers. estimator: a name of the registry (`ESTIMATORS`), or
    FILE.py:CLASS. seed: of what is random: initial weights, the split into training and held-out pairs. device: where
    networks are trained. progress: show a bar. options: fields of the estimator's class.

    The same arguments give the same estimate on the same machine. Raises UsageError for another shape, for values that
    are not finite real numbers, for too few pairs, and for an unknown estimator or option.
    """
    cls = ESTIMATORS[estimator]
    known: list[str] = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    for option in options:
        if option not in known:
            raise UsageError(f"estimator {estimator} has no option {option!r}{nearest(option, known, 'option')}")
    a, b = _pairs(x, "x"), _pairs(y, "y")
    if len(a) != len(b):
        raise UsageError(f"x holds {len(a)} points and y {len(b)}: they must come in pairs")
    if len(a) < cls.fewest:
        raise UsageError(f"{len(a)} pairs: estimator {estimator} needs at least {cls.fewest}")
    return cls(**options).estimate(a, b, seed, runtime.resolve_device(device), progress)


def _pairs(values: Any, name: str) -> Tensor:
    """(n, d) in float64 on the CPU."""
    try:
        points = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: must be an array of numbers ({error})") from error
    if points.is_complex():
        raise UsageError(f"{name} holds complex numbers: give real and imaginary parts as two columns")
    points = points.double()
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] < 1:
        raise UsageError(f"{name} of shape {tuple(points.shape)}: must be (n, d) or (n,)")
    if n_bad := int((~points.isfinite()).sum()):
        raise UsageError(f"{name} holds {n_bad} values that are not finite (nan or infinite): remove those pairs")
    return points
