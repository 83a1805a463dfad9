"""Two batches of views for each training step: T_z, decode, T_x of generated images, or T_x of stored ones.

Everything that is drawn for a batch is a function of its key (seed, step, rank), so runs can be resumed exactly and no
two processes draw the same. T_x itself is in `augment`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mi_ml_gen.core import graphs, runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.source import ImageSource, Paired, batches
from mi_ml_gen.generators.base import ImagePair, MultiLatentGenerator
from mi_ml_gen.latents import Chunks, NoiseDistribution, TruncatedNormal
from mi_ml_gen.views.augment import Augment, ViewParameters, unit_range
from mi_ml_gen.walkers.base import IdentityWalker, Walker

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------------
# T_z, decode, T_x


class Views(NamedTuple):
    """Two batches of views, (n, 3, crop_size, crop_size) each; row i of both shows the same sample."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class BatchKey:
    """Which batch is meant: all that its randomness may depend on."""

    seed: int
    step: int
    rank: int
    world_size: int
    n: int
    """Samples of this process."""
    device: torch.device

    def rng(self, name: str) -> torch.Generator:
        """The random stream of one use. Each use has its own, so that runs which differ in T_z alone have the same
        anchors and the same crops."""
        return runtime.stream(self.seed, f"views: {name}", self.step, self.rank, self.device)


class PairSource(Protocol):
    """Where pairs of images come from."""

    image_size: int
    """Height and width of the images, in pixels."""
    n_images: int | None
    """How many different ones there are; None where each is new."""

    def pair(self, key: BatchKey) -> ImagePair:
        """Two batches of images (n, 3, image_size, image_size), in [0, 1] or uint8, on the device of `key`."""
        ...


class GeneratedImages:
    """Continuous sampling: anchors and positives of a generator, new at every step.

    walker: T_z; without it (or with IdentityWalker) both images are the anchor, which is then decoded once.
    distribution: of the anchors' noise (`law` is its former name). decode_at_once: pairs that are decoded together, to
    bound the memory.
    """

    n_images: int | None = None

    def __init__(
        self,
        generator: MultiLatentGenerator,
        walker: Walker | None = None,
        distribution: NoiseDistribution | None = None,
        decode_at_once: int | None = None,
        *,
        law: TruncatedNormal | None = None,
    ) -> None:
        assert decode_at_once is None or decode_at_once >= 1
        self.generator = generator
        self.walker = IdentityWalker() if walker is None else walker
        self.distribution: NoiseDistribution = distribution or law or TruncatedNormal()
        self.decode_at_once = decode_at_once
        self.image_size = generator.resolution
        self.decode, self.decode_pair = generator.decode, generator.decode_pair

    def compile(self) -> None:
        """Decode through torch.compile from now on."""
        self.decode = torch.compile(self.generator.decode)  # type: ignore[method-assign]
        self.decode_pair = torch.compile(self.generator.decode_pair)  # type: ignore[method-assign]

    def record(self) -> None:
        """Decode by CUDA graphs from now on, where the generator draws nothing while it decodes."""
        if self.generator.draws_to_decode():  # a replay would give the same noise each time
            logger.warning(
                "%s draws noise while it decodes, so this is not recorded as a CUDA graph", self.generator.name
            )
            return
        self.decode = _RecordedDecoding(self.generator.decode)  # type: ignore[method-assign, assignment]
        self.decode_pair = _RecordedDecoding(self.generator.decode_pair)  # type: ignore[method-assign, assignment]

    @torch.no_grad()
    def pair(self, key: BatchKey) -> ImagePair:
        z = self.distribution.sample((key.n, self.generator.noise_dim), key.rng("anchors"))
        latents = self.walker(self.generator, z, key.rng("positives"))
        rng = key.rng("decode")
        size = self.decode_at_once or key.n
        moved = self.walker.chunks
        if not moved:
            decoded = [self.decode(part, rng) for part in latents.anchor.split(size)]
            images = decoded[0] if len(decoded) == 1 else torch.cat(decoded)
            return ImagePair(images, images)
        span = Chunks(min(chunks.start for chunks in moved), max(chunks.stop for chunks in moved))
        parts = zip(latents.anchor.split(size), latents.positive.split(size), strict=True)
        pairs = [self.decode_pair(anchor, positive, span, rng) for anchor, positive in parts]
        if len(pairs) == 1:
            return pairs[0]
        anchors, positives = zip(*pairs, strict=True)
        return ImagePair(torch.cat(anchors), torch.cat(positives))


class _RecordedDecoding:
    """A generator's `decode` or `decode_pair` as a CUDA graph; what follows the latents must stay the same."""

    def __init__(self, decode: Callable[..., Any]) -> None:
        self._rest: tuple[Any, ...] = ()
        self._graph = graphs.Recorded(lambda *latents: decode(*latents, *self._rest), "decoding")

    def __call__(self, *arguments: Any) -> Any:
        latents = [argument for argument in arguments if isinstance(argument, Tensor)]
        self._rest = arguments[len(latents) :]
        return self._graph(*latents)


