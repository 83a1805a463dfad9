"""Weights that are handled all at once, against a network that is simply called."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import nn

from mi_ml_gen.core import passes as module
from mi_ml_gen.core import runtime
from mi_ml_gen.core.counting import Counted
from mi_ml_gen.core.passes import passes
from mi_ml_gen.encoders import byol, simclr, simsiam
from mi_ml_gen.encoders.base import Architecture, accumulate_gradients
from mi_ml_gen.information import critic

CPU = torch.device("cpu")
SIZES = Architecture(depth=18, width=4, small_images=True, dim=8, pred=4)
METHODS = {"simclr": (simclr, simclr.SimCLR), "simsiam": (simsiam, simsiam.SimSiam), "byol": (byol, byol.BYOL)}


def plainly(where):
    return mock.patch.object(where, "passes", lambda networks, n: [nullcontext()] * n)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_encoders_learn_the_same(method, n_parts, precision):
    where, kind = METHODS[method]
    views = torch.randn(2, 6, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    def learnt():
        torch.manual_seed(0)
        encoder = kind(SIZES).train()
        context = runtime.autocast(CPU, precision)
        loss, features = accumulate_gradients(encoder, *views, n_parts, context)
        return [loss, features, *encoder.buffers()], {
            name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None
        }

    ours = learnt()
    with plainly(where):
        plain = learnt()
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_critic_scores_the_same(is_trained):
    torch.manual_seed(0)
    network = critic.Critic(16, 8, width=4).requires_grad_(is_trained)
    images = torch.randn(4, 3, 16, 16).requires_grad_()

    def scores():
        with runtime.autocast(CPU, "bf16"):
            points = network(images)
        wanted = [images, *(network.parameters() if is_trained else ())]
        return points, *torch.autograd.grad(points.square().mul(points).sum(), wanted)

    ours = scores()
    with plainly(critic):
        torch.testing.assert_close(ours, scores(), rtol=0, atol=0)


def test_operators_do_not_grow_with_the_number_of_layers():
    counts = []
    for n_layers in (2, 6):
        network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(n_layers)))
        x = torch.randn(4, 3).bfloat16()
        with Counted("cpu") as counted, counted.step() as found, runtime.autocast(CPU, "bf16"):
            for one in passes([network], 2):
                with one:
                    y = network(x)
            assert y.dtype == torch.bfloat16
        counts.append(found.by_operator["_foreach_copy_"] + found.by_operator["_to_copy"])
    assert counts == [1, 1]


def test_parameters_are_the_networks_own_afterwards():
    network = nn.Linear(2, 2)
    weight = network.weight
    (one,) = passes([network], 2)[:1]
    with pytest.raises(RuntimeError, match="shapes"), one:
        assert network.weight is not weight
        network(torch.zeros(1, 3))
    assert network.weight is weight


def test_a_weight_that_one_pass_does_not_need():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.randn(3, 2)
    one, other = passes([first, second], 2)
    with one:
        y = second(first(x))
    with other:
        y = y.square().sum() + first(x).square().sum()
    y.backward()
    ours = [parameter.grad for parameter in (*first.parameters(), *second.parameters())]
    plain = second(first(x)).square().sum() + first(x).square().sum()
    torch.testing.assert_close(ours, list(torch.autograd.grad(plain, [*first.parameters(), *second.parameters()])))


def test_nothing_is_done_where_nothing_is_saved():
    network = nn.Linear(2, 2)
    assert all(isinstance(one, nullcontext) for one in passes([network], 1))  # no autocast, one pass
    assert all(isinstance(one, nullcontext) for one in passes([network, network], 2))  # one layer twice
    with mock.patch.object(module.torch.compiler, "is_compiling", lambda: True):
        assert all(isinstance(one, nullcontext) for one in passes([network], 2))
