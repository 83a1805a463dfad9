"""What is known of data sets by name, without torch: enough to refuse a wrong --data_path at once."""

from __future__ import annotations

import os

from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.files import user_path

NAMES = ("fashion-mnist", "digits", "torchvision", "emoji", "emoji-pairs")
"""What the part of a reference before its first colon may be; `data.loading` reads these, a test compares."""

FRAMINGS = ("whole", "bigbigan", "stylegan", "classification")
"""The ways to cut stored images, which `data.framing` defines; a test compares."""


def check_data_path(flag: str, reference: str) -> None:
    """Refuse, by UsageError, what is neither a set's name nor a file or folder that is there."""
    if reference.removeprefix("builtin:").partition(":")[0] in NAMES or user_path(reference).exists():
        return
    near = "" if os.sep in reference else nearest(reference, NAMES, "set")
    raise UsageError(f"{flag} {reference}: no such file or folder; sets by name are {', '.join(NAMES)}{near}")


def published_framing(name: str, dataset: str | None) -> str:
    """The framing called `name`, or, for "auto", the one that the published classifiers have for a data set: ImageNet
    as BigBiGAN's images (256 px, then 128), all others the central square straight to 128 px.

    Raises UsageError for an unknown name.
    """
    if name == "auto":
        return "bigbigan" if dataset == "imagenet" else "classification"
    if name not in FRAMINGS:
        raise UsageError(
            f"--framing {name}: must be one of {', '.join((*FRAMINGS, 'auto'))}{nearest(name, FRAMINGS, 'framing')}"
        )
    return name
