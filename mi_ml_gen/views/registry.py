"""The policies of T_x, by name; this file imports no torch.

A policy of the package is a class in `policies.py`. A user's enters by `@register_policy("mine")` in any file that is
imported, by an entry point of the group "mi_ml_gen.policies", or as --Tx path/to/file.py:Mine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry

if TYPE_CHECKING:
    from mi_ml_gen.views.policies import Policy

P = TypeVar("P", bound="type[Policy]")

NAMES = (
    "none", "simclr", "no_crop", "no_color", "torchvision", "torchvision_no_crop", "torchvision_no_color",
)  # fmt: skip
"""The policies that come with the package."""


def _policy_of_class(name: str, found: Any) -> Policy:
    from mi_ml_gen.views.policies import Policy

    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise UsageError(f"--Tx {name}: must be a class derived from mi_ml_gen.views.Policy")
    return found()


POLICIES: Registry[Policy] = Registry("augmentation", "--Tx", "mi_ml_gen.policies", _policy_of_class)
"""Policies by the name that --Tx takes."""


def register_policy(name: str) -> Callable[[P], P]:
    """Class decorator: make a `Policy`, which takes no arguments, known under a name, for --Tx."""

    def register(cls: P) -> P:
        POLICIES.add(name, _policy_of_class(name, cls))
        return cls

    return register


def _of_the_package(name: str) -> Policy:
    from mi_ml_gen.views.policies import BUILT_IN

    return BUILT_IN[name]()


for _name in NAMES:
    POLICIES.lazily(_name)(functools.partial(_of_the_package, _name))


def policy_from_flags(simclr_aug: bool = False, remove_crop: bool = False, remove_color: bool = False) -> str:
    """The policy that the flags --simclr_aug, --removeCrop and --removeColor name.

    Each flag names a policy by itself. Of several the first in this order counts, as in the reference: so
    `--simclr_aug --removeCrop` still crops at random.
    """
    named = {"simclr": simclr_aug, "no_crop": remove_crop, "no_color": remove_color}
    return next((policy for policy, given in named.items() if given), "none")
