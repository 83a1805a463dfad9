"""What a run folder records about its T_x, so that a run is never continued with other views under the same name.

Version 0.1 meant torchvision's conventions by the names simclr, no_crop and no_color. Since then these names mean the
published ones, kornia's, and torchvision's have names of their own.
"""

from __future__ import annotations

from pathlib import Path

from mi_ml_gen.core import runs
from mi_ml_gen.core.errors import UsageError

KEY = "Tx_conventions"
_RENAMED = {"simclr": "torchvision", "no_crop": "torchvision_no_crop", "no_color": "torchvision_no_color"}


def view_record(path: str | Path, policy: str, flag: str | None = "Tx") -> dict[str, str]:
    """Entries of config.yaml about T_x for a run in `path`, to be merged into its settings.

    A run that version 0.1 began with the policy simclr goes on with the policy torchvision, and its record stays as it
    was. flag: the setting that holds the policy's name, None where no setting names it. Raises UsageError where such a
    run is continued under a name that now means other views.
    """
    folder = Path(path)
    found = runs.read_config(folder) if (folder / "config.yaml").exists() else {KEY: ""}
    is_old = KEY not in found
    if is_old and policy in _RENAMED:
        go_on = f"to go on with these, give --{flag} {_RENAMED[policy]}; " if flag is not None else ""
        raise UsageError(
            f"{folder}: was begun by version 0.1, where {policy} meant torchvision's colours and crops; {go_on}"
            "for the published ones, choose another --run_name or folder"
        )
    old_names = {new: old for old, new in _RENAMED.items()}
    if is_old and flag is not None and policy in old_names:
        return {flag: old_names[policy]}
    if policy in old_names:
        return {KEY: "torchvision"}
    return {KEY: "published"} if policy in _RENAMED else {}
