"""Published files to this package's own: equal outputs, told apart by content, all or nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from mi_ml_gen.core import files, weights
from mi_ml_gen.core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    EnvironmentFault,
    UnsafeCheckpointError,
    UsageError,
)
from mi_ml_gen.generators.registry import FAMILIES, load_generator, save_generator
from mi_ml_gen.hub.convert import convert
from mi_ml_gen.walkers.files import read_about, save_walker
from mi_ml_gen.walkers.spec import load_walker
from tests import hostile
from tests.conftest import GOLDEN, load_helper, make_small_generator
from tests.scripts.test_scripts import call

FIXTURES = GOLDEN / "fixtures"
PICKLES = ["stylegan2_tiny_tf.pkl", "stylegan2_tiny_torch.pkl"]


@pytest.fixture
def bigbigan_file(tmp_path, published_bigbigan):
    """The layout of BigBiGAN_x1.pth at 32 px."""
    with np.load(GOLDEN / "bigbigan_tiny.npz") as golden:
        state = published_bigbigan("bigbigan_tiny", str(golden["prefix"]))
    torch.save(state, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def assert_equal_outputs(family: str, source, target, **settings) -> None:
    published, converted = load_generator(family, source, **settings), load_generator(family, target, **settings)
    assert converted.config() == published.config()
    before, after = published.state_dict(), converted.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]), key
    z = torch.randn(2, published.noise_dim, generator=torch.Generator().manual_seed(0))
    latents = published.latents(z)
    assert torch.equal(converted.latents(z), latents)
    assert torch.equal(converted.decode(latents), published.decode(latents))


@pytest.mark.parametrize("name", PICKLES)
def test_stylegan2_pickles(tmp_path, name):
    target = tmp_path / "out.safetensors"
    conversion = convert(FIXTURES / name, target)
    assert_equal_outputs("stylegan2", FIXTURES / name, target)
    assert_equal_outputs("stylegan2", FIXTURES / name, target, use=["psi=0.5", "size=16"])
    assert conversion.what.startswith("stylegan2 generator: 8 chunks of 64 numbers, 32 px, ")
    assert conversion.written == (target, tmp_path / "out.safetensors.sha256")
    assert sorted(tmp_path.iterdir()) == sorted(conversion.written)
    assert weights.read(target).about == {"source": name}


def test_bigbigan(tmp_path, bigbigan_file):
    conversion = convert(bigbigan_file, tmp_path / "out.safetensors")
    assert_equal_outputs("bigbigan", bigbigan_file, tmp_path / "out.safetensors")
    assert conversion.what.startswith("bigbigan generator: 4 chunks of 20 numbers, 32 px")


def test_bigbigan_as_safetensors_of_the_published_names(tmp_path, bigbigan_file):
    files.save_tensors(tmp_path / "in.safetensors", torch.load(bigbigan_file, weights_only=True))
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert_equal_outputs("bigbigan", bigbigan_file, tmp_path / "out.safetensors")


def test_walkers(tmp_path):
    source = FIXTURES / "walker_bigbigan_1_6.pth"
    conversion = convert(source, tmp_path / "out.safetensors")
    published = load_walker(source)
    for path in (tmp_path / "out.safetensors", tmp_path / "out.json"):
        walker = load_walker(path)
        assert walker.config() == published.config()
        assert all(map(torch.equal, walker.state_dict().values(), published.state_dict().values()))
    assert read_about(tmp_path / "out.json") == {"source": "walker_bigbigan_1_6.pth"}
    assert conversion.what == "walker on chunks 1_6"
    assert sorted(tmp_path.iterdir()) == sorted(conversion.written)


@pytest.mark.parametrize("name", [*PICKLES, "walker_bigbigan_1_6.pth"])
def test_the_name_of_a_file_says_nothing(tmp_path, name):
    for disguise in ("in", "BigBiGAN_x1.pth", "car.pkl", "w.safetensors"):
        shutil.copy(FIXTURES / name, tmp_path / disguise)
        convert(tmp_path / disguise, tmp_path / f"{disguise}_out.safetensors")
    results = [files.load_tensors(path).tensors for path in tmp_path.glob("*_out.safetensors")]
    assert len(results) == 4
    assert all(torch.equal(result[key], results[0][key]) for result in results for key in results[0])


def test_every_family_with_a_published_file_is_told_from_the_others(tmp_path, bigbigan_file):
    from mi_ml_gen.checkpoints.reading import CheckpointFile
    from mi_ml_gen.generators.registry import published_names

    nvae = tmp_path / "last.pt"
    torch.save(load_helper("nvae").checkpoint(), nvae)
    found = {}
    for path in (bigbigan_file, nvae, *(FIXTURES / name for name in PICKLES), FIXTURES / "walker_bigbigan_1_6.pth"):
        with CheckpointFile(path, published_names) as file:
            found[path.name] = [name for name, family in FAMILIES.items() if family.is_published(file.root)]
    assert found == {
        "in.pth": ["bigbigan"], "last.pt": ["nvae"], PICKLES[0]: ["stylegan2"], PICKLES[1]: ["stylegan2"],
        "walker_bigbigan_1_6.pth": [],
    }  # fmt: skip
    with_files = {name for name, family in FAMILIES.items() if family.read_published is not None}
    of_folders = {"diffusion"}  # those of diffusers: tests/generators/diffusion/test_published.py
    assert with_files - of_folders == {name for names in found.values() for name in names}


# --- refusals


def test_a_file_of_this_package_needs_no_conversion(tmp_path):
    generator = make_small_generator()
    save_generator(tmp_path / "g.safetensors", generator, "bigbigan")
    save_walker(tmp_path / "w", load_walker(FIXTURES / "walker_bigbigan_1_6.pth"))
    for name in ("g", "w"):
        with pytest.raises(UsageError, match=f"{name}.safetensors: is one of this package's own files"):
            convert(tmp_path / f"{name}.safetensors", tmp_path / "out.safetensors")


def test_unknown_content_is_named(tmp_path):
    known = {"weight": torch.zeros(2), "bias": torch.zeros(2), "more": torch.zeros(1), "still more": torch.zeros(1)}
    for root, glimpse in ((known, "a dict of weight, bias, more ...: no encoder, gen"), ([1, 2], "list: no encoder")):
        torch.save(root, tmp_path / "in.pth")
        with pytest.raises(CorruptCheckpointError, match=glimpse):
            convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", [*PICKLES, "walker_bigbigan_1_6.pth"])
def test_cut_files_leave_nothing(tmp_path, name, share):
    content = (FIXTURES / name).read_bytes()
    (tmp_path / "in").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="in: "):
        convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_hostile_files_are_not_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "files").mkdir()
    n = 0
    for carrier, wrap in hostile.CARRIERS.items():
        for what, value in hostile.payloads(canary).items():
            path = tmp_path / "files" / f"{n}"
            path.write_bytes(wrap(value))
            with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)) as refused:
                convert(path, tmp_path / "out.safetensors")
            assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value), (carrier, what)
            n += 1
    assert n > 50 and [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("out.pth", "out.pth: the result is a .safetensors file"),
        ("absent/out.safetensors", "there is no folder"),
        ("taken.safetensors", "taken.safetensors: already exists"),
        ("half.safetensors", "half.safetensors.sha256: already exists"),
        ("described.safetensors", "described.json: already exists"),
    ],
)
def test_targets_that_make_no_sense(tmp_path, target, says):
    for name in ("taken.safetensors", "half.safetensors.sha256", "described.json"):
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=says):
        convert(FIXTURES / PICKLES[1], tmp_path / target)
    assert sorted(tmp_path.iterdir()) == before
    assert all(path.read_text() == "mine" for path in before)


@pytest.mark.parametrize("name", [PICKLES[1], "walker_bigbigan_1_6.pth"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, name):
    """The disk fills at the first write, at the second, and so on, until all fit."""
    plain, n_writes = files.atomic_write, [0]

    def filling(path, content):
        n_writes[0] += 1
        if n_writes[0] == full_at:
            raise EnvironmentFault(f"cannot write {path}: No space left on device")
        plain(path, content)

    monkeypatch.setattr(files, "atomic_write", filling)
    for full_at in range(1, 10):
        n_writes[0] = 0
        try:
            convert(FIXTURES / name, tmp_path / "out.safetensors")
        except EnvironmentFault:
            assert list(tmp_path.iterdir()) == [], full_at
        else:
            break
    assert 3 <= full_at < 9


# --- the script


def test_the_script(monkeypatch, capsys, tmp_path):
    argv = ["convert_checkpoint", FIXTURES / PICKLES[1], tmp_path / "cars.safetensors"]
    code, out, err = call(monkeypatch, capsys, *argv)
    assert code == 0 and err == ""
    assert "stylegan2 generator" in out and f"--generator stylegan2 --g_path {tmp_path / 'cars.safetensors'}" in out
    assert weights.read(tmp_path / "cars.safetensors").config["settings"]["img_resolution"] == 32

    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    for source, target, expected in (
        (FIXTURES / PICKLES[1], "cars.safetensors", 2),  # already exists
        (tmp_path / "absent.pkl", "out.safetensors", 2),
        (tmp_path / "other.pth", "out.safetensors", 3),
    ):
        code, out, err = call(monkeypatch, capsys, "convert_checkpoint", source, tmp_path / target)
        assert code == expected and out == ""
        assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
    code, _, err = call(monkeypatch, capsys, "convert_checkpoint", tmp_path / "absent.pkl")
    assert code == 2 and "OUT" in err
