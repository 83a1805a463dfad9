"""Unconditional diffusion models in the folders of diffusers, read without running anything in them.

    model_index.json                                         the pipeline: DDPMPipeline or DDIMPipeline
    unet/config.json                                         sizes of a UNet2DModel
    unet/diffusion_pytorch_model.safetensors                 its weights
    scheduler/scheduler_config.json                          its noise process: DDPMScheduler or DDIMScheduler

Everything is JSON and safetensors. A setting that this package does not know is refused, since its pictures would be
wrong in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.core.memory import no_more_than
from mi_ml_gen.core.texts import MOST_BYTES, TextError, parse_json
from mi_ml_gen.generators.base import load_exactly
from mi_ml_gen.generators.diffusion.generator import Diffusion, DiffusionUse
from mi_ml_gen.generators.diffusion.processes import DDIM, DDPM, Discrete
from mi_ml_gen.generators.diffusion.settings import UNetConfig

INDEX, UNET, WEIGHTS, SCHEDULER = (
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)  # fmt: skip
_SCHEDULERS: dict[str, type[Discrete]] = {"DDPMScheduler": DDPM, "DDIMScheduler": DDIM}
_BLOCKS = {
    f"{attends}{way}Block2D": kind for attends, kind in (("", "plain"), ("Attn", "attention")) for way in ("Down", "Up")
}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How diffusers called the layers of an attention block in its first versions."""

_SAME = (
    "sample_size", "in_channels", "layers_per_block", "mid_block_scale_factor", "attention_head_dim",
    "norm_num_groups", "attn_norm_num_groups", "norm_eps", "resnet_time_scale_shift", "time_embedding_dim",
    "flip_sin_to_cos", "freq_shift", "downsample_padding", "center_input_sample", "dropout",
)  # fmt: skip
"""Settings of a UNet2DModel that `UNetConfig` has under the same names."""
_UNET_DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "center_input_sample": False, "time_embedding_type": "positional",
    "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
    "num_train_timesteps": None,
}  # fmt: skip
"""What a UNet2DModel has where its config.json says nothing; sample_size must be said."""
_UNET_ONLY = {
    "time_embedding_type": "positional", "downsample_type": "conv", "upsample_type": "conv", "class_embed_type": None,
    "num_class_embeds": None,
}  # fmt: skip
"""Settings of a UNet2DModel that are read with one value only."""
_NO_EFFECT = {"dynamic_thresholding_ratio", "sample_max_value", "num_train_timesteps"}
"""Settings of a scheduler without thresholding, or of a network without learned times, that change nothing."""


