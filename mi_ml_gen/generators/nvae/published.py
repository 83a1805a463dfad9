"""Checkpoints of NVAE-from-scratch (SerezD/NVAE-from-scratch), as its authors published them for CIFAR-10 and CelebA.

A dict written by torch.save: "configuration" (the whole YAML file), "state_dict", optionally one
"state_dict_temp=T" for each temperature T whose batch statistics were estimated, and the states of training, which are
left unread. Nothing in the file is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.checkpoints.reading import CheckpointFile, naming, without_wrappers
from mi_ml_gen.checkpoints.values import TensorStub, kind, kind_of_dict, shown
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import check_state, load_exactly
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig


class _Shaped(NamedTuple):
    """What `check_state` looks at."""

    shape: tuple[int, ...]


_OF_TEMPERATURE = re.compile(r"state_dict_temp=(\d+(?:\.\d+)?)")
_OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""How torch's weight normalisation called its parameters when the first checkpoints were written."""


def is_published(root: Any) -> bool:
    """Whether a parsed checkpoint has the layout that `read_published` reads."""
    if type(root) is not dict or not isinstance(root.get("state_dict"), dict) or "configuration" not in root:
        return False
    names = without_wrappers(root["state_dict"])
    return "const_prior" in names or any(str(key).startswith("enc_sampler") for key in names)


def read_published(path: Path) -> NVAE:
    """The generator in a published checkpoint; its sizes come from the configuration inside.

    Raises UnsafeCheckpointError for a file that asks for more than reading, CorruptCheckpointError for one whose
    tensors are not exactly those of its configuration.
    """
    with CheckpointFile(path) as file, naming(path):
        root = file.root
        if type(root) is not dict or not {"configuration", "state_dict"} <= root.keys():
            met = kind_of_dict(root) if type(root) is dict else kind(root)
            raise CorruptCheckpointError(
                f"holds {met}, not a checkpoint of NVAE-from-scratch with its configuration and state_dict"
            )
        stubs = _tensors(root["state_dict"], "state_dict")
        generator = _without_values(file.build(root["configuration"]), len(stubs))
        _check(generator, stubs, "state_dict")
        state = {name: file.build(stub) for name, stub in stubs.items()}
        load_exactly("NVAE", generator, state)
        for key, value in root.items():
            match = _OF_TEMPERATURE.fullmatch(key) if isinstance(key, str) else None
            if match is not None:
                stubs = _tensors(value, key)
                _check(generator, stubs, key)
                generator.set_statistics(float(match[1]), _statistics(generator, file, stubs))
    return generator


def _without_values(configuration: Any, n_tensors: int) -> NVAE:
    """The network that a configuration describes, on the meta device. One that has more cells than the file has
    tensors is not begun."""
    if not isinstance(configuration, dict) or not isinstance(configuration.get("autoencoder"), dict):
        raise CorruptCheckpointError("its configuration has no section autoencoder")
    try:
        sizes = NVAEConfig.from_file(configuration["autoencoder"], configuration.get("resolution"))
    except (TypeError, UsageError) as error:
        raise CorruptCheckpointError(f"its configuration: {error}") from None
    n_cells = sum(sizes.groups_per_scale) * sizes.num_cells_per_group
    n_cells += sizes.num_pre_post_process_blocks * sizes.num_pre_post_process_cells
    if max(n_cells, sizes.num_nf_cells or 0) > n_tensors:
        raise CorruptCheckpointError(f"its configuration asks for sizes for more tensors than the {n_tensors} it holds")
    with torch.device("meta"):
        return NVAE(sizes)


def _check(generator: NVAE, stubs: Mapping[str, TensorStub], where: str) -> None:
    """Names and shapes must be exactly the network's; no value is read."""
    expected = generator.autoencoder.state_dict(prefix="autoencoder.")
    found: Any = {name: _Shaped(stub.size) for name, stub in stubs.items()}
    check_state(f"its {where} and its configuration differ: NVAE", expected, found)


def _statistics(generator: NVAE, file: CheckpointFile, stubs: Mapping[str, TensorStub]) -> Tensor:
    """The decoder's batch statistics of a state dict, in the order of `NVAE.read_statistics`. The weights, which are
    the same for all temperatures, are left unread."""
    names = {id(module): name for name, module in generator.named_modules()}
    norms = [names[id(norm)] for norm in generator.autoencoder.decoder_norms()]
    parts = [file.build(stubs[f"{norm}.{part}"]) for norm in norms for part in ("running_mean", "running_var")]
    return torch.cat([part.float() for part in parts])


def _tensors(value: Any, where: str) -> dict[str, TensorStub]:
    """A state dict's tensors by today's names."""
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"its {where} is {kind(value)}, not a state dict")
    found: dict[str, TensorStub] = {}
    for name, stub in without_wrappers(value).items():
        if not isinstance(name, str) or not isinstance(stub, TensorStub):
            raise CorruptCheckpointError(f"its {where}: {shown(name)} is {kind(stub)}, not a tensor")
        stem, _, leaf = name.rpartition(".")
        found[f"autoencoder.{stem}.{_OLD_NAMES[leaf]}" if leaf in _OLD_NAMES else f"autoencoder.{name}"] = stub
    return found
