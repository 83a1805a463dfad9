"""Walkers, T_z: what perturbs a latent vector into the positive partner of an anchor.

A walker changes the part of the noise that `generator.walk_slice(chunks)` names. Both vectors go through
`generator.latents`, and the positive takes the changed latents on the walker's chunks, the anchor's elsewhere; so
one walker serves every family of generators (Serez et al., 2025, section 3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import yaml
from torch import nn

from mi_ml_gen import checkpoints, config, files, hub
from mi_ml_gen.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.sharing import Shared


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
    """What all walkers share: from moved noise to a pair."""

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
        """Plain values from which, with a state dict, the same walker is built again."""
        raise NotImplementedError

    def forward(self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng = None) -> Pair:
        """Anchors and positives of noise z (n, noise_dim); gradients flow to the walker's parameters and to z."""
        anchor = positive = generator.latents(z)
        for chunks, moved in self.moves(generator, z, rng):
            at = generator.layout.slice(chunks)
            positive = torch.cat([positive[:, : at.start], generator.latents(moved)[:, at], positive[:, at.stop :]], 1)
        return Pair(anchor, positive)


class NonlinearWalker(Walker):
    """The learned walker: z + W2 relu(W1 z + b1) + b2 on the walk slice.

    chunks: what it perturbs. width: length of the generator's walk slice for them.
    It starts near the identity, weights Normal(0, 0.01), biases Uniform(-0.001, 0.001).
    """

    def __init__(self, chunks: Chunks, width: int):
        super().__init__()
        self.range = chunks
        self.width = width
        self.walker = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for layer in self.walker:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.uniform_(layer.bias, -0.001, 0.001)

    @classmethod
    def on(cls, generator: MultiLatentGenerator, chunks: Chunks) -> NonlinearWalker:
        """A new walker of the width that the generator asks for, on the generator's device."""
        at = generator.walk_slice(chunks)
        parameter = next(generator.parameters(), torch.empty(0))
        return cls(chunks, at.stop - at.start).to(parameter.device)

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        at = self.check_width(generator)
        yield self.range, _moved(z, at, self.walker(z[:, at]))

    def check_width(self, generator: MultiLatentGenerator) -> slice:
        """The generator's walk slice. Raises UsageError where it is not of this walker's width."""
        at = generator.walk_slice(self.range)
        if at.stop - at.start != self.width:
            raise UsageError(
                f"a walker of width {self.width} on chunks {self.range} does not fit {generator.name}, "
                f"whose walk slice there has {at.stop - at.start} numbers"
            )
        return at

    def config(self) -> dict[str, Any]:
        return {"kind": "nonlinear", "chunks": str(self.range), "width": self.width}


