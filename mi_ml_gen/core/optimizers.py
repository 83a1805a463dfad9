"""torch's Adam and SGD without torch.compile: the first step then need not import it.

`torch.optim` wraps each method so that a compiled training loop leaves it alone. The wrappers import torch._dynamo at
the first call, which takes as long as importing torch itself. Nothing here compiles an optimiser, so these classes call
the wrapped methods directly. Results, state dicts and options are torch's own (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD as TorchSGD
from torch.optim import Adam as TorchAdam
from torch.optim import Optimizer


def _unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method under its outermost wrapper, or the method itself where it has none."""
    return getattr(method, "__wrapped__", method)


class _Uncompiled:
    add_param_group = _unwrapped(Optimizer.add_param_group)
    load_state_dict = _unwrapped(Optimizer.load_state_dict)
    state_dict = _unwrapped(Optimizer.state_dict)
    zero_grad = _unwrapped(Optimizer.zero_grad)


class Adam(_Uncompiled, TorchAdam):
    """`torch.optim.Adam`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchAdam.step))


class SGD(_Uncompiled, TorchSGD):
    """`torch.optim.SGD`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchSGD.step))
