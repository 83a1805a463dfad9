"""Published StyleGAN2 pickles are read bit for bit, refused by name where they differ, and never run."""

from __future__ import annotations

import gzip
import importlib.util
import io
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.generators.stylegan2.published import expected_shapes, read_stylegan2

TESTS = Path(__file__).parents[2]
GOLDEN = TESTS / "golden"
FIXTURES = GOLDEN / "fixtures"
TORCH_FILE, TENSORFLOW_FILE = FIXTURES / "stylegan2_tiny_torch.pkl", FIXTURES / "stylegan2_tiny_tf.pkl"
READER = "mi_ml_gen.generators.stylegan2.published:read_stylegan2"


def _helper(path):
    spec = importlib.util.spec_from_file_location(path.stem + "_of_pickle_tests", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FILL = _helper(GOLDEN / "fill_stylegan2.py")
audited, hostile, files = (_helper(TESTS / f"{name}.py") for name in ("audited", "hostile", "stylegan2_files"))

OPTIONS = {
    "z_dim": 8,
    "c_dim": 0,
    "w_dim": 6,
    "img_resolution": 8,
    "img_channels": 3,
    "mapping_kwargs": {"num_layers": 2},
    "synthesis_kwargs": {"channel_base": 32, "channel_max": 5},
}


def _options(mapping=None, synthesis=None, **top):
    return {
        **OPTIONS,
        **top,
        "mapping_kwargs": {**OPTIONS["mapping_kwargs"], **(mapping or {})},
        "synthesis_kwargs": {**OPTIONS["synthesis_kwargs"], **(synthesis or {})},
    }


def _network_state(options):
    """Pseudo-weights under the keys of the network itself, not of the reader's list of shapes."""
    config = StyleGAN2Config.from_published(options)
    return {
        key: tensor if key.endswith("resample_filter") else torch.from_numpy(FILL.fill(key, tensor.shape))
        for key, tensor in StyleGAN2(config).state_dict().items()
    }


def _torch_file(path, options=OPTIONS, change=None, root=None, protocol=3, prefix="", **more):
    """A file whose G_ema has the weights that `options` imply, with `change` (None: removed) applied."""
    state = {**_network_state(options), **(change or {})}
    state = {key: value for key, value in state.items() if value is not None}
    root = {"G": None, "D": None, "G_ema": files.generator(state, options, **more), **(root or {})}
    path.write_bytes(files.torch_pickle(root, protocol, prefix))
    return path


TF_OPTIONS = {
    "num_channels": 3,
    "resolution": 8,
    "label_size": 0,
    "latent_size": 8,
    "dlatent_size": 6,
    "mapping_layers": 2,
    "mapping_fmaps": 6,
    "fmap_base": 16,
    "fmap_max": 5,
}


def _variables(state):
    """TensorFlow's variables of an unconditional network, written out layer by layer."""

    def kernel(name, flip):
        weight = state[name].numpy()
        return (weight[:, :, ::-1, ::-1] if flip else weight).transpose(2, 3, 1, 0).copy()

    def layer(name, scope, flip):
        found = {
            f"{scope}/weight": kernel(f"{name}.weight", flip),
            f"{scope}/bias": state[f"{name}.bias"].numpy(),
        }
        if f"{name}.affine.weight" in state:
            found[f"{scope}/mod_weight"] = state[f"{name}.affine.weight"].numpy().T.copy()
            found[f"{scope}/mod_bias"] = state[f"{name}.affine.bias"].numpy() - 1
        if f"{name}.noise_strength" in state:
            found[f"{scope}/noise_strength"] = np.float32(state[f"{name}.noise_strength"])
        return found

    variables = {"lod": np.float32(0), "dlatent_avg": state["mapping.w_avg"].numpy()}
    for i in range(sum(key.endswith("weight") for key in state if key.startswith("mapping.fc"))):
        variables[f"mapping/Dense{i}/weight"] = state[f"mapping.fc{i}.weight"].numpy().T.copy()
        variables[f"mapping/Dense{i}/bias"] = state[f"mapping.fc{i}.bias"].numpy()
    noise = ["b4.conv1"] + [f"b{r}.conv{i}" for r in (8, 16, 32) for i in (0, 1)]
    for k, name in enumerate(noise):
        if f"synthesis.{name}.noise_const" in state:
            variables[f"synthesis/noise{k}"] = state[f"synthesis.{name}.noise_const"].numpy()[None, None]
    variables["synthesis/4x4/Const/const"] = state["synthesis.b4.const"].numpy()[None]
    scopes = {"b4.conv1": "4x4/Conv", "b4.torgb": "4x4/ToRGB"}
    for r in (8, 16, 32):
        scopes |= {
            f"b{r}.conv0": f"{r}x{r}/Conv0_up",
            f"b{r}.conv1": f"{r}x{r}/Conv1",
            f"b{r}.torgb": f"{r}x{r}/ToRGB",
        }
    for name, scope in scopes.items():
        if f"synthesis.{name}.weight" in state:
            variables |= layer(f"synthesis.{name}", f"synthesis/{scope}", name.endswith("conv0"))
    return variables


def _tensorflow_file(path, options=TF_OPTIONS, change=None, root=None, protocol=4, prefix="", **more):
    variables = {**_variables(_tensorflow_state()), **(change or {})}
    variables = {key: value for key, value in variables.items() if value is not None}
    network = files.split_network(options, variables, **more)
    other = files.Network({"odd": 1}, [])
    path.write_bytes(
        files.tensorflow_pickle((other, other, network) if root is None else root(network), protocol, prefix)
    )
    return path


def _tensorflow_state():
    """Weights whose affine biases survive the subtraction of 1 exactly."""
    state = _network_state(_options(mapping={"layer_features": 6}))
    return {k: (torch.round(v * 16) / 16 if k.endswith("affine.bias") else v) for k, v in state.items()}


def _assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.float32 and torch.equal(found[key], value), key


# ----------------------------------------------------------------------------------------------------------
# What is read


def test_published_torch_file():
    config, state = read_stylegan2(TORCH_FILE)
    assert config == StyleGAN2Config(64, 0, 64, 32, 3, mapping_layers=2, channel_base=512, channel_max=64)
    _assert_equal(state, {key: torch.from_numpy(FILL.fill(key, value.shape)) for key, value in state.items()})
    assert len(state) == 75


def _reference_tensorflow_state(shapes):
    """The contract's rules, one by one, on numpy arrays."""
    state = {}
    for key, shape in shapes.items():
        if key.endswith("resample_filter"):
            row = np.array([1, 3, 3, 1], np.float32)
            state[key] = np.outer(row, row) / 64
            continue
        if key == "mapping.w_avg":
            state[key] = FILL.fill_tf("dlatent_avg", shape)
            continue
        part, block, *rest = key.split(".")
        if part == "mapping":
            name = f"mapping/Dense{block[2:]}/{rest[0]}"
            state[key] = FILL.fill_tf(name, shape[::-1]).T if rest[0] == "weight" else FILL.fill_tf(name, shape)
            continue
        r = int(block[1:])
        if rest == ["const"]:
            state[key] = FILL.fill_tf("synthesis/4x4/Const/const", (1, *shape))[0]
            continue
        layer = {"conv0": "Conv0_up", "conv1": "Conv" if r == 4 else "Conv1", "torgb": "ToRGB"}[rest[0]]
        scope = f"synthesis/{r}x{r}/{layer}"
        if rest[1:] == ["affine", "weight"]:
            state[key] = FILL.fill_tf(f"{scope}/mod_weight", shape[::-1]).T
        elif rest[1:] == ["affine", "bias"]:
            state[key] = FILL.fill_tf(f"{scope}/mod_bias", shape) + np.float32(1)
        elif rest[1:] == ["weight"]:
            weight = FILL.fill_tf(f"{scope}/weight", (*shape[2:], shape[1], shape[0]))
            weight = weight[::-1, ::-1] if rest[0] == "conv0" else weight
            state[key] = weight.transpose(3, 2, 0, 1)
        elif rest[1:] == ["noise_const"]:
            k = {4: 0, 8: 1, 16: 3, 32: 5}[r] + (rest[0] == "conv1" and r > 4)
            state[key] = FILL.fill_tf(f"synthesis/noise{k}", (1, 1, *shape))[0, 0]
        else:
            state[key] = FILL.fill_tf(f"{scope}/{rest[1]}", shape)
    return {key: torch.from_numpy(np.array(value, np.float32)) for key, value in state.items()}


def test_published_tensorflow_file():
    config, state = read_stylegan2(TENSORFLOW_FILE)
    expected = StyleGAN2Config(64, 0, 64, 32, 3, 2, layer_features=64, channel_base=1024, channel_max=64)
    assert config == expected
    _assert_equal(state, _reference_tensorflow_state(expected_shapes(config)))


@pytest.mark.parametrize("file, golden, image", [(TORCH_FILE, "tiny", "img"), (TENSORFLOW_FILE, "tiny_tf", "img")])
def test_published_files_give_the_reference_images(file, golden, image):
    generator = StyleGAN2.from_file(file).freeze()
    with np.load(GOLDEN / f"stylegan2_{golden}.npz") as arrays, torch.no_grad():
        found = generator.synthesize(generator.latents(torch.from_numpy(arrays["z"])))
        assert np.abs(found.numpy() - arrays[image]).max() < 1e-4


VARIANTS = {
    "plain": _options(),
    "orig": _options(synthesis={"architecture": "orig"}),
    "resnet": _options(synthesis={"architecture": "resnet"}),
    "no noise": _options(synthesis={"use_noise": False}),
    "labels": _options(c_dim=3, mapping={"embed_features": 4}),
    "labels, default width": _options(c_dim=3),
    "hidden width": _options(mapping={"layer_features": 7, "num_layers": 3}),
    "one layer": _options(mapping={"num_layers": 1}),
    "two taps": _options(synthesis={"resample_filter": [1, 1]}),
    "eight taps": _options(synthesis={"resample_filter": [1, 7, 21, 35, 35, 21, 7, 1]}),
    "half precision": _options(
        synthesis={"num_fp16_res": 4, "conv_clamp": 256, "fp16_channels_last": True},
        mapping={"w_avg_beta": 0.998, "lr_multiplier": 0.02, "activation": "lrelu"},
    ),
    "grey": _options(img_channels=1),
    "4 px": _options(img_resolution=4),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_kind_of_torch_file(tmp_path, options):
    config, state = read_stylegan2(_torch_file(tmp_path / "network.pkl", options))
    assert config == StyleGAN2Config.from_published(options)
    _assert_equal(state, _network_state(options))
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected_shapes(config)


FLAT = {"channel_base": 32, "channel_max": 5}


@pytest.mark.parametrize(
    "flat, clamp",
    [
        (FLAT, 256),
        ({**FLAT, "fused_modconv_default": "inference_only"}, 256),
        ({**FLAT, "conv_clamp": None, "num_fp16_res": 0, "fused_modconv_default": True}, None),
        ({**FLAT, "conv_clamp": 64, "resample_filter": [1, 3, 3, 1], "architecture": "skip", "kernel_size": 3}, 64),
    ],
)
def test_options_as_the_stylegan3_repository_writes_them(tmp_path, flat, clamp):
    """Beside z_dim, with the defaults of that code; a nested file keeps those of stylegan2-ada-pytorch."""
    options = {**{key: value for key, value in OPTIONS.items() if key != "synthesis_kwargs"}, **flat}
    config, state = read_stylegan2(_torch_file(tmp_path / "network.pkl", options))
    _assert_equal(state, _network_state(options))
    assert (config.conv_clamp, config.num_fp16_res, config.w_avg_beta) == (clamp, flat.get("num_fp16_res", 4), 0.998)
    config = read_stylegan2(_torch_file(tmp_path / "nested.pkl")).config
    assert (config.conv_clamp, config.num_fp16_res, config.w_avg_beta) == (None, 0, 0.995)


@pytest.mark.parametrize("marked, clamp", [(True, 256), (False, None)])
def test_blocks_tell_whose_defaults_apply_where_no_option_does(tmp_path, marked, clamp):
    options = {**{key: value for key, value in OPTIONS.items() if key != "synthesis_kwargs"}}
    network = files.generator(_network_state(options), options)
    if marked:
        blocks = network.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]
        blocks["b8"].meta["state"]["fused_modconv_default"] = "inference_only"
    (tmp_path / "network.pkl").write_bytes(files.torch_pickle({"G_ema": network}))
    assert read_stylegan2(tmp_path / "network.pkl").config.conv_clamp == clamp


def test_sizes_of_forks_that_are_square(tmp_path):
    square = {"resolution_w": 8, "resolution_h": 8, "min_w": 4, "min_h": 4, "res_log2": 1, "normalize_latents": True}
    found = read_stylegan2(_tensorflow_file(tmp_path / "tf.pkl", {**TF_OPTIONS, **square, "dtype": "float32"}))
    _assert_equal(found.state, _tensorflow_state())
    for name, value in {"resolution_w": 16, "resolution_h": 8.0, "min_h": 3, "res_log2": 2, "dtype": "float16"}.items():
        _refused(_tensorflow_file(tmp_path / "tf.pkl", {**TF_OPTIONS, **square, name: value}), name, "resolution 8")


def test_files_of_another_layout_are_told_by_their_keys(tmp_path):
    path = tmp_path / "550000.pt"
    weights = {"input.input": torch.zeros(1), "conv1.conv.weight": torch.zeros(1)}
    torch.save({"g": weights, "d": {}, "g_ema": weights, "latent_avg": torch.zeros(8)}, path)
    _refused(path, "rosinality/stylegan2-pytorch", "g, d, g_ema, latent_avg", "G_ema")
    torch.save({f"layer{i}": torch.zeros(1) for i in range(9)}, path)
    _refused(path, "layer0, layer1", "and 3 more", "G_ema")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("prefix", ["", "src.generators.stylegan2_ada."])
def test_protocols_and_prefixes(tmp_path, protocol, prefix):
    torch_file = _torch_file(tmp_path / "torch.pkl", protocol=protocol, prefix=prefix)
    _assert_equal(read_stylegan2(torch_file).state, _network_state(OPTIONS))
    tensorflow_file = _tensorflow_file(tmp_path / "tf.pkl", protocol=protocol, prefix=prefix)
    _assert_equal(read_stylegan2(tensorflow_file).state, _tensorflow_state())


def test_easy_dicts_and_channels_last(tmp_path):
    state = _network_state(OPTIONS)
    last = {
        key: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for key, value in state.items()
    }
    assert not last["synthesis.b8.conv0.weight"].is_contiguous()

    def root(easy_dict):
        options = {key: easy_dict(value) if isinstance(value, dict) else value for key, value in OPTIONS.items()}
        network = files.generator(last, options)
        return {"training_set_kwargs": easy_dict(path="data.zip"), "G_ema": network, "augment_pipe": None}

    path = tmp_path / "network.pkl"
    path.write_bytes(files.easy_dict_pickle(root))
    found = read_stylegan2(path)
    _assert_equal(found.state, state)
    assert found.config == StyleGAN2Config.from_published(OPTIONS)


def test_only_the_moving_average_is_built(tmp_path):
    """Other networks may be of any make, and what they hold may be broken: nobody asks for it."""
    other = {key: value + 1 for key, value in _network_state(OPTIONS).items()}
    odd = files.module("MinibatchStdLayer", {"weight": torch.ones(3)}, {"b4": files.module("Odd", {})}, _init_args=(1,))
    root = {
        "G": files.generator(other, OPTIONS),
        "D": odd,
        "augment_pipe": odd,
        "training_set_kwargs": {"a": [1]},
    }
    path = _torch_file(tmp_path / "network.pkl", root=root)
    _assert_equal(read_stylegan2(path).state, _network_state(OPTIONS))
    content = path.read_bytes()
    marker = torch.ones(3).numpy().tobytes()
    assert content.count(struct.pack("<q", 3) + marker) == 1
    path.write_bytes(content.replace(struct.pack("<q", 3) + marker, struct.pack("<q", 1 << 40) + marker))
    _assert_equal(read_stylegan2(path).state, _network_state(OPTIONS))


def test_source_in_the_file_is_not_looked_at(tmp_path):
    canary = tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w')"
    path = _torch_file(tmp_path / "network.pkl")
    content = path.read_bytes()
    text = hostile.text("# source")
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, hostile.text(source)))
    tensorflow = _tensorflow_file(tmp_path / "tf.pkl", build_module_src=source)
    for outcome in audited.read_audited([path, tensorflow], [READER], [TORCH_FILE, TENSORFLOW_FILE]):
        assert (outcome.error, outcome.events) == ("", [])
    assert not canary.exists()


