"""Published StyleGAN2 pickles -> configuration and state dict, without running anything that is in them.

Two formats. The files of stylegan2-ada-pytorch, its forks, and stylegan3 (--cfg=stylegan2) are a dict whose G_ema
is a tree of persistent objects: each carries its attributes and the source of its class, which the authors' loader
executes; here it is not looked at. The TensorFlow files of stylegan2 (version 4) and stylegan2-ada (version 5) hold
a tuple (G, D, Gs) of networks: options and a list of named variables, whose names, axes and flips are translated.

Only the moving average (G_ema, Gs) is turned into tensors. Its weights must be exactly those that its options
imply: what is missing, left over, of another shape, or an option that is not known is refused by name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.checkpoints.names import checkpoint_names
from mi_ml_gen.checkpoints.pickle_machine import PickleMachine
from mi_ml_gen.checkpoints.reading import CheckpointFile, module_state_dict, naming
from mi_ml_gen.checkpoints.values import (
    ArrayStub,
    Class,
    Function,
    Meaning,
    Record,
    TensorStub,
    corrupt,
    kind,
    kind_of_dict,
    shown,
)
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.network import SynthesisLayer

PERSISTENCE_VERSION = 6
NETWORK_VERSIONS = (4, 5)  # NVlabs/stylegan2 and NVlabs/stylegan2-ada; below 4 is StyleGAN1 and older
GENERATOR_CLASSES = (
    "Generator",
    "SynthesisNetwork",
    "SynthesisBlock",
    "SynthesisLayer",
    "ToRGBLayer",
    "FullyConnectedLayer",
    "MappingNetwork",
    "Conv2dLayer",
)
MAX_RESOLUTION = 1 << 14
MAX_WIDTH = 1 << 20
MAX_MAPPING_LAYERS = 256
MAX_TAPS = 64


class PublishedStyleGAN2(NamedTuple):
    """config: the network's options; state: its weights as StyleGAN2.from_tensors takes them, on the CPU."""

    config: StyleGAN2Config
    state: dict[str, Tensor]


def is_published(root: Any) -> bool:
    """Whether a parsed checkpoint is of one of the two formats, sound or not."""
    if type(root) is tuple:
        return any(isinstance(part, Record) and part.name == "Network" for part in root)
    return type(root) is dict and "G_ema" in root


def read_stylegan2(path: str | os.PathLike) -> PublishedStyleGAN2:
    """The generator of a published pickle, of either format.

    Raises UnsafeCheckpointError or CorruptCheckpointError for the file, UsageError for a path that is no
    file, EnvironmentFault for one that cannot be read.
    """
    with CheckpointFile(path, stylegan2_names) as file:
        with naming(path):
            if type(file.root) is tuple:
                plan = _tensorflow_plan(file.root)
            elif type(file.root) is dict:
                plan = _torch_plan(file.root)
            else:
                corrupt(f"holds {kind(file.root)}, neither a dict with G_ema nor a tuple of three networks")
        built = file.build(plan.stubs)
        state = {key: plan.finish(key, _as_tensor(value)) for key, value in built.items()}
        return PublishedStyleGAN2(plan.config, state | plan.constants)


@dataclass(frozen=True)
class _Plan:
    """What to build: checked stubs by state-dict key, what is done to each, and tensors no file holds."""

    config: StyleGAN2Config
    stubs: dict[str, Any]
    finish: Callable[[str, Tensor], Tensor]
    constants: dict[str, Tensor] = field(default_factory=dict)


