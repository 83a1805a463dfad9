"""Convolutions with fewer products equal those of the taps, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mi_ml_gen.core import fixed, products
from mi_ml_gen.core.products import DOUBLINGS, TILES, Form

FORMS = {"tiles": TILES, "doublings": DOUBLINGS}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """By the taps."""
    return F.conv2d(x if form is TILES else F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)


def inputs(dtype: torch.dtype, n: int = 3, height: int = 6, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, 7, height, width, generator=rng, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(5, 7, 3, 3, generator=rng, dtype=dtype)
    return x.requires_grad_(), weight, torch.randn(5, generator=rng, dtype=dtype)


@each_form
@pytest.mark.parametrize("in_parts", [False, True], ids=["at once", "in parts"])
@pytest.mark.parametrize(("height", "width"), [(6, 8), (2, 2), (2, 10)])
def test_values_and_gradients_are_those_of_the_taps(form, in_parts, height, width, monkeypatch):
    if in_parts:  # images and rows one by one
        for name in ("ROWS_VALUES", "STRIP_VALUES", "STRIP_ROWS"):
            monkeypatch.setattr(products, name, 1)
    x, weight, bias = inputs(torch.float64, height=height, width=width)
    expected = plain(x, weight, bias, form)
    found = products.convolve(x, products.kernels_of(weight, form), bias, form)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)
    (ours,), (theirs,) = (torch.autograd.grad(one, x, direction) for one in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@each_form
def test_rounding_is_no_worse_than_a_few_times_that_of_the_taps(form):
    x, weight, bias = inputs(torch.float32, height=16, width=16)
    exact = plain(x.double(), weight.double(), bias.double(), form)
    found = products.convolve(x, products.kernels_of(weight, form), bias, form)
    by_taps = (plain(x, weight, bias, form) - exact).abs().max()
    assert (found - exact).abs().max() < 6 * by_taps


@each_form
def test_only_the_kernels_are_kept_for_the_backward_pass(form):
    x, weight, bias = inputs(torch.float32)
    kernels = products.kernels_of(weight, form)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda _: None):
        products.convolve(x, kernels, bias, form)
    assert kept == [kernels.shape]


def layer(channels: int, memory_format: torch.memory_format = torch.channels_last) -> fixed.Conv2d:
    torch.manual_seed(0)
    made = fixed.Conv2d(channels, channels, 3, padding=1).eval().requires_grad_(False)
    made.fix()
    return made.to(memory_format=memory_format)


def test_wide_layers_use_them_and_others_do_not(monkeypatch):
    used: list[torch.Size] = []
    convolve = products.convolve
    monkeypatch.setattr(products, "convolve", lambda x, *rest: used.append(x.shape) or convolve(x, *rest))
    wide, narrow = layer(TILES.least_channels), layer(TILES.least_channels - 1)
    assert wide.matrices is not None and narrow.matrices is None
    assert layer(TILES.least_channels, torch.contiguous_format).matrices is None

    def run(of: fixed.Conv2d, size: int, n: int = 2) -> int:
        x = torch.randn(n, of.in_channels, size, size).contiguous(memory_format=torch.channels_last)
        used.clear()
        torch.testing.assert_close(of(x), F.conv2d(x, of.weight, of.bias, padding=1), rtol=0, atol=5e-5)
        return len(used)

    assert run(wide, 8) == 1
    assert run(wide, 9) == 0  # of odd width
    assert run(wide, 2) == 0  # too few pixels
    assert run(narrow, 8) == 0
    with torch.no_grad():
        wide.weight.mul_(2)
    assert run(wide, 8) == 1  # by the weights as they are now
    wide.requires_grad_(True)
    assert run(wide, 8) == 0
    fixed.hold(wide.requires_grad_(False), "bf16")
    assert wide.matrices is None