class Law(Protocol):
    """A law that random perturbations are drawn from."""

    def sample(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> torch.Tensor: ...


class OccasionalNormal(NamedTuple):
    """With probability 1/2 a normal truncated at 2 whose std is uniform between low and high, else nothing.

    Here the coin and the std are drawn for each sample; the published code drew one of each for a whole batch.
    """

    low: float
    high: float

    def sample(
        self, shape: Sequence[int], generator: torch.Generator | None = None, device: Any = None
    ) -> torch.Tensor:
        noise = TruncatedNormal().sample(shape, generator, device)
        coin, std = torch.rand(2, shape[0], 1, generator=generator, device=noise.device)
        return noise * torch.where(coin < 0.5, self.low + (self.high - self.low) * std, torch.zeros_like(std))

    def toss(self, coins: np.random.Generator) -> TruncatedNormal:
        """The law that the published code draws for a whole batch, std 0 where the coin says so."""
        return TruncatedNormal(0.0, coins.uniform(self.low, self.high) if coins.binomial(1, 0.5) else 0.0, 2.0)


def _published_noise(law: Law, shape: Sequence[int], seed: int, coins: np.random.Generator) -> torch.Tensor:
    tossed = law.toss(coins) if isinstance(law, OccasionalNormal) else law
    assert isinstance(tossed, TruncatedNormal)
    return tossed.sample_reference(shape, seed)


class RandomWalker(Walker):
    """Adds noise of a law, usually a `TruncatedNormal`, to the walk slice."""

    def __init__(self, chunks: Chunks, law: Law):
        super().__init__()
        self.range = chunks
        self.law = law

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return (self.range,)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        at = generator.walk_slice(self.range)
        shape = (len(z), at.stop - at.start)
        if isinstance(rng, PublishedSeed):
            noise = _published_noise(self.law, shape, rng.seed, np.random.default_rng(rng.seed)).to(z)
        else:
            noise = self.law.sample(shape, rng, z.device).to(z.dtype)
        yield self.range, _moved(z, at, noise)

    def config(self) -> dict[str, Any]:
        law = self.law
        numbers = [law.low, law.high] if isinstance(law, OccasionalNormal) else [law.mean, law.std, law.truncation]  # type: ignore[attr-defined]
        return {"kind": "random", "chunks": str(self.range), "law": numbers}


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


class GroupedWalker(Walker):
    """Several walkers, each on its own chunks; every one starts from the anchor's noise.

    With a `PublishedSeed` random groups take their columns from one draw of the whole noise, as the published code
    does. (That code also reads the length of a chunk off its last group; groups must end at the last chunk to agree.)
    """

    def __init__(self, walkers: Sequence[Walker]):
        super().__init__()
        self.walkers = nn.ModuleList(walkers)
        self.members = tuple(walkers)  # the same, with their type
        taken = self.chunks
        for i, chunks in enumerate(taken):
            if any(chunks.overlaps(other) for other in taken[:i]):
                raise UsageError(f"groups {', '.join(map(str, taken))}: {chunks} overlaps another group")

    @classmethod
    def from_groups(cls, groups: Mapping[str, Walker | Sequence[float] | None], n_chunks: int) -> GroupedWalker:
        """From "start_stop" -> a walker, [mean, std, truncation], [low, high] (see OccasionalNormal), or None."""
        walkers: list[Walker] = []
        for text, group in groups.items():
            chunks = Chunks.parse(text, n_chunks, flag="group")
            if group is None:
                continue
            if isinstance(group, Walker):
                if group.chunks != (chunks,):
                    found = ", ".join(map(str, group.chunks))
                    raise UsageError(f"group {text}: its walker was trained on chunks {found}")
                walkers.append(group)
            else:
                walkers.append(RandomWalker(chunks, law_from(group)))
        return cls(walkers)

    @property
    def chunks(self) -> tuple[Chunks, ...]:
        return tuple(chunks for walker in self.members for chunks in walker.chunks)

    def moves(
        self, generator: MultiLatentGenerator, z: torch.Tensor, rng: Rng
    ) -> Iterator[tuple[Chunks, torch.Tensor]]:
        coins = np.random.default_rng(rng.seed) if isinstance(rng, PublishedSeed) else None
        for walker in self.members:
            if isinstance(rng, PublishedSeed) and coins is not None and isinstance(walker, RandomWalker):
                at = generator.walk_slice(walker.range)
                noise = _published_noise(walker.law, z.shape, rng.seed, coins).to(z)[:, at]
                yield walker.range, _moved(z, at, noise)
            else:
                yield from walker.moves(generator, z, rng)

    def config(self) -> dict[str, Any]:
        return {"kind": "grouped", "walkers": [walker.config() for walker in self.members]}


def law_from(numbers: Sequence[float]) -> Law:
    """[mean, std, truncation] or [low, high]. Raises UsageError for anything else."""
    if len(numbers) == 2:
        return OccasionalNormal(*map(float, numbers))
    if len(numbers) == 3:
        return TruncatedNormal(*map(float, numbers))
    raise UsageError(f"perturbation {list(numbers)}: give [mean, std, truncation] or [low, high]")


def _moved(z: torch.Tensor, at: slice, displacement: torch.Tensor) -> torch.Tensor:
    if at.start == 0 and at.stop == z.shape[1]:
        return z + displacement
    return torch.cat([z[:, : at.start], z[:, at] + displacement, z[:, at.stop :]], dim=1)


# ---------------------------------------------------------------------------------------------------------------
# Files


def build_walker(config: Mapping[str, Any]) -> Walker:
    """A walker from what its `config()` gave. Raises UsageError for a configuration that makes no sense."""
    try:
        kind = config["kind"]
        if kind == "identity":
            return IdentityWalker()
        if kind == "grouped":
            return GroupedWalker([build_walker(inner) for inner in config["walkers"]])
        start, stop = map(int, str(config["chunks"]).split("_"))
        if kind == "nonlinear":
            return NonlinearWalker(Chunks(start, stop), int(config["width"]))
        if kind == "random":
            return RandomWalker(Chunks(start, stop), law_from(config["law"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"walker configuration: {error}") from None
    raise UsageError(f"walker configuration: unknown kind {kind!r}")


def save_walker(path: str | Path, walker: Walker, **about: Any) -> Path:
    """Write `path`.safetensors and, beside it, `path`.json: the walker's configuration and `about` (generator,
    number of training samples, seed ...). The suffix may be given or left out. Gives the safetensors path."""
    path = _with_suffix(Path(path), ".safetensors")
    description = {"format": "mi_ml_gen walker", **walker.config(), "about": about}
    files.atomic_write(_with_suffix(path, ".json"), (json.dumps(description, indent=2) + "\n").encode())
    files.save_tensors(path, walker.state_dict(), {"format": "mi_ml_gen walker"})
    return path


def load_groups(
    groups: str | Path | Mapping[str, Any],
    generator: MultiLatentGenerator,
    device: torch.device | str | None = None,
) -> GroupedWalker:
    """A walker for each group of chunks, from a YAML file, or a mapping of what such a file holds:

        0_4: runs/coarse/walker.safetensors    # what `load_walker` reads, or the run folder of one walker
        4_8: [0, 1, 2]                         # noise: [mean, std, truncation], or [low, high]
        8_12: null                             # left alone

    A file's relative paths count from the file, a mapping's from here; a mapping may also hold walkers. In place of a
    path a reference may stand (see hub.py). Raises
    UsageError for groups that overlap or do not fit the generator, else as `load_walker`.
    """
    where, content, base = "groups", groups, Path()
    if not isinstance(groups, Mapping):
        path = hub.local_path(groups)
        where, content, base = str(groups), _read_groups(path), path.parent
    assert isinstance(content, Mapping)
    members: dict[str, Walker | Sequence[float] | None] = {}
    for text, group in content.items():
        generator.chunks(text, f"{where}: group")
        if isinstance(group, str | Path) and str(group) not in config.NOTHING:
            path = Path(group) if hub.is_reference(group) else base / group
            members[text] = load_walker(path / "walker.safetensors" if path.is_dir() else path, device)
        else:
            members[text] = group if isinstance(group, Walker) else _numbers(group, f"{where}: group {text}")
    grouped = GroupedWalker.from_groups(members, generator.layout.n_chunks)
    for walker in grouped.members:
        if isinstance(walker, NonlinearWalker):
            walker.check_width(generator)
    return grouped


def _read_groups(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every scalar as text: YAML itself takes the chunks 0_4 for the number 4."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must hold lines of the form START_STOP: walker, [mean, std, truncation] or null")
    if len(content) < len(root.value):
        raise UsageError(f"{path}: a group stands there twice")
    return content


def _numbers(group: Any, where: str) -> list[float] | None:
    """The numbers of a law, None for nothing."""
    if group is None or group in config.NOTHING:
        return None
    try:
        return [float(number) for number in group]
    except (TypeError, ValueError):
        raise UsageError(
            f"{where}: {group}: must be a walker's path, [mean, std, truncation], [low, high] or null"
        ) from None


def load_walker(
    path: str | Path, device: torch.device | str | None = None, generator: MultiLatentGenerator | None = None
) -> Walker:
    """Read a walker that `save_walker` wrote (either of its two files), or a published pickle, which is never run.

    With the generator that it is for, `path` may also be a YAML of groups, see `load_groups`, and, always, a reference
    to a file (see hub.py). Raises UsageError for a missing file, UnsafeCheckpointError or CorruptCheckpointError for
    one that is refused.
    """
    path = hub.local_path(path)
    if path.suffix in (".yaml", ".yml") and generator is not None:
        return load_groups(path, generator, device)
    if path.suffix in (".safetensors", ".json"):
        return _load_saved(path).to(device)
    return read_published(path).to(device)


def read_published(path: str | Path) -> NonlinearWalker:
    """The walker in a published pickle, whatever its name; raises as `load_walker`."""
    published = checkpoints.read_walker(hub.local_path(path))
    width = len(published.state["walker.0.bias"])
    # COP-Gen's walker records no chunks: it perturbs all of BigBiGAN's.
    start, stop = published.attributes.get("start", 0), published.attributes.get("stop", 6)
    walker = NonlinearWalker(Chunks(start, stop), width)
    walker.load_state_dict(published.state)
    return walker


def read_about(path: str | Path) -> dict[str, Any]:
    """What `save_walker` was told about a walker; empty for a published file."""
    path = Path(path)
    return _description(path)["about"] if path.suffix in (".safetensors", ".json") else {}


def _load_saved(path: Path) -> Walker:
    description = _description(path)
    tensors, _ = files.load_tensors(_with_suffix(path, ".safetensors"))
    try:
        walker = build_walker(description)
        walker.load_state_dict(tensors)
    except (UsageError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{path}: {' '.join(str(error).split())}") from None
    return walker


def _description(path: Path) -> dict[str, Any]:
    path = _with_suffix(path, ".json")
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; a walker is a .safetensors file with a .json beside it") from None
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{path}: not a walker's description: {error}") from None
    if not isinstance(description, dict) or not {"kind", "about"} <= description.keys():
        raise CorruptCheckpointError(f"{path}: not a walker's description")
    return description


def _with_suffix(path: Path, suffix: str) -> Path:
    known = (".safetensors", ".json")
    return path.with_suffix(suffix) if path.suffix in known else path.with_name(path.name + suffix)
