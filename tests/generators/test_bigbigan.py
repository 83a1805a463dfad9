"""BigBiGAN against the reference implementation's numbers, its folded parts against the plain ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mi_ml_gen.core import products
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.bigbigan import (
    BigBiGAN,
    BigBiGANConfig,
    ModulatedNorm,
    SelfAttention,
    UpsampledConv,
    from_published,
)
from mi_ml_gen.latents import Chunks
from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def tiny():
    with np.load(GOLDEN / "bigbigan_tiny.npz") as arrays:
        return dict(arrays)


def build_tiny(tiny, published_bigbigan, dtype, frozen=True) -> BigBiGAN:
    state = published_bigbigan("bigbigan_tiny", str(tiny["prefix"]), dtype)
    generator = from_published(state)
    return generator.freeze() if frozen else generator.eval()


@pytest.mark.parametrize("frozen", [True, False], ids=["folded", "plain"])
@pytest.mark.parametrize(
    ("dtype", "suffix", "atol", "gradient_rtol"),
    [(torch.float32, "", 2e-5, 1e-3), (torch.float64, "_f64", 1e-9, 1e-9)],
    ids=["float32", "float64"],
)
def test_tiny_equals_the_reference(tiny, published_bigbigan, fill, dtype, suffix, atol, gradient_rtol, frozen):
    generator = build_tiny(tiny, published_bigbigan, dtype, frozen)
    z = torch.from_numpy(tiny["z"]).to(dtype).requires_grad_()
    output = generator.synthesize(z)
    expected = tiny["out" + suffix]
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=atol)

    weights = fill(str(tiny["gradw_name"]), output.shape).to(dtype)
    (gradient,) = torch.autograd.grad((output * weights).sum(), z)
    expected = tiny["grad_z" + suffix]
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=gradient_rtol * np.abs(expected).max())


def test_tiny_decodes_to_the_unit_range(tiny, published_bigbigan):
    generator = build_tiny(tiny, published_bigbigan, torch.float32)
    images = generator.decode(torch.from_numpy(tiny["z"]))
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(images.numpy(), tiny["decoded"], rtol=0, atol=1e-5)


def test_published_size_equals_the_reference(published_bigbigan, fill):
    """The layout of BigBiGAN_x1.pth itself: 70 million weights, sizes read off the file."""
    with np.load(GOLDEN / "bigbigan_full.npz") as arrays:
        golden = dict(arrays)
    generator = from_published(published_bigbigan("bigbigan_x1", str(golden["prefix"]))).freeze()
    assert (generator.resolution, generator.layout.sizes, generator.noise_dim) == (128, (20,) * 6, 120)
    z = torch.from_numpy(golden["z"]).requires_grad_()
    output = generator.synthesize(z)
    np.testing.assert_allclose(output.detach().numpy()[:, :, ::8, ::8], golden["out_grid"], rtol=0, atol=2e-5)

    weights = fill(str(golden["gradw_name"]), (1, 3, 128, 128))
    (gradient,) = torch.autograd.grad((output[:1] * weights).sum(), z)
    expected = golden["grad_z0"]
    np.testing.assert_allclose(gradient[0].numpy(), expected, rtol=0, atol=1e-2 * np.abs(expected).max())


def test_folded_upsampling_convolution_equals_the_plain_one():
    torch.manual_seed(0)
    layer = UpsampledConv(5, 7).double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    plain = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)
    assert torch.equal(layer(x), plain)
    layer.eval().requires_grad_(False).fix()
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-12)


def test_the_folded_kernel_is_held_in_one_type_alone():
    torch.manual_seed(0)
    layer = UpsampledConv(5, 7)
    x = torch.randn(2, 5, 6, 6)
    layer.eval().requires_grad_(False).fix()
    in_float32 = layer(x)
    layer.fix(in_bf16=True)
    assert layer.folded is None and layer.half_weight.dtype == torch.bfloat16
    assert torch.equal(layer(x), in_float32)  # outside of autocast nothing is rounded
    layer.fix(in_bf16=False)
    assert layer.folded is not None and layer.half_weight is None


def test_wide_layers_on_a_cpu_equal_the_plain_network(monkeypatch):
    """Of the published widths but for the last blocks, with the layout that `load_generator` chooses."""
    torch.manual_seed(0)
    generator = BigBiGAN(BigBiGANConfig(resolution=32, width=96, multipliers=(4, 2, 1), attention_resolution=16))
    z = torch.randn(4, generator.noise_dim).requires_grad_()
    generator.freeze()
    plain = generator.decode(z)
    lean = copy.deepcopy(generator).to(memory_format=torch.channels_last)
    held = [(block.conv1.matrices is not None, block.conv2.matrices is not None) for block in lean.blocks]
    assert held == [(True, True), (False, False), (False, False)]
    assert lean.blocks[0].conv1.folded is None
    used: list[str] = []
    convolve = products.convolve
    monkeypatch.setattr(products, "convolve", lambda x, *rest: used.append(str(tuple(x.shape))) or convolve(x, *rest))
    found = lean.decode(z)
    assert used == ["(4, 384, 4, 4)", "(4, 384, 8, 8)"], "a layer that holds no folded kernel folds in each call"
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    direction = torch.randn_like(plain)
    ours, expected = (torch.autograd.grad(images, z, direction)[0] for images in (found, plain))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    pair = lean.decode_pair(z, z, Chunks(1, 4))
    assert torch.equal(pair.anchor, found) and torch.equal(pair.positive, found)


@pytest.mark.parametrize("chunks", [Chunks(0, 1), Chunks(1, 2), Chunks(2, 4), Chunks(3, 4)], ids=str)
def test_decode_pair_equals_decoding_both_bit_for_bit(tiny, published_bigbigan, chunks):
    generator = build_tiny(tiny, published_bigbigan, torch.float32)
    anchor = torch.from_numpy(tiny["z"])
    positive = anchor.clone()
    positive[:, generator.layout.slice(chunks)] += 0.5
    positive.requires_grad_()
    images = generator.decode_pair(anchor, positive, chunks)
    assert torch.equal(images.anchor, generator.decode(anchor)) and not images.anchor.requires_grad
    assert torch.equal(images.positive, generator.decode(positive))
    (gradient,) = torch.autograd.grad(images.positive.sum(), positive)
    inside = gradient[:, generator.layout.slice(chunks)]
    assert inside.abs().sum() > 0


def test_chunk_zero_enters_at_the_stem_and_each_other_at_its_block(tiny, published_bigbigan):
    """With block i's modulation held, chunk i + 1 changes nothing: the wiring, told apart from mere dependence."""
    generator = build_tiny(tiny, published_bigbigan, torch.float32)
    z = torch.from_numpy(tiny["z"][:1])
    for chunk in range(1, 4):
        block = generator.blocks[chunk - 1]
        held = [(m, m.weight.clone()) for norm in (block.norm1, block.norm2) for m in (norm.gain, norm.bias)]
        for module, _ in held:
            module.weight.zero_()
        moved = z.clone()
        moved[:, generator.layout.slice(Chunks(chunk, chunk + 1))] += 1
        assert torch.equal(generator.decode(z), generator.decode(moved))
        for module, weight in held:
            module.weight.copy_(weight)
        assert not torch.equal(generator.decode(z), generator.decode(moved))


