"""Which network a generator is, and how it is used: what a run records of its generator beside the name.

Two networks of one family have the same names and sizes, so that only their weights tell them apart.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from mi_ml_gen.core import runs
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator

KEY = "generator_fingerprint"
N_VALUES = 1024
"""Values of each tensor that are looked at, evenly spread over it."""


@torch.no_grad()
def fingerprint(generator: MultiLatentGenerator) -> str | None:
    """16 hexadecimal digits from names, shapes and values of the generator's state; None for one without weights.

    Of large tensors only N_VALUES values are read, so a few milliseconds suffice for any network. The same on every
    device and for every memory format. How the generator is used does not count.
    """
    state = generator.state_dict()
    if any(value.is_meta for value in state.values()):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        flat = value.reshape(-1)
        if flat.numel() > N_VALUES:
            flat = flat[torch.linspace(0, flat.numel() - 1, N_VALUES, dtype=torch.float64).long().to(flat.device)]
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    if not state:  # a network without weights to learn is what its configuration says
        use = {field.name for field in dataclasses.fields(generator.use_fields)}
        digest.update(repr(sorted((k, v) for k, v in generator.config().items() if k not in use)).encode())
    return digest.hexdigest()[:16]


def effective_use(generator: MultiLatentGenerator) -> dict[str, Any]:
    """The options of `--g_use` with the values that count now, those that were never given included."""
    config = generator.config()
    names = (field.name for field in dataclasses.fields(generator.use_fields))
    return {name: config[name] for name in names if name in config}


def fingerprint_record(path: str | Path, generator: MultiLatentGenerator) -> dict[str, str]:
    """The entry of config.yaml that says which network a run in `path` uses, to be merged into its settings.

    Empty for a run that was begun before there was such an entry. Raises UsageError where the run was begun with
    another network.
    """
    folder = Path(path)
    found = runs.read_config(folder) if (folder / "config.yaml").exists() else None
    own = fingerprint(generator)
    if own is None or (found is not None and KEY not in found):
        return {}
    if found is not None and found[KEY] != own:
        raise UsageError(
            f"{folder}: was begun with another {generator.name}: the weights have the fingerprint {own}, not "
            f"{found[KEY]}; give the same --g_path to go on, or choose another --run_name or folder"
        )
    return {KEY: own}
