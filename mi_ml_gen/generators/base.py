"""The one interface behind which every generator stands.

    noise z  --latents-->  latents (n, D) = chunk 0 | ... | chunk K-1  --decode-->  images (n, 3, H, W) in [0, 1]

Walkers, the navigator, delta and the encoders use nothing but this; a new family is one file beside this one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from mi_ml_gen.latents import Chunks, LatentLayout


class ImagePair(NamedTuple):
    """Decoded anchors and positives, (n, 3, resolution, resolution) in [0, 1] each."""

    anchor: torch.Tensor
    positive: torch.Tensor


class MultiLatentGenerator(nn.Module):
    """A frozen generator whose input is a flat latent vector cut into chunks.

    A family sets `layout`, `noise_dim`, `resolution` and `name`, and defines `synthesize` and `decode`; one whose
    latents are not the noise itself also defines `latents` and `walk_slice`.
    """

    name: str
    """What commands and messages call it."""
    layout: LatentLayout
    """Sizes of the latent chunks."""
    noise_dim: int
    """Length of the noise z."""
    resolution: int
    """Height and width of what `decode` returns, in pixels."""

    def freeze(self) -> MultiLatentGenerator:
        """Evaluation mode, no parameter gradients; gradients still flow to the latents."""
        return self.eval().requires_grad_(False)

    def config(self) -> dict[str, Any]:
        """Plain values from which, with a state dict, the same generator is built again."""
        raise NotImplementedError

    def chunks(self, text: str, flag: str = "--chunks") -> Chunks:
        """`Chunks.parse` within this generator's range."""
        return Chunks.parse(text, self.layout.n_chunks, self.name, flag)

    def walk_slice(self, chunks: Chunks) -> slice:
        """The part of z that a walker changes in order to perturb `chunks`: the chunks themselves."""
        return self.layout.slice(chunks)

    def latents(self, z: torch.Tensor) -> torch.Tensor:
        """Noise (n, noise_dim) -> latents (n, layout.dim); here the same."""
        return z

    def distance(self, z: torch.Tensor, moved: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """Euclidean length (n,) between the latents of two noises (n, noise_dim) on `chunks`."""
        at = self.layout.slice(chunks)
        return torch.linalg.vector_norm(self.latents(moved)[:, at] - self.latents(z)[:, at], dim=1)

    def synthesize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, layout.dim) -> the network's own output, before any crop, resize or change of range."""
        raise NotImplementedError

    def decode(self, latents: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Latents (n, layout.dim) -> images (n, 3, resolution, resolution) in [0, 1].

        `rng` serves families whose images have randomness beyond the latents; the others ignore it.
        """
        raise NotImplementedError

    def decode_pair(
        self, anchor: torch.Tensor, positive: torch.Tensor, chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImagePair:
        """Decode latents that differ on `chunks` only; the anchor's half carries no graph.

        Equal to decoding both; a family may do once what both share.
        """
        with torch.no_grad():
            anchor_image = self.decode(anchor, rng)
        return ImagePair(anchor_image, self.decode(positive, rng))
