"""torch's Adam, Adamax and SGD without torch.compile: the first step then need not import it.

`torch.optim` wraps each method so that a compiled training loop leaves it alone. The wrappers import torch._dynamo at
the first call, which takes as long as importing torch itself. Nothing here compiles an optimiser, so these classes call
the wrapped methods directly. Results, state dicts and options are torch's own (a test compares them).

One thing differs: how a step is computed (`IMPLEMENTATION`) is the choice of the machine that takes it, so it does not
come back with a saved state. torch's own `load_state_dict` would bring it, and a run that was begun on the CPU would
take the slow steps of the CPU on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import SGD as TorchSGD
from torch.optim import Adam as TorchAdam
from torch.optim import Adamax as TorchAdamax
from torch.optim import Optimizer

IMPLEMENTATION = ("fused", "foreach", "capturable")
"""Options of an optimiser's groups that change how fast a step is, and not what it does."""


def _unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method under its outermost wrapper, or the method itself where it has none."""
    return getattr(method, "__wrapped__", method)


class _Uncompiled:
    param_groups: list[dict[str, Any]]

    add_param_group = _unwrapped(Optimizer.add_param_group)
    state_dict = _unwrapped(Optimizer.state_dict)
    zero_grad = _unwrapped(Optimizer.zero_grad)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, but this optimiser's own `IMPLEMENTATION` stays, and the state goes where it wants it."""
        groups = [dict(group) for group in state_dict["param_groups"]]
        for group, own in zip(groups, self.param_groups, strict=False):  # torch says what is wrong with the number
            group.update({key: own[key] for key in IMPLEMENTATION if key in own and key in group})
        _unwrapped(Optimizer.load_state_dict)(self, {**state_dict, "param_groups": groups})


class Adam(_Uncompiled, TorchAdam):
    """`torch.optim.Adam`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchAdam.step))


class Adamax(_Uncompiled, TorchAdamax):
    """`torch.optim.Adamax`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchAdamax.step))


class SGD(_Uncompiled, TorchSGD):
    """`torch.optim.SGD`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchSGD.step))
