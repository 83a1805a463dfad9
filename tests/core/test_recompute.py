"""ReLUs that are computed again in the backward pass, against a network that keeps them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from mi_ml_gen.core.counting import Counted
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.encoders.settings import EncoderConfig


def twins(depth: int, small_images: bool = True) -> tuple[ResNet, ResNet]:
    """A network that keeps what its backward pass needs, and one that computes it again."""
    torch.manual_seed(0)
    network = ResNet(depth, small_images, width=4).double().train()
    other = copy.deepcopy(network)
    other.recomputes = True
    return network, other


@pytest.mark.parametrize("small_images", [True, False])
@pytest.mark.parametrize("depth", [18, 50])
def test_features_gradients_and_statistics_are_the_same(depth, small_images):
    images = torch.randn(3, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for network in twins(depth, small_images):
        features = network(images)
        features.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        found.append((features.detach(), gradients, dict(network.named_buffers())))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_about_half_is_kept_and_nothing_afterwards():
    images = torch.randn(4, 3, 24, 24, dtype=torch.float64)
    kept = []
    for network in twins(50):
        with Counted("cpu") as counted:
            features = network(images)
            kept.append(counted.live_bytes)
            features.sum().backward()
            gradients = sum(memory.grad.nbytes for memory in network.parameters())
            del features
            assert counted.live_bytes <= gradients + sum(one.nbytes for one in (*network.parameters(), images)) + 1e5
    assert kept[1] < 0.65 * kept[0]


def test_each_is_computed_again_once(monkeypatch):
    _, network = twins(18)
    features = network(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    made, batch_norm = [], functional.batch_norm
    monkeypatch.setattr(functional, "batch_norm", lambda *given, **named: made.append(1) or batch_norm(*given, **named))
    features.sum().backward()
    assert len(made) == 1 + 2 * 8 + 3  # the stem, two of each block, and the shortcuts with a norm


def test_where_no_gradient_is_wanted_nothing_is_different():
    network, other = twins(18)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(network(images), other(images))
    assert torch.equal(network.eval()(images), other.eval()(images))


def test_not_with_a_compiler():
    with pytest.raises(UsageError, match="--recompute and --compile: choose one of them"):
        EncoderConfig(encoder="simclr", recompute=True, compile=True)
