"""StyleGAN2 against the reference implementation's numbers (golden/stylegan2_*.npz) and its slow twins."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2, build
from mi_ml_gen.generators.stylegan2.network import (
    Features,
    NoiseSource,
    SynthesisLayer,
    SynthesisNetwork,
    ToRGB,
    Window,
    _stored_filter,
    upsample,
)
from mi_ml_gen.latents import Chunks

TESTS = Path(__file__).parents[2]
GOLDEN = TESTS / "golden"
TINY = {
    "z_dim": 24,
    "w_dim": 20,
    "mapping_layers": 2,
    "img_resolution": 32,
    "channel_base": 256,
    "channel_max": 16,
}


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem + "_for_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILL = _module(GOLDEN / "fill_stylegan2.py")
BENCH = _module(TESTS.parent / "bench" / "stylegan2.py")


def _golden(name):
    with np.load(GOLDEN / f"stylegan2_{name}.npz") as arrays:
        return {key: arrays[key] if arrays[key].ndim == 0 else torch.from_numpy(arrays[key]) for key in arrays}


def _filled(config):
    """The generator whose weights are the golden arrays' pseudo-weights."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in StyleGAN2(config).state_dict().items()}
    state = {key: torch.from_numpy(FILL.fill(key, shape)) for key, shape in shapes.items()}
    return StyleGAN2.from_tensors(config, state).freeze()


def _tiny(seed=0, noise_strength=0.1, **options):
    torch.manual_seed(seed)
    generator = StyleGAN2(StyleGAN2Config(**{**TINY, **options})).freeze()
    for module in generator.modules():
        if isinstance(module, SynthesisLayer):
            torch.nn.init.normal_(module.bias, std=0.1)
            if module.use_noise:
                module.noise_strength.fill_(noise_strength)
    return generator


def _close(actual, golden, atol):
    torch.testing.assert_close(actual, golden, rtol=0, atol=atol)


# -----------------------------------------------------------------------------------------------------------
# Numbers of the reference implementation


@pytest.fixture(scope="module")
def tiny():
    return _golden("tiny")


@pytest.fixture(scope="module")
def tiny_generator(tiny):
    return _filled(StyleGAN2Config.from_published(json.loads(str(tiny["config"]))))


def test_state_dict_has_the_published_names_and_shapes(tiny, tiny_generator):
    shapes = {key: list(value.shape) for key, value in tiny_generator.state_dict().items()}
    assert shapes == json.loads(str(tiny["keys"]))


def test_the_default_network_is_the_cars_network():
    with torch.device("meta"):
        generator = StyleGAN2()
    assert sum(p.numel() for p in generator.parameters()) == 30_276_583
    assert generator.layout.sizes == (512,) * 16
    assert (generator.noise_dim, generator.resolution) == (512, 128)


def test_golden_mapping_image_and_gradients(tiny, tiny_generator):
    z = tiny["z"].requires_grad_()
    latents = tiny_generator.latents(z)
    _close(latents.unflatten(1, (8, 64)), tiny["ws"], 1e-5)
    image = tiny_generator.synthesize(latents)
    _close(image, tiny["img"], 1e-4)
    (grad,) = torch.autograd.grad((image * tiny["probe"]).sum(), z)
    _close(grad, tiny["grad_z"], 1e-3)
    ws = tiny["ws"].flatten(1).requires_grad_()
    (grad,) = torch.autograd.grad((tiny_generator.synthesize(ws) * tiny["probe"]).sum(), ws)
    _close(grad.view_as(tiny["grad_ws"]), tiny["grad_ws"], 1e-3)


def test_golden_with_a_style_of_its_own_for_each_layer(tiny, tiny_generator):
    ws = tiny["ws_mixed"].flatten(1).requires_grad_()
    image = tiny_generator.synthesize(ws)
    _close(image, tiny["img_mixed"], 1e-4)
    (grad,) = torch.autograd.grad((image * tiny["probe"][:2]).sum(), ws)
    _close(grad.view_as(tiny["grad_ws_mixed"]), tiny["grad_ws_mixed"], 1e-3)


def test_golden_without_noise(tiny, tiny_generator):
    _close(tiny_generator.synthesize(tiny["ws"].flatten(1), noise_mode="none"), tiny["img_none"], 1e-4)


