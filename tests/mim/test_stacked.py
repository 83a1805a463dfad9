"""Layers of several models at once against plain PyTorch, one model at a time."""

from __future__ import annotations

import pytest
import torch

from mi_ml_gen.mim.stacked import StackedLinear


@pytest.mark.parametrize("n_in, n_out", [(2, 50), (50, 4), (30, 30), (9, 1)])
@pytest.mark.parametrize("act", [None, torch.tanh, torch.relu])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_stack_is_its_models_one_by_one_with_gradients(n_in, n_out, act, dtype, tolerance):
    torch.manual_seed(0)
    layer = StackedLinear(n_in, n_out, n_models=3).to(dtype)
    x = torch.randn(3, 7, n_in, dtype=dtype, requires_grad=True)
    weights = torch.randn(3, 7, n_out, dtype=dtype)
    (layer(x, act) * weights).sum().backward()
    for i in range(3):
        one = torch.nn.Linear(n_in, n_out).to(dtype)
        with torch.no_grad():
            one.weight.copy_(layer.weight[i])
            one.bias.copy_(layer.bias[i])
        own = x[i].detach().clone().requires_grad_()
        out = one(own) if act is None else act(one(own))
        torch.testing.assert_close(layer(x, act)[i], out, rtol=tolerance, atol=tolerance)
        (out * weights[i]).sum().backward()
        for found, expected in (
            (layer.weight.grad[i], one.weight.grad),
            (layer.bias.grad[i], one.bias.grad),
            (x.grad[i], own.grad),
        ):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_tanh_by_sigmoid_is_as_good_as_float32_allows_wherever_it_is_taken():
    layer = StackedLinear(1, 1, n_models=1)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    x = torch.cat([torch.linspace(-100, 100, 20001), torch.logspace(-8, 0, 2000)])
    found = layer(x[None, :, None], torch.tanh)[0, :, 0]
    assert (found.double() - x.double().tanh()).abs().max() < 2e-7


def test_initial_values_are_those_of_a_linear_layer():
    torch.manual_seed(3)
    layer = StackedLinear(400, 300)
    bound = 400**-0.5
    assert layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
