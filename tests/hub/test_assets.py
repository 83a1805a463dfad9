"""The table of known artifacts, and what references mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.hub.assets import KINDS, HubFile, WebFile, assets, is_reference, parse

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("reference", "meaning"),
    [
        ("hf://me/walkers/runs/a.pth", HubFile("me/walkers", "runs/a.pth", "main")),
        ("hf://me/walkers/runs/a.pth@v1", HubFile("me/walkers", "runs/a.pth", "v1")),
        (f"hf://me/walkers/a.pth@{SHA}", HubFile("me/walkers", "a.pth", SHA)),
        ("hf://me/walkers@v1/runs/a.pth", HubFile("me/walkers", "runs/a.pth", "v1")),
        ("hf://me/walkers/a@b.pth@v1", HubFile("me/walkers", "a@b.pth", "v1")),
        (Path("hf://me/walkers/a.pth"), HubFile("me/walkers", "a.pth", "main")),  # a Path drops a slash
        ("hf://me/walkers", HubFile("me/walkers", "", "main")),
        ("hf://me/walkers@v1", HubFile("me/walkers", "", "v1")),
        ("hf://me/walkers/runs/", HubFile("me/walkers", "runs/", "main")),
        ("https://host/x/a%20b.pth?dl=1", WebFile("https://host/x/a%20b.pth?dl=1")),
        (Path("https://host/a.pth"), WebFile("https://host/a.pth")),
        ("runs/a.pth", Path("runs/a.pth")),
        ("/runs/a.pth", Path("/runs/a.pth")),
        ("hf.pth", Path("hf.pth")),
    ],
)
def test_what_references_mean(reference, meaning):
    assert parse(reference) == meaning
    assert is_reference(reference) == (not isinstance(meaning, Path))


def test_a_hub_file_is_written_as_it_is_read():
    for text in ("hf://me/walkers/runs/a.pth", "hf://me/walkers/a.pth@v1", "hf://me/walkers/"):
        assert str(parse(text)) == text
    assert WebFile("https://host/x/a%20b.pth?dl=1").name == "a b.pth"


@pytest.mark.parametrize(
    "reference",
    [
        "hf://", "hf://me", "hf://me/", "hf:///x/y", "hf://me/wal kers/x", "hf://me/walkers/a.pth@", "https://",
        "hf://me/walkers/../x", "hf://me/walkers/./x", "hf://datasets/me/walkers/x", "hf://me/walkers@/x",
    ],
)  # fmt: skip
def test_references_that_make_no_sense(reference):
    with pytest.raises(UsageError, match="hf://|https"):
        parse(reference)


def test_the_table_says_what_it_must():
    table = assets()
    assert {"bigbigan-x1", "stylegan2-car-config-f", "walker-bigbigan-1_6", "simsiam-imagenet-chunks-learned"} <= set(
        table.artifacts
    )
    for name, artifact in table.artifacts.items():
        assert name == artifact.name and parse(name) == artifact and is_reference(name)
        assert artifact.kind in KINDS and artifact.family and artifact.licence and artifact.what
        assert artifact.sha256 is None or (len(artifact.sha256) == 64 and artifact.size_bytes)
        for where in (artifact.where, *artifact.also):
            assert isinstance(where, WebFile) or (where.path and not where.is_folder)
        assert isinstance(artifact.where, HubFile) or artifact.by_hand
    for folder in table.folders:
        assert folder.where.is_folder and folder.kind in KINDS and folder.licence
    assert "License-NC" in table.artifacts["stylegan2-car-config-f"].licence


def test_the_authors_paths():
    """As the paper's configurations have them, below runs/walkers/."""
    paths = {name: a.where.path for name, a in assets().artifacts.items() if isinstance(a.where, HubFile)}
    grouped = "runs/walkers/stylegan_grouped_chunks/learned_perturbations"
    assert paths["walker-bigbigan-0_6"] == "runs/walkers/bigbigan_all_chunks/ours/w_COPGen_60032.pth"
    assert paths["walker-bigbigan-1_6"] == "runs/walkers/bigbigan_chunksgt0/w_COPGen_120000.pth"
    assert paths["walker-stylegan2-0_16"] == "runs/walkers/stylegan_all_chunks/w_COPGen_32768.pth"
    assert paths["walker-stylegan2-0_4"] == f"{grouped}/group_0/w_COPGen_12288.pth"
    assert paths["walker-stylegan2-8_12"] == f"{grouped}/group_2/w_COPGen_18432.pth"
    assert paths["walker-stylegan2-12_16"] == f"{grouped}/group_3/w_COPGen_65536.pth"
