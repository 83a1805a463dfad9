"""The autoregressive decoder of pixelhvae_2level: a PixelCNN (van den Oord et al., arXiv 1601.06759) that sees latents.

Its input is the image, and a map of pixels for each latent. A pixel sees the image's earlier pixels only, and all of
the maps around it. The published masks hide the maps as they hide the image, so that a pixel sees its latents only
through earlier positions, and the first pixel sees none; `as_published` keeps them.
"""

from __future__ import annotations

from torch import nn

from mi_ml_gen.mim.images.layers import MaskedConv

N_LAYERS, N_FEATURES = 8, 64


def pixel_cnn(n_channels: int, n_map_channels: int, as_published: bool = False) -> nn.Sequential:
    """Masked convolutions, each with batch norm and ReLU: (n, n_channels + n_map_channels, H, W), the image's channels
    first, to states (n, N_FEATURES, H, W)."""
    n_in = n_channels + n_map_channels
    layers: list[nn.Module] = [MaskedConv("A", n_in, N_FEATURES, None if as_published else n_channels)]
    for _ in range(N_LAYERS - 1):
        layers += [*norm_and_relu(), MaskedConv("B", N_FEATURES, N_FEATURES)]
    return nn.Sequential(*layers, *norm_and_relu())


def norm_and_relu() -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(N_FEATURES), nn.ReLU()


def reach() -> int:
    """How far, in pixels to each side and upwards, a state sees."""
    return N_LAYERS
