"""Layers of frozen networks: the same results as the plain operations, and nothing that is out of date."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mi_ml_gen.core import fixed


def maps(*shape: int, layout: torch.memory_format = torch.contiguous_format, **options) -> torch.Tensor:
    return torch.randn(*shape, **options).contiguous(memory_format=layout)


def frozen(layer: fixed.FixedWeights) -> fixed.FixedWeights:
    layer.eval().requires_grad_(False).fix()
    return layer


def results(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of all inputs, for a fixed direction of the output."""
    inputs = tuple(one.detach().clone().requires_grad_() for one in inputs)
    output = function(*inputs)
    torch.manual_seed(3)
    gradients = torch.autograd.grad(output, inputs, torch.randn(output.shape))
    return [output.detach(), *gradients]


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("slope", "bound"), [(0.0, None), (0.2, None), (0.2, 0.7), (None, None)])
def test_a_scaled_activation_equals_the_plain_operations_bit_for_bit(layout, slope, bound):
    torch.manual_seed(0)
    x, scale, offset = maps(2, 6, 5, 5, layout=layout), torch.randn(2, 6, 1, 1), torch.randn(2, 6, 1, 1)

    def plain(x, scale, offset):
        y = torch.addcmul(offset, x, scale)
        if slope is not None:
            y = F.leaky_relu(y, slope) if slope else torch.relu(y)
        return y if bound is None else y.clamp(-bound, bound)

    ours = results(lambda *inputs: fixed.scaled_activation(*inputs, slope, bound), x, scale, offset)
    for one, other in zip(ours, results(plain, x, scale, offset), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(fixed.scaled_activation(x, scale, offset, slope, bound), ours[0])


def test_maps_that_nobody_needs_are_overwritten_where_no_gradient_is_wanted():
    x, scale, offset = maps(2, 6, 5, 5, layout=torch.channels_last), torch.randn(2, 6, 1, 1), torch.randn(6, 1, 1)
    wanted, before = fixed.scaled_activation(x, scale, offset), x.clone()
    assert torch.equal(x, before)
    with_graph = fixed.scaled_activation(x, scale.clone().requires_grad_(), offset, overwrite=True)
    assert torch.equal(with_graph, wanted) and torch.equal(x, before)
    found = fixed.scaled_activation(x, scale, offset, overwrite=True)
    assert torch.equal(found, wanted) and found.data_ptr() == x.data_ptr()


def test_an_offset_of_the_maps_own_shape_gets_its_gradient():
    torch.manual_seed(0)
    x, scale, offset = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1), torch.randn(2, 3, 4, 4)
    ours = results(fixed.scaled_activation, x, scale, offset)
    plain = results(lambda x, scale, offset: torch.relu(torch.addcmul(offset, x, scale)), x, scale, offset)
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_adding_a_doubled_map_equals_interpolation(layout):
    torch.manual_seed(0)
    x, small = maps(2, 6, 8, 8, layout=layout), maps(2, 6, 4, 4, layout=layout)
    plain = results(lambda x, small: x + F.interpolate(small, scale_factor=2.0), x, small)
    ours = results(lambda x, small: fixed.add_doubled(x * 1, small), x, small)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert torch.equal(ours[0], plain[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_fixed_convolution_equals_the_plain_one_and_keeps_no_input(layout, transposed, groups):
    torch.manual_seed(0)
    x, bias = maps(2, 4, 6, 6, layout=layout), torch.randn(4)
    weight = maps(4, 4 // groups, 3, 3, layout=layout)
    plain = F.conv_transpose2d if transposed else F.conv2d
    expected = results(lambda x: plain(x, weight, bias, 2, 1, groups=groups), x)
    ours = results(lambda x: fixed.convolve(x, weight, bias, 2, 1, transposed, groups), x)
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))

    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda _: None):
        fixed.convolve(x.requires_grad_(), weight, bias, 2, 1, transposed, groups)
    assert kept == [weight.shape]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_products_over_channels_equal_a_convolution_of_each_sample(layout):
    rng = torch.Generator().manual_seed(0)
    kernel = torch.randn(2, 3, 6, generator=rng, dtype=torch.float64).requires_grad_()
    x = torch.randn(2, 6, 5, 5, generator=rng, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    made = fixed.channel_products(kernel, x)
    plain = torch.cat([F.conv2d(one[None], k[:, :, None, None]) for one, k in zip(x, kernel, strict=True)])
    direction = torch.randn(made.shape, generator=rng, dtype=torch.float64)
    ours, others = (torch.autograd.grad(result, [kernel, x], direction) for result in (made, plain))
    torch.testing.assert_close([made, *ours], [plain, *others], rtol=0, atol=1e-12)
    assert ours[1].is_contiguous(memory_format=layout)


def test_a_convolution_whose_weight_is_trained_gets_its_gradient():
    weight = torch.randn(3, 3, 1, 1, requires_grad=True)
    fixed.convolve(torch.randn(1, 3, 2, 2, requires_grad=True), weight).sum().backward()
    assert weight.grad is not None


def test_weights_held_in_bfloat16_give_what_autocast_gives():
    torch.manual_seed(0)
    layer = frozen(fixed.Conv2d(4, 5, 3, padding=1))
    x = torch.randn(2, 4, 6, 6)
    in_float32 = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
        assert torch.equal(layer(x), expected)
        fixed.hold(layer, "bf16")
        assert layer.half_weight is not None and torch.equal(layer(x), expected)
    assert torch.equal(layer(x), in_float32)
    fixed.hold(layer, "fp32")
    assert layer.half_weight is None


def other_weights(layer: fixed.Conv2d) -> None:
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})


def in_place(layer: fixed.Conv2d) -> None:
    with torch.no_grad():
        layer.weight.add_(1)


def assigned(layer: fixed.Conv2d) -> None:
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()}, assign=True)
    layer.requires_grad_(False)


def moved(layer: fixed.Conv2d) -> None:
    layer.double().float()


@pytest.mark.parametrize("change", [other_weights, in_place, assigned, moved])
def test_what_is_held_follows_every_change_of_the_weights(change):
    torch.manual_seed(0)
    layer = frozen(fixed.Conv2d(4, 5, 3, padding=1))
    fixed.hold(layer, "bf16")
    change(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(2, 4, 6, 6)
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    assert layer.half_weight.dtype == torch.bfloat16 and "half_weight" not in layer.state_dict()
    twin = copy.deepcopy(layer)
    in_place(twin)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(twin(x), F.conv2d(x, twin.weight, twin.bias, padding=1))


def test_a_network_that_is_trained_again_uses_its_weights():
    layer = frozen(fixed.Conv2d(1, 1, 1))
    fixed.hold(layer, "bf16")
    layer.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.ones(1, 1, 2, 2)).sum().backward()
    assert layer.weight.grad is not None and not layer.is_current()
    assert not frozen(fixed.Conv2d(1, 1, 1)).train().is_current()
