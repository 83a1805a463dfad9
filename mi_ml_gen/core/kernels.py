"""Work that goes through memory once where torch's operators go several times, for maps on an NVIDIA GPU.

`usable` says whether maps are of a kind that these take: channels-last, on a CUDA device where Triton works. Whoever
calls them has the same work in plain operators too, for all other maps; `fixed` does. What torch sees of each is one
operator, of which it knows the shapes, so that it works on tensors without numbers as well.

The operators do no autograd of their own.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_GRID = 65535
"""Of the second and third axis."""


def usable(x: Tensor, channels_last: bool = True) -> bool:
    """Whether these kernels take maps x (n, c, h, w). channels_last: False where any dense layout will do."""
    if x.device.type != "cuda" or x.dtype not in DTYPES or torch.compiler.is_compiling():
        return False  # a compiler fuses by itself
    if channels_last and (x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)):
        return False
    return x.numel() > 0 and max(len(x) * x.shape[1], len(x) * x.shape[2]) <= _LARGEST_GRID and triton_works()


@functools.cache
def triton_works() -> bool:
    """Whether Triton is there and makes kernels that run; if not, says why, once, and all else goes on without."""
    if importlib.util.find_spec("triton") is None:
        logger.warning("Triton is not installed, so steps on the GPU are slower: pip install triton")
        return False
    if not torch.cuda.is_available():  # tensors without numbers, which claim to be on a GPU
        return True
    try:
        probe = torch.zeros(1, 2, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last)
        _kernels().scaled_activation(probe, probe[:, :, :1, :1], None, None, None)
        torch.cuda.synchronize()
    except Exception as error:  # a missing C compiler, an old driver or card; each raises something else
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        logger.warning("Triton makes no kernels here, so steps on the GPU are slower: %s", reason)
        return False
    return True


def _kernels() -> Any:
    from mi_ml_gen.core import triton_kernels  # Triton takes a second to import, and not every machine has it

    return triton_kernels


def scaled_activation(
    x: Tensor, scale: Tensor, offset: Tensor | None, slope: float | None, bound: float | None
) -> Tensor:
    """As `fixed.scaled_activation`; scale (n or 1, c, 1, 1), offset (n or 1, c, 1, 1) or (n or 1, c, h, w)."""
    return _run("scaled_activation", x, scale, offset, slope, bound)  # type: ignore[no-any-return]


def scaled_activation_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, slope: float | None, bound: float | None,
    to_scale: bool, to_offset: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of x, and those of scale and offset for each sample, as far as they are wanted, in one tensor, float32
    (0 to 2, n, c). The latter take a launch of their own."""
    made = _run("scaled_activation_backward", gradient, x, scale, offset, slope, bound, to_scale, to_offset)
    return made  # type: ignore[no-any-return]


def add_doubled(x: Tensor, small: Tensor, bias: Tensor | None) -> None:
    """x (n, c, 2 h, 2 w) += small (n, c, h, w) doubled by nearest neighbour, + bias (c,)."""
    _run("add_doubled", x, small, bias)


def filtered(
    x: Tensor, taps: Tensor, up: int, down: int, padding: int, out_height: int, out_width: int, turned: bool = False
) -> Tensor:
    """Each map of x (n, c, h, w), of any dense layout, with up - 1 zeros between its samples, correlated with taps
    (k, k), of which each down-th value is kept: y[o] = sum over i of taps[i] * x_up[o * down + i - padding].
    turned: the taps are taken in reverse, in both axes."""
    return _run("filtered", x, taps, up, down, padding, out_height, out_width, turned)  # type: ignore[no-any-return]


def interpolation(
    start: Tensor, length: Tensor, flip: Tensor | None, n_in: int, n_out: int, antialias: bool, corners: bool
) -> Tensor:
    """Matrices (n, n_out, n_in), float32, that take pixels start to start + length of a line to n_out pixels, from the
    last to the first where flip is true; start, length (n,) float32, flip (n,) bool. antialias, corners: as
    `views.crops` has them."""
    return _run("interpolation", start, length, flip, n_in, n_out, antialias, corners)  # type: ignore[no-any-return]


