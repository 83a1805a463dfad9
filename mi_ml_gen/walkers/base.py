"""Walkers, T_z: what perturbs a latent vector into the positive partner of an anchor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.hub.sharing import Shared
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.registry import register_walker


class Pair(NamedTuple):
    """Flat latents of anchors and of their positives, (n, layout.dim) each."""

    anchor: torch.Tensor
    positive: torch.Tensor


class PublishedSeed(NamedTuple):
    """Stands for a random generator where the published code's draws are wanted again: those of this seed.

    That code gives every group of a grouped random walker the same seed, so the groups' noises are copies or slices
    of one draw; nothing but the repetition of a published image should want that.
    """

    seed: int


Rng = torch.Generator | PublishedSeed | None


class Walker(Shared):
    """What all walkers share: from moved noise to a pair.

    A kind of walker defines `chunks`, `moves` and `config`, and `check` where it fits some generators only.
    """

    about: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed, where a file is read
    """What the walker's file says it was trained on; see `walkers.origins`."""

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        """Each range of chunks that is perturbed, with the noise (n, noise_dim) that its latents come from."""
        raise NotImplementedError

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        """The ranges that are perturbed."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Plain values from which, with a state dict, `from_config` builds the same walker again; "kind" among them."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Walker:
        """A walker of what `config()` gave, before its state dict is loaded."""
        raise NotImplementedError

    def check(self, generator: MultiLatentGenerator) -> None:
        """Raise UsageError where this walker does not fit the generator."""
        for chunks in self.chunks:
            generator.chunks(str(chunks), "a walker on chunks")

    def forward(self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng = None) -> Pair:
        """Anchors and positives of noise z (n, noise_dim); gradients flow to the walker's parameters and to z.

        In the precision of z and of the parameters, inside autocast too: a walker costs little, and what its
        perturbation is should not depend on how images are decoded.
        """
        with runtime.full_precision(z.device):
            anchor = positive = generator.latents(z)
            for chunks, moved in self.moves(generator, z, rng):
                at = generator.layout.slice(chunks)
                latents = generator.moved_latents(z, moved)
                positive = torch.cat([positive[:, : at.start], latents[:, at], positive[:, at.stop :]], 1)
        return Pair(anchor, positive)


@register_walker("identity")
class IdentityWalker(Walker):
    """Leaves the positive equal to the anchor: generated images without perturbation, the "synth" baseline."""

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return ()

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        return iter(())

    def config(self) -> dict[str, Any]:
        return {"kind": "identity"}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> IdentityWalker:
        return cls()


def chunks_of(config: Mapping[str, Any]) -> Chunks:
    """The range of chunks in a walker's configuration."""
    start, stop = map(int, str(config["chunks"]).split("_"))
    return Chunks(start, stop)


def _moved(z: torch.Tensor, at: slice, displacement: torch.Tensor) -> torch.Tensor:
    if at.start == 0 and at.stop == z.shape[1]:
        return z + displacement
    return torch.cat([z[:, : at.start], z[:, at] + displacement, z[:, at.stop :]], dim=1)