def test_missing_unknown_and_misshapen_weights_are_named(tiny, published_bigbigan):
    state = published_bigbigan("bigbigan_tiny", str(tiny["prefix"]))
    for change, message in [
        (lambda s: s.pop("blocks.1.1.phi.u0"), "blocks.1.1.phi.u0 is missing"),
        (lambda s: s.update(surplus=torch.zeros(1)), "unknown keys surplus"),
        (lambda s: s.update({"output_layer.2.bias": torch.zeros(4)}), "out_conv.bias has shape"),
        (lambda s: s.pop("linear.weight"), "not a BigBiGAN state dict"),
    ]:
        broken = dict(state)
        change(broken)
        with pytest.raises(CorruptCheckpointError, match=message):
            from_published(broken)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="give 16 px"):
        BigBiGANConfig(resolution=32, multipliers=(2, 1))
    with pytest.raises(UsageError, match="give multipliers"):
        BigBiGANConfig(resolution=48)


def test_training_statistics_reach_the_frozen_network():
    torch.manual_seed(0)
    settings = BigBiGANConfig(resolution=8, width=8, multipliers=(1,), chunk_dim=3, attention_resolution=8)
    generator = BigBiGAN(settings)
    z = torch.randn(64, generator.noise_dim)
    generator.train()
    for _ in range(200):
        trained = generator.synthesize(z)
    torch.testing.assert_close(generator.freeze().synthesize(z), trained, rtol=0, atol=0.05)


# ---------------------------------------------------------------------------------------------------------------
# bfloat16


