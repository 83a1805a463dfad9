"""Our kernels against torch's operators. Here they run in Triton's interpreter, in a process of their own;
tests/cuda/test_gpu.py runs the same cases on a GPU where there is one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ml_gen.core import fixed, kernels
from mi_ml_gen.views import colors, crops
from mi_ml_gen.views.augment import POLICIES, Augment

ROOT = Path(__file__).resolve().parents[2]


def kernel_cases(
    device: str, dtype: torch.dtype = torch.float32, few: bool = False
) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """(name, function of `fixed`, inputs), each of which has a kernel and a way without one."""
    rng = torch.Generator().manual_seed(0)

    def maps(*shape: int, layout: torch.memory_format = torch.channels_last) -> Tensor:
        made = torch.randn(shape, generator=rng).to(device, dtype)
        return made.contiguous(memory_format=layout) if made.ndim == 4 else made

    sizes = [(5, 3)] if few else [(24, 9), (130, 7), (64, 33)]
    activations = [(0.0, None), (0.2, 0.7)] if few else [(None, None), (0.0, None), (0.2, 0.7), (0.0, 0.7)]
    for c, side in sizes:
        for slope, bound in activations:
            how = dict(slope=slope, bound=bound)
            what = f"{c} channels of {side} px, slope {slope}, bound {bound}"
            whole = maps(2, 2 * c, 1, 1)  # scale and offset are parts of one tensor
            scale, offset = whole.chunk(2, dim=1)
            yield f"{what}, offset of channels", lambda x, s, o, how=how: fixed.scaled_activation(x, s, o, **how), [
                maps(2, c, side, side), scale, offset
            ]  # fmt: skip
            plane = maps(1, c, side, side)
            yield f"{what}, offset of pixels", lambda x, s, o=plane, how=how: fixed.scaled_activation(x, s, o, **how), [
                maps(2, c, side, side), maps(2, c, 1, 1)
            ]  # fmt: skip
        yield "scale alone", lambda x, s: fixed.scaled_activation(x, s, slope=None), [
            maps(2, c, side, side), maps(1, c, 1, 1)
        ]  # fmt: skip
        bias = maps(c)
        yield "doubled", lambda x, small, bias=bias: fixed.add_doubled(x + 0, small, bias), [
            maps(2, c, 2 * side, 2 * side), maps(2, c, side, side)
        ]  # fmt: skip
    for layout in (torch.channels_last, torch.contiguous_format):
        for up, padding, k in (
            (((1, 1, 4),) if layout == torch.channels_last else ((2, 3, 4),))
            if few
            else ((1, 1, 4), (1, 0, 4), (2, 2, 4), (2, 3, 4), (1, 5, 8))
        ):
            taps = torch.randn(k, k, generator=rng).to(device)
            for size in (9,) if few else (4, 9):
                yield (
                    f"filter, up {up}, padding {padding}, {k} taps, {size} px",
                    (lambda x, taps=taps, up=up, padding=padding, size=size: filtered(x, taps, up, padding, size)),
                    [maps(2, 3, 5, 5, layout=layout)],
                )


def view_cases(device: str, few: bool = False) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """(name, function of `views`, images): T_x by kernels that have no backward pass, or none to the images."""
    sizes = ((9, torch.channels_last), (8, torch.contiguous_format))
    n = 4 if few else 16
    for i, policy in enumerate(("simclr", "no_crop", "torchvision") if few else POLICIES.names()):
        for size, layout in sizes[i % 2 : i % 2 + 1] if few else sizes:
            augment = Augment(policy, size, 7, antialias=size == 9).to(device)
            images = torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(2))
            images[0], images[1, 0] = 0.5, 0.0  # grey, and dark in one colour
            drawn = augment.draw_pair(n // 2, torch.Generator().manual_seed(3), device)
            yield f"{policy}, {size} px", lambda x, augment=augment, drawn=drawn: augment.view(x, drawn), [
                images.to(device).contiguous(memory_format=layout)
            ]  # fmt: skip


def filtered(x: Tensor, taps: Tensor, up: int, padding: int, size: int) -> Tensor:
    """By a kernel, or as the definition says."""
    made = fixed.filtered(x, taps, up, padding, size, size)
    if made is not None:
        return made
    n, c, side, _ = x.shape
    spread = x.new_zeros(n, c, side, up, side, up)
    spread = torch.cat([x[:, :, :, None, :, None], spread[:, :, :, 1:, :, :1]], dim=3)
    spread = torch.cat([spread, x.new_zeros(n, c, side, up, side, up - 1)], dim=5).reshape(n, c, side * up, side * up)
    around = F.pad(spread, (padding, 20, padding, 20))
    whole = F.conv2d(around.float(), taps.float().expand(c, 1, *taps.shape), groups=c)
    return whole[..., :size, :size].to(x.dtype)


def results(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    taken = [one.detach().clone().requires_grad_() for one in inputs]
    made = function(*taken)
    direction = torch.randn(made.shape, generator=torch.Generator().manual_seed(1)).to(made)
    return [made.detach(), *torch.autograd.grad(made, taken, direction)]


@torch.no_grad()
def without_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Where none is wanted, other kernels may be taken."""
    return [function(*inputs)]


def compare_in_the_interpreter() -> None:
    """Runs where TRITON_INTERPRET is set: the same functions, with the kernels and without them."""
    from mi_ml_gen.core import triton_kernels

    def usable(x: Tensor, channels_last: bool = True) -> bool:
        return not channels_last or fixed.is_channels_last(x)

    interpreted = SimpleNamespace(**{name: getattr(triton_kernels, name) for name in triton_kernels.__all__})
    interpreted.usable = usable
    n = 0
    for what, function, inputs in (*kernel_cases("cpu", few=True), *view_cases("cpu", few=True)):
        with contextlib.ExitStack() as stack:
            for module in (fixed, colors, crops):
                stack.enter_context(mock.patch.object(module, "kernels", interpreted))
            ours = [*results(function, inputs), *without_gradients(function, inputs)]
        plain = [*results(function, inputs), *without_gradients(function, inputs)]
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda text, what=what: f"{what}: {text}")
        n += 1
    print(f"{n} cases agree")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which CUDA builds of torch have")
def test_kernels_equal_torchs_operators():
    code = "from tests.core.test_kernels import compare_in_the_interpreter as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": "."},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "cases agree" in done.stdout, done.stderr[-2000:]


def test_maps_of_the_host_are_left_to_torch():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert not kernels.usable(x) and fixed.filtered(x, torch.ones(2, 2), 1, 0, 3, 3) is None


def test_without_triton_it_says_so_once_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kernels.triton_works.cache_clear()
    try:
        assert not kernels.triton_works() and not kernels.triton_works()
        assert [record.message for record in caplog.records] == [
            "Triton is not installed, so steps on the GPU are slower: pip install triton"
        ]
    finally:
        kernels.triton_works.cache_clear()
