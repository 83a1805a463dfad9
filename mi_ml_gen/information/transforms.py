"""Invertible maps of one side of a pair, (n, d) to (n, d'): they leave the mutual information as it is.

Several are those of the benchmark of Czyz et al. 2023 ("Beyond Normal"), so that numbers compare: its appendix gives
the formulas of the wiggly map, the half-cube, the bimodal quantile, the spiral and the Swiss roll.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mi_ml_gen.core.errors import UsageError

Map = Callable[[Tensor], Tensor]


def half_cube(v: Tensor) -> Tensor:
    """sign(v) |v|^(3/2), each number by itself: longer tails."""
    return v * v.abs().sqrt()


def normal_cdf(v: Tensor) -> Tensor:
    """Standard normal numbers to uniform ones on [0, 1]."""
    return torch.special.ndtr(v)


def wiggly_x(v: Tensor) -> Tensor:
    """A monotone map with waves, each number by itself: v + 0.4 sin v + 0.2 sin(1.7 v + 1) + 0.03 sin(3.3 v - 2.5)."""
    return v + 0.4 * v.sin() + 0.2 * (1.7 * v + 1).sin() + 0.03 * (3.3 * v - 2.5).sin()


def wiggly_y(v: Tensor) -> Tensor:
    """Another: v - 0.4 sin(0.4 v) + 0.17 sin(1.3 v + 3.5) + 0.02 sin(4.3 v - 2.5)."""
    return v - 0.4 * (0.4 * v).sin() + 0.17 * (1.3 * v + 3.5).sin() + 0.02 * (4.3 * v - 2.5).sin()


def bimodal(weight: float, first: float, second: float) -> Map:
    """Standard normal numbers to a mixture of two normals of standard deviation 1, by their quantiles.

    weight: of the first; first, second: their means.
    """

    def cdf(v: Tensor) -> Tensor:
        return weight * torch.special.ndtr(v - first) + (1 - weight) * torch.special.ndtr(v - second)

    def survival(v: Tensor) -> Tensor:
        return weight * torch.special.ndtr(first - v) + (1 - weight) * torch.special.ndtr(second - v)

    def quantile(v: Tensor) -> Tensor:
        share, rest = torch.special.ndtr(v), torch.special.ndtr(-v)
        low = v + min(first, second)  # the quantile lies between those of the two parts
        high = v + max(first, second)
        for _ in range(60):
            middle = 0.5 * (low + high)
            # Compared by the smaller tail, which keeps its digits.
            is_below = torch.where(v < 0, cdf(middle) < share, survival(middle) > rest)
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        return 0.5 * (low + high)

    return quantile


def spiral(speed: float) -> Map:
    """Each pair of coordinates (0 and 1, 2 and 3 ...) turned by speed x |v|^2 radians; the length stays, so it can be
    undone."""

    def turn(v: Tensor) -> Tensor:
        if v.shape[1] < 2:
            raise UsageError("a spiral needs at least two coordinates")
        angle = speed * v.square().sum(1, keepdim=True)
        cos, sin = angle.cos(), angle.sin()
        n_turned = v.shape[1] // 2 * 2
        a, b = v[:, 0:n_turned:2], v[:, 1:n_turned:2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], 2).flatten(1)
        return torch.cat([turned, v[:, n_turned:]], 1)

    return turn


def turned_plane(speed: float, i: int, j: int) -> Map:
    """Coordinates i and j alone turned by speed x |v|^2 radians, |v| the length of the whole vector.

    Of Czyz et al. 2023, whose benchmark calls it spiral.
    """

    def turn(v: Tensor) -> Tensor:
        angle = speed * v.square().sum(1)
        cos, sin = angle.cos(), angle.sin()
        turned = v.clone()
        turned[:, i] = cos * v[:, i] - sin * v[:, j]
        turned[:, j] = sin * v[:, i] + cos * v[:, j]
        return turned

    return turn


def swiss_roll(v: Tensor) -> Tensor:
    """Numbers (n, 1) on [0, 1] to a spiral in the plane (n, 2)."""
    angle = 1.5 * math.pi * (1 + 2 * v[:, :1])
    return torch.cat([angle * angle.cos(), angle * angle.sin()], 1) / 21


def chain(maps: Sequence[Map]) -> Map:
    """One map after another."""

    def chained(v: Tensor) -> Tensor:
        for each in maps:
            v = each(v)
        return v

    return chained


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float64 with orthonormal columns, or rows where there are fewer of them; a function of `seed`."""
    draw = torch.randn(
        max(rows, columns),
        min(rows, columns),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    q, r = torch.linalg.qr(draw)
    q = q * r.diagonal().sign()  # the one decomposition with a positive diagonal, whatever the library
    return q if rows >= columns else q.T


class Tangle(torch.nn.Module):
    """A random invertible map of `dim` numbers that preserves volume: turns and additive couplings (Dinh et al. 2014).

    Each of `n_layers` layers turns the vector by an orthogonal matrix and adds sines of one half of it to the other:

        (u, v) = Q h,   h' = (u, v + bend sin(W u + b))

    bend 0 leaves the turns alone; at 1 curves of constant h' are far from straight. seed: of Q, W and b. Numbers
    (n, dim) of any floating type; `inverse` undoes it up to rounding. With one number it is the identity.
    """

    def __init__(self, dim: int, n_layers: int = 3, bend: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or n_layers < 1 or not math.isfinite(bend):
            raise UsageError(f"tangle of {dim} numbers, {n_layers} layers, bend {bend}: at least 1, 1, and finite")
        self.dim, self.n_layers, self.bend = dim, n_layers, bend
        half = dim // 2
        self.turns: Tensor
        self.weights: Tensor
        self.phases: Tensor
        rng = torch.Generator().manual_seed(seed)
        turns = [orthonormal(dim, dim, 1000 * seed + layer) for layer in range(n_layers)]
        self.register_buffer("turns", torch.stack(turns), persistent=False)
        # Of a standard normal u, W u has a standard deviation of 1.5: about half a turn of the sine on either side.
        weights = torch.randn(n_layers, dim - half, half, generator=rng, dtype=torch.float64)
        weights = 1.5 * torch.nn.functional.normalize(weights, dim=2) if half else weights
        self.register_buffer("weights", weights, persistent=False)
        phases = 2 * math.pi * torch.rand(n_layers, dim - half, generator=rng, dtype=torch.float64)
        self.register_buffer("phases", phases, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        if self.dim == 1:
            return h
        half = self.dim // 2
        for turn, weight, phase in zip(*self._at(h), strict=True):
            turned = h @ turn.T
            u, v = turned[:, :half], turned[:, half:]
            h = torch.cat([u, v + self.bend * (u @ weight.T + phase).sin()], 1)
        return h

    def inverse(self, h: Tensor) -> Tensor:
        """What `forward` maps to h."""
        if self.dim == 1:
            return h
        half = self.dim // 2
        for turn, weight, phase in zip(*(part.flip(0) for part in self._at(h)), strict=True):
            u, v = h[:, :half], h[:, half:]
            h = torch.cat([u, v - self.bend * (u @ weight.T + phase).sin()], 1) @ turn
        return h

    def _at(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers of the layers, in the type of h, wherever it is."""
        return self.turns.to(h), self.weights.to(h), self.phases.to(h)