def test_golden_truncation(tiny):
    published = json.loads(str(tiny["config"]))
    with torch.no_grad():
        latents = _filled(StyleGAN2Config.from_published(published, psi=0.7)).latents(tiny["z"])
        _close(latents.unflatten(1, (8, 64)), tiny["ws_psi07"][:, None].expand(-1, 8, -1), 1e-5)
        latents = _filled(StyleGAN2Config.from_published(published, psi=0.5, cutoff=3)).latents(tiny["z"])
        _close(latents.unflatten(1, (8, 64)), tiny["ws_psi05_cutoff3"], 1e-5)


VARIANTS = [
    "resnet", "resnet_clamp", "kernel121", "orig", "clamp", "no_noise", "cond", "wide_mapping",
    "fp16_clamp_run_in_fp32",
]  # fmt: skip


@pytest.mark.parametrize("case", VARIANTS)
def test_golden_variants(case):
    golden = _golden("variants")
    generator = _filled(StyleGAN2Config.from_published(json.loads(str(golden[f"{case}/config"]))))
    shapes = {key: list(value.shape) for key, value in generator.state_dict().items()}
    assert shapes == json.loads(str(golden[f"{case}/keys"]))
    z, labels = golden[f"{case}/z"], golden.get(f"{case}/c")
    with torch.no_grad():
        _close(generator.styles(z, labels), golden[f"{case}/w"], 1e-5)
        _close(generator.synthesize(generator.latents(z, labels)), golden[f"{case}/img"], 1e-4)


def test_every_golden_variant_is_tested():
    assert {key.split("/")[0] for key in _golden("variants")} == set(VARIANTS)