def read_published(path: Path) -> Diffusion:
    """The generator in a folder of diffusers, or in the folder of the model_index.json that is given.

    Raises UsageError for a folder that lacks a part or holds a model of a kind that is not read here,
    CorruptCheckpointError for damaged files and weights that are not those of the settings.
    """
    folder = path.parent if path.name == INDEX else path
    if not folder.is_dir():
        raise UsageError(
            f"--g_path {path}: diffusion reads .safetensors files of this package and folders of diffusers"
        )
    index = _settings(folder, INDEX)
    named = [index.get("unet"), index.get("scheduler")]
    unet, scheduler = (part[1] if isinstance(part, list) and len(part) == 2 else None for part in named)
    if unet != "UNet2DModel" or scheduler not in _SCHEDULERS or _others(index):
        found = ", ".join(sorted(filter(None, map(str, [unet, scheduler, *_others(index)]))))
        raise UsageError(
            f"{folder / INDEX}: a pipeline of {found}; must have an unconditional UNet2DModel and one of "
            f"{', '.join(_SCHEDULERS)}"
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickled = any((folder / "unet").glob("*.bin"))
        raise UsageError(f"{weights}: no such file" + ("; save the pipeline again with safe_serialization=True, "
                         "weights in .bin files are not read" if pickled else ""))  # fmt: skip
    sizes = _network(folder / UNET, _settings(folder, UNET))
    process = _process(folder / SCHEDULER, _SCHEDULERS[scheduler], _settings(folder, SCHEDULER))
    state = {f"unet.{_present_name(key)}": value for key, value in load_tensors(weights).tensors.items()}
    with no_more_than(weights), torch.device("meta"):
        n_steps = min(DiffusionUse().steps, process.num_train_timesteps)
        generator = Diffusion(
            sizes, process, "diffusion", {"steps": n_steps, "block": min(DiffusionUse().block, n_steps)}
        )
    try:
        return load_exactly("diffusion", generator, state)
    except CheckpointError as error:
        raise CorruptCheckpointError(f"{weights}: {error}") from None


def _others(index: Mapping[str, Any]) -> list[str]:
    """Parts of a pipeline beside network and scheduler."""
    return sorted(key for key in index if not key.startswith("_") and key not in ("unet", "scheduler"))


def _settings(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a folder of diffusers has {INDEX}, {UNET}, {WEIGHTS} and {SCHEDULER}")
    if path.stat().st_size > MOST_BYTES:
        raise CorruptCheckpointError(f"{path}: larger than {MOST_BYTES // 1000} kB, too large for settings")
    try:
        found = parse_json(path.read_bytes())
    except TextError as error:
        raise CorruptCheckpointError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{path}: must hold one object")
    return found


def _network(path: Path, given: Mapping[str, Any]) -> UNetConfig:
    own = {key: value for key, value in given.items() if not key.startswith("_")}
    _refuse_unknown(path, own, {*_UNET_DEFAULTS, "sample_size"})
    values = _UNET_DEFAULTS | own
    for key, only in _UNET_ONLY.items():
        if values[key] != only:
            raise UsageError(f"{path}: {key} {values[key]}: only {only} is read")
    if isinstance(values.get("sample_size"), list) and len(set(values["sample_size"])) == 1:
        values["sample_size"] = values["sample_size"][0]
    if not isinstance(values.get("sample_size"), int):
        raise UsageError(
            f"{path}: sample_size {values.get('sample_size')}: must be one whole number; images are square"
        )
    if values["in_channels"] != values["out_channels"]:
        raise UsageError(f"{path}: {values['in_channels']} in_channels and {values['out_channels']} out_channels: must "
                         "be the same; a learned variance is not read")  # fmt: skip
    if values["mid_block_type"] not in ("UNetMidBlock2D", None):
        raise UsageError(f"{path}: mid_block_type {values['mid_block_type']}: must be UNetMidBlock2D or null")
    same = {key: values[key] for key in _SAME}
    try:
        return UNetConfig(
            **same,
            act_fn="silu" if values["act_fn"] == "swish" else values["act_fn"],
            block_out_channels=tuple(values["block_out_channels"]),
            down=tuple(_BLOCKS.get(str(name), str(name)) for name in values["down_block_types"]),
            up=tuple(_BLOCKS.get(str(name), str(name)) for name in values["up_block_types"]),
            middle=values["mid_block_type"] is not None,
            middle_attention=values["add_attention"],
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{path}: {error}") from None


def _process(path: Path, cls: type[Discrete], given: Mapping[str, Any]) -> Discrete:
    known = set(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    own = {key: value for key, value in given.items() if not key.startswith("_")}
    if own.get("thresholding"):
        raise UsageError(f"{path}: thresholding is not read")
    _refuse_unknown(path, own, known)
    try:
        return cls(**{key: value for key, value in own.items() if key in known})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{path}: {error}") from None


def _refuse_unknown(path: Path, given: Mapping[str, Any], known: set[str]) -> None:
    """An unknown setting that is null or false is off, and changes nothing."""
    for key, value in given.items():
        if key not in known | _NO_EFFECT and value is not None and value is not False:
            raise UsageError(f"{path}: {key} {value}: this setting is not known here, so the images could be wrong")


def _present_name(key: str) -> str:
    return re.sub(r"(attentions\.\d+\.)(\w+)\.", lambda m: f"{m[1]}{_OLD_NAMES.get(m[2], m[2])}.", key)
