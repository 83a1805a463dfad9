"""Numbers as images of smooth waves, by an invertible map: the look of the linear Gaussian generator that is not
linear.

    h = tangle(x)                         turns and bends that mix the numbers (information/transforms.py)
    pixel p = sigmoid( sum_k B_kp h_k )   B: one smooth picture for each number, orthogonal to one another

Each step can be undone, so the image holds exactly the information that x holds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.transforms import Tangle

CONTRAST = 1.2
"""Standard deviation of a pixel before the sigmoid, for numbers of standard deviation 1 and no bend."""
_SMOOTH = 1.5
"""Waves of more than this many periods an image are damped, by the square of their number."""


class Waves(nn.Module):
    """x (n, dim), numbers of about standard deviation 1 -> images (n, 3, resolution, resolution) in (0, 1).

    n_channels: 3, or 1 for grey images, whose three channels are the same. bend: of the `Tangle`. seed: of it, and of
    the pictures. Raises UsageError where the image has fewer values than x.
    """

    def __init__(self, dim: int, resolution: int, n_channels: int = 3, bend: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        n_values = n_channels * resolution**2
        if n_values < dim:
            raise UsageError(f"resolution {resolution} px: {n_values} values cannot show {dim} numbers")
        self.resolution = resolution
        self.tangle = Tangle(dim, bend=bend, seed=seed).float()
        pictures = _smooth_pictures(dim, resolution, n_channels, seed)
        self.gain = CONTRAST * math.sqrt(n_values / dim)
        self.pictures: Tensor
        self.register_buffer("pictures", pictures.float(), persistent=False)
        self.repeat = 3 // n_channels

    def forward(self, x: Tensor) -> Tensor:
        values = (self.gain * self.tangle(x)) @ self.pictures.to(x.dtype)
        images = values.sigmoid().view(len(x), -1, self.resolution, self.resolution)
        return images.repeat(1, self.repeat, 1, 1)

    def inverse(self, images: Tensor) -> Tensor:
        """The x (n, dim) that images show."""
        values = images[:, :: self.repeat].flatten(1).logit()  # of grey images one channel
        return self.tangle.inverse(values @ self.pictures.to(values.dtype).T / self.gain)


def _smooth_pictures(dim: int, resolution: int, n_channels: int, seed: int) -> Tensor:
    """(dim, n_channels * resolution**2) float64 with orthonormal rows: white noise without its fine detail."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(dim, n_channels, resolution, resolution, generator=rng, dtype=torch.float64)
    n_periods = torch.fft.fftfreq(resolution, dtype=torch.float64) * resolution
    length = torch.hypot(n_periods[:, None], n_periods)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) / (1 + (length / _SMOOTH) ** 2)).real
    q, r = torch.linalg.qr(smooth.flatten(1).T)
    return (q * r.diagonal().sign()).T
