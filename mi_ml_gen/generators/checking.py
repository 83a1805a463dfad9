"""What a generator promises, checked: of a user's own family before it is used.

    check_generator(generator)       raises UsageError at what is broken
    examine_generator(generator)     one finding for each promise, all of them

Each promise is a function here that yields a line for each break. A line says what is wrong and what would be right.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import MiMlGenError, UsageError
from mi_ml_gen.core.registry import fault
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal

TOLERANCE = 1e-5
"""How far an image may leave [0, 1], for the sake of rounding."""
SAME = 1e-4
"""How far images may differ that should be equal, for sums in another order."""
CLOSE = 0.05
"""How far the mean of images may differ between number formats."""
N_CHUNKS_TRIED = 6
"""Chunks of a generator that `decode_pair` is tried on, the first and the last among them."""


_CHANGED_BY_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class Finding(NamedTuple):
    """Whether one promise is kept."""

    promise: str
    broken: str
    """One line on the break, and empty where the promise is kept."""
    note: str = ""
    """Something measured on the way, for people."""
    is_skipped: bool = False


def check_generator(generator: MultiLatentGenerator, n: int = 2, seed: int = 0, skip: Collection[str] = ()) -> None:
    """Raise UsageError, with the reason in one line, where a generator breaks a promise of `MultiLatentGenerator`.

    n: images that are decoded at a time. skip: names of PROMISES to leave out. Where several promises are broken, the
    line names the first, and their number. Draws nothing from the global random generators, and leaves the generator
    as it is.
    """
    broken = [finding for finding in examine_generator(generator, n, seed, skip) if finding.broken]
    if broken:
        more = len(broken) - 1
        others = f" (and {more} more {'promises are' if more > 1 else 'promise is'} broken)" if more else ""
        _refuse(generator, broken[0].broken + others)


def examine_generator(
    generator: MultiLatentGenerator, n: int = 2, seed: int = 0, skip: Collection[str] = ()
) -> list[Finding]:
    """One finding for each of PROMISES, in their order; for a generator without images of the right shape, that alone.

    Raises UsageError for a name in `skip` that is no promise. Otherwise as `check_generator`.
    """
    if unknown := [name for name in skip if name not in PROMISES]:
        raise UsageError(f"skip {unknown[0]!r}: must be some of {', '.join(PROMISES)}")
    with torch.random.fork_rng(devices=[]):
        try:
            check_images(generator, n, seed)
        except UsageError as error:
            said = str(error).removeprefix(f"generator {_name(generator)}: ")
            return [Finding("shapes and range", said)]
        trial = Trial(generator, n, seed)
        found = []
        for name, promise in PROMISES.items():
            if name in skip:
                found.append(Finding(name, "", is_skipped=True))
                continue
            try:
                broken = next(promise(trial), "")
            except MiMlGenError as error:
                broken = f"{name}: {error}"
            except Exception as error:  # of a user's class
                broken = f"{name}: fails with {fault(error)}"
            found.append(Finding(name, broken, trial.notes.pop(name, "")))
    return found


def check_images(generator: MultiLatentGenerator, n: int = 1, seed: int = 0) -> None:
    """The cheap part of `check_generator`: the layout, and the shape and range of `n` images."""
    layout: Any = getattr(generator, "layout", None)
    if not isinstance(layout, LatentLayout):
        _refuse(generator, f"layout must be a LatentLayout, not {type(layout).__name__}")
    for name in ("noise_dim", "resolution"):
        value = getattr(generator, name, None)
        if not isinstance(value, int) or value < 1:
            _refuse(generator, f"{name} must be a whole number of at least 1, not {value}")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            z, latents = _draw(generator, n, seed)
            if not isinstance(latents, torch.Tensor) or latents.shape != (n, layout.dim):
                shape = tuple(getattr(latents, "shape", ()))
                _refuse(generator, f"latents gives shape {shape} for {n} rows of noise; it must be {(n, layout.dim)}")
            images = generator.decode(latents, _rng(seed, z))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"generator {_name(generator)}: decoding fails: {fault(error)}") from error
    for line in _faults(generator, images, n):
        _refuse(generator, line)


# --- what the promises are tried with -----------------------------------------------------------------------


@dataclass
class Trial:
    """A generator under examination, with noise and latents to try it with."""

    generator: MultiLatentGenerator
    n: int
    seed: int

    def __post_init__(self) -> None:
        self.n = max(2, self.n)
        with torch.no_grad():
            self.z, self.latents = _draw(self.generator, self.n, self.seed)
            self.other_z, self.other = _draw(self.generator, self.n, self.seed + 1)
        self.notes: dict[str, str] = {}
        """By the name of a promise."""

    @property
    def layout(self) -> LatentLayout:
        return self.generator.layout

    def rng(self, seed: int | None = None) -> torch.Generator:
        return _rng(self.seed if seed is None else seed, self.z)

    @torch.no_grad()
    def decode(
        self, latents: torch.Tensor, generator: MultiLatentGenerator | None = None, seed: int | None = None
    ) -> torch.Tensor:
        """Images of copies of latents, by another generator where one is given, with an rng of the trial's seed."""
        return (generator or self.generator).decode(latents.clone(), self.rng(seed))

    @property
    def is_random(self) -> bool:
        """Whether images have randomness beyond the latents."""
        return _apart(self.decode(self.latents), self.decode(self.latents, seed=self.seed + 1)) > SAME

    def copied(self) -> MultiLatentGenerator:
        return copy.deepcopy(self.generator)

    def perturbed(self, chunks: Chunks) -> torch.Tensor:
        """The trial's latents, with those of other noise on `chunks`."""
        at = self.layout.slice(chunks)
        return torch.cat([self.latents[:, : at.start], self.other[:, at], self.latents[:, at.stop :]], 1)

    def each_chunk(self) -> list[Chunks]:
        return [Chunks(i, i + 1) for i in range(self.layout.n_chunks)]


