"""The one interface behind which every generator stands.

    noise z  --latents-->  latents (n, D) = chunk 0 | ... | chunk K-1  --decode-->  images (n, 3, H, W) in [0, 1]

Walkers, the navigator, delta and the encoders use nothing but this; a new family is one file beside this one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from mi_ml_gen.core import config, fixed, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.hub.sharing import Shared
from mi_ml_gen.latents import Chunks, LatentLayout

_definitions = itertools.count()
_LATENTS_AT_ONCE = 2**25
"""Values of latents that `distance` holds at a time: 128 MB in float32."""


class ImagePair(NamedTuple):
    """Decoded anchors and positives, (n, 3, resolution, resolution) in [0, 1] each."""

    anchor: torch.Tensor
    positive: torch.Tensor


class ImageVariants(NamedTuple):
    """Decoded anchors (n, 3, resolution, resolution) in [0, 1], and as many images of each of several variants."""

    anchor: torch.Tensor
    variants: list[torch.Tensor]


@dataclass(frozen=True)
class Use:
    """How a generator is used, where its weights leave that open; a family with choices adds fields to it."""


class MultiLatentGenerator(Shared):
    """A frozen generator whose input is a flat latent vector cut into chunks.

    A family sets `layout`, `noise_dim`, `resolution` and `name`, and defines `synthesize` and `decode`; one whose
    latents are not the noise itself also defines `latents` and `walk_slice`.
    """

    defined: ClassVar[int]
    """The number of the class in the order of definition; where two have one name, the later one is meant."""
    use_fields: ClassVar[type] = Use
    """The dataclass whose fields are the options of `use`."""
    family: ClassVar[str]
    """The name under which the class is registered (families.py)."""
    name: str
    """What commands and messages call it."""
    layout: LatentLayout
    """Sizes of the latent chunks."""
    noise_dim: int
    """Length of the noise z."""
    resolution: int
    """Height and width of what `decode` returns, in pixels."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.defined = next(_definitions)

    def freeze(self) -> MultiLatentGenerator:
        """Evaluation mode, no parameter gradients; gradients still flow to the latents."""
        self.eval().requires_grad_(False)
        fixed.fix(self)
        return self

    def hold(self, precision: str) -> MultiLatentGenerator:
        """Hold the frozen weights as `precision` uses them: for "bf16" as bfloat16 too, which autocast would else make
        of them in every pass. Results stay the same but for rounding; gives itself."""
        fixed.hold(self, precision)
        return self

    def use(self, options: Mapping[str, Any] | Sequence[str]) -> MultiLatentGenerator:
        """Change how the generator is used (truncation, crop ...), what is not named stays; gives itself.

        options: a mapping, or "key=value" texts as flags have them. Raises UsageError for an option that the
        family does not have, or a value that makes no sense.
        """
        given = config.given(self.use_fields, options, "--g_use", f" in --g_use of {self.name}")
        if given:
            self._use(given)
        return self

    def _use(self, given: dict[str, Any]) -> None:
        """Take over values of some of the `use_fields`, of their types."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """What a user should know of how the generator is used now; `load_generator` says it as warnings."""
        return []

    def config(self) -> dict[str, Any]:
        """Plain values from which, with a state dict, `from_state` builds the same generator again: here none."""
        return {}

    @classmethod
    def from_state(
        cls, config: Mapping[str, Any], state: Mapping[str, torch.Tensor], name: str
    ) -> MultiLatentGenerator:
        """The generator of `config()` and its state dict: here the class called with the configuration.

        Raises CorruptCheckpointError where they do not fit.
        """
        try:
            generator = cls(**config)
        except (TypeError, ValueError, UsageError) as error:
            raise CorruptCheckpointError(f"{cls.__name__} configuration: {' '.join(str(error).split())}") from None
        check_state(cls.__name__, generator.state_dict(), state)
        generator.load_state_dict(dict(state))
        generator.name = name
        return generator

    @classmethod
    def from_file(cls, path: str | Path) -> MultiLatentGenerator:
        """From weights in a format of the family's own, given as --g_path. Raises UsageError where there is none."""
        raise UsageError(f"--g_path {path}: {cls.__name__} reads .safetensors files only")

    def chunks(self, text: str, flag: str = "--chunks") -> Chunks:
        """`Chunks.parse` within this generator's range."""
        return Chunks.parse(text, self.layout.n_chunks, self.name, flag)

    def groups(self, size: int, flag: str = "--groups") -> list[Chunks]:
        """All chunks, in ranges of `size`. Raises UsageError, naming the flag, when they cannot be cut so."""
        n_chunks = self.layout.n_chunks
        if not 1 <= size <= n_chunks or n_chunks % size:
            raise UsageError(f"{flag} {size}: must divide the {n_chunks} chunks of {self.name}")
        return [Chunks(start, start + size) for start in range(0, n_chunks, size)]

    def walk_slice(self, chunks: Chunks) -> slice:
        """The part of z that a walker changes in order to perturb `chunks`: the chunks themselves."""
        return self.layout.slice(chunks)

    def latents(self, z: torch.Tensor) -> torch.Tensor:
        """Noise (n, noise_dim) -> latents (n, layout.dim); here the same."""
        return z

    def moved_latents(self, z: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Latents of `moved`, a perturbation of noise z, (n, noise_dim) both; here those of `moved` alone.

        A family that decides something of a sample by its noise (a random class) decides it by z for both.
        """
        return self.latents(moved)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, resolution, resolution) in [0, 1] -> the noise z (n, noise_dim) that reconstructs them.

        An ability of some families, which define this method. Raises UsageError for a generator without it.
        """
        raise UsageError(f"{self.name} cannot encode images")

    @property
    def can_encode(self) -> bool:
        """Whether the family defines `encode`."""
        return type(self).encode is not MultiLatentGenerator.encode

    def first_weights(self, chunks: Chunks) -> torch.Tensor:
        """The first weights that act on the walk slice of chunks, (outputs, length of the walk slice).

        An ability of some families: SeFa's directions are their singular vectors. Raises UsageError for a generator
        without it.
        """
        raise UsageError(f"{self.name} does not name its first weights, which sefa needs; use ganspace")

    def early_features(self, latents: torch.Tensor, chunks: Chunks) -> torch.Tensor | None:
        """What an early layer that chunks reach makes of latents (n, layout.dim): (n, ...), for GANSpace.

        None for a family that names no such layer.
        """
        return None

    def distance(self, z: torch.Tensor, moved: torch.Tensor, chunks: Chunks) -> torch.Tensor:
        """Euclidean length (n,) between the latents of z and of `moved`, noises (n, noise_dim), on `chunks`."""
        at = self.layout.slice(chunks)
        rows = max(1, _LATENTS_AT_ONCE // self.layout.dim)
        parts = zip(z.split(rows), moved.split(rows), strict=True)
        return torch.cat(
            [
                torch.linalg.vector_norm(self.moved_latents(a, b)[:, at] - self.latents(a)[:, at], dim=1)
                for a, b in parts
            ]
        )

    def synthesize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, layout.dim) -> the network's own output, before any crop, resize or change of range."""
        raise NotImplementedError

    def decode(self, latents: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Latents (n, layout.dim) -> images (n, 3, resolution, resolution) in [0, 1].

        `rng` serves families whose images have randomness beyond the latents; the others ignore it. It is the host's,
        so draw with `core.runtime.normal(shape, rng, latents.device)` and its kin.
        """
        raise NotImplementedError

    @torch.no_grad()
    def draws_to_decode(self) -> bool:
        """Whether decoding draws from its `rng`, found by decoding one image."""
        device = device_of(self)
        rng = runtime.stream(0, "draws_to_decode", 0, 0, device)
        before = rng.get_state()
        self.decode(self.latents(torch.zeros(1, self.noise_dim, device=device)), rng)
        return not torch.equal(rng.get_state(), before)

    def decode_pair(
        self, anchor: torch.Tensor, positive: torch.Tensor, chunks: Chunks, rng: torch.Generator | None = None
    ) -> ImagePair:
        """Decode latents that differ on `chunks` only; the anchor's half carries no graph.

        Equal to decoding both; a family may do once what both share.
        """
        with torch.no_grad():
            anchor_image = self.decode(anchor, rng)
        return ImagePair(anchor_image, self.decode(positive, rng))

    def decode_variants(
        self,
        anchor: torch.Tensor,
        variants: Sequence[torch.Tensor],
        chunks: Chunks,
        rng: torch.Generator | None = None,
    ) -> ImageVariants:
        """As `decode_pair` for several latents that differ from the anchor's on `chunks`: the anchors are decoded once,
        and all variants in one pass."""
        with torch.no_grad():
            anchor_image = self.decode(anchor, rng)
        images = self.decode(torch.cat(list(variants)), rng)
        return ImageVariants(anchor_image, list(images.chunk(len(variants))))


def device_of(generator: MultiLatentGenerator) -> torch.device:
    """Where its weights are; the CPU for a generator without any."""
    return next((tensor.device for tensor in (*generator.parameters(), *generator.buffers())), torch.device("cpu"))


G = TypeVar("G", bound=MultiLatentGenerator)


def load_exactly(network: str, generator: G, state: Mapping[str, torch.Tensor]) -> G:
    """Give a generator without values (on the meta device) those of a state dict, half precision as float32; gives it
    back. Keys and shapes must match exactly, as in `check_state`."""
    check_state(network, generator.state_dict(), state)
    halves = (torch.float16, torch.bfloat16)
    full = {key: value.float() if value.dtype in halves else value for key, value in state.items()}
    generator.load_state_dict(full, assign=True)
    return generator


def check_state(network: str, expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Keys and shapes of a state dict must be exactly those expected; no value is looked at.

    Raises CorruptCheckpointError that names the network and the first key at fault.
    """
    for key, value in expected.items():
        if key not in found:
            raise CorruptCheckpointError(f"{network} state dict: {key} is missing")
        if found[key].shape != value.shape:
            shapes = f"{tuple(found[key].shape)}, the network's is {tuple(value.shape)}"
            raise CorruptCheckpointError(f"{network} state dict: {key} has shape {shapes}")
    if unknown := sorted(set(found) - set(expected)):
        raise CorruptCheckpointError(f"{network} state dict: unknown keys {', '.join(unknown[:5])}")
