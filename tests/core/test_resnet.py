"""The shared ResNets against torchvision's own."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.resnet import ResNet, resnet, sizes_of, torchvision_key


@pytest.mark.parametrize("depth", [18, 50])
def test_equals_torchvision_with_the_same_weights(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    theirs.fc = torch.nn.Identity()
    ours = resnet(depth, image_size=64)
    ours.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        expected, features = theirs.train(mode)(images), ours.train(mode)(images)
        assert features.shape == (2, ours.feature_dim) == (2, {18: 512, 50: 2048}[depth])
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_small_images_keep_their_resolution_in_the_stem():
    small, large = resnet(18, image_size=63, width=8), resnet(18, image_size=64, width=8)
    images = torch.randn(1, 3, 28, 28)
    assert small.maxpool(small.conv1(images)).shape == (1, 8, 28, 28)
    assert large.maxpool(large.conv1(images)).shape == (1, 8, 7, 7)


def test_a_stem_that_halves_costs_a_quarter():
    images = torch.randn(1, 3, 28, 28)
    half = resnet(18, image_size=28, width=8, halves=True)
    assert half.maxpool(half.conv1(images)).shape == (1, 8, 14, 14) and half(images).shape == (1, 64)
    flops = []
    for network in (half, resnet(18, image_size=28, width=8)):
        with FlopCounterMode(display=False) as counter:
            network.layer1(network.conv1(images))
        flops.append(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])
    assert flops[0] < 0.3 * flops[1]
    # Larger images have the published stem, whatever is asked for.
    assert resnet(18, image_size=64, width=8, halves=True).conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("depth", [10, 18, 50])
@pytest.mark.parametrize(("small", "halves"), [(False, False), (True, False), (True, True)])
def test_sizes_show_in_the_tensors(depth, small, halves):
    network = ResNet(depth, small, 4, halves=halves)
    assert sizes_of(network.state_dict()) == (depth, 4, small, halves)
    assert sizes_of({"conv1.weight": torch.zeros(4, 3)}) is None and sizes_of({}) is None


@pytest.mark.parametrize(("depth", "feature_dim"), [(18, 8 * 12), (50, 8 * 12 * 4)])
def test_width_scales_every_stage(depth, feature_dim):
    network = resnet(depth, image_size=16, width=12)
    assert network.conv1.out_channels == 12
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, feature_dim)


def test_convolutions_start_kaiming_fan_out_and_norms_at_identity():
    torch.manual_seed(0)
    network = resnet(18, image_size=128)
    weight = network.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)
    assert torch.equal(network.layer4[0].bn2.weight, torch.ones(512))
    assert torch.equal(network.layer4[0].bn2.bias, torch.zeros(512))


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_initialised_residuals_start_as_their_shortcuts(depth):
    network = resnet(depth, image_size=16, width=4, zero_init_residual=True)
    x = torch.rand(2, network.layer1[1].conv1.in_channels, 8, 8)
    torch.testing.assert_close(network.layer1[1](x), x)


def test_channels_last_gives_the_same_features():
    torch.manual_seed(0)
    network = resnet(18, image_size=32, width=8).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = network(images)
    moved = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"depth": 34}, {"depth": 18, "width": 0}, {"depth": 18, "image_size": 0}])
def test_refuses_what_it_cannot_build(arguments):
    with pytest.raises(UsageError, match="must be"):
        resnet(**arguments)


def test_published_names_become_torchvisions():
    assert torchvision_key("stem.0.weight") == "conv1.weight"
    assert torchvision_key("module.stem.1.running_mean") == "bn1.running_mean"
    assert torchvision_key("layer2.0.shortcut.1.bias") == "layer2.0.downsample.1.bias"
    assert torchvision_key("layer1.0.conv2.weight") == "layer1.0.conv2.weight"