Promise = Callable[[Trial], Iterator[str]]
PROMISES: dict[str, Promise] = {"shapes and range": lambda trial: iter(())}  # tried before all others
"""What is examined, by name; each yields a line for each break."""


def _promise(name: str) -> Callable[[Promise], Promise]:
    def add(function: Promise) -> Promise:
        PROMISES[name] = function
        return function

    return add


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference between two batches of images."""
    return float((a.double() - b.double()).abs().max())


# --- the promises -------------------------------------------------------------------------------------------


@_promise("frozen weights")
def _frozen(trial: Trial) -> Iterator[str]:
    generator = trial.generator
    if any(parameter.requires_grad for parameter in generator.parameters()):
        yield "its parameters ask for gradients; call freeze() first"
    for name, part in generator.named_modules():
        if part.training and (
            isinstance(part, _CHANGED_BY_TRAINING) or next(part.parameters(recurse=False), None) is not None
        ):
            yield f"{name or type(generator).__name__} is in training mode; call freeze() first"
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    trial.decode(trial.latents)
    for name, tensor in generator.state_dict().items():
        if not torch.equal(tensor, before[name]):
            yield f"decode changes its {name}; a frozen generator must stay as it is, so change no weight or buffer"


@_promise("walk_slice")
def _walk_slices(trial: Trial) -> Iterator[str]:
    generator, n_chunks = trial.generator, trial.layout.n_chunks
    for i in range(n_chunks):
        at = generator.walk_slice(Chunks(i, i + 1))
        if not isinstance(at, slice) or None in (at.start, at.stop) or at.step not in (None, 1):
            yield f"walk_slice of chunk {i} is {at}; it must be slice(START, STOP), a run of numbers within the noise"
        if not 0 <= at.start < at.stop <= generator.noise_dim:
            yield (f"walk_slice of chunk {i} is {at}; it must lie within 0 and noise_dim, {generator.noise_dim}")
        last = generator.walk_slice(Chunks(i, n_chunks))
        if last.start > at.start or last.stop < at.stop:
            yield f"walk_slice of chunks {i}_{n_chunks} is {last}, without chunk {i}'s, {at}; it must hold all of them"
        z = trial.z.clone()
        z[:, at] = trial.other_z[:, at]
        place = trial.layout.slice(Chunks(i, i + 1))
        with torch.no_grad():
            moved = generator.moved_latents(trial.z.clone(), z)
        if torch.equal(moved[:, place], trial.latents[:, place]):
            yield (
                f"moving z on walk_slice of chunk {i}, {at.start}:{at.stop}, leaves latents {place.start}:{place.stop} "
                "as they are; walk_slice must name the part of z that the chunk comes from"
            )


@_promise("gradients")
def _gradients(trial: Trial) -> Iterator[str]:
    z = trial.z.clone().requires_grad_()
    images = trial.generator.decode(trial.generator.latents(z), trial.rng())
    slope = torch.autograd.grad(images.sum(), z, allow_unused=True)[0] if images.requires_grad else None
    if slope is None or not slope.isfinite().all() or not slope.abs().sum() > 0:
        yield "no gradient flows from its images to the noise, so no walker can learn on it"
    latents = trial.latents.clone().requires_grad_()
    weighted = trial.generator.decode(latents, trial.rng())
    if not weighted.requires_grad:
        yield "no gradient flows from its images to the latents, so no walker can learn on it"
    weights = torch.linspace(-1, 1, weighted.numel(), device=weighted.device).view_as(weighted)
    (slope,) = torch.autograd.grad((weighted * weights).sum(), latents)
    for chunks in trial.each_chunk():
        part = slope[:, trial.layout.slice(chunks)]
        if not part.isfinite().all() or not part.abs().sum() > 0:
            yield (
                f"no gradient flows from its images to chunk {chunks.start}, so no walker can learn there; let the "
                "image depend on the chunk, or leave it out of the layout"
            )


@_promise("determinism")
def _determinism(trial: Trial) -> Iterator[str]:
    images, states = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        images.append(trial.decode(trial.latents))
        states.append(torch.get_rng_state())
    if (apart := _apart(*images)) > SAME:
        yield (
            f"two decodes of the same latents with the same rng differ by up to {apart:.3g}; draw what is random from "
            "rng, by mi_ml_gen.core.runtime.normal(shape, rng, latents.device)"
        )
    if not (torch.equal(*states[:2]) and torch.equal(*states[2:])):
        yield "decode draws from torch's global generator; draw from rng, so that a seed decides what comes out"
    with torch.no_grad():
        again = trial.generator.latents(trial.z.clone())
    if not torch.equal(again, trial.latents):
        yield "latents of the same noise differ from call to call; they must be a function of the noise alone"


@_promise("unperturbed chunks")
def _unperturbed(trial: Trial) -> Iterator[str]:
    z, latents = trial.z.clone(), trial.latents.clone()
    with torch.no_grad():
        trial.generator.latents(z)
        trial.generator.decode(latents, trial.rng())
        same = trial.generator.moved_latents(trial.z.clone(), trial.z.clone())
    if not torch.equal(z, trial.z):
        yield "latents changes the noise that it is given; work on a copy, since the anchor is used again"
    if not torch.equal(latents, trial.latents):
        yield "decode changes the latents that it is given; work on a copy, since chunks that nobody perturbs must stay"
    if not torch.equal(same, trial.latents):
        yield "moved_latents of noise that was not moved are not its latents; they must be equal"


@_promise("independent samples")
def _independent(trial: Trial) -> Iterator[str]:
    mixed = torch.cat([trial.latents[:1], trial.other[1:]])
    apart = _apart(trial.decode(trial.latents)[:1], trial.decode(mixed)[:1])
    if apart > SAME:
        yield (
            f"the image of a sample changes by up to {apart:.3g} with the other samples of its batch; use no "
            "statistics of the batch (norms in evaluation mode, no mean over samples)"
        )
    mixed_z = torch.cat([trial.z[:1], trial.other_z[1:]])
    with torch.no_grad():
        row = trial.generator.latents(mixed_z)[:1]
    if _apart(row, trial.latents[:1]) > SAME * max(1.0, float(row.abs().max())):
        yield "the latents of a sample change with the other noise of its batch; each row must be its own"


@_promise("batches of any size")
def _batches(trial: Trial) -> Iterator[str]:
    whole = trial.decode(trial.latents)
    is_random = trial.is_random
    for n in (1, 2 * trial.n + 1):
        many = trial.latents.repeat(3, 1)[:n]
        try:
            images = trial.decode(many)
        except Exception as error:  # of a user's class
            yield f"a batch of {n} cannot be decoded: {fault(error)}"
            return
        yield from _faults(trial.generator, images, n)
        if not is_random and (apart := _apart(images[:1], whole[:1])) > SAME:
            yield f"the image of a sample differs by up to {apart:.3g} between batches of {n} and of {trial.n}"


@_promise("decode_pair")
def _pairs(trial: Trial) -> Iterator[str]:
    generator, n_chunks = trial.generator, trial.layout.n_chunks
    chosen = sorted({round(i) for i in torch.linspace(0, n_chunks - 1, min(n_chunks, N_CHUNKS_TRIED)).tolist()})
    for chunks in [*(Chunks(i, i + 1) for i in chosen), trial.layout.all]:
        positive = trial.perturbed(chunks)
        rng = trial.rng()
        with torch.no_grad():
            wanted = generator.decode(trial.latents.clone(), rng), generator.decode(positive.clone(), rng)
        leaf = positive.clone().requires_grad_()
        pair = generator.decode_pair(trial.latents.clone(), leaf, chunks, trial.rng())
        for what, image, expected in zip(("anchor", "positive"), pair, wanted, strict=True):
            yield from _faults(generator, image, trial.n)
            if (apart := _apart(image.detach(), expected)) > SAME:
                yield (
                    f"decode_pair differs by up to {apart:.3g} from decode on the {what}'s image when chunks {chunks} "
                    "are perturbed; it must equal two decodes, the anchor first"
                )
        if not pair[1].requires_grad:
            yield "decode_pair lets no gradient through to the positive's latents; decode them outside of no_grad()"
        if pair[0].requires_grad:
            yield "decode_pair keeps a graph for the anchor's image, which takes memory; decode it within no_grad()"


@_promise("encode")
def _encode(trial: Trial) -> Iterator[str]:
    if not trial.generator.can_encode:
        trial.notes["encode"] = "has no encode(images)"
        return
    with torch.no_grad():
        noise = trial.generator.encode(trial.decode(trial.latents))
    if not isinstance(noise, torch.Tensor) or noise.shape != trial.z.shape or not noise.isfinite().all():
        shape = tuple(getattr(noise, "shape", ()))
        yield f"encode gives shape {shape}; {trial.n} images must give finite noise, {tuple(trial.z.shape)}"


@_promise("device and dtype")
def _moves(trial: Trial) -> Iterator[str]:
    for name, part in trial.generator.named_modules():
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules") and _holds_tensors(value):
                if {f"{key}_orig", f"{key}_g"} & part._parameters.keys():
                    continue  # spectral_norm and weight_norm compute it anew in every pass
                where = f"{name}.{key}" if name else key
                yield (
                    f"{where} is a plain tensor, which stays behind when the generator moves to a GPU; use "
                    f"register_buffer({key!r}, ...)"
                )
    if (stray := _stray(trial)) is not None:
        yield (
            f"decode uses a tensor that stays on the CPU when the generator moves to a GPU ({stray}); make it on "
            "latents.device, or use register_buffer"
        )
    whole = trial.decode(trial.latents)
    places: list[tuple[str, Any]] = [("float64", torch.float64)]
    if torch.cuda.is_available() and device_of(trial.generator).type == "cpu":
        places.append(("on the GPU", "cuda"))
    for what, place in places:
        try:
            with torch.no_grad():
                images = trial.copied().to(place).decode(trial.latents.to(place), trial.rng())
        except Exception as error:  # of a user's class
            yield f"it cannot be decoded in {what} after to(): {fault(error)}"
            continue
        yield from (f"{what}: {line}" for line in _faults(trial.generator, images, trial.n))
        apart = float((images.cpu().double() - whole.cpu().double()).abs().mean())
        if apart > CLOSE and not trial.is_random:  # other formats draw other numbers
            yield f"its images change by {apart:.3g} in the mean when it is used in {what}; they must stay the same"


@_promise("bf16")
def _bf16(trial: Trial) -> Iterator[str]:
    device = trial.latents.device
    with torch.no_grad(), runtime.autocast(device, "bf16"):
        images = trial.copied().hold("bf16").decode(trial.latents.clone(), trial.rng())
    yield from (f"in bf16: {line}" for line in _faults(trial.generator, images, trial.n, tolerance=1e-2))
    apart = float((images.double() - trial.decode(trial.latents).double()).abs().mean())
    if apart > CLOSE and not trial.is_random:
        yield (
            f"its images change by {apart:.3g} in the mean in bf16; compute what needs more digits within "
            "torch.autocast(device, enabled=False)"
        )


@_promise("channels-last")
def _channels_last(trial: Trial) -> Iterator[str]:
    other = trial.copied().to(memory_format=torch.channels_last)
    if (apart := _apart(trial.decode(trial.latents, other), trial.decode(trial.latents))) > 10 * SAME:
        yield (
            f"its images change by up to {apart:.3g} with weights in channels_last, as load_generator lays them; use "
            "reshape in place of view, and no strides"
        )


@_promise("save and load")
def _saved(trial: Trial) -> Iterator[str]:
    generator = trial.generator
    with tempfile.TemporaryDirectory() as place:
        try:
            again = type(generator).from_pretrained(generator.save_pretrained(Path(place) / "saved"))
        except MiMlGenError as error:
            yield f"it does not come back from a file: {error}"
            return
        except Exception as error:  # of a user's class
            yield f"saving it fails: {fault(error)}; config() must give plain values, which make the class again"
            return
        again.to(device_of(generator))
    if again.layout != generator.layout or again.noise_dim != generator.noise_dim:
        yield "from a file it comes back with other chunks; config() must hold every setting that decides them"
        return
    if (apart := _apart(trial.decode(trial.latents, again), trial.decode(trial.latents))) > SAME:
        yield (
            f"from a file it comes back with images that differ by up to {apart:.3g}; what decides them must be in "
            "config(), a parameter or a buffer"
        )


@_promise("memory per sample")
def _memory(trial: Trial) -> Iterator[str]:
    one, two, four = (_kept_bytes(trial, n) for n in (1, 2, 4))
    each = (four - two) / 2
    trial.notes["memory per sample"] = f"{max(0.0, each) / 2**20:.2f} MB for the backward pass"
    if each > 1.5 * (two - one) + 4096 * trial.generator.resolution:
        yield (
            f"the backward pass keeps {(two - one) / 2**20:.2f} MB for a second sample and {each / 2**20:.2f} MB for "
            "each of two more; nothing may grow faster than the batch"
        )


def _kept_bytes(trial: Trial, n: int) -> int:
    """Bytes of the tensors that the backward pass to the latents of n samples keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    latents = trial.latents.repeat(4, 1)[:n].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images = trial.generator.decode(latents, trial.rng())  # noqa: F841 - holds the graph, so no memory is used twice
    return sum(kept.values())


