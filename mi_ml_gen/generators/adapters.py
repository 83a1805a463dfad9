"""Networks that people already have, as generators: any `torch.nn.Module` that makes images out of one latent vector.

    class Mine(ModuleGenerator):
        chunk_sizes = (32, 32, 64)                  # the latent vector of 128 numbers, cut as you like

        def build(self):
            return MyGAN()                          # noise (n, 128) -> images (n, 3, H, W) in [-1, 1]

    --generator mine.py:Mine --g_path weights.pt    # in every script

In a notebook, `from_module(network, chunk_sizes=(32, 32, 64))` wraps a network in hand.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mi_ml_gen.checkpoints.reading import CheckpointFile, naming, without_wrappers
from mi_ml_gen.checkpoints.values import TensorStub
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.registry import fault
from mi_ml_gen.generators.base import MultiLatentGenerator, check_state
from mi_ml_gen.latents import LatentLayout

_USUAL_NAMES = ("g_ema", "ema", "generator_ema", "generator", "state_dict", "model", "netG", "G", "g")
"""Where training scripts keep the generator's state dict in a file, averages first."""


class ModuleGenerator(MultiLatentGenerator):
    """A network of yours as a generator: derive a class, say how its latent vector is cut, and build the network.

    Arguments of the class go to `build`, and are what a saved file holds beside the weights: so they are plain values.
    The size of the images is found by a trial. A network with several latent inputs overrides `run`.
    Raises UsageError where chunks do not add up to `latent_size`, and where the network gives no square images of one
    or three channels.
    """

    chunk_sizes: ClassVar[Sequence[int]]
    """Length of each chunk."""
    latent_size: ClassVar[int | None] = None
    """Length of the latent vector; None: what the chunks add up to."""
    latent_shape: ClassVar[tuple[int, ...] | None] = None
    """Shape of the network's input without the batch, such as (128, 1, 1); None: (latent_size,)."""
    image_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    """What the network's black and white are; beyond them, images are clipped."""

    def __init__(self, **settings: Any):
        super().__init__()
        self._settings = settings
        network = self.build(**settings)
        name = self.name = type(self).__name__
        if not isinstance(network, nn.Module):
            raise UsageError(f"{name}: build gives {type(network).__name__}; it must return the network, an nn.Module")
        self.network = network
        self._measure(name)

    def build(self, **settings: Any) -> nn.Module:
        """The network, with or without its weights: `--g_path` and saved files bring them later."""
        raise UsageError(f"{type(self).__name__}: define build(self), which returns the network")

    def run(self, latents: Tensor) -> Tensor:
        """Latents (n, layout.dim) -> what the network makes of them, (n, 1 or 3, H, W) in `image_range`.

        With one input for each chunk: `return self.network(*latents.split(self.layout.sizes, dim=1))`.
        """
        return self.network(latents if self.latent_shape is None else latents.unflatten(1, self.latent_shape))

    def config(self) -> dict[str, Any]:
        return dict(self._settings)

    @classmethod
    def from_file(cls, path: str | Path) -> ModuleGenerator:
        """From a state dict of the network in a file of torch, which is read without running what is in it.

        A state dict in a dictionary of a training script is found under its usual names, an average first.
        Raises UnsafeCheckpointError or CorruptCheckpointError for a file that is refused or does not fit.
        """
        generator = cls()
        with CheckpointFile(path) as file, naming(path):
            state = dict(without_wrappers(file.build(_state_dict(file.root))))
            own = generator.network.state_dict()
            for name in own:
                if name.endswith("num_batches_tracked"):  # which older files lack
                    state.setdefault(name, own[name])
            check_state(cls.__name__, own, state)
        generator.network.load_state_dict(state)
        return generator

    def synthesize(self, latents: Tensor) -> Tensor:
        return self.run(latents)

    def decode(self, latents: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (n, layout.dim) -> images (n, 3, resolution, resolution) in [0, 1]; grey ones in three channels."""
        black, white = self.image_range
        images = (self.run(latents) - black) / (white - black)
        return images.clamp(0, 1).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def _measure(self, name: str) -> None:
        """Layout and resolution, the latter by a trial."""
        given = getattr(self, "chunk_sizes", None)
        sizes = _whole_numbers(given)
        if sizes is None:
            raise UsageError(f"{name}: chunk_sizes {given!r}: must be the length of each chunk, such as (16, 16, 32)")
        size = sum(sizes) if self.latent_size is None else self.latent_size
        if sum(sizes) != size:
            raise UsageError(f"{name}: chunk_sizes {list(sizes)} add up to {sum(sizes)}; latent_size is {size}")
        if self.latent_shape is not None:
            shape = _whole_numbers(self.latent_shape)
            if shape is None or math.prod(shape) != size:
                raise UsageError(f"{name}: latent_shape {self.latent_shape!r} does not hold {size} numbers; it is the "
                                 f"shape of the network's input without the batch, such as ({size}, 1, 1)")  # fmt: skip
        try:
            black, white = map(float, self.image_range)
        except (TypeError, ValueError):
            black = white = math.nan
        if not black < white:
            raise UsageError(f"{name}: image_range {self.image_range!r} must be (black, white), the lower number first")
        self.layout, self.noise_dim = LatentLayout(sizes), size
        was_training = [part for part in self.modules() if part.training]
        held = next(self.network.parameters(), torch.empty(0))
        latents = torch.zeros(2, size).to(held)
        try:
            images: Any = self.eval().run(latents)
        except Exception as error:  # of a user's class
            inner = tuple(self.latent_shape or (size,))
            raise UsageError(
                f"{name}: the network cannot run on latent vectors {(2, *inner)}: {fault(error)}"
            ) from error
        for part in was_training:
            part.training = True
        shape = tuple(getattr(images, "shape", ()))
        if len(shape) != 4 or shape[0] != 2 or shape[1] not in (1, 3) or shape[2] != shape[3]:
            raise UsageError(
                f"{name}: the network gives {shape or type(images).__name__} for 2 latent vectors; it must give images "
                "(2, 3, H, H), or (2, 1, H, H) for grey ones; override run(latents) to choose or reshape its output"
            )
        self.resolution = shape[-1]


def from_module(
    network: nn.Module,
    chunk_sizes: Sequence[int],
    latent_shape: tuple[int, ...] | None = None,
    image_range: tuple[float, float] = (-1.0, 1.0),
    name: str = "mine",
) -> ModuleGenerator:
    """A network in hand as a frozen generator, for a notebook; see `ModuleGenerator` for the arguments.

    Other processes cannot build the network again, so it cannot be saved, and a script needs the class instead.
    Raises UsageError as `ModuleGenerator`.
    """
    given = {"chunk_sizes": tuple(chunk_sizes), "latent_shape": latent_shape, "image_range": image_range}
    wrapped = type("NetworkInHand", (_InHand,), given)(network)
    wrapped.name = name
    wrapped.freeze()
    return wrapped


class _InHand(ModuleGenerator):
    """A network that was made elsewhere."""

    def __init__(self, network: nn.Module):
        super().__init__(network=network)

    def build(self, **settings: Any) -> nn.Module:
        return settings["network"]

    def config(self) -> dict[str, Any]:
        return {"chunk_sizes": list(self.chunk_sizes), "image_range": list(self.image_range)}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> MultiLatentGenerator:
        raise CorruptCheckpointError(
            f"{name} is a network in hand, which cannot be built again; derive a class from ModuleGenerator instead"
        )


def _whole_numbers(values: Any) -> tuple[int, ...] | None:
    """A sequence of whole numbers as a tuple, or None for anything else."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        return None


def _state_dict(root: Any) -> dict[str, Any]:
    """The state dict in a parsed file, which is the file itself or stands under one of the usual names."""
    for _ in range(3):
        if isinstance(root, dict) and root and all(isinstance(value, TensorStub | Tensor) for value in root.values()):
            return root
        found = next((root[name] for name in _USUAL_NAMES if isinstance(root, dict) and name in root), None)
        if found is None:
            break
        root = found
    raise CorruptCheckpointError("holds no state dict of a network; write it by torch.save(network.state_dict(), path)")


__all__ = ["ModuleGenerator", "from_module"]