def test_tensorflow_version_5_without_lod(tmp_path):
    path = _tensorflow_file(tmp_path / "tf.pkl", change={"lod": None}, version=5, input_shapes=[[None, 8]])
    _assert_equal(read_stylegan2(path).state, _tensorflow_state())


def test_tensorflow_options(tmp_path):
    ignored = {
        "truncation_psi": 0.5,
        "truncation_cutoff": None,
        "style_mixing_prob": None,
        "structure": "fixed",
    }
    network = files.split_network({**TF_OPTIONS, **ignored, "w_avg_beta": None, "conv_clamp": 256}, {})
    network.components = files.split_network({}, _variables(_tensorflow_state())).components
    network.variables = [("dlatent_avg", np.zeros(6, "f4"))]
    path = tmp_path / "tf.pkl"
    path.write_bytes(files.tensorflow_pickle((network, network, network)))
    config = read_stylegan2(path).config
    assert (config.w_avg_beta, config.conv_clamp, config.psi, config.channel_base) == (1, 256, 1.0, 32)
    path.write_bytes(files.tensorflow_pickle((network, network, files.Network({}, []))))
    with pytest.raises(CorruptCheckpointError, match="dlatent_avg"):
        read_stylegan2(path)


# ----------------------------------------------------------------------------------------------------------
# What is refused by name


