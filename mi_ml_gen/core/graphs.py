"""CUDA graphs: the launches of a piece of work are recorded once and then replayed, all at once, in each step.

On a fast GPU the host may need longer to launch the kernels of a step than the GPU to run them. A replay costs the host
one launch. What is recorded must do the same each time: it takes tensors of the same shapes, reads nothing back, draws
nothing, and works on weights and statistics that stay where they are in memory.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import EnvironmentFault

logger = logging.getLogger(__name__)

DEVICE_TYPE = "cuda"
N_EAGER = 3
"""Calls that run as ever, in which libraries choose their kernels, before one is recorded."""


def why_not(device: torch.device) -> str | None:
    """What rules CUDA graphs out in this run, or None."""
    if device.type != DEVICE_TYPE:
        return f"the run is on {device.type}"
    return "the run has several processes" if runtime.is_distributed() else None


class Way(enum.Enum):
    """How a call was run."""

    AS_EVER = enum.auto()
    BESIDE = enum.auto()
    REPLAYED = enum.auto()


class Recorded:
    """A function whose launches are recorded at one call and replayed in those after it.

        step = Recorded(lambda first, second: forward_and_backward(first, second), "the encoder", encoder.parameters())
        loss = step(first, second)

    function: takes and gives tensors, or lists, tuples and dicts of tensors. parameters: those whose gradients it makes
    anew, from `grad = None` on. what: its name for a warning. Results are copies, so that they stay when the function
    is called again. Arguments of other shapes than those recorded run as ever, and so does everything where recording
    fails, which is said once.

    then: a second function without arguments, which goes on from what the first one left behind, such as an autograd
    graph. The caller runs it once after each call, by `after()`, when it has done what cannot be recorded:

        step = Recorded(first_part, "the step", critic.parameters(), then=second_part)
        loss = step(z)
        optimizer.step()
        gradients = step.after()

    What the first part leaves behind must live no longer than until the end of the second. Raises EnvironmentFault
    where only the first can be recorded.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        what: str,
        parameters: Iterable[Tensor] = (),
        then: Callable[[], Any] | None = None,
    ) -> None:
        self.function = function
        self.what = what
        self.parameters = list(parameters)
        self.then = then
        self._stream: Any = None
        self._n_calls = 0
        self._graph: Any = None
        self._is_new = False
        self._failed = False
        self._second: Any = None
        self._how = Way.AS_EVER

    @property
    def is_recorded(self) -> bool:
        return self._graph is not None

    def __call__(self, *arguments: Any) -> Any:
        tensors, structure = tree_flatten(arguments)
        kinds = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]
        self._how = self._way(tensors, structure, kinds)
        if self._how is Way.AS_EVER:
            return self.function(*arguments)
        if self._how is Way.BESIDE:
            self._n_calls += 1
            return self._beside(self.function, arguments)
        if self._is_new:  # the inputs are those recorded; writing them again would tell autograd that they changed
            self._is_new = False
        else:
            torch._foreach_copy_(self._inputs, [tensor.detach() for tensor in tensors])
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return tree_map(torch.clone, self._results)

    def _way(self, tensors: list[Tensor], structure: Any, kinds: list[Any]) -> Way:
        if self._failed or any(kind[-1].type != DEVICE_TYPE for kind in kinds):
            return Way.AS_EVER
        if self._graph is None and self._n_calls < N_EAGER:
            return Way.BESIDE
        if self._graph is None and not self._record(tensors, structure, kinds):
            return Way.AS_EVER
        return Way.REPLAYED if kinds == self._kinds else Way.AS_EVER

    def after(self) -> Any:
        """The second part, in the way of the last call of the first."""
        assert self.then is not None
        if self._how is Way.AS_EVER:
            return self.then()
        if self._how is Way.BESIDE:
            return self._beside(self.then, ())
        if self._second is None:
            graph = torch.cuda.CUDAGraph()
            results = self._recorded(graph, self.then, pool=self._graph.pool())
            if self._failed:  # what the first part has left behind may be used up
                raise EnvironmentFault(f"{self.what} cannot be recorded to its end; leave --cuda_graphs out")
            self._second = graph, results
        graph, results = self._second
        graph.replay()
        return tree_map(torch.clone, results)

    def _beside(self, function: Callable[..., Any], arguments: Any) -> Any:
        """A call on another stream than the usual one, as it will be recorded."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor in tree_flatten((arguments, results))[0]:
            tensor.record_stream(torch.cuda.current_stream())
            tensor.record_stream(stream)
        return results

    def _record(self, tensors: list[Tensor], structure: Any, kinds: list[Any]) -> bool:
        """Record a call, which is not run by that. False where it cannot be."""
        self._kinds = kinds
        self._inputs = [tensor.detach().clone() for tensor in tensors]
        before = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        results = self._recorded(graph, lambda: self.function(*tree_unflatten(self._inputs, structure)))
        if self._failed:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient
            return False
        self._results = results
        self._gradients = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        self._graph, self._is_new = graph, True
        return True

    def _recorded(self, graph: Any, function: Callable[[], Any], pool: Any = None) -> Any:
        """The results of a call that is recorded and not run; `_failed` where it cannot be recorded."""
        torch.clear_autocast_cache()  # copies of weights made before would not be made again by a replay
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                results = function()
            return tree_map(lambda result: result.detach(), results)
        except Exception as error:  # whatever an operator says that cannot be recorded
            self._failed = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("%s cannot be recorded as a CUDA graph and runs without one: %s", self.what, reason)
            return None
        finally:
            torch.clear_autocast_cache()


__all__ = ["N_EAGER", "Recorded", "why_not"]