def _tensorflow_state(config):
    """State dict from the pseudo-weights that are keyed by TensorFlow's names and layouts."""

    def tf(name, *shape):
        return FILL.fill_tf(name, shape)

    def layer(ours, theirs, inputs, outputs, size, flip=False):
        kernel = tf(f"{theirs}/weight", size, size, inputs, outputs)
        kernel = kernel[::-1, ::-1] if flip else kernel  # a correlation there, a true convolution here
        state[f"{ours}.weight"] = kernel.transpose(3, 2, 0, 1)
        state[f"{ours}.bias"] = tf(f"{theirs}/bias", outputs)
        state[f"{ours}.affine.weight"] = tf(f"{theirs}/mod_weight", config.w_dim, inputs).T
        state[f"{ours}.affine.bias"] = tf(f"{theirs}/mod_bias", inputs) + 1

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in StyleGAN2(config).state_dict().items()}
    state = {"mapping.w_avg": tf("dlatent_avg", config.w_dim)}
    for i in range(config.mapping_layers):
        state[f"mapping.fc{i}.weight"] = tf(f"mapping/Dense{i}/weight", *shapes[f"mapping.fc{i}.weight"][::-1]).T
        state[f"mapping.fc{i}.bias"] = tf(f"mapping/Dense{i}/bias", config.w_dim)
    noise = 0
    for side in config.resolutions:
        block, scope, channels = f"synthesis.b{side}", f"synthesis/{side}x{side}", config.channels(side)
        names = {"conv0": "Conv0_up", "conv1": "Conv1"} if side > 4 else {"conv1": "Conv"}
        if side == 4:
            state[f"{block}.const"] = tf(f"{scope}/Const/const", 1, channels, 4, 4)[0]
        for ours, theirs in names.items():
            inputs = config.channels(side // 2) if ours == "conv0" else channels
            layer(f"{block}.{ours}", f"{scope}/{theirs}", inputs, channels, 3, flip=ours == "conv0")
            state[f"{block}.{ours}.noise_strength"] = tf(f"{scope}/{theirs}/noise_strength")
            state[f"{block}.{ours}.noise_const"] = tf(f"synthesis/noise{noise}", 1, 1, side, side)[0, 0]
            noise += 1
        layer(f"{block}.torgb", f"{scope}/ToRGB", channels, 3, 1)
    filters = {key: _stored_filter((1, 3, 3, 1)) for key in shapes if key.endswith("resample_filter")}
    return {**{key: torch.from_numpy(np.array(value)) for key, value in state.items()}, **filters}


def test_golden_of_the_tensorflow_format():
    golden = _golden("tiny_tf")
    config = StyleGAN2Config(
        z_dim=64, w_dim=64, img_resolution=32, mapping_layers=2, channel_base=1024, channel_max=64
    )  # fmt: skip
    generator = StyleGAN2.from_tensors(config, _tensorflow_state(config)).freeze()
    z = golden["z"].requires_grad_()
    latents = generator.latents(z)
    _close(latents[:, :64], golden["w"], 1e-5)
    image = generator.synthesize(latents)
    _close(image, golden["img"], 1e-4)
    (grad,) = torch.autograd.grad((image * golden["probe"]).sum(), z)
    _close(grad, golden["grad_z"], 1e-3)
    _close(generator.synthesize(golden["ws_mixed"].flatten(1)), golden["img_mixed"], 1e-4)
    truncating = build({**generator.config(), "psi": 0.7}, generator.state_dict())
    _close(truncating.latents(golden["z"])[:, :64].detach(), golden["w_psi07"], 1e-5)


def test_golden_at_512_px():
    golden = _golden("512")
    generator = _filled(StyleGAN2Config())
    with torch.no_grad():
        latents = generator.latents(golden["z"])
        _close(latents[0, :512], golden["w"], 1e-5)
        image = generator.synthesize(latents)
        _close(image[0, :, ::8, ::8], golden["img_stride8"], 1e-4)
        _close(image.mean(dim=(0, 2, 3)), golden["img_mean"], 1e-4)
        _close(image[0].flatten(1).std(dim=1), golden["img_std"], 1e-4)
        decoded = generator.decode(latents)
    _close(decoded[0], golden["decode128"], 1e-4)
    expected = F.interpolate(image[..., 64:448, 64:448], size=(128, 128), mode="bilinear", align_corners=True)
    _close(decoded, (expected * 127.5 + 128).clamp(0, 255) / 255, 1e-5)


# -----------------------------------------------------------------------------------------------------------
# Slow twins


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_scaled_activations_equal_kernels_per_sample(architecture):
    generator = _tiny(architecture=architecture, conv_clamp=1.5, resample_filter=(1, 3, 2, 1)).double()
    twin = BENCH.with_grouped_kernels(copy.deepcopy(generator))
    torch.manual_seed(1)
    latents = torch.randn(3, generator.layout.dim, dtype=torch.float64)
    weight = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    results = []
    for network in (generator, twin):
        network.requires_grad_(True)
        ws = latents.clone().requires_grad_()
        image = network.synthesize(ws)
        (image * weight).sum().backward()
        grads = {key: p.grad for key, p in network.named_parameters() if not key.startswith("mapping")}
        results.append((image.detach(), ws.grad, grads))
    (image, grad, grads), (twin_image, twin_grad, twin_grads) = results
    _close(image, twin_image, 1e-11)
    _close(grad, twin_grad, 1e-10)
    assert grads.keys() == twin_grads.keys()
    for key in grads:
        torch.testing.assert_close(grads[key], twin_grads[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_layers_modulated_at_once_equal_those_one_by_one(architecture, precision, monkeypatch):
    monkeypatch.setattr(SynthesisNetwork, "modulates_at_once_on", ("cpu",))
    generator = _tiny(architecture=architecture, channel_base=128, channel_max=16)
    generator.freeze().to(memory_format=torch.channels_last).hold(precision)
    anchor = generator.latents(torch.randn(3, generator.noise_dim, generator=torch.Generator().manual_seed(2)))

    def pair():
        positive = (anchor + 0.3).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            images = generator.decode_pair(anchor, positive, Chunks(2, generator.layout.n_chunks))
        return images.anchor, images.positive.detach(), *torch.autograd.grad(images.positive.square().sum(), positive)

    at_once, asked = pair(), []
    monkeypatch.setattr(SynthesisNetwork, "modulations", lambda self, steps, ws: asked.append(1) or [None] * len(steps))
    for one, other in zip(at_once, pair(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
    assert len(asked) == 3 and generator.synthesis.squares is not None


@pytest.mark.parametrize("taps", [(1,), (1, 1), (1, 2, 1), (1, 3, 3, 1), (3, -1, 4, 1, 5), (1, 4, 2, 8, 5, 7, 1, 3, 2)])
def test_upsampling_equals_interleaving_zeros_and_filtering(taps):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    stored = _stored_filter(taps).double()
    assert stored.ndim == (1 if len(taps) >= 8 else 2)
    padded = F.pad(_interleaved(image), ((len(taps) + 1) // 2, (len(taps) - 2) // 2) * 2)
    square = torch.outer(torch.tensor(taps), torch.tensor(taps)).double() / sum(taps) ** 2
    expected = F.conv2d(padded.flatten(0, 1)[:, None], 4 * square.flip(0, 1)[None, None]).view(2, 3, 10, 10)
    _close(upsample(image, stored, Window(0, 5), 5, Window(0, 10)), expected, 1e-6)
    for window in (Window(0, 3), Window(3, 8), Window(9, 10)):
        part = upsample(image, stored, Window(0, 5), 5, window)
        _close(part, expected[..., window.start : window.stop, window.start : window.stop], 1e-6)


def _interleaved(image):
    """Each sample followed by a zero, along both axes."""
    doubled = image.new_zeros(*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3])
    doubled[..., ::2, ::2] = image
    return doubled


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 5, 10, 10, 5, 1)])
def test_a_crop_computes_what_the_whole_image_shows_there(architecture, taps):
    whole = _tiny(architecture=architecture, resample_filter=taps).double()
    latents = torch.randn(2, whole.layout.dim, dtype=torch.float64)
    image = whole.synthesize(latents)
    for crop in (1, 7, 16, 24, 31):
        cropped = build({**whole.config(), "crop": crop, "size": crop}, whole.state_dict())
        start = (32 - crop) // 2
        expected = image[..., start : start + crop, start : start + crop]
        _close(cropped.decode(latents), ((expected * 127.5 + 128) / 255).clamp(0, 1), 1e-12)


@pytest.mark.parametrize("chunks", ["0_8", "1_2", "2_4", "5_8", "7_8"])
@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_decoding_a_pair_equals_decoding_both(architecture, chunks):
    generator = _tiny(architecture=architecture, crop=24)
    chosen = generator.chunks(chunks)
    anchor = torch.randn(2, generator.layout.dim)
    where = generator.layout.slice(chosen)
    part = torch.randn(2, where.stop - where.start).requires_grad_()
    positive = torch.cat([anchor[:, : where.start], part, anchor[:, where.stop :]], dim=1)
    pair = generator.decode_pair(anchor, positive, chosen)
    assert not pair.anchor.requires_grad
    _close(pair.anchor, generator.decode(anchor), 1e-6)
    expected = generator.decode(positive)
    _close(pair.positive.detach(), expected.detach(), 1e-6)
    weight = torch.randn_like(expected)
    (grad,) = torch.autograd.grad((pair.positive * weight).sum(), part)
    (right,) = torch.autograd.grad((expected * weight).sum(), part)
    _close(grad, right, 1e-5)


def test_layers_before_the_perturbed_rows_run_once():
    generator = _tiny()
    calls = []
    generator.synthesis.b16.conv1.register_forward_hook(lambda *_: calls.append(1))
    latents = torch.randn(1, generator.layout.dim)
    generator.decode_pair(latents, latents, Chunks(5, 8))
    assert len(calls) == 1  # it reads row 4
    generator.decode_pair(latents, latents, Chunks(4, 8))
    assert len(calls) == 3


# -----------------------------------------------------------------------------------------------------------
# Noise, truncation, labels


def test_each_row_feeds_its_layers_only():
    """Row k changes nothing that is computed before the layer which reads it."""
    generator = _tiny()
    seen = {}
    for name, module in generator.synthesis.named_modules():
        if isinstance(module, SynthesisLayer):
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.x.clone()}))
    rows = {
        "b4.conv1": 0,
        "b8.conv0": 1,
        "b8.conv1": 2,
        "b16.conv0": 3,
        "b16.conv1": 4,
        "b32.conv0": 5,
        "b32.conv1": 6,
    }
    ws = torch.randn(1, 8, 20)
    generator.synthesize(ws.flatten(1))
    assert seen.keys() == rows.keys()
    before = dict(seen)
    for row in range(8):
        changed = ws.clone()
        changed[:, row] += 1
        generator.synthesize(changed.flatten(1))
        for name, own in rows.items():
            assert torch.equal(seen[name], before[name]) == (own < row)


