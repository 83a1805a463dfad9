"""The estimators of mutual information by name; this file imports no torch.

An estimator of the package is a function here that imports it when it is asked for. A user's enters by
`@register_estimator("mine")` in any file that is imported, by an entry point of the group "mi_ml_gen.information", or
as --estimator path/to/file.py:Mine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry, short_name

if TYPE_CHECKING:
    from mi_ml_gen.information.estimator import Estimator

E = TypeVar("E", bound="type[Estimator]")

DEFAULT_ESTIMATOR = "doe"
"""The one that the calibration page bears out: see docs/information.md."""


def _estimator_of_class(name: str, found: Any) -> type[Estimator]:
    from mi_ml_gen.information.estimator import Estimator

    if not (isinstance(found, type) and issubclass(found, Estimator)):
        raise UsageError(f"--estimator {name}: must be a class derived from mi_ml_gen.information.Estimator")
    if "name" not in vars(found):
        found.name = short_name(name)
    return found


ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator", "--estimator", "mi_ml_gen.information", _estimator_of_class
)
"""Classes of estimators by name; a class knows its own as `name`."""


def register_estimator(name: str) -> Callable[[E], E]:
    """Class decorator: make an `Estimator` known under a name, for `estimate_information` and --estimator."""

    def register(cls: E) -> E:
        cls.name = name
        ESTIMATORS.add(name, _estimator_of_class(name, cls))
        return cls

    return register


@ESTIMATORS.lazily("ksg")
def _ksg() -> type[Estimator]:
    from mi_ml_gen.information.neighbours import Ksg

    return Ksg


@ESTIMATORS.lazily("gaussian")
def _gaussian() -> type[Estimator]:
    from mi_ml_gen.information.gaussian_copula import GaussianCopula

    return GaussianCopula


@ESTIMATORS.lazily("doe")
def _doe() -> type[Estimator]:
    from mi_ml_gen.information.densities import DifferenceOfEntropies

    return DifferenceOfEntropies


@ESTIMATORS.lazily("minde")
def _minde() -> type[Estimator]:
    from mi_ml_gen.information.diffusion import Minde

    return Minde


@ESTIMATORS.lazily("infonce")
def _infonce() -> type[Estimator]:
    from mi_ml_gen.information.bounds import InfoNCE

    return InfoNCE


@ESTIMATORS.lazily("dv")
def _dv() -> type[Estimator]:
    from mi_ml_gen.information.bounds import DonskerVaradhan

    return DonskerVaradhan


@ESTIMATORS.lazily("nwj")
def _nwj() -> type[Estimator]:
    from mi_ml_gen.information.bounds import NguyenWainwrightJordan

    return NguyenWainwrightJordan


@ESTIMATORS.lazily("smile")
def _smile() -> type[Estimator]:
    from mi_ml_gen.information.bounds import Smile

    return Smile
