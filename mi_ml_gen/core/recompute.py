"""Activations that are computed again in the backward pass, and not kept until then.

Autograd keeps the output of each ReLU, for the ReLU itself and for the convolution after it. It follows from the maps
before the normalisation, which are kept as well, by a few operations that cost far less than a convolution. Within
`recomputing` what they need is kept, and the outputs are not: about half of what a ResNet keeps. Networks say what they
compute by `activated` and `normalised`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_current: _Known | None = None


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Within, what `normalised` and `activated` give is computed again when a backward pass needs it.

    Values are the same. Gradients are the same up to rounding: what is computed again may differ in its last bit. Where
    no gradient is wanted, and in what torch.compile reads, this does nothing.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    global _current
    before, known = _current, _Known()
    _current = known
    try:
        with torch.autograd.graph.saved_tensors_hooks(known.pack, _unpack):
            yield
    finally:
        _current = before
        known.finish()


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x): maps (n, c, h, w) after a batch norm."""
    if _current is None or not isinstance(norm, nn.BatchNorm2d) or not norm.training:
        return norm(x)  # type: ignore[no-any-return]
    return _current.normalised(norm, x)


def activated(norm: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor:
    """relu(norm(x) + added)."""
    y = normalised(norm, x)
    if _current is not None:
        _current.completed(y, added)
    if added is not None:
        y += added
    return torch.relu_(y)


class _Recipe:
    """How a tensor is made, and how often a backward pass will ask for it."""

    variance: Tensor

    def __init__(self, norm: nn.BatchNorm2d, x: Tensor, mean: Tensor, rate: Tensor) -> None:
        self.x, self.mean, self.rate = x.detach(), mean, rate
        self.weight, self.bias, self.eps = norm.weight.detach(), norm.bias.detach(), norm.eps
        self.added: _Recipe | Tensor | None = None
        self.is_activated = False
        self.n_kept = 0
        self._made: Tensor | None = None

    @torch.no_grad()
    def tensor(self) -> Tensor:
        if self._made is None:
            with torch.autocast(self.x.device.type, enabled=False):
                made = functional.batch_norm(
                    self.x, self.mean, self.variance, self.weight, self.bias, training=False, eps=self.eps
                )
            if self.added is not None:
                made += self.added.tensor() if isinstance(self.added, _Recipe) else self.added
            made = torch.relu_(made) if self.is_activated else made
            if self.n_kept == 0:  # somebody else's part
                return made
            self._made = made
        return self._made

    def handed_out(self) -> Tensor:
        """`tensor`, for one of those for whom it would have been kept; after the last one nobody holds it here."""
        made = self.tensor()
        self.n_kept -= 1
        if self.n_kept <= 0:
            self._made = None
        return made


class _Known:
    """The tensors of a forward pass that can be made again, found by their memory."""

    def __init__(self) -> None:
        self._recipes: list[_Recipe] = []
        self._of_storage: dict[int, tuple[weakref.ref[Any], _Recipe, tuple[Any, ...]]] = {}

    def normalised(self, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        assert norm.momentum is not None
        y, mean, rate = torch.native_batch_norm(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        recipe = _Recipe(norm, x, mean, rate)
        self._recipes.append(recipe)
        storage = y.untyped_storage()
        self._of_storage[storage._cdata] = weakref.ref(storage), recipe, _how(y)
        return y

    def find(self, tensor: Tensor) -> _Recipe | None:
        storage = tensor.untyped_storage()
        reference, recipe, how = self._of_storage.get(storage._cdata, (None, None, None))
        return recipe if reference is not None and reference() is storage and how == _how(tensor) else None

    def completed(self, y: Tensor, added: Tensor | None) -> None:
        """y, which is known, will be its ReLU in place, after `added` was added to it."""
        recipe = self.find(y)
        if recipe is not None:
            recipe.is_activated = True
            recipe.added = None if added is None else self.find(added) or added.detach()

    def pack(self, tensor: Tensor) -> Any:
        recipe = self.find(tensor)
        if recipe is None:
            return tensor
        recipe.n_kept += 1
        return recipe

    @torch.no_grad()
    def finish(self) -> None:
        """The variances of all norms, from their reciprocal roots, at once."""
        if self._recipes:
            variances = torch._foreach_pow([recipe.rate for recipe in self._recipes], -2.0)
            torch._foreach_sub_(variances, [recipe.eps for recipe in self._recipes])
            for recipe, variance in zip(self._recipes, variances, strict=True):
                recipe.variance = variance
        self._recipes, self._of_storage = [], {}


def _unpack(kept: Any) -> Tensor:
    return kept.handed_out() if isinstance(kept, _Recipe) else kept  # type: ignore[no-any-return]


def _how(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


__all__ = ["activated", "normalised", "recomputing"]