def test_random_noise_is_drawn_from_rng_and_per_sample():
    generator = _tiny(noise_mode="random")
    latents = torch.randn(1, generator.layout.dim).repeat(2, 1)
    first = generator.decode(latents, torch.Generator().manual_seed(3))
    assert torch.equal(first, generator.decode(latents, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, generator.decode(latents, torch.Generator().manual_seed(4)))
    assert not torch.equal(first[0], first[1])


def test_random_noise_does_not_depend_on_the_crop():
    whole = _tiny(noise_mode="random")
    cropped = build({**whole.config(), "crop": 16, "size": 16}, whole.state_dict())
    latents = torch.randn(2, whole.layout.dim)
    image = whole.decode(latents, torch.Generator().manual_seed(0))
    _close(cropped.decode(latents, torch.Generator().manual_seed(0)), image[..., 8:24, 8:24], 1e-5)


def test_a_pair_with_random_noise_has_noise_of_its_own_in_each_image():
    generator = _tiny(noise_mode="random")
    latents = torch.randn(2, generator.layout.dim)
    pair = generator.decode_pair(latents, latents, Chunks(6, 8), torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(pair.anchor, generator.decode(latents, rng))
    assert torch.equal(pair.positive, generator.decode(latents, rng))


def test_noise_none_equals_strength_zero_and_const_is_shared():
    generator = _tiny()
    latents = torch.randn(1, generator.layout.dim).repeat(2, 1)
    const = generator.synthesize(latents)
    _close(const[0], const[1], 1e-6)
    none = generator.synthesize(latents, noise_mode="none")
    assert (const - none).abs().max() > 1e-2
    silent = _tiny(noise_strength=0.0)
    _close(silent.synthesize(latents), none, 1e-6)


def test_truncation_at_psi_0_is_the_mean_style_and_cutoff_0_is_none():
    generator = _tiny(psi=0.0)
    generator.mapping.w_avg.normal_()
    z = torch.randn(2, 24)
    expected = generator.mapping.w_avg.repeat(2, 8)
    _close(generator.latents(z), expected, 1e-6)
    untruncated = build({**generator.config(), "cutoff": 0}, generator.state_dict())
    _close(untruncated.latents(z), generator.styles(z).repeat(1, 8), 0)


@pytest.mark.parametrize("options", [{}, {"psi": 0.6}, {"psi": 0.6, "cutoff": 3}])
def test_distance_of_one_row_stands_for_all(options):
    generator = _tiny(**options)
    generator.mapping.w_avg.normal_()
    z, moved = torch.randn(5, 24), torch.randn(5, 24)
    between = generator.latents(moved) - generator.latents(z)
    for text in ("0_8", "0_2", "2_5", "4_8"):
        chunks = generator.chunks(text)
        expected = between[:, generator.layout.slice(chunks)].norm(dim=1)
        _close(generator.distance(z, moved, chunks), expected, 1e-5)


def test_the_mapping_runs_once_per_z_and_ignores_the_length_of_z():
    generator = _tiny()
    seen = []
    generator.mapping.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    z = torch.randn(3, 24)
    latents = generator.latents(z)
    assert seen == [(3, 24)] and latents.shape == (3, 160)
    _close(generator.latents(5 * z), latents, 1e-5)


def test_labels():
    generator = _tiny(c_dim=3)
    z = torch.randn(2, 24)
    zero, two = generator.latents(z), generator.latents(z, torch.tensor([2, 2]))
    _close(generator.latents(z, torch.tensor([0, 0])), zero, 0)
    _close(generator.latents(z, torch.eye(3)[[2, 2]]), two, 0)
    assert (zero - two).abs().max() > 1e-2
    second = build({**generator.config(), "label": 2}, generator.state_dict())
    _close(second.latents(z), two, 0)
    with pytest.raises(UsageError, match="takes no labels"):
        _tiny().latents(z, torch.tensor([0, 0]))
    with pytest.raises(UsageError, match="labels of shape"):
        generator.latents(z, torch.eye(4)[:2])


# -----------------------------------------------------------------------------------------------------------
# Decoding


def test_zero_becomes_128_of_255_and_values_are_confined():
    generator = _tiny()
    shown = generator._shown(torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(4, 1, 1, 1).expand(-1, 3, 32, 32))
    _close(shown[:, 0, 0, 0], torch.tensor([0.0, 0.5 / 255, 128 / 255, 1.0]), 1e-7)


def test_whole_image_is_resized_antialiased():
    generator = _tiny(size=12)
    latents = torch.randn(2, generator.layout.dim)
    image = generator.synthesize(latents)
    expected = F.interpolate(image, size=(12, 12), mode="bilinear", align_corners=False, antialias=True)
    assert generator.resolution == 12
    _close(generator.decode(latents), (expected * 127.5 + 128).clamp(0, 255) / 255, 1e-5)
    unfiltered = build({**generator.config(), "resampling": "corners"}, generator.state_dict()).decode(latents)
    expected = F.interpolate(image, size=(12, 12), mode="bilinear", align_corners=True)
    _close(unfiltered, (expected * 127.5 + 128).clamp(0, 255) / 255, 1e-6)


@pytest.mark.parametrize(
    "options, shown",
    [
        ({}, (384, 128, "corners")),
        ({"size": 64}, (384, 64, "corners")),
        ({"crop": 512}, (512, 128, "antialias")),
        ({"crop": 96}, (96, 96, "antialias")),
        ({"img_resolution": 256}, (256, 128, "antialias")),
        ({"img_resolution": 1024}, (1024, 128, "antialias")),
        ({"img_resolution": 1024, "crop": 800, "size": 256, "resampling": "corners"}, (800, 256, "corners")),
        ({"img_resolution": 32}, (32, 32, "antialias")),
    ],
)
def test_what_decode_keeps_by_default_and_when_told(options, shown):
    config = StyleGAN2Config(**options)
    assert (config.crop_px, config.size_px, config.resampling_kind) == shown


def test_grey_images_decode_to_three_equal_channels():
    generator = _tiny(img_channels=1)
    latents = torch.randn(2, generator.layout.dim)
    assert generator.synthesize(latents).shape == (2, 1, 32, 32)
    image = generator.decode(latents)
    assert image.shape == (2, 3, 32, 32) and torch.equal(image[:, 0], image[:, 2])


def test_the_paper_s_groups_walk_all_of_z():
    with torch.device("meta"):
        generator = StyleGAN2()
    for text in ("0_4", "4_8", "8_12", "12_16", "0_16"):
        assert generator.walk_slice(generator.chunks(text)) == slice(0, 512)
    with pytest.raises(UsageError, match="at most 16"):
        generator.chunks("12_17")
    with pytest.raises(UsageError, match="at most 16"):
        generator.walk_slice(Chunks(12, 17))


def test_decode_takes_rows_or_flat_latents_and_refuses_other_shapes():
    generator = _tiny()
    ws = torch.randn(2, 8, 20)
    assert torch.equal(generator.decode(ws), generator.decode(ws.flatten(1)))
    with pytest.raises(UsageError, match=r"latents of shape \(2, 140\): must be \(n, 160\)"):
        generator.decode(torch.zeros(2, 140))
    with pytest.raises(UsageError, match=r"z of shape \(2, 23\): must be \(n, 24\)"):
        generator.latents(torch.zeros(2, 23))


# -----------------------------------------------------------------------------------------------------------
# Configuration and files


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": 48, "img_resolution": 32}, "crop 48: must be at most 32, the side of the image"),
        ({"img_resolution": 48}, "img_resolution 48: must be a power of two"),
        ({"img_resolution": None}, "img_resolution None: must be a whole number"),
        ({"architecture": "unet"}, "architecture unet: must be one of skip, orig, resnet"),
        ({"activation": "relu"}, "activation relu: must be one of lrelu, linear"),
        ({"noise_mode": "fixed"}, "noise_mode fixed: must be one of const, random, none"),
        ({"resampling": "lanczos"}, "resampling lanczos"),
        ({"resample_filter": [1, -1]}, "resample_filter"),
        ({"resample_filter": None}, "resample_filter None"),
        ({"conv_clamp": -1}, "conv_clamp -1"),
        ({"conv_clamp": float("nan")}, "conv_clamp nan"),
        ({"psi": float("nan")}, "psi nan"),
        ({"cutoff": 17}, "cutoff 17: must be at most 16"),
        ({"c_dim": 3, "label": 3}, "label 3: must be below the number of classes, 3"),
        ({"label": 1}, "label 1"),
        ({"img_channels": 4}, "img_channels 4: must be one of 1, 3"),
        ({"z_dim": 0}, "z_dim 0"),
        ({"size": 0}, "size 0"),
        ({"crops": 3}, "crops: unknown; nearest known option: crop"),
    ],
)
def test_refused_configurations(options, message):
    with pytest.raises(UsageError, match=message):
        StyleGAN2Config.from_dict(options)