def _stray(trial: Trial) -> str | None:
    """Where `decode` mixes a tensor of its own with those of the generator's device, by a trial on the device "meta",
    which computes nothing; None where it does not, and where the network cannot run there."""
    try:
        with torch.no_grad():
            trial.copied().to("meta").decode(trial.latents.to("meta"), trial.rng())
    except RuntimeError as error:
        if "expected device meta" in str(error):
            return fault(error)
    except Exception:  # reads values, which "meta" has none of
        return None
    return None


def _holds_tensors(value: Any) -> bool:
    """Whether an attribute is a tensor, or a list, tuple or dict of tensors."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(isinstance(item, torch.Tensor) and not isinstance(item, nn.Parameter) for item in value)
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)


# --- parts ----------------------------------------------------------------------------------------------------


def _faults(generator: MultiLatentGenerator, images: Any, n: int, tolerance: float = TOLERANCE) -> Iterator[str]:
    """What is wrong with n images, the first thing only."""
    expected = (n, 3, generator.resolution, generator.resolution)
    if not isinstance(images, torch.Tensor) or images.shape != expected:
        shape = tuple(getattr(images, "shape", ()))
        yield f"decode gives shape {shape}; {n} images must have {expected}"
        return
    if not images.is_floating_point():
        yield f"decode gives {images.dtype}; images must be floating point numbers in [0, 1]"
        return
    if not images.isfinite().all():
        yield "decode gives nan or infinity; images must lie in [0, 1]"
        return
    least, most = float(images.detach().min()), float(images.detach().max())
    if least < -tolerance or most > 1 + tolerance:
        yield f"decode gives values from {least:.3g} to {most:.3g}; images must lie in [0, 1]"


def _draw(generator: MultiLatentGenerator, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (n, noise_dim) where the generator's tensors lie, and its latents."""
    held = next((t for t in (*generator.parameters(), *generator.buffers()) if t.is_floating_point()), torch.empty(0))
    z = TruncatedNormal().sample((n, generator.noise_dim), torch.Generator().manual_seed(seed)).to(held)
    return z, generator.latents(z.clone())


def _rng(seed: int, like: torch.Tensor) -> torch.Generator:
    rng = runtime.Stream(like.device)
    rng.manual_seed(seed)
    return rng


def _name(generator: MultiLatentGenerator) -> str:
    return getattr(generator, "name", "") or type(generator).__name__


def _refuse(generator: MultiLatentGenerator, reason: str) -> NoReturn:
    raise UsageError(f"generator {_name(generator)}: {reason}")


__all__ = ["PROMISES", "Finding", "check_generator", "check_images", "examine_generator"]
