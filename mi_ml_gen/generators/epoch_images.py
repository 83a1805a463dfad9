"""Training images of a generator, held on the device and read in a new order in each epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from mi_ml_gen.core import runtime


class EpochImages:
    """Batches of uint8 images (n, c, h, w), each a function of the seed and the step; whole batches only.

    order, mirror: names of the random streams of the order and of the mirrored images; without `mirror` none is
    mirrored.
    """

    def __init__(
        self, images: Tensor, batch_size: int, device: torch.device, seed: int, order: str, mirror: str | None = None
    ):
        self.images = images.to(device)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = len(images) // batch_size
        self._order_stream, self._mirror_stream = order, mirror
        self._epoch = -1

    def at(self, step: int, rows: slice = slice(None)) -> Tensor:
        """Rows of the batch of a step, uint8 on the device: all of them, or those of a process."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.images), generator=runtime.stream(self.seed, self._order_stream, epoch, 0))
            self._epoch, self._order = epoch, runtime.to_device(order, self.images.device)
        start = index * self.batch_size
        batch = self.images[self._order[start : start + self.batch_size][rows]]
        if self._mirror_stream is not None:
            coins = runtime.uniform((self.batch_size,), runtime.stream(self.seed, self._mirror_stream, step, 0))[rows]
            mirrored = runtime.to_device(coins, batch.device) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        return batch


__all__ = ["EpochImages"]
