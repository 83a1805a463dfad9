"""Writes StyleGAN2 pickles in the layouts of both published formats, from options and weights."""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

BUFFERS = ("resample_filter", "noise_const", "w_avg")
CLASSES = {
    "": "Generator",
    "synthesis": "SynthesisNetwork",
    "mapping": "MappingNetwork",
    "b": "SynthesisBlock",
    "conv": "SynthesisLayer",
    "torgb": "ToRGBLayer",
    "skip": "Conv2dLayer",
    "affine": "FullyConnectedLayer",
    "fc": "FullyConnectedLayer",
    "embed": "FullyConnectedLayer",
}


@contextlib.contextmanager
def named(value: Any, module: str, name: str) -> Iterator[None]:
    """Let pickle find `value` under a name, for as long as it writes."""
    value.__module__, value.__qualname__, value.__name__ = module, name, name
    parts = module.split(".")
    places = [".".join(parts[: i + 1]) for i in range(len(parts))]
    missing = [place for place in places if place not in sys.modules]
    for place in missing:
        sys.modules[place] = types.ModuleType(place)
    setattr(sys.modules[module], name, value)
    try:
        yield
    finally:
        delattr(sys.modules[module], name)
        for place in missing:
            del sys.modules[place]


class Persistent:
    """What the authors' decorator makes of a module, when it is pickled."""

    reconstruct: Any = None

    def __init__(self, class_name: str, state: dict[str, Any], version: Any = 6, source: str = "# source"):
        self.meta = {
            "type": "class",
            "version": version,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> tuple:
        return Persistent.reconstruct, (self.meta,)


def module(name: str, tensors: Mapping[str, Any], parts: Mapping[str, Any] | None = None, **more: Any) -> Persistent:
    """A persistent nn.Module with parameters and buffers by their names, and the parts given."""
    state = {
        "training": False,
        "_parameters": OrderedDict(
            (key, nn.Parameter(value, False) if isinstance(value, torch.Tensor) else value)
            for key, value in tensors.items()
            if key not in BUFFERS
        ),
        "_buffers": OrderedDict((key, value) for key, value in tensors.items() if key in BUFFERS),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(parts or {}),
    }
    return Persistent(name, {**state, "num_ws": 8, "act_gain": np.sqrt(2), **more})


def generator(state: Mapping[str, Any], options: Mapping[str, Any], **more: Any) -> Persistent:
    """The tree of persistent modules whose state dict is `state`."""

    def build(prefix: str, kind: str, **attributes: Any) -> Persistent:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        own = {key: value for key, value in inside.items() if "." not in key}
        children = dict.fromkeys(key.split(".")[0] for key in inside if "." in key)
        parts = {child: build(f"{prefix}{child}.", child) for child in children}
        return module(CLASSES[kind.rstrip("0123456789")], own, parts, **attributes)

    return build("", "", **{"_init_args": (), "_init_kwargs": dict(options), **more})


def torch_pickle(root: Any, protocol: int = 3, prefix: str = "") -> bytes:
    """A file of stylegan2-ada-pytorch that holds `root`, such as {"G": None, "G_ema": generator(...)}."""

    def _reconstruct_persistent_obj(meta: dict) -> None:
        raise AssertionError("an unpickler ran")

    with named(_reconstruct_persistent_obj, f"{prefix}torch_utils.persistence", "_reconstruct_persistent_obj"):
        Persistent.reconstruct = staticmethod(_reconstruct_persistent_obj)
        return pickle.dumps(root, protocol)


def easy_dict_pickle(make_root: Any, protocol: int = 3, prefix: str = "") -> bytes:
    """As torch_pickle, where `make_root` is given the class EasyDict."""
    cls = type("EasyDict", (dict,), {})
    with named(cls, f"{prefix}dnnlib.util", "EasyDict"):
        return torch_pickle(make_root(cls), protocol, prefix)


class Network:
    """A network of the TensorFlow files."""

    def __init__(self, options: Mapping[str, Any], variables: Any, components: Any = None, **more: Any):
        self.__dict__.update(
            version=4,
            name="Gs",
            static_kwargs=dict(options),
            components=components or {},
            build_module_src="# source",
            build_func_name="G_main",
            variables=variables,
        )
        self.__dict__.update(more)


def tensorflow_pickle(root: Any, protocol: int = 4, prefix: str = "") -> bytes:
    with named(Network, f"{prefix}dnnlib.tflib.network", "Network"):
        return pickle.dumps(root, protocol)


def split_network(options: Mapping[str, Any], variables: Mapping[str, Any], **more: Any) -> Network:
    """Gs from variables by their flattened names."""
    components = {}
    for name, function in (("synthesis", "G_synthesis_stylegan2"), ("mapping", "G_mapping")):
        own = [(key.split("/", 1)[1], value) for key, value in variables.items() if key.startswith(f"{name}/")]
        components[name] = Network({}, own, name=f"G_{name}", build_func_name=function)
    top = [(key, value) for key, value in variables.items() if not key.startswith(("synthesis/", "mapping/"))]
    return Network(options, top, components, **more)