def colours(
    x: Tensor, active: Tensor, gray: Tensor, blends: Tensor, order: Tensor, hue: Tensor, hue_position: Tensor,
    mean: Tensor | None, std: Tensor | None, luma: tuple[float, float, float], least_chroma: float,
) -> Tensor:  # fmt: skip
    """Images (n, 3, h, w), float32, after kornia's colour jitter where `active`, its grayscale by `luma` where `gray`,
    and (x - mean) / std where a mean is given; channels-last. The rest is as in `views.augment.ViewParameters`."""
    given = (active, gray, blends, order, hue, hue_position, mean, std, list(luma), least_chroma)
    return _run("colours", x, *given)  # type: ignore[no-any-return]


# --- what torch sees of them ------------------------------------------------------------------------------------


def _run(name: str, x: Tensor, *rest: Any) -> Any:
    """Launch a kernel; through torch's dispatcher, which takes its time, only where somebody listens to it."""
    if type(x) is Tensor and not torch._C._len_torch_dispatch_stack():
        return getattr(_kernels(), name)(x, *rest)
    return _OPERATORS[name](x, *rest)


def _operator(name: str, schema: str, fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Any:
    def launch(*arguments: Any) -> Any:
        return getattr(_kernels(), name)(*arguments)

    made = torch.library.custom_op(f"mi_ml_gen::{name}", launch, mutates_args=mutates, schema=schema)
    made.register_fake(fake)
    return made


def _gradients_without_numbers(gradient, x, scale, offset, slope, bound, to_scale, to_offset):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty((to_scale + to_offset, *x.shape[:2]), dtype=torch.float32)


def _filtered_without_numbers(x, taps, up, down, padding, out_height, out_width, turned):  # type: ignore[no-untyped-def]
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty((*x.shape[:2], out_height, out_width), dtype=x.dtype, device=x.device, memory_format=layout)


_OPERATORS = {
    "scaled_activation": _operator(
        "scaled_activation", "(Tensor x, Tensor scale, Tensor? offset, float? slope, float? bound) -> Tensor",
        lambda x, *_: torch.empty_like(x),
    ),
    "scaled_activation_backward": _operator(
        "scaled_activation_backward",
        "(Tensor gradient, Tensor x, Tensor scale, Tensor? offset, float? slope, float? bound, "
        "bool to_scale, bool to_offset) -> (Tensor, Tensor)",
        _gradients_without_numbers,
    ),
    "add_doubled": _operator(
        "add_doubled", "(Tensor(a!) x, Tensor small, Tensor? bias) -> ()", lambda *_: None, mutates=("x",)
    ),
    "filtered": _operator(
        "filtered",
        "(Tensor x, Tensor taps, int up, int down, int padding, int out_height, int out_width, bool turned) -> Tensor",
        _filtered_without_numbers,
    ),
    "interpolation": _operator(
        "interpolation",
        "(Tensor start, Tensor length, Tensor? flip, int n_in, int n_out, bool antialias, bool corners) -> Tensor",
        lambda start, length, flip, n_in, n_out, *_: start.new_empty((len(start), n_out, n_in)),
    ),
    "colours": _operator(
        "colours",
        "(Tensor x, Tensor active, Tensor gray, Tensor blends, Tensor order, Tensor hue, Tensor hue_position, "
        "Tensor? mean, Tensor? std, float[] luma, float least_chroma) -> Tensor",
        lambda x, *_: torch.empty_like(x, memory_format=torch.channels_last),
    ),
}  # fmt: skip

__all__ = [
    "add_doubled", "colours", "filtered", "interpolation", "scaled_activation", "scaled_activation_backward",
    "triton_works", "usable",
]  # fmt: skip