class Maps(TorchDispatchMode):
    """Notes the type of every feature map, and counts the operators."""

    def __init__(self):
        super().__init__()
        self.dtypes, self.n = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.n += not function.is_view
        if isinstance(out, torch.Tensor) and out.ndim >= 4 and out.shape[1] > 3 and out[0, 0].numel() > 1:
            self.dtypes.add(out.dtype)
        return out


@pytest.fixture(scope="module")
def small():
    """With statistics and attention that do something."""
    torch.manual_seed(0)
    generator = BigBiGAN(BigBiGANConfig(resolution=32, width=8, attention_resolution=16))
    for module in generator.modules():
        if isinstance(module, ModulatedNorm):
            module.stored_mean.normal_(0, 0.3)
            module.stored_var.uniform_(0.5, 2)
        if isinstance(module, SelfAttention):
            torch.nn.init.constant_(module.gamma, 0.5)
    return generator.freeze().to(memory_format=torch.channels_last)


def plain_synthesis(generator: BigBiGAN, latents: torch.Tensor) -> torch.Tensor:
    """The network as it is written down, which autocast keeps in float32 wherever a float32 factor enters."""

    def norm(layer: ModulatedNorm, x: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        scale = layer.gain(chunk)[:, :, None, None] * torch.rsqrt(layer.stored_var + layer.eps)[:, None, None]
        offset = layer.bias(chunk)[:, :, None, None] - layer.stored_mean[:, None, None] * scale
        return torch.relu(torch.addcmul(offset, x, scale))

    def conv(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)

    first, *chunks = latents.split(list(generator.layout.sizes), dim=1)
    h = generator.stem(first).view(len(latents), -1, 4, 4)
    for i, (block, chunk) in enumerate(zip(generator.blocks, chunks, strict=True)):
        inner = norm(block.norm1, h, chunk)
        inner = F.conv_transpose2d(inner, block.conv1.folded, block.conv1.bias, stride=2, padding=1)
        inner = conv(block.conv2, norm(block.norm2, inner, chunk))
        h = inner + F.interpolate(conv(block.shortcut, h), scale_factor=2.0, mode="nearest")
        if str(i) in generator.attention:
            layer = generator.attention[str(i)]
            query = conv(layer.theta, h).flatten(2).mT
            key, value = (F.max_pool2d(conv(one, h), 2).flatten(2).mT for one in (layer.phi, layer.g))
            attended = torch.softmax(query @ key.mT, dim=2) @ value
            h = h + layer.gamma * conv(layer.o, attended.mT.unflatten(2, h.shape[2:]))
    return torch.tanh(conv(generator.out_conv, torch.relu(generator.out_norm(h))))


def test_bfloat16_stays_in_bfloat16_and_errs_less_than_the_plain_way(small):
    torch.manual_seed(1)
    z = torch.randn(16, small.noise_dim, requires_grad=True)
    right, wanted = small.synthesize(z), torch.randn(16, 3, 32, 32)
    torch.testing.assert_close(plain_synthesis(small, z), right, rtol=0, atol=1e-5)
    slope = torch.autograd.grad((right * wanted).sum(), z)[0]

    def errors(synthesize) -> tuple[float, float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = synthesize(z).float()
        gradient = torch.autograd.grad((output * wanted).sum(), z)[0]
        return (output - right).square().mean().item(), (gradient - slope).square().mean().item()

    plain, without = errors(lambda z: plain_synthesis(small, z)), errors(small.synthesize)
    small.hold("bf16")
    try:
        held = errors(small.synthesize)
        with Maps() as maps, torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            small.synthesize(z)
    finally:
        small.hold("fp32")
    assert maps.dtypes == {torch.bfloat16}
    for ours in (without, held):
        assert ours[0] < plain[0]
        assert ours[1] < 1.25 * plain[1]  # one draw; over many the ratio is below 1
    with Maps() as unheld, torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        small.synthesize(z)
    assert maps.n < 0.7 * unheld.n


def test_weights_that_are_loaded_after_freezing_are_used(small):
    z = torch.randn(2, small.noise_dim)
    other = copy.deepcopy(small).hold("bf16")
    for module in other.modules():
        if isinstance(module, ModulatedNorm):
            module.stored_mean += 1
    state = {key: value + 0.01 for key, value in other.state_dict().items()}
    other.load_state_dict(state)
    fresh = BigBiGAN(small.settings)
    fresh.load_state_dict(state)
    fresh.freeze().to(memory_format=torch.channels_last).hold("bf16")
    assert torch.equal(other.synthesize(z), fresh.synthesize(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(other.synthesize(z), fresh.synthesize(z))
