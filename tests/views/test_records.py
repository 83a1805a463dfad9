"""A run is never continued with other views under the same name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mi_ml_gen.core import runs
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.views.records import KEY, view_record


def write(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_new_runs_say_whose_conventions(tmp_path: Path) -> None:
    assert view_record(tmp_path / "new", "simclr") == {KEY: "published"}
    assert view_record(tmp_path / "new", "torchvision") == {KEY: "torchvision"}
    assert view_record(tmp_path / "new", "none") == {}


@pytest.mark.parametrize("policy", ["none", "simclr", "no_color", "torchvision", "torchvision_no_crop"])
def test_a_run_goes_on_as_it_began(tmp_path: Path, policy: str) -> None:
    folder = tmp_path / "run"
    described = {"Tx": policy} | view_record(folder, policy)
    write(folder, **described)
    assert {"Tx": policy} | view_record(folder, policy) == described


@pytest.mark.parametrize("old", ["simclr", "no_crop", "no_color"])
def test_an_old_run_goes_on_under_the_new_name_of_its_views_only(tmp_path: Path, old: str) -> None:
    folder = write(tmp_path / "old", Tx=old, seed=1)
    new = {"simclr": "torchvision"}.get(old, f"torchvision_{old}")
    with pytest.raises(UsageError, match=f"--Tx {new}"):
        view_record(folder, old)
    described = {"Tx": new, "seed": 1} | view_record(folder, new)
    with runs.RunFolder.open(folder, described):  # the record agrees, and stays as it was
        assert runs.read_config(folder) == {"Tx": old, "seed": 1}


def test_a_run_made_now_is_not_taken_for_an_old_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "new", Tx="simclr", **{KEY: "published"})
    assert view_record(folder, "simclr") == {KEY: "published"}
    described = {"Tx": "torchvision"} | view_record(folder, "torchvision")
    with pytest.raises(UsageError, match="was made with Tx simclr"):
        runs.RunFolder.open(folder, described)
