"""What a walker was trained on: the generator, its use, and the noise; and where that differs from what it is used on.

`train_navigator` writes this into every walker file (`about`). A walker that is used on something else, as views for an
encoder for example, works but does not do what its numbers say, so every such use is named in a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.fingerprint import KEY, effective_use, fingerprint
from mi_ml_gen.latents import NoiseDistribution
from mi_ml_gen.walkers.base import Walker

logger = logging.getLogger(__name__)

NOISE = ("mean", "std", "truncation")


def origin(generator: MultiLatentGenerator, noise: NoiseDistribution) -> dict[str, Any]:
    """What to write about a walker that is trained on this generator with this noise; plain values."""
    own = fingerprint(generator)
    about: dict[str, Any] = {} if own is None else {KEY: own}
    about["use"] = effective_use(generator)
    return about | noise.record()


def differences(
    about: Mapping[str, Any], generator: MultiLatentGenerator, noise: NoiseDistribution | None = None
) -> list[str]:
    """In what a walker's record (`about`) differs from where it is used, a phrase each; what was not recorded does not
    differ. noise: that of the anchors, where it matters."""
    found = []
    own = fingerprint(generator)
    if KEY in about and own is not None and about[KEY] != own:
        found.append(f"another network than the walker's {about.get('generator', 'generator')} (its weights differ)")
    now = effective_use(generator)
    for name, value in dict(about.get("use") or {}).items():
        if name in now and now[name] != value:
            found.append(f"{name}={now[name]} where the walker had {name}={value}")
    if noise is not None:
        found += _noise_differences(about, noise.record())
    return found


def _noise_differences(walker: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Of two records of noise. A walker of noise from the prior recorded no `anchors`."""
    if "anchors" in walker or ("anchors" in here and any(name in walker for name in NOISE)):
        images = [described_anchors(record) for record in (here, walker)]
        return [] if images[0] == images[1] else [f"{images[0]} where the walker had {images[1]}"]
    both = [name for name in NOISE if name in walker and name in here and here[name] != walker[name]]
    return [f"{name} {here[name]:g} of the noise where the walker had {walker[name]:g}" for name in both]


def described_anchors(record: Mapping[str, Any]) -> str:
    """What a record of noise says of its anchors, as a phrase."""
    return f"anchors of {record['anchors_data']}" if record.get("anchors") == "real" else "anchors of the prior"


def warn_of_differences(
    walker: Walker, generator: MultiLatentGenerator, noise: NoiseDistribution | None = None
) -> list[str]:
    """Name in a warning what each walker, also within a grouped one, was not trained on; gives the warnings."""
    said = []
    for one in _all(walker):
        if found := differences(one.about, generator, noise):
            said.append(f"walker on chunks {', '.join(map(str, one.chunks))}: used with {'; '.join(found)}")
            logger.warning("%s", said[-1])
    return said


def _all(walker: Walker) -> Iterator[Walker]:
    return (module for module in walker.modules() if isinstance(module, Walker) and module.about)