def _as_tensor(value: Any) -> Tensor:
    """TensorFlow's variables of rank 0 are numpy scalars, which are read as numbers."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------------
# Names


@dataclass(eq=False)
class _Persistent(Record):
    """An object of a class whose source stands in the file: `name` is the class, `state` its attributes."""

    form: Any = None
    version: Any = None


def _persistent(args: tuple, machine: PickleMachine) -> _Persistent:
    meta = args[0] if len(args) == 1 else None
    if type(meta) is not dict or type(meta.get("state")) is not dict or type(meta.get("class_name")) is not str:
        corrupt("a persistent object without class name and state")
    return _Persistent("persistent", meta["class_name"], meta["state"], meta.get("type"), meta.get("version"))


_PREFIX = r"(?:[A-Za-z_][A-Za-z0-9_]*\.)*"  # files saved again by other packages carry these
_PERSISTENCE = re.compile(_PREFIX + r"torch_utils\.persistence")
_UTIL = re.compile(_PREFIX + r"dnnlib\.util")
_NETWORK = re.compile(_PREFIX + r"dnnlib\.tflib\.network")


def stylegan2_names(module: str, name: str) -> Meaning | None:
    """The names of StyleGAN2 pickles, beside those of torch checkpoints and numpy arrays."""
    if name == "_reconstruct_persistent_obj" and _PERSISTENCE.fullmatch(module):
        return Function(_persistent)
    if name == "EasyDict" and _UTIL.fullmatch(module):
        return Class(lambda module, name: {})
    if name == "Network" and _NETWORK.fullmatch(module):
        return Class()
    return checkpoint_names(module, name)


# ------------------------------------------------------------------------------------------------------------
# Options and the weights that they imply


@contextmanager
def _of_the_file() -> Iterator[None]:
    """An option that the network refuses is the file's fault, not the user's."""
    try:
        yield
    except UsageError as error:
        raise CorruptCheckpointError(shown(error, 200)) from error


def _config(options: Mapping[Any, Any]) -> StyleGAN2Config:
    """From options as stylegan2-ada-pytorch nests them, already known to be plain values."""
    with _of_the_file():
        config = StyleGAN2Config.from_published(options)
    widths = {
        name: getattr(config, name)
        for name in (
            "z_dim",
            "c_dim",
            "w_dim",
            "embed_features",
            "layer_features",
            "channel_base",
            "channel_max",
        )
    }
    limits = dict.fromkeys(widths, MAX_WIDTH)
    widths |= {"img_resolution": config.img_resolution, "mapping_layers": config.mapping_layers}
    limits |= {"img_resolution": MAX_RESOLUTION, "mapping_layers": MAX_MAPPING_LAYERS}
    for name, value in widths.items():
        if value is not None and value > limits[name]:
            corrupt(f"{name} {value} is above {limits[name]}, more than any network of this kind has")
    return config


def _plain_options(options: Any, what: str, lists: tuple[str, ...] = ("resample_filter",)) -> dict[str, Any]:
    """Options that are numbers, text or None (and short lists of numbers for the filter's taps)."""
    if type(options) is not dict:
        corrupt(f"{what} are {kind(options)}, not a dict")
    for name, value in options.items():
        if type(name) is not str:
            corrupt(f"{what} hold an option named by {kind(name)}")
        if not (_is_taps(value) if name in lists else _is_plain(value)):
            corrupt(f"{shown(name)} of {what} is {kind(value)}, which is not supported")
    return options


def _is_taps(value: Any) -> bool:
    short = type(value) in (list, tuple) and 0 < len(value) <= MAX_TAPS
    return value is None or (short and all(type(tap) in (int, float) and abs(tap) < 1e6 for tap in value))


def _is_plain(value: Any) -> bool:
    is_number = type(value) in (int, float) and abs(value) < 1e18
    return is_number or value is None or type(value) in (bool, str)


def expected_shapes(config: StyleGAN2Config) -> dict[str, tuple[int, ...]]:
    """State-dict key -> shape of the network that `config` describes, without building it."""
    shapes: dict[str, tuple[int, ...]] = {"mapping.w_avg": (config.w_dim,)}
    embedding = (config.embed_features or config.w_dim) if config.c_dim else 0
    if embedding:
        shapes |= _dense("mapping.embed", config.c_dim, embedding)
    hidden = config.layer_features or config.w_dim
    widths = [config.z_dim + embedding, *[hidden] * (config.mapping_layers - 1), config.w_dim]
    for i in range(config.mapping_layers):
        shapes |= _dense(f"mapping.fc{i}", widths[i], widths[i + 1])
    for resolution in config.resolutions:
        shapes |= _block_shapes(f"synthesis.b{resolution}", resolution, config)
    return shapes


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _modulated(name: str, inputs: int, outputs: int, taps: int, w_dim: int) -> dict[str, tuple[int, ...]]:
    kernel = {f"{name}.weight": (outputs, inputs, taps, taps), f"{name}.bias": (outputs,)}
    return kernel | _dense(f"{name}.affine", w_dim, inputs)


def _filter_shape(n_taps: int) -> tuple[int, ...]:
    return (n_taps,) if n_taps >= 8 else (n_taps, n_taps)


def _block_shapes(name: str, resolution: int, config: StyleGAN2Config) -> dict[str, tuple[int, ...]]:
    """One resolution: the constant or conv0, then conv1, toRGB and the resnet architecture's skip."""
    outputs, filter_shape = config.channels(resolution), _filter_shape(len(config.resample_filter))
    shapes = {f"{name}.resample_filter": filter_shape}
    layers = {"conv1": (outputs, _filter_shape(4))}
    if resolution == config.resolutions[0]:
        shapes[f"{name}.const"] = (outputs, resolution, resolution)
    else:
        layers["conv0"] = (config.channels(resolution // 2), filter_shape)
    for layer, (inputs, layer_filter) in layers.items():
        shapes |= _modulated(f"{name}.{layer}", inputs, outputs, 3, config.w_dim)
        shapes[f"{name}.{layer}.resample_filter"] = layer_filter
        if config.use_noise:
            shapes[f"{name}.{layer}.noise_const"] = (resolution, resolution)
            shapes[f"{name}.{layer}.noise_strength"] = ()
    if config.architecture == "skip" or resolution == config.resolutions[-1]:
        shapes |= _modulated(f"{name}.torgb", outputs, config.img_channels, 1, config.w_dim)
    if config.architecture == "resnet" and "conv0" in layers:
        shapes[f"{name}.skip.weight"] = (outputs, layers["conv0"][0], 1, 1)
        shapes[f"{name}.skip.resample_filter"] = filter_shape
    return shapes


def _check_names(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    for name in expected:
        if name not in found:
            corrupt(f"{what} has no {name}, which its options ask for")
    left_over = [shown(name) for name in found if name not in expected]
    if left_over:
        corrupt(f"{what} has {', '.join(left_over[:5])}, which its options do not ask for")


def _check_shape(name: str, stub: Any, expected: tuple[int, ...]) -> None:
    """Exactly this shape: no broadcasting."""
    if isinstance(stub, TensorStub):
        stub.check()
        shape, floating = stub.size, stub.storage.dtype.is_floating_point
    elif isinstance(stub, ArrayStub):
        stub.check()
        assert stub.dtype is not None
        shape, floating = stub.shape, stub.dtype.code.startswith("f")
    else:
        shape, floating = (), type(stub) is float
    if shape != expected:
        corrupt(f"{name} has shape {shape}, its options ask for {expected}")
    if not floating:
        corrupt(f"{name} does not hold floating point numbers")


# ------------------------------------------------------------------------------------------------------------
# stylegan2-ada-pytorch


def _torch_plan(root: dict[Any, Any]) -> _Plan:
    if "G_ema" not in root:
        of_rosinality = isinstance(root.get("g_ema"), dict) and "conv1.conv.weight" in root["g_ema"]
        what = "of rosinality/stylegan2-pytorch, whose layout is not read: " if of_rosinality else ""
        advice = "give the pickle of NVIDIA's code (.pkl) that holds G_ema"
        corrupt(f"is not a StyleGAN2 pickle but {what}{kind_of_dict(root)}; {advice}")
    generator = root["G_ema"]
    if not isinstance(generator, _Persistent):
        corrupt(f"is not a StyleGAN2 pickle: its G_ema is {kind(generator)}")
    if generator.name != "Generator":
        corrupt(f"G_ema is of class {shown(generator.name)}, not Generator")
    stubs = module_state_dict(generator, _check_persistent)
    if generator.state.get("_init_args", ()) != ():
        corrupt("G_ema was made with positional arguments, which are not supported")
    options = generator.state.get("_init_kwargs")
    if type(options) is not dict:
        corrupt("G_ema has no _init_kwargs")
    parts = ("mapping_kwargs", "synthesis_kwargs")
    nested = {part: _plain_options(options[part], part) for part in parts if options.get(part) is not None}
    top = {name: value for name, value in options.items() if name not in parts}
    for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"):
        if name not in top:
            corrupt(f"G_ema's options have no {name}")
    if "synthesis_kwargs" not in nested and _is_of_stylegan3(generator):
        top.setdefault("fused_modconv_default", True)  # which marks its options, and its defaults, as that code's
    config = _config({**_plain_options(top, "G_ema's options"), **nested})
    expected = expected_shapes(config)
    _check_names(stubs, expected, "G_ema")
    for name, shape in expected.items():
        _check_shape(name, stubs[name], shape)
    return _Plan(config, stubs, lambda key, tensor: tensor)


def _is_of_stylegan3(generator: Record) -> bool:
    """Whether the blocks of a checked module were made by NVlabs/stylegan3's code, which gave them an attribute."""
    synthesis = generator.state["_modules"].get("synthesis")
    blocks = synthesis.state["_modules"].values() if isinstance(synthesis, Record) else ()
    return any(isinstance(block, Record) and "fused_modconv_default" in block.state for block in blocks)


def _check_persistent(part: Record, where: str) -> None:
    if not isinstance(part, _Persistent) or part.form != "class" or part.name not in GENERATOR_CLASSES:
        corrupt(f"{where} of G_ema is {kind(part)}, which a StyleGAN2 generator does not have")
    if type(part.version) is not int or part.version != PERSISTENCE_VERSION:
        version = shown(part.version, 20)
        corrupt(f"{where} of G_ema is of persistence version {version}, only {PERSISTENCE_VERSION} is read")


# ------------------------------------------------------------------------------------------------------------
# TensorFlow


class _Option(NamedTuple):
    """Where an option of the TensorFlow network stands here, and its default there."""

    part: str  # "", "mapping_kwargs" or "synthesis_kwargs"
    name: str
    default: Any


_OPTIONS = {
    "latent_size": _Option("", "z_dim", 512),
    "label_size": _Option("", "c_dim", 0),
    "dlatent_size": _Option("", "w_dim", 512),
    "resolution": _Option("", "img_resolution", 1024),
    "num_channels": _Option("", "img_channels", 3),
    "mapping_layers": _Option("mapping_kwargs", "num_layers", 8),
    "label_fmaps": _Option("mapping_kwargs", "embed_features", None),
    "mapping_fmaps": _Option("mapping_kwargs", "layer_features", None),
    "mapping_nonlinearity": _Option("mapping_kwargs", "activation", "lrelu"),
    "mapping_lrmul": _Option("mapping_kwargs", "lr_multiplier", 0.01),
    "w_avg_beta": _Option("mapping_kwargs", "w_avg_beta", 0.995),
    "fmap_base": _Option("synthesis_kwargs", "channel_base", 16384),  # half of what it is here
    "fmap_max": _Option("synthesis_kwargs", "channel_max", 512),
    "num_fp16_res": _Option("synthesis_kwargs", "num_fp16_res", 0),
    "conv_clamp": _Option("synthesis_kwargs", "conv_clamp", None),
    "architecture": _Option("synthesis_kwargs", "architecture", "skip"),
    "resample_kernel": _Option("synthesis_kwargs", "resample_filter", [1, 3, 3, 1]),
    "use_noise": _Option("synthesis_kwargs", "use_noise", True),
    "nonlinearity": _Option("synthesis_kwargs", "activation", "lrelu"),
}
_IGNORED_OPTIONS = ("truncation_psi", "truncation_cutoff", "style_mixing_prob", "structure")
_SETTLED_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "resolution_w": lambda resolution: resolution,
    "resolution_h": lambda resolution: resolution,
    "min_w": lambda resolution: 4,
    "min_h": lambda resolution: 4,
    "res_log2": lambda resolution: int(math.log2(resolution)) - 2,
    "normalize_latents": lambda resolution: True,
    "dtype": lambda resolution: "float32",
    "mapping_func": lambda resolution: "G_mapping",
}
"""Options of forks, and of the authors, that are known with one value only: the one that StyleGAN2 has for a square
image of a resolution."""
_FUNCTIONS = {
    "": ("G_main",),
    "mapping": ("G_mapping",),
    "synthesis": ("G_synthesis_stylegan2", "G_synthesis"),
}


def _tensorflow_plan(root: tuple[Any, ...]) -> _Plan:
    is_network = [isinstance(network, Record) and network.name == "Network" for network in root]
    if len(root) != 3 or not all(is_network):
        corrupt("is not a StyleGAN2 pickle: a tuple, but not of the three networks G, D and Gs")
    network = root[2].state
    version = network.get("version")
    if type(version) is not int or version not in NETWORK_VERSIONS:
        wanted = " and ".join(map(str, NETWORK_VERSIONS))
        corrupt(f"Gs is a network of version {shown(version, 20)}, only {wanted} are read")
    config = _config(_tensorflow_options(network.get("static_kwargs")))
    variables = dict(_variables(network, ""))
    variables.pop("lod", None)  # left over from progressive growing
    expected = expected_shapes(config)
    constants = _filters(config, expected)
    sources = {key: _source(key, shape) for key, shape in expected.items() if key not in constants}
    _check_names(variables, {source.variable: None for source in sources.values()}, "Gs")
    for source in sources.values():
        _check_shape(source.variable, variables[source.variable], source.shape)
    stubs = {key: variables[source.variable] for key, source in sources.items()}
    return _Plan(config, stubs, lambda key, tensor: sources[key].finish(tensor.float()), constants)


def _tensorflow_options(given: Any) -> dict[str, Any]:
    given = dict(_plain_options(given, "the options of Gs", ("resample_kernel",)))
    resolution = given.get("resolution", _OPTIONS["resolution"].default)
    for name, value in given.items():
        if name in _SETTLED_OPTIONS:
            settled = _SETTLED_OPTIONS[name](resolution) if _is_side(resolution) else None
            if type(value) is not type(settled) or value != settled:
                corrupt(
                    f"{name} {shown(value)} of Gs is not supported, only {settled} at resolution {shown(resolution)}"
                )
        elif name not in _OPTIONS and name not in _IGNORED_OPTIONS:
            corrupt(f"{shown(name)} is an option of Gs that is not known here and may change what it computes")
    if given.get("resample_kernel", 1) is None:
        corrupt("resample_kernel None, a box filter, is not supported")
    if given.get("w_avg_beta", 1) is None:
        given["w_avg_beta"] = 1
    options: dict[str, Any] = {"mapping_kwargs": {}, "synthesis_kwargs": {}}
    for name, option in _OPTIONS.items():
        value = given.get(name, option.default)
        if name == "fmap_base":
            value = value * 2 if type(value) in (int, float) else value
        (options[option.part] if option.part else options)[option.name] = value
    return options


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_RESOLUTION


def _variables(network: Mapping[Any, Any], component: str) -> Iterator[tuple[str, Any]]:
    """(flattened name, stub or number) of a network and its components "mapping" and "synthesis"."""
    function = network.get("build_func_name")
    if function is not None and function not in _FUNCTIONS[component]:
        where = component or "network"
        corrupt(f"the {where} of Gs is built by {shown(function)}, which is not StyleGAN2's (config e or f)")
    variables = network.get("variables")
    if type(variables) is not list:
        corrupt(f"the {component or 'network'} of Gs has no list of variables")
    seen = set()
    for pair in variables:
        is_pair = type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str
        if not is_pair or not isinstance(pair[1], (ArrayStub, float)):
            corrupt(f"the {component or 'network'} of Gs has a variable that is not a name with an array")
        if pair[0] in seen:
            corrupt(f"the {component or 'network'} of Gs has two variables {shown(pair[0])}")
        seen.add(pair[0])
        yield (f"{component}/{pair[0]}" if component else pair[0]), pair[1]
    components = network.get("components", {})
    if type(components) is not dict or (component and components):
        corrupt(f"the {component or 'network'} of Gs has malformed components")
    for name, child in components.items():
        if name not in ("mapping", "synthesis") or not isinstance(child, Record) or child.name != "Network":
            corrupt(f"Gs has a component {shown(name)}, expected mapping and synthesis")
        yield from _variables(child.state, name)


class _Source(NamedTuple):
    """The variable that a state-dict key comes from, its shape, and what is done to it."""

    variable: str
    shape: tuple[int, ...]
    finish: Callable[[Tensor], Tensor]


def _source(key: str, shape: tuple[int, ...]) -> _Source:
    """TensorFlow stores dense weights as (in, out) and kernels as (height, width, in, out)."""
    *parts, leaf = key.split(".")
    if parts[0] == "mapping":
        return _mapping_source(parts, leaf, shape)
    block = parts[1].removeprefix("b")
    scope = f"synthesis/{block}x{block}"
    if leaf == "const":
        return _Source(f"{scope}/Const/const", (1, *shape), lambda tensor: tensor[0])
    layer = parts[2]
    name = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}[layer]
    scope = f"{scope}/{'Conv' if (block, layer) == ('4', 'conv1') else name}"
    if parts[3:] == ["affine"]:
        if leaf == "weight":
            return _Source(f"{scope}/mod_weight", shape[::-1], _transposed)
        return _Source(f"{scope}/mod_bias", shape, lambda tensor: tensor + 1)  # added at run time there
    if leaf == "weight":
        finish = _flipped_kernel if layer in ("conv0", "skip") else _kernel
        return _Source(f"{scope}/weight", (*shape[2:], shape[1], shape[0]), finish)
    if leaf == "noise_const":
        exponent = int(math.log2(int(block)))
        index = 0 if block == "4" else 2 * exponent - (5 if layer == "conv0" else 4)
        return _Source(f"synthesis/noise{index}", (1, 1, *shape), lambda tensor: tensor[0, 0])
    return _Source(f"{scope}/{leaf}", shape, lambda tensor: tensor)


def _mapping_source(parts: list[str], leaf: str, shape: tuple[int, ...]) -> _Source:
    if leaf == "w_avg":
        return _Source("dlatent_avg", shape, lambda tensor: tensor)
    layer = "LabelEmbed" if parts[1] == "embed" else parts[1].replace("fc", "Dense")
    if leaf == "weight":
        return _Source(f"mapping/{layer}/weight", shape[::-1], _transposed)
    return _Source(f"mapping/{layer}/{leaf}", shape, lambda tensor: tensor)


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous()


def _kernel(weight: Tensor) -> Tensor:
    return weight.permute(3, 2, 0, 1).contiguous()


def _flipped_kernel(weight: Tensor) -> Tensor:
    """Where this network convolves while upsampling, TensorFlow's correlates."""
    return _kernel(weight.flip(0, 1))


def _filters(config: StyleGAN2Config, keys: Collection[str]) -> dict[str, Tensor]:
    """The low-pass filters, which TensorFlow files do not hold; conv1, which uses none, has the default."""
    of_options, of_conv1 = (SynthesisLayer(1, 1, 4, config, up).resample_filter for up in (True, False))
    names = [key for key in keys if key.endswith("resample_filter")]
    is_conv1 = {name: name.endswith("conv1.resample_filter") for name in names}
    return {name: (of_conv1 if is_conv1[name] else of_options).clone() for name in names}
