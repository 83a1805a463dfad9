"""A step's images in parts, so that the memory of the generator is that of one part (`--micro_batches`).

The loss couples all pairs of a step, so it is taken to the views first: all images are made without a graph, the
critic sees the whole batch, and the loss gives a gradient for each view. Each part is then decoded again with a graph,
and its views' gradients are taken back to the positives' latents (Gao et al. 2021, "Scaling deep contrastive learning
batch size under memory limited setup"). Loss and gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.generators.base import ImagePair
from mi_ml_gen.latents import Chunks
from mi_ml_gen.views.augment import Augment, ViewParameters
from mi_ml_gen.walkers.base import Pair


@dataclass(frozen=True)
class Parts:
    """Views of the images of a pair of latents, `size` pairs at a time.

    stream: gives the random generator of a part's images, the same one whenever it is asked. drawn: the parameters of
    all views, anchors before positives, as `Augment.draw_pair` gives them. context: such as autocast, for the images;
    their backward pass stays outside of it.
    """

    pair: Pair
    chunks: Chunks
    size: int
    decode_pair: Callable[..., ImagePair]
    stream: Callable[[int], torch.Generator]
    augment: Augment
    drawn: ViewParameters | None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def views(self) -> Tensor:
        """Views of anchors, then of positives, (2 n, 3, side, side), without a graph."""
        with torch.no_grad():
            parts = [self._views(i, rows, self.pair.positive[rows]).chunk(2) for i, rows in self._rows()]
        return torch.cat([half for side in zip(*parts, strict=True) for half in side])

    def gradients(self, slopes: Tensor, parameters: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
        """Gradients of the walker's parameters, from those of the views, (2 n, 3, side, side)."""
        n = len(self.pair.positive)
        found: list[Tensor] = []
        for i, rows in self._rows():
            positive = self.pair.positive[rows].detach().requires_grad_()
            views = self._views(i, rows, positive).chunk(2)[1]
            found += torch.autograd.grad(views, positive, slopes[n:][rows].to(views.dtype))
        return torch.autograd.grad(self.pair.positive, parameters, torch.cat(found))

    def _rows(self) -> Iterator[tuple[int, slice]]:
        n = len(self.pair.positive)
        return ((i, slice(start, min(start + self.size, n))) for i, start in enumerate(range(0, n, self.size)))

    def _views(self, i: int, rows: slice, positive: Tensor) -> Tensor:
        with self.context():
            images = self.decode_pair(self.pair.anchor[rows].detach(), positive, self.chunks, self.stream(i))
        drawn = None
        if self.drawn is not None:
            n = len(self.pair.positive)
            drawn = self.drawn.rows(rows.start, rows.stop).joined(self.drawn.rows(n + rows.start, n + rows.stop))
        return self.augment.view(torch.cat([images.anchor, images.positive]), drawn)
