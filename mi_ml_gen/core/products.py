"""3x3 convolutions of fixed weights with fewer products than they have taps, for float32 on a CPU.

A form is three linear maps, each along rows and then along columns. `spread` takes the pixels to several maps, `taps`
takes the three taps to as many matrices, and `join` takes the products of both to pairs of output pixels. The products
are those of matrices, over the channels, and nearly all of the work.

    tiles      Winograd's F(2x2, 3x3) (Lavin and Gray, 2016): 16 products for 4 pixels, where the taps need 36
    doublings  of an image doubled by nearest neighbour: 9 products for 4 pixels, where the taps need 36, and the same
               as a transposed convolution (`generators.bigbigan.UpsampledConv`) needs 16

For doublings let d[i] = x[i] - x[i - 1]. Along one axis, y[2i] = (w0 + w1) x[i] + w0 (x[i - 1] - x[i]) + w2 x[i], so
with s = w0 + w1 + w2 it is y[2i] = s x[i] - w0 d[i], and in the same way y[2i + 1] = s x[i] + w2 d[i + 1]: three
products for two pixels.

Results differ from those of the taps by rounding alone. Gradients pass through the transposed maps and the same
matrices, so nothing else is held for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_VALUES = 2**22
"""Numbers of maps along rows that are in work at a time: images go through in groups of as many."""
STRIP_VALUES = 2**19
"""The same of maps along rows and columns (2 MiB), which then stay in the processor's cache ..."""
STRIP_ROWS = 256
"""... but at least so many rows of the matrices, since each strip reads all kernels."""


class Form(Protocol):
    """A way to have fewer products."""

    least_channels: int
    """Of input and output. Below, the passes over the maps cost more than the products that they save."""
    least_rows: int
    """Of the matrices of pixels. Below, reading the kernels takes longest, of which a form may have more than taps."""
    n_maps: int
    """Of each axis."""
    pixels: int
    """Input pixels of each axis that a place of the maps stands for; it always gives two output pixels."""
    taps: tuple[tuple[float, float, float], ...]
    """(n_maps, 3): from the three taps of an axis to the kernels of its maps."""

    def suits(self, weight: Tensor) -> bool:
        """Whether a convolution of these weights is worth it: 3x3, float32, on a CPU, and of enough channels."""
        outputs, inputs, *size = weight.shape
        is_held_here = weight.device.type == "cpu" and weight.dtype == torch.float32
        return is_held_here and size == [3, 3] and min(inputs, outputs) >= self.least_channels

    def takes(self, x: Tensor) -> bool:
        """Whether maps (n, inputs, h, w) are of a kind and size for it: float32 on a CPU."""
        n, _, height, width = x.shape
        if x.device.type != "cpu" or x.dtype != torch.float32 or height % self.pixels or width % self.pixels:
            return False
        is_large = n * height * width >= self.least_rows * self.pixels**2
        return is_large and not torch.compiler.is_compiling()

    def spread(self, x: Tensor, axis: int, out: Tensor) -> None:
        """x, with `pixels` m along an axis, to maps (n_maps, ..., m, ...)."""

    def spread_back(self, maps: Tensor, axis: int, out: Tensor) -> None:
        """The transposed map of `spread`; the axis is that of out."""

    def join(self, maps: Tensor, axis: int, out: Tensor) -> None:
        """Maps to y, with 2 m along the axis."""

    def join_back(self, y: Tensor, axis: int, out: Tensor) -> None:
        """The transposed map of `join`."""


class Tiles(Form):
    """A convolution with stride 1 and a border of zeros of width 1; height and width are even."""

    least_channels = 384
    least_rows = 32
    n_maps = 4
    pixels = 2
    taps = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))

    def spread(self, x: Tensor, axis: int, out: Tensor) -> None:
        even, odd = _pairs(x, axis)  # a tile sees odd[i - 1], even[i], odd[i], even[i + 1]
        torch.sub(_but_last(odd, axis), _but_first(odd, axis), out=_but_first(out[0], axis))
        torch.neg(_first(odd, axis), out=_first(out[0], axis))
        torch.add(even, odd, out=out[1])
        torch.sub(odd, even, out=out[2])
        torch.sub(_but_last(even, axis), _but_first(even, axis), out=_but_last(out[3], axis))
        _last(out[3], axis).copy_(_last(even, axis))

    def spread_back(self, maps: Tensor, axis: int, out: Tensor) -> None:
        even, odd = _pairs(out, axis)
        torch.sub(maps[1], maps[2], out=even)
        even.add_(maps[3])
        _but_first(even, axis).sub_(_but_last(maps[3], axis))
        torch.add(maps[1], maps[2], out=odd)
        odd.sub_(maps[0])
        _but_last(odd, axis).add_(_but_first(maps[0], axis))

    def join(self, maps: Tensor, axis: int, out: Tensor) -> None:
        even, odd = _pairs(out, axis)
        torch.add(maps[1], maps[2], out=even)
        even.add_(maps[0])
        torch.sub(maps[1], maps[2], out=odd)
        odd.sub_(maps[3])

    def join_back(self, y: Tensor, axis: int, out: Tensor) -> None:
        even, odd = _pairs(y, axis)
        out[0].copy_(even)
        torch.add(even, odd, out=out[1])
        torch.sub(even, odd, out=out[2])
        torch.neg(odd, out=out[3])


