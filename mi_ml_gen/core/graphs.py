"""CUDA graphs: the launches of a piece of work are recorded once and then replayed, all at once, in each step.

On a fast GPU the host may need longer to launch the kernels of a step than the GPU to run them. A replay costs the host
one launch. What is recorded must do the same each time: it takes tensors of the same shapes, reads nothing back, draws
nothing, and works on weights and statistics that stay where they are in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

logger = logging.getLogger(__name__)

N_EAGER = 3
"""Calls that run as ever, in which libraries choose their kernels, before one is recorded."""


class Recorded:
    """A function whose launches are recorded at one call and replayed in those after it.

        step = Recorded(lambda first, second: forward_and_backward(first, second), "the encoder", encoder.parameters())
        loss = step(first, second)

    function: takes and gives tensors, or lists, tuples and dicts of tensors. parameters: those whose gradients it makes
    anew, from `grad = None` on. what: its name for a warning. Results are copies, so that they stay when the function
    is called again. Arguments of other shapes than those recorded run as ever, and so does everything where recording
    fails, which is said once.
    """

    def __init__(self, function: Callable[..., Any], what: str, parameters: Iterable[Tensor] = ()) -> None:
        self.function = function
        self.what = what
        self.parameters = list(parameters)
        self._n_calls = 0
        self._graph: Any = None
        self._failed = False

    @property
    def is_recorded(self) -> bool:
        return self._graph is not None

    def __call__(self, *arguments: Any) -> Any:
        tensors, structure = tree_flatten(arguments)
        kinds = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]
        if self._failed or any(kind[-1].type != "cuda" for kind in kinds):
            return self.function(*arguments)
        if self._graph is None and self._n_calls < N_EAGER:
            self._n_calls += 1
            return self._beside(arguments)
        if self._graph is None and not self._record(tensors, structure, kinds):
            return self.function(*arguments)
        if kinds != self._kinds:
            return self.function(*arguments)
        torch._foreach_copy_(self._inputs, [tensor.detach() for tensor in tensors])
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return tree_map(lambda result: result.clone(), self._results)

    def _beside(self, arguments: Any) -> Any:
        """A call on another stream than the usual one, as it will be recorded."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self.function(*arguments)
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
        torch.clear_autocast_cache()  # copies of weights made before would not be made again by a replay
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = self.function(*tree_unflatten(self._inputs, structure))
            self._results = tree_map(lambda result: result.detach(), results)
        except Exception as error:  # whatever an operator says that cannot be recorded
            self._failed = True
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("%s cannot be recorded as a CUDA graph and runs without one: %s", self.what, reason)
            return False
        finally:
            torch.clear_autocast_cache()
        self._gradients = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        self._graph = graph
        return True


__all__ = ["N_EAGER", "Recorded"]