@pytest.mark.parametrize(
    "published, message",
    [
        ({"num_layers": 8}, "option num_layers: unknown"),
        (
            {"mapping_kwargs": {"num_layer": 8}},
            "mapping_kwargs num_layer: unknown; nearest known option: num_layers",
        ),
        ({"synthesis_kwargs": {"fused_modconv": True}}, "synthesis_kwargs fused_modconv: unknown"),
        ({"synthesis_kwargs": {"kernel_size": 5}}, "kernel_size 5"),
        ({"synthesis_kwargs": {"activation": "swish"}}, "activation swish"),
        ({"synthesis_kwargs": {"resample_filter": None}}, "resample_filter None"),
    ],
)
def test_refused_published_options(published, message):
    with pytest.raises(UsageError, match=message):
        StyleGAN2Config.from_published({"img_resolution": 32, **published})


def test_a_published_file_must_say_its_resolution():
    with pytest.raises(UsageError, match="img_resolution None"):
        StyleGAN2Config.from_published({"z_dim": 64})


def test_configuration_and_weights_round_trip_through_json():
    generator = _tiny(architecture="resnet", conv_clamp=2.0, c_dim=2, label=1, psi=0.8, crop=20, size=10)
    again = build(json.loads(json.dumps(generator.config())), generator.state_dict(), "copy")
    assert again.settings == generator.settings and again.name == "copy"
    z = torch.randn(2, 24)
    assert torch.equal(again.decode(again.latents(z)), generator.decode(generator.latents(z)))
    again.mapping.w_avg.add_(1)
    assert not torch.equal(again.mapping.w_avg, generator.mapping.w_avg)  # a copy, not the same memory


