"""torch's Adam, AdamW, Adamax and SGD without torch.compile: the first step then need not import it. And AdamNormGrad.

`torch.optim` wraps each method so that a compiled training loop leaves it alone. The wrappers import torch._dynamo at
the first call, which takes as long as importing torch itself. Nothing here compiles an optimiser, so these classes call
the wrapped methods directly. Results, state dicts and options are torch's own (a test compares them).

One thing differs: how a step is computed (`IMPLEMENTATION`) is the choice of the machine that takes it, so it does not
come back with a saved state. torch's own `load_state_dict` would bring it, and a run that was begun on the CPU would
take the slow steps of the CPU on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD as TorchSGD
from torch.optim import Adam as TorchAdam
from torch.optim import Adamax as TorchAdamax
from torch.optim import AdamW as TorchAdamW
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


class AdamW(_Uncompiled, TorchAdamW):
    """`torch.optim.AdamW`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchAdamW.step))


class Adamax(_Uncompiled, TorchAdamax):
    """`torch.optim.Adamax`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchAdamax.step))


class SGD(_Uncompiled, TorchSGD):
    """`torch.optim.SGD`; `differentiable` is not supported."""

    step = torch.no_grad()(_unwrapped(TorchSGD.step))


class AdamNormGrad(_Uncompiled, Optimizer):
    """Adam on gradients that are brought to length 1, each tensor's by itself, as the VampPrior's code has it (Tomczak
    and Welling, arXiv 1705.07120).

    g <- g / (|g| + 1e-7), and then weight_decay times the weights is added to g. eps is added to the square root of the
    second moment before its bias is corrected, as torch did before version 1.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_of([parameter for parameter in group["params"] if parameter.grad is not None], group)
        return loss

    def _step_of(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["step"] += 1
        first = [self.state[parameter]["exp_avg"] for parameter in parameters]
        second = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        steps = [self.state[parameter]["step"] for parameter in parameters]
        beta1, beta2 = group["betas"]

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        lengths = torch._foreach_norm(gradients)
        torch._foreach_add_(lengths, 1e-7)
        gradients = list(torch._foreach_div(gradients, lengths))
        if group["weight_decay"]:
            torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        rates = [-group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step) for step in steps]
        torch._foreach_addcdiv_(parameters, first, roots, rates)