def _refused(path, *named):
    with pytest.raises(CorruptCheckpointError) as caught:
        read_stylegan2(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable(), message
    for name in named:
        assert name in message, message


@pytest.mark.parametrize(
    "change, named",
    [
        ({"mapping.w_avg": None}, "mapping.w_avg"),
        ({"synthesis.b8.conv0.noise_const": None}, "synthesis.b8.conv0.noise_const"),
        ({"synthesis.b8.torgb.bias": None}, "synthesis.b8.torgb.bias"),
        ({"synthesis.b4.resample_filter": None}, "synthesis.b4.resample_filter"),
        ({"synthesis.b8.conv1.extra": torch.zeros(1)}, "synthesis.b8.conv1.extra"),
        ({"mapping.fc2.weight": torch.zeros(6, 6), "mapping.fc2.bias": torch.zeros(6)}, "mapping.fc2"),
        ({"synthesis.b4.conv1.bias": torch.zeros(1)}, "(1,)"),
        ({"synthesis.b4.conv1.noise_strength": torch.zeros(1)}, "synthesis.b4.conv1.noise_strength"),
        ({"synthesis.b8.conv1.weight": torch.zeros(1, 4, 3, 3)}, "synthesis.b8.conv1.weight"),
        ({"synthesis.b8.conv0.affine.weight": torch.zeros(6, 5)}, "synthesis.b8.conv0.affine.weight"),
        ({"synthesis.b4.const": torch.zeros(5, 4, 4, dtype=torch.int64)}, "floating point"),
        ({"mapping.w_avg": torch.zeros(6, dtype=torch.bool)}, "floating point"),
    ],
)
def test_weights_must_be_those_of_the_options(tmp_path, change, named):
    _refused(_torch_file(tmp_path / "network.pkl", change=change), named)


@pytest.mark.parametrize(
    "options, named",
    [
        (_options(mapping={"normalize": True}), "normalize"),
        (_options(synthesis={"freq_ratio": 2}), "freq_ratio"),
        (_options(channel_base=32), "channel_base"),
        (_options(synthesis={"activation": "relu"}), "activation"),
        (_options(synthesis={"architecture": "dense"}), "architecture"),
        (_options(synthesis={"kernel_size": 1}), "kernel_size"),
        (_options(synthesis={"resample_filter": None}), "resample_filter"),
        (_options(synthesis={"resample_filter": [1, "os"]}), "resample_filter"),
        (_options(synthesis={"resample_filter": [1.0] * 100}), "resample_filter"),
        (_options(synthesis={"conv_clamp": float("nan")}), "conv_clamp"),
        (_options(synthesis={"conv_clamp": [256]}), "conv_clamp"),
        (_options(mapping={"lr_multiplier": 0}), "lr_multiplier"),
        (_options(mapping={"num_layers": 10**9}), "mapping_layers"),
        (_options(mapping={"num_layers": -1}), "mapping_layers"),
        (_options(img_resolution=1 << 16, synthesis={"channel_base": 1 << 17}), "img_resolution"),
        (_options(img_resolution=1 << 13, synthesis={"channel_base": 1 << 14}), "synthesis.b16"),
        (_options(img_resolution=12), "img_resolution"),
        (_options(img_channels=4), "img_channels"),
        (_options(z_dim=1 << 50), "z_dim"),
        (_options(z_dim="8"), "z_dim"),
        (_options(w_dim=None), "w_dim"),
        (_options(c_dim=2), "mapping.embed"),
        ({**OPTIONS, "mapping_kwargs": [1]}, "mapping_kwargs"),
        ({**OPTIONS, 3: 4}, "named by"),
        ({key: value for key, value in OPTIONS.items() if key != "w_dim"}, "w_dim"),
    ],
)
def test_options_of_torch_files(tmp_path, options, named):
    path = tmp_path / "network.pkl"
    path.write_bytes(files.torch_pickle({"G_ema": files.generator(_network_state(OPTIONS), options)}))
    _refused(path, named)


def _root(value):
    return {"G": None, "G_ema": value}


def test_what_is_no_generator(tmp_path):
    path = tmp_path / "network.pkl"
    state = _network_state(OPTIONS)
    good = files.generator(state, OPTIONS)
    other_class = files.generator(state, OPTIONS)
    other_class.meta["class_name"] = "Discriminator"
    old = files.generator(state, OPTIONS)
    old.meta["version"] = 5
    function = files.generator(state, OPTIONS)
    function.meta["type"] = "function"
    inner = files.generator(state, OPTIONS)
    inner.meta["state"]["_modules"]["mapping"].meta["class_name"] = "FreeMapping"
    inner_version = files.generator(state, OPTIONS)
    inner_version.meta["state"]["_modules"]["mapping"].meta["version"] = 7
    positional = files.generator(state, OPTIONS, _init_args=(8, 0))
    no_state = files.generator(state, OPTIONS)
    no_state.meta["state"] = [1]
    no_options = files.generator(state, OPTIONS)
    del no_options.meta["state"]["_init_kwargs"]
    itself = files.generator(state, OPTIONS)
    itself.meta["state"]["_modules"]["mapping"] = itself
    cases = {
        "G_ema": [{"G": good, "D": None}, _root(None), _root({"a": torch.zeros(1)}), {}],
        "Discriminator": [_root(other_class)],
        "version 5": [_root(old)],
        "of G_ema": [_root(function)],
        "FreeMapping": [_root(inner)],
        "version 7": [_root(inner_version)],
        "positional": [_root(positional)],
        "persistent object": [_root(no_state)],
        "_init_kwargs": [_root(no_options)],
        "holds": [[good], 7, good],
        "three networks": [(good, good, good), (1, 2, 3), ()],
    }
    for named, roots in cases.items():
        for root in roots:
            path.write_bytes(files.torch_pickle(root))
            _refused(path, named)


@pytest.mark.parametrize(
    "name",
    "dlatent_avg_beta synthesis_func mapping_func fmap_min fmap_decay fmap_const randomize_noise "
    "normalize_latents fused_modconv dtype impl truncation_psi_val".split(),
)
def test_unknown_options_of_tensorflow_files(tmp_path, name):
    _refused(_tensorflow_file(tmp_path / "tf.pkl", {**TF_OPTIONS, name: None}), name)


@pytest.mark.parametrize(
    "options, change, named",
    [
        ({"resample_kernel": None}, {}, "resample_kernel"),
        ({"resolution": None}, {}, "img_resolution"),
        ({"num_channels": None}, {}, "img_channels"),
        ({"resolution": 16}, {}, "16x16"),
        ({"resolution": 4}, {}, "8x8"),
        ({"architecture": "orig"}, {}, "4x4/ToRGB"),
        ({"architecture": "resnet"}, {}, "8x8/Skip/weight"),
        ({"use_noise": None}, {}, "noise"),
        ({"label_size": 4}, {}, "LabelEmbed"),
        ({"fmap_base": 10**30}, {}, "fmap_base"),
        ({"fmap_max": 4}, {}, "shape"),
        ({"fmap_base": np.array([16])}, {}, "fmap_base"),
        ({}, {"dlatent_avg": None}, "dlatent_avg"),
        ({}, {"synthesis/noise1": None}, "synthesis/noise1"),
        ({}, {"synthesis/8x8/Conv1/mod_bias": None}, "synthesis/8x8/Conv1/mod_bias"),
        ({}, {"synthesis/8x8/Skip/weight": np.zeros((1, 1, 5, 4), "f4")}, "8x8/Skip"),
        ({}, {"synthesis/ToRGB_lod0/weight": np.zeros((1, 1, 4, 3), "f4")}, "ToRGB_lod0"),
        ({}, {"dlatent_avg": np.zeros(1, "f4")}, "dlatent_avg"),
        ({}, {"dlatent_avg": np.float32(0)}, "dlatent_avg"),
        ({}, {"dlatent_avg": np.zeros(6, "i4")}, "floating point"),
        ({}, {"synthesis/4x4/Conv/noise_strength": np.zeros(1, "f4")}, "noise_strength"),
        ({}, {"mapping/LabelConcat/weight": np.zeros((1, 6), "f4")}, "LabelConcat"),
        ({}, {"dlatent_avg": "text"}, "not a name with an array"),
    ],
)
def test_tensorflow_files_must_be_consistent(tmp_path, options, change, named):
    _refused(_tensorflow_file(tmp_path / "tf.pkl", {**TF_OPTIONS, **options}, change), named)


def test_tensorflow_networks_of_another_make(tmp_path):
    path = tmp_path / "tf.pkl"
    for version in (0, 3, 6, "4", None):
        _refused(_tensorflow_file(path, version=version), "version")
    _refused(_tensorflow_file(path, build_func_name="G_style"), "G_style")
    _refused(_tensorflow_file(path, root=lambda network: (network, network)), "three networks")
    _refused(_tensorflow_file(path, root=lambda network: [network] * 3), "holds")
    _refused(_tensorflow_file(path, root=lambda network: (network, None, network)), "three networks")
    network = files.split_network(TF_OPTIONS, _variables(_tensorflow_state()))
    network.components["synthesis"].build_func_name = "G_synthesis_stylegan_revised"
    _refused(_tensorflow_file(path, root=lambda _: (network,) * 3), "G_synthesis_stylegan_revised")
    network.components = {"other": network.components["mapping"]}
    _refused(_tensorflow_file(path, root=lambda _: (network,) * 3), "other")
    network.components = {}
    network.variables = [("lod", np.float32(0))] * 2
    _refused(_tensorflow_file(path, root=lambda _: (network,) * 3), "two variables lod")
    network.variables = "abc"
    _refused(_tensorflow_file(path, root=lambda _: (network,) * 3), "variables")


def test_wrong_paths(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pkl"):
        with pytest.raises(UsageError):
            read_stylegan2(path)


# ----------------------------------------------------------------------------------------------------------
# What is hostile


def _persistent(state, name="Generator"):
    meta = hostile.entries(
        type=hostile.text("class"),
        version=hostile.whole(6),
        module_src=hostile.text("import os"),
        class_name=hostile.text(name),
        state=state,
    )
    return hostile.call(hostile.name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


def _module_state(**more):
    return hostile.entries(_parameters=b"}", _buffers=b"}", _modules=b"}", **more)


def _network(**state):
    known = {"version": hostile.whole(4), "static_kwargs": b"}", "components": b"}", "variables": b"]"}
    state = hostile.entries(**{**known, **state})
    return hostile.stack_name("dnnlib.tflib.network", "Network") + b")\x81" + state + b"b"


def _storage_in(value):
    weight = hostile.tensor(hostile.nested(hostile.stream(value)), (2, 2), (2, 1))
    return _module_state(_init_kwargs=hostile.entries(weight=weight))


CARRIERS = {
    "G_ema": lambda value: hostile.entries(G_ema=value),
    "options": lambda value: hostile.entries(G_ema=_persistent(_module_state(_init_kwargs=value))),
    "hooks": lambda value: hostile.entries(G_ema=_persistent(_module_state(_forward_hooks=value))),
    "D": lambda value: hostile.entries(D=_persistent(_module_state(x=value)), G_ema=_persistent(_module_state())),
    "storage": lambda value: hostile.entries(G_ema=_persistent(_storage_in(value))),
    "storage of D": lambda value: hostile.entries(D=_persistent(_storage_in(value)), G_ema=b"N"),
    "meta": lambda value: hostile.entries(
        G_ema=hostile.call(hostile.name("torch_utils.persistence", "_reconstruct_persistent_obj"), value)
    ),
    "static_kwargs": lambda value: hostile.values(_network(), _network(), _network(static_kwargs=value)),
    "variables": lambda value: hostile.values(
        _network(), _network(), _network(variables=b"](" + hostile.values(hostile.text("lod"), value) + b"e")
    ),
    "network of D": lambda value: hostile.values(_network(), _network(x=value), _network()),
    "constructor": lambda value: (
        hostile.stack_name("dnnlib.tflib.network", "Network") + hostile.values(value) + b"\x81"
    ),
}


def _broken(folder):
    """Real files cut, packed and bent."""
    sound = {"torch": _torch_file(folder / "sound torch"), "tf": _tensorflow_file(folder / "sound tf")}
    found = {}
    rng = np.random.default_rng(0)
    for name, path in sound.items():
        content = path.read_bytes()
        for size in np.linspace(0, len(content) - 1, 40).astype(int):
            found[f"{name} cut at {size}"] = content[:size]
        found[f"{name} gzip"] = gzip.compress(content)
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", method) as archive:
                archive.writestr("network.pkl", content)
            found[f"{name} zip {method}"] = packed.getvalue()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            info = tarfile.TarInfo("network.pkl")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        found[f"{name} tar"] = packed.getvalue()
        found[f"{name} twice"] = content + content
        found[f"{name} padded"] = content + bytes(16)
        pages = bytearray(content)
        pages[512:1536] = bytes(1024)
        found[f"{name} zeroed"] = bytes(pages)
        shuffled = bytearray(content)
        shuffled[100:1100] = rng.bytes(1000)
        found[f"{name} overwritten"] = bytes(shuffled)
    content = sound["torch"].read_bytes()
    magic = hostile.MAGIC
    assert magic in content
    found["storage without its start"] = content.replace(magic, magic[:-3] + b"\x00P\x19.", 1)
    average = _network_state(OPTIONS)["mapping.w_avg"].numpy().tobytes()
    lies = content.replace(struct.pack("<q", 6) + average, struct.pack("<q", 255) + average)
    start = lies.index(struct.pack("<q", 255) + average) - 200
    found["storage that announces more at its end"] = lies
    found["storage that announces more"] = (
        lies[:start] + lies[start : start + 200].replace(b"K\x06", b"K\xff") + lies[start + 200 :]
    )
    depth = 400
    value = b"N"
    for _ in range(depth):
        value = _persistent(_module_state()[:-1] + hostile.text("_modules") + hostile.entries(a=value) + b"u")
    found["deep persistent objects"] = hostile.bare(hostile.entries(G_ema=value))
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the reader did with every hostile and broken file, all in one child process."""
    folder = tmp_path_factory.mktemp("hostile")
    canary = folder / "canary"
    contents = {}
    for carrier, wrap in CARRIERS.items():
        for what, value in hostile.payloads(canary).items():
            contents[f"unsafe {carrier} {what}"] = hostile.bare(wrap(value))
    contents |= {f"broken {what}": content for what, content in _broken(folder).items()}
    paths = []
    for number, (what, content) in enumerate(contents.items()):
        paths.append(folder / f"{number:03d} {what.replace('/', ' ')}")
        paths[-1].write_bytes(content)
    found = audited.read_audited(paths, [READER], [TORCH_FILE, TENSORFLOW_FILE])
    assert not canary.exists()
    assert len(found) == len(contents) >= 600
    return [outcome._replace(file=Path(outcome.file).name[4:]) for outcome in found]


def test_nothing_in_a_file_acts(outcomes):
    assert [outcome for outcome in outcomes if outcome.events] == []


def test_every_hostile_file_is_refused_in_one_line(outcomes):
    audited.assert_refused_in_one_line(outcomes)


def test_payloads_are_called_unsafe(outcomes):
    audited.assert_payloads_are_called_unsafe(outcomes)


@pytest.mark.parametrize("file", [TORCH_FILE, TENSORFLOW_FILE], ids=["torch", "tensorflow"])
def test_a_cut_fixture_is_refused(tmp_path, file):
    content, path = file.read_bytes(), tmp_path / "cut.pkl"
    for size in range(1000, len(content), 50_000):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="cut.pkl"):
            read_stylegan2(path)


def test_a_flipped_bit_raises_nothing_else(tmp_path):
    """These formats have no checksums: a flipped bit of a weight cannot be noticed, one elsewhere can."""
    content, path = bytearray(_torch_file(tmp_path / "sound.pkl").read_bytes()), tmp_path / "flipped.pkl"
    keys = _network_state(OPTIONS).keys()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(content), 150):
        content[at] ^= 16
        path.write_bytes(content)
        content[at] ^= 16
        try:
            assert read_stylegan2(path).state.keys() == keys
        except CheckpointError as error:
            assert "flipped.pkl" in str(error)