def test_weights_that_do_not_fit_are_refused():
    generator = _tiny()
    config, state = generator.settings, generator.state_dict()

    def refused(message, **changes):
        changed = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
        with pytest.raises(CorruptCheckpointError, match=message):
            StyleGAN2.from_tensors(config, {key: value for key, value in changed.items() if value is not None})

    refused("mapping.fc1.bias is missing", mapping__fc1__bias=None)
    refused("unknown keys synthesis.b64.const", synthesis__b64__const=torch.zeros(1))
    refused(r"noise_strength has shape \(1,\)", synthesis__b8__conv0__noise_strength=torch.zeros(1))
    refused("b8.resample_filter is not made of the taps", synthesis__b8__resample_filter=torch.eye(4) / 4)


def test_a_published_pickle_becomes_a_generator(tiny):
    generator = StyleGAN2.from_file(GOLDEN / "fixtures" / "stylegan2_tiny_torch.pkl").freeze()
    generator.use({"psi": 0.7, "size": 16})
    _close(generator.latents(tiny["z"]).detach()[:, :64], tiny["ws_psi07"], 1e-5)
    _close(generator.synthesize(tiny["ws_mixed"].flatten(1)), tiny["img_mixed"], 1e-4)
    assert generator.decode(tiny["ws_mixed"]).shape == (2, 3, 16, 16)
    with pytest.raises(UsageError, match="unknown key sizes in --g_use of stylegan2; nearest known key: size"):
        generator.use({"sizes": 16})