class StoredImages:
    """Images of a source, in an order drawn anew for each epoch; the two views are of the same image.

    An epoch is as many whole batches (of all processes together) as the source fills; what is left over is left out
    of that epoch. Steps asked for in turn are read ahead in the background.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.image_size = source.image_size
        self.n_images: int | None = source.n_images
        self._reading: tuple[BatchKey, Iterator[Tensor]] | None = None

    def rest_of_epoch(self, key: BatchKey) -> Tensor:
        """The images of this process's batches from a step to the end of its epoch, int64 (n_batches, n).

        Raises UsageError where the source is smaller than a batch.
        """
        n_together = key.n * key.world_size
        n_batches = self.source.n_images // n_together
        if n_batches == 0:
            raise UsageError(f"a batch of {n_together} of {self.source.n_images} images: take a smaller batch")
        epoch, done = divmod(key.step, n_batches)
        rng = runtime.stream(key.seed, "views: order", epoch, 0)  # one order for all processes
        order = torch.randperm(self.source.n_images, generator=rng)[: n_batches * n_together]
        return order.view(n_batches, key.world_size, key.n)[done:, key.rank]

    def pair(self, key: BatchKey) -> ImagePair:
        images = next(self._reading[1], None) if self._reading is not None and self._reading[0] == key else None
        if images is None:
            reader = batches(self.source, self.rest_of_epoch(key).flatten(), key.n)
            self._reading, images = (key, reader), next(reader)
        assert self._reading is not None
        self._reading = replace(key, step=key.step + 1), self._reading[1]
        images = runtime.to_device(images, key.device)
        return ImagePair(images, images)


class PairedImages(StoredImages):
    """Pairs of a source that has several pictures of the same thing, as emoji by several houses: two pictures of each,
    chosen anew at every step. Orders and epochs are those of `StoredImages`."""

    def pair(self, key: BatchKey) -> ImagePair:
        assert isinstance(self.source, Paired)
        draws = torch.rand(key.n, 2, generator=runtime.stream(key.seed, "views: pairs", key.step, key.rank))
        first, second = self.source.pairs(self.rest_of_epoch(key)[0], draws)
        return ImagePair(runtime.to_device(first, key.device), runtime.to_device(second, key.device))


def stored_images(source: ImageSource) -> StoredImages:
    """What views are taken of: pairs where the source has pairs, else twice the same image."""
    return PairedImages(source) if isinstance(source, Paired) else StoredImages(source)


def _recorded_view(augment: Augment) -> Callable[[Tensor, ViewParameters | None], Tensor]:
    """`augment.view` as a CUDA graph."""
    view = augment.view
    graph = graphs.Recorded(lambda images, drawn: view(images, ViewParameters.of_tensors(drawn)), "the augmentation")
    return lambda images, parameters: graph(images, {} if parameters is None else parameters.tensors())


class ViewSampler:
    """Two batches of views for each step: T_z, decode, T_x, or T_x of stored images.

    origin: GeneratedImages or StoredImages. policy: T_x, a name of POLICIES. batch_size: samples a step, of this
    process. crop_size: side of the views, as in Augment. precision: of the generator. rank and world_size: by
    default this process's. mixture: None, or the share of pairs that T_z makes, whose views keep their
    colours; the other pairs are twice the anchor, under the whole T_x.

    What a step gives is a function of (seed, rank, step) alone: processes share no latent and no crop, and a
    resumed run goes on with the views that the uninterrupted one had. Nothing is read back by the host.
    """

    def __init__(
        self,
        origin: PairSource,
        policy: str = "simclr",
        batch_size: int = 64,
        seed: int = 0,
        device: torch.device | str | None = None,
        crop_size: int | None = None,
        precision: str = "fp32",
        rank: int | None = None,
        world_size: int | None = None,
        mixture: float | None = None,
    ) -> None:
        self.origin = origin
        self.mixture = mixture
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device("cpu") if device is None else torch.device(device)
        self.precision = precision
        self.rank = runtime.rank() if rank is None else rank
        self.world_size = runtime.world_size() if world_size is None else world_size
        self.augment = Augment(policy, origin.image_size, crop_size).to(self.device)
        if isinstance(origin, GeneratedImages):
            origin.generator.hold(precision)

    def key(self, step: int) -> BatchKey:
        return BatchKey(self.seed, step, self.rank, self.world_size, self.batch_size, self.device)

    def record(self) -> None:
        """Decode and augment by CUDA graphs from now on; on the CPU nothing changes."""
        if isinstance(self.origin, GeneratedImages):
            self.origin.record()
        self.augment.view = _recorded_view(self.augment)  # type: ignore[method-assign, assignment]

    @torch.no_grad()
    def images(self, step: int) -> ImagePair:
        """The images that the views of a step are taken of, float32 in [0, 1]."""
        with runtime.autocast(self.device, self.precision):
            pair = self.origin.pair(self.key(step))
        first = unit_range(pair.anchor)
        return ImagePair(first, first if pair.positive is pair.anchor else unit_range(pair.positive))

    @torch.no_grad()
    def __call__(self, step: int) -> Views:
        images, key = self.images(step), self.key(step)
        if self.mixture is None:
            both = self.augment.pair(images.anchor, images.positive, key.rng("crops"))
        else:
            both = self._mixed(images, key, self.mixture)
        return Views(*both.contiguous(memory_format=torch.channels_last).chunk(2))

    def _mixed(self, images: ImagePair, key: BatchKey, share: float) -> Tensor:
        """Views of pairs of which each is made either by T_z or by colours."""
        by_Tz = runtime.uniform((key.n,), key.rng("mixture"), key.device) < share
        positives = torch.where(by_Tz.view(-1, 1, 1, 1), images.positive, images.anchor)
        drawn = self.augment.draw_pair(key.n, key.rng("crops"), key.device)
        if drawn is not None:
            by_Tx = ~by_Tz.repeat(2)
            drawn = replace(drawn, jitter=drawn.jitter & by_Tx, grayscale=drawn.grayscale & by_Tx)
        return self.augment.view(torch.cat([images.anchor, positives]), drawn)
