"""Small NVAEs with the reference's pseudo-weights, as networks and as published files."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mi_ml_gen.generators.nvae.network import AutoEncoder
from mi_ml_gen.generators.nvae.settings import NVAEConfig

GOLDEN = Path(__file__).parent
LAYOUT = json.loads((GOLDEN / "nvae_small.json").read_text())
VARIANTS = {"plain": "a", "flow": "b"}
"""Of the network, with the letter that its numbers have in nvae_small.npz."""

_spec = importlib.util.spec_from_file_location("golden_fill_nvae", GOLDEN / "fill_nvae.py")
_fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fill)


def settings(variant: str) -> NVAEConfig:
    return NVAEConfig.from_file(LAYOUT[variant]["autoencoder"], LAYOUT[variant]["resolution"])


def shapes(variant: str) -> dict[str, list[int]]:
    return LAYOUT["plain"]["state_dict"] | (LAYOUT[variant].get("extra_keys_over_small_config") or {})


def network(variant: str) -> AutoEncoder:
    """In evaluation mode, unfolded."""
    made = AutoEncoder(settings(variant)).eval()
    made.load_state_dict(state(variant))
    return made


def state(variant: str) -> dict[str, torch.Tensor]:
    masks = {key: value for key, value in AutoEncoder(settings(variant)).state_dict().items() if key.endswith("mask")}
    filled = _fill.fill_state(shapes(variant))
    return masks | {key: torch.from_numpy(np.asarray(value)) for key, value in filled.items()}


def checkpoint(variant: str = "plain") -> dict[str, Any]:
    """What torch.save gets in the published training, with the states that nobody needs."""
    about = {key: copy.deepcopy(LAYOUT[variant][key]) for key in ("autoencoder", "resolution")}
    return {
        "epoch": 400,
        "global_step": 312_000,
        "configuration": about | {"training": {"base_lr": "1e-2", "warmup_epochs": None}},
        "state_dict": state(variant),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler": {"scale": 1024.0, "growth_factor": 2.0},
    }


def numbers() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "nvae_small.npz") as arrays:
        return dict(arrays)