# -----------------------------------------------------------------------------------------------------------
# Training, precision, layout


def test_a_new_network_has_unit_weights_and_sane_activations():
    torch.manual_seed(0)
    generator = StyleGAN2(StyleGAN2Config(z_dim=64, w_dim=64, img_resolution=32, channel_base=2048, channel_max=64))
    assert abs(generator.synthesis.b16.conv0.weight.std() - 1) < 0.02
    assert abs(generator.mapping.fc3.weight.std() - 100) < 3  # stored over the learning-rate multiplier
    assert generator.synthesis.b8.conv1.noise_strength == 0
    with torch.no_grad():
        w = generator.styles(torch.randn(256, 64))
        image = generator.synthesize(generator.latents(torch.randn(16, 64)))
    assert 0.5 < w.std() < 2
    assert 0.3 < image.std() < 6


def test_every_parameter_can_be_trained():
    torch.manual_seed(0)
    generator = StyleGAN2(StyleGAN2Config(**TINY, c_dim=2))
    latents = generator.latents(torch.randn(4, 24), torch.tensor([0, 1, 0, 1]))
    image = generator.synthesize(latents, torch.Generator().manual_seed(0), noise_mode="random")
    image.square().mean().backward()
    for key, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_a_few_steps_fit_a_target():
    torch.manual_seed(0)
    generator = StyleGAN2(StyleGAN2Config(**TINY))
    optimiser = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.0, 0.99))
    z, target = torch.randn(4, 24), torch.rand(4, 3, 32, 32) * 0.2 + 0.5
    losses = []
    for _ in range(30):
        loss = (generator.synthesize(generator.latents(z)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_training_mode_moves_the_mean_style_only_when_asked():
    generator = StyleGAN2(StyleGAN2Config(**TINY, w_avg_beta=0.75)).train()
    w = generator.styles(torch.randn(16, 24))
    assert torch.equal(generator.mapping.w_avg, torch.zeros(20))
    generator.mapping.track(w)
    _close(generator.mapping.w_avg, 0.25 * w.mean(dim=0).detach(), 1e-6)


def test_frozen_gradients_reach_z_and_no_parameter():
    generator = _tiny()
    z = torch.randn(2, 24, requires_grad=True)
    generator.decode(generator.latents(z)).sum().backward()
    assert z.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_gradient_of_decode_is_the_finite_difference():
    generator = _tiny(crop=20, size=7, conv_clamp=3.0).double()
    latents = 0.1 * torch.randn(1, generator.layout.dim, dtype=torch.float64)
    direction = torch.randn_like(latents)
    weight = torch.rand(1, 3, 7, 7, dtype=torch.float64)

    def loss(step):
        return (generator.decode(latents + step * direction) * weight).sum()

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(step), step)
    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(grad, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_channels_last_gives_the_same_image(architecture):
    generator = _tiny(architecture=architecture, crop=20)
    other = copy.deepcopy(generator).to(memory_format=torch.channels_last)
    latents = torch.randn(2, generator.layout.dim)
    _close(other.decode(latents), generator.decode(latents), 1e-5)
    seen = []
    other.synthesis.b16.conv1.register_forward_hook(lambda _, __, out: seen.append(out.x))
    other.synthesize(latents)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)  # the layout holds throughout


def test_bfloat16_autocast_stays_near_float32():
    generator = _tiny(crop=20)
    z = torch.randn(4, 24)
    latents = generator.latents(z)
    right = generator.decode(latents)
    seen = []
    generator.synthesis.b16.conv1.register_forward_hook(lambda _, __, out: seen.append(out.x.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator.latents(z), latents)  # the mapping and the styles stay in float32
        image = generator.decode(latents)
    assert seen == [torch.bfloat16] and image.dtype == torch.float32
    assert (image - right).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_what_is_held_of_a_frozen_network_changes_nothing(architecture):
    """Bit for bit against the same network that was never frozen, in float32 and bf16, with and without gradients."""
    generator = _tiny(crop=20, architecture=architecture, conv_clamp=1.5).to(memory_format=torch.channels_last)
    plain = StyleGAN2(generator.settings).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    plain.load_state_dict(generator.state_dict())
    latents = generator.latents(torch.randn(3, 24)).requires_grad_()

    def images(network, in_bf16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
            image = network.decode(latents)
            with torch.no_grad():
                assert torch.equal(network.decode(latents), image)
        return image, torch.autograd.grad(image.square().sum(), latents)[0]

    for in_bf16 in (False, True):
        generator.hold("bf16" if in_bf16 else "fp32")
        for one, other in zip(images(generator, in_bf16), images(plain, in_bf16), strict=True):
            assert torch.equal(one, other)


def test_noise_and_weights_loaded_after_freezing_are_used():
    generator, other = _tiny(seed=0), _tiny(seed=1, noise_strength=0.5)
    latents = torch.randn(2, generator.layout.dim)
    generator.load_state_dict(other.state_dict())
    assert torch.equal(generator.decode(latents), other.decode(latents))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = other.decode(latents)
        assert torch.equal(generator.hold("bf16").decode(latents), expected)
        generator.synthesis.b16.conv1.noise_const.add_(1)
        assert not torch.equal(generator.decode(latents), expected)


def test_to_rgb_crops_after_its_product():
    layer = ToRGB(6, StyleGAN2Config(**TINY)).requires_grad_(False)
    x, w = torch.randn(2, 6, 10, 10), torch.randn(2, 20)
    inner = layer(Features(x[..., 2:9, 2:9], Window(2, 9)), w, Window(2, 9))
    _close(layer(Features(x, Window(0, 10)), w, Window(2, 9)), inner, 1e-5)


def test_noise_source_refuses_an_unknown_mode():
    with pytest.raises(UsageError, match="noise_mode fresh"):
        NoiseSource("fresh", None)
