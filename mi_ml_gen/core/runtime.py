"""Device, precision, random streams and torch.distributed, in one place.

Everything distributed is a no-op in a single process, so no other module asks how many there are. Under
torchrun each process calls `setup_distributed(device)` once, early, and `teardown()` at the end.

The convention for gradients: every rank has its own loss, the objective is the mean of these losses, and
`average_gradients` after backward gives every rank the gradient of that objective. `gather` fits it: ranks
that compute one and the same loss from gathered features get, after averaging, exactly the gradient that one
process with the whole batch gets (and a loss that is the mean over a rank's own samples needs no more than
averaging).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mi_ml_gen.core import meeting
from mi_ml_gen.core.errors import EnvironmentFault, MiMlGenError, NonFiniteError, UsageError

PRECISIONS = ("fp32", "tf32", "bf16")
_precision: str | None = None
"""What `set_precision` has set."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


# --- device and precision -----------------------------------------------------------------------------------


def resolve_device(name: str | torch.device | None) -> torch.device:
    """The device that a user means by "auto", "cpu", "cuda", "cuda:1" or "mps".

    None and "auto" mean CUDA where it is there, else the CPU; Apple's mps is used only when asked for. "cuda"
    is this process's own card, which torchrun numbers by LOCAL_RANK. The card becomes the current one, so that
    events, names and memory of what follows are this card's, and float32 means float32 on it: torch's convolutions
    would use TF32 there, which keeps three digits, unless `set_precision` has said so. Raises UsageError for a name of
    another form, and for a numbered card where torchrun runs several processes; EnvironmentFault for a device that
    this machine lacks.
    """
    text = "auto" if name is None else str(name)
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in text and not index.isdecimal()):
        raise UsageError(f"--device {text}: must be auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        if index and isinstance(name, str) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(f"--device {text}: each process of torchrun has a card of its own; write --device cuda")
        device = _cuda_device(text, int(index) if index else int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        if _precision is None:
            set_precision("fp32")
        return device
    if kind == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentFault(f"--device {text}: no Apple GPU is usable; try --device cpu")
    return torch.device(kind)


def _cuda_device(text: str, index: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise EnvironmentFault(f"--device {text}: no CUDA device is visible; try --device cpu")
    if index >= count:
        raise EnvironmentFault(f"--device {text}: no such CUDA device, {count} visible, numbered from 0")
    return torch.device("cuda", index)


def in_float64(values: Tensor) -> Tensor:
    """The values in float64: on their device, or on the CPU where that device has no float64 (Apple's)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def set_precision(precision: str) -> None:
    """Allow TF32 in float32 matrix products and convolutions, or forbid it; once, before training.

    It is forbidden for bf16 too: what `autocast` leaves in float32 (losses, statistics) is there on purpose.
    """
    global _precision
    _check_precision(precision)
    _precision = precision
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context for forward passes of the networks: bfloat16 autocast for bf16, nothing else."""
    _check_precision(precision)
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """The context for what runs as it would outside of autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()  # the meta device, for example


def finite(what: str, values: Tensor) -> Tensor:
    """The values, of which something is about to be written or printed; this waits for the device. Raises
    NonFiniteError, which says what they are, where any is nan or infinite."""
    if not values.isfinite().all():
        raise NonFiniteError(f"{what}: nan or infinity among them; the noise or the weights are too large")
    return values


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: must be one of {', '.join(PRECISIONS)}")


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device. The host does not wait: what goes to a GPU goes from page-locked memory.

    An axis that was expanded travels once and is expanded again on the device.
    """
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    once = [slice(1) if stride == 0 else slice(None) for stride in tensor.stride()]
    compact = tensor[tuple(once)] if tensor.numel() else tensor
    is_channels_last = compact.ndim == 4 and compact.is_contiguous(memory_format=torch.channels_last)
    compact = compact if is_channels_last else compact.contiguous()
    return compact.pin_memory().to(device, non_blocking=True).expand(tensor.shape)


def compiled(function: F) -> F:
    """A function or module through torch.compile; what cannot be compiled here runs as it is."""
    from torch import _dynamo  # takes seconds to import

    _dynamo.config.suppress_errors = True
    return torch.compile(function)  # type: ignore[return-value]


# --- random streams -----------------------------------------------------------------------------------------


class Stream(torch.Generator):
    """A random generator of the host whose numbers are wanted on a device, maybe another one.

    Every draw of this package goes through `drawn`, `normal` or `uniform`, which draw on the host and bring the
    numbers there. So the device does not change what is drawn.
    """

    wanted_on: torch.device

    def __new__(cls, wanted_on: str | torch.device = "cpu") -> Stream:
        made = super().__new__(cls)
        made.wanted_on = torch.device(wanted_on)
        return made


def stream(seed: int, name: str, step: int, rank: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of stream `name` at `step` on `rank`: a pure function of these, numbers from 0 on.

    So a run resumed at a step draws what the uninterrupted run drew, on another device too, and ranks, steps and
    names share nothing. The arguments go through NumPy's SeedSequence; the name enters as its CRC-32. device:
    where the numbers are wanted; it does not change them.
    """
    assert min(seed, step, rank) >= 0, f"stream {name}: seed {seed}, step {step}, rank {rank}"
    sequence = np.random.SeedSequence((seed, zlib.crc32(name.encode()), step, rank))
    generator = Stream(device)
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    _fill_mersenne_twister(generator, sequence)
    return generator


def drawn(
    draw: Callable[[torch.device], Tensor], rng: torch.Generator | None, device: torch.device | str | None = None
) -> Tensor:
    """What `draw(place)` draws with `rng`, on `device` (default: where a stream's numbers are wanted).

    `place` is the generator's own device, the host for a stream of this package. Without a generator it is
    `device`, whose default one then draws. The host does not wait for the copy.

        drawn(lambda place: torch.randint(9, (4,), generator=rng, device=place), rng, images.device)
    """
    if rng is None:
        return draw(torch.get_default_device() if device is None else torch.device(device))
    return to_device(draw(rng.device), wanted_on(rng) if device is None else device)


def wanted_on(rng: torch.Generator) -> torch.device:
    """Where the numbers of a generator are wanted: a stream says so, another one draws where it is."""
    return rng.wanted_on if isinstance(rng, Stream) else rng.device


def normal(
    shape: Sequence[int],
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal numbers of a shape; see `drawn`."""
    return drawn(lambda place: torch.randn(tuple(shape), generator=rng, device=place, dtype=dtype), rng, device)


def uniform(
    shape: Sequence[int],
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniform numbers of [0, 1) of a shape; see `drawn`."""
    return drawn(lambda place: torch.rand(tuple(shape), generator=rng, device=place, dtype=dtype), rng, device)


def _fill_mersenne_twister(generator: torch.Generator, sequence: np.random.SeedSequence) -> None:
    """Set all 624 words of torch's CPU generator. Its `manual_seed` keeps only the lower 32 bits of a seed: a
    run of a million streams would meet the same noise again about a hundred times."""
    state = generator.get_state()  # bytes: seed 8, counters 16, words 624 x 8, cached normals 40
    assert len(state) == 24 + 624 * 8 + 40, "torch changed the layout of its CPU generator's state"
    words = sequence.generate_state(624, np.uint32).astype(np.uint64)
    words[0] = 0x80000000  # as NumPy does: a state that cannot be all zeros
    state[24 : 24 + 624 * 8] = torch.from_numpy(words.view(np.uint8))
    generator.set_state(state)


# --- processes ----------------------------------------------------------------------------------------------


def setup_distributed(device: torch.device, timeout_s: float = 1800.0) -> None:
    """Join the process group that torchrun's environment describes (gloo on the CPU, nccl besides on CUDA).

    Does nothing without that environment or for one process. Raises EnvironmentFault if the others do not
    come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_distributed():
        return
    # gloo stays beside nccl so that flags and Python objects travel without a device sync.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = datetime.timedelta(seconds=timeout_s)
    try:
        if meeting.is_shared():
            rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = meeting.store_of_attempt(timeout_s)
            dist.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=limit)
        else:
            dist.init_process_group(backend, timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(f"cannot join the other processes: {error}") from error


def teardown() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    return rank() == 0


def own_rows(n: int) -> slice:
    """The rows of a whole batch of n, a multiple of the number of processes, that belong to this process."""
    share = n // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def barrier() -> None:
    """Wait for all ranks."""
    broadcast_flag(False)


def broadcast_flag(flag: bool) -> bool:
    """True on every rank as soon as it is true on any; how one signalled rank stops all at the same step."""
    if not is_distributed():
        return flag
    votes = torch.tensor(int(flag), dtype=torch.int32)  # on the CPU, through gloo
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and give every rank its result; an error of ours is raised on every rank."""
    if not is_distributed():
        return action()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = action()
        except MiMlGenError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def all_reduce_mean(values: Tensor | Sequence[Tensor]) -> Any:
    """The mean over ranks of a tensor, or of each of several; detached, inputs untouched."""
    if isinstance(values, Tensor):
        return _mean_over_ranks([values])[0]
    return _mean_over_ranks(list(values))


def average_gradients(parameters: nn.Module | Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks, in place. A parameter without a gradient is passed over;
    it must be without one on every rank, as it is where all ranks run the same step."""
    if not is_distributed():
        return
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_copy_(gradients, _mean_over_ranks(gradients))


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, in place."""
    if not is_distributed():
        return
    for tensor in (*module.parameters(), *module.buffers()):
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, src=0)
        tensor.detach().copy_(whole)


def gather(features: Tensor) -> Tensor:
    """Features of all ranks, in rank order: (n, ...) on each -> (world_size * n, ...), with gradients.

    `n` must be the same on all ranks. Backward, which all ranks must run, sums over ranks what their losses
    say about this rank's features; `average_gradients` then divides by the number of ranks. See the module's
    header.
    """
    return _Gather.apply(features) if is_distributed() else features


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        ctx.n = len(features)
        features = features.contiguous()
        parts = [torch.empty_like(features) for _ in range(world_size())]
        dist.all_gather(parts, features)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.n : (rank() + 1) * ctx.n]


def _mean_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """One collective per kind of tensor, however many tensors there are."""
    if not is_distributed():
        return [tensor.detach() for tensor in tensors]
    means: dict[int, Tensor] = {}
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):  # a set has no order
        members = [i for i, tensor in enumerate(tensors) if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in members])
        dist.all_reduce(flat)
        flat /= world_size()
        pieces = flat.split([tensors[i].numel() for i in members])
        means.update({i: piece.view(tensors[i].shape) for i, piece in zip(members, pieces, strict=True)})
    return [means[i] for i in range(len(tensors))]
