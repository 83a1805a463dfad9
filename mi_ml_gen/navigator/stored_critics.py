"""What fresh critics found, kept in files: a table that is made again, or was interrupted, does not train them again.

A file holds the numbers of one row and its critic, from which the critic of the next row starts. It also says what
they follow from: the generator, the walkers, the noise, the settings, the seed, and the file before it. Where any of
these has changed, the row is measured anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_ml_gen import __version__
from mi_ml_gen.core.errors import CorruptCheckpointError
from mi_ml_gen.core.files import load_tensors, save_tensors
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import effective_use, fingerprint
from mi_ml_gen.information.image_critic import CriticSettings, PairCritic
from mi_ml_gen.latents import NoiseDistribution
from mi_ml_gen.navigator.remaining import Remaining
from mi_ml_gen.walkers.base import Walker


def origin(
    generator: MultiLatentGenerator,
    walkers: Sequence[Walker],
    noise: NoiseDistribution,
    settings: CriticSettings,
    before: str,
    **others: Any,
) -> str:
    """16 hexadecimal digits that change with anything a measurement follows from.

    before: those of the row before, whose critic this one starts from. others: plain values.
    """
    said = {
        "version": __version__,
        "generator": fingerprint(generator),
        "name": generator.name,
        "use": effective_use(generator),
        "noise": noise.record(),
        "settings": dataclasses.asdict(settings),
        "before": before,
        **others,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for walker in walkers:
        digest.update(json.dumps(walker.config(), sort_keys=True).encode())
        for name, value in sorted(walker.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def measured_once(
    path: Path, origin: str, measure: Callable[[], tuple[Remaining, PairCritic]]
) -> tuple[Remaining, PairCritic]:
    """What the file says where it follows from `origin`; else what `measure` gives, which is then written.

    Raises CorruptCheckpointError for a damaged file, EnvironmentFault where it cannot be written.
    """
    found = _read(path, origin) if path.exists() else None
    if found is None:
        found = measure()
        remaining, critic = found
        sizes = {name: getattr(critic, name) for name in ("resolution", "width", "points", "n_sources")}
        content = {"origin": origin, "remaining": remaining.to_json(), "critic": sizes}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, critic.state_dict(), {"fresh critic": json.dumps(content)})
    return found


def _read(path: Path, origin: str) -> tuple[Remaining, PairCritic] | None:
    file = load_tensors(path)
    try:
        content: Mapping[str, Any] = json.loads(file.metadata["fresh critic"])
        if content["origin"] != origin:
            return None
        critic = PairCritic(**content["critic"])
        critic.load_state_dict(file.tensors)
        return Remaining.from_json(content["remaining"]), critic
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{path}: not what a fresh critic left: {' '.join(str(error).split())}") from error