class Doublings(Form):
    """The same of an image that is first doubled by nearest neighbour."""

    least_channels = 384
    least_rows = 1
    n_maps = 3
    pixels = 1
    taps = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))

    def spread(self, x: Tensor, axis: int, out: Tensor) -> None:
        torch.sub(_but_first(x, axis), _but_last(x, axis), out=_but_first(out[0], axis))
        _first(out[0], axis).copy_(_first(x, axis))
        out[1].copy_(x)
        _but_last(out[2], axis).copy_(_but_first(out[0], axis))
        torch.neg(_last(x, axis), out=_last(out[2], axis))

    def spread_back(self, maps: Tensor, axis: int, out: Tensor) -> None:
        torch.add(maps[0], maps[1], out=out)
        out.sub_(maps[2])
        _but_last(out, axis).sub_(_but_first(maps[0], axis))
        _but_first(out, axis).add_(_but_last(maps[2], axis))

    def join(self, maps: Tensor, axis: int, out: Tensor) -> None:
        even, odd = _pairs(out, axis)
        torch.sub(maps[1], maps[0], out=even)
        torch.add(maps[1], maps[2], out=odd)

    def join_back(self, y: Tensor, axis: int, out: Tensor) -> None:
        even, odd = _pairs(y, axis)
        torch.neg(even, out=out[0])
        torch.add(even, odd, out=out[1])
        out[2].copy_(odd)


TILES: Form = Tiles()
DOUBLINGS: Form = Doublings()


def kernels_of(weight: Tensor, form: Form) -> Tensor:
    """The weights (outputs, inputs, 3, 3) of a convolution as the matrices (n_maps squared, inputs, outputs) of a form;
    computed in float64."""
    taps = torch.tensor(form.taps, dtype=torch.float64, device=weight.device)
    made = torch.einsum("at,oits->aois", taps, weight.double())
    made = torch.einsum("bs,aois->baio", taps, made)  # columns first, as `_along_columns` has them
    return made.flatten(0, 1).to(weight.dtype).contiguous()


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """The convolution of maps (n, inputs, h, w) that the form takes; it has its channels last. Neither kernels nor bias
    get a gradient."""
    return _Convolution.apply(x, kernels, bias, form)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernels, bias, form):
        ctx.save_for_backward(kernels)
        ctx.form = form
        x = x.contiguous(memory_format=torch.channels_last)  # the first maps of a network may lie otherwise
        n, _, height, width = x.shape
        places = (height // form.pixels, width // form.pixels)
        out = _maps(x, n, kernels.shape[2], 2 * places[0], 2 * places[1])
        _through(x, kernels, out, places, form.n_maps, (form.spread, form.join))
        return out if bias is None else out.add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (kernels,) = ctx.saved_tensors
        form: Form = ctx.form
        n, _, height, width = gradient.shape
        places = (height // 2, width // 2)
        to_x = _maps(gradient, n, kernels.shape[1], form.pixels * places[0], form.pixels * places[1])
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        _through(gradient, kernels.mT, to_x, places, form.n_maps, (form.join_back, form.spread_back))
        return to_x, None, None, None


Map = Callable[[Tensor, int, Tensor], None]


def _maps(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _through(
    x: Tensor, kernels: Tensor, out: Tensor, places: tuple[int, int], n_maps: int, maps: tuple[Map, Map]
) -> None:
    """Take images (n, inputs, h, w) through the first map, the matrices, and the second map to `out`."""
    x, out = x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    first, second = maps
    inputs, outputs = kernels.shape[1:]
    for images in _parts(len(x), n_maps * places[0] * max(x.shape[2] * inputs, out.shape[2] * outputs), ROWS_VALUES):
        some = x[images]
        before = x.new_empty((n_maps, len(some), places[0], x.shape[2], inputs))
        after = x.new_empty((n_maps, len(some), places[0], out.shape[2], outputs))
        first(some, 1, before)
        _along_columns(before.flatten(1, 2), kernels, after.flatten(1, 2), places[1], maps)
        second(after, 1, out[images])


def _along_columns(x: Tensor, kernels: Tensor, out: Tensor, n_places: int, maps: tuple[Map, Map]) -> None:
    """The same along columns, for rows (n_maps, rows, w, inputs), some at a time."""
    first, second = maps
    n_maps, n_rows = x.shape[:2]
    inputs, outputs = kernels.shape[1:]
    for rows in _parts(n_rows, n_maps**2 * n_places * max(inputs, outputs), STRIP_VALUES, -(-STRIP_ROWS // n_places)):
        some = x[:, rows]
        before = x.new_empty((n_maps, n_maps, some.shape[1], n_places, inputs))
        first(some, 2, before)
        after = torch.bmm(before.flatten(2, 3).flatten(0, 1), kernels)
        second(after.view(*before.shape[:-1], outputs), 2, out[:, rows])


def _parts(n: int, values: int, most_values: int, least: int = 1) -> Iterator[slice]:
    """Slices of n things that have so many values each."""
    size = max(least, most_values // values)
    return (slice(start, start + size) for start in range(0, n, size))


def _pairs(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Its even and its odd pixels along an axis."""
    even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return even, odd


def _first(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 0, 1)


def _last(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, x.shape[axis] - 1, 1)


def _but_first(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 1, x.shape[axis] - 1)


def _but_last(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 0, x.shape[axis] - 1)


__all__ = ["DOUBLINGS", "TILES", "Form", "convolve", "kernels_of"]
