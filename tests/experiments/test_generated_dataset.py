"""Data sets from generators: exactly n images, whole files, the same whether stopped or not."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mi_ml_gen.core.errors import EnvironmentFault, Preempted, UsageError
from mi_ml_gen.data import folders
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.experiments import generated_dataset
from mi_ml_gen.experiments.generated_dataset import BLOCK, RECORD, ExportConfig, export_images, to_bytes
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import TruncatedNormal
from tests.conftest import make_small_generator
from tests.scripts.test_scripts import call


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> ExportConfig:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "memory"))
    weights = tmp_path / "small.safetensors"
    save_generator(weights, make_small_generator(), "bigbigan")
    return ExportConfig(
        generator="bigbigan", g_path=str(weights), n_images=70, save_folder=tmp_path / "set", batch_size=16,
        device="cpu", n_workers=2,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a set but its hidden record."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(RECORD)}


def replaced(settings: ExportConfig, **changes) -> ExportConfig:
    return dataclasses.replace(settings, **changes)


def test_exactly_n_images_that_the_generator_makes(settings) -> None:
    done = export_images(settings)
    assert (done.n_images, done.n_new) == (70, 70)
    found = files(settings.save_folder)
    assert list(found) == [f"{i:02}.png" for i in range(70)] and len(set(found.values())) == 70
    source = load_source(settings.save_folder, image_size=8)
    assert source.n_images == 70

    generator = make_small_generator()
    z = TruncatedNormal().sample((BLOCK, 8), generated_dataset.runtime.stream(0, "export: anchors", 1, 0))
    expected = to_bytes(generator.decode(z[:6])).permute(0, 3, 1, 2)  # images 64 to 69
    assert (source.batch(torch.arange(64, 70)).int() - expected.int()).abs().max() <= 1


def test_images_do_not_depend_on_the_batch_size(settings) -> None:
    export_images(settings)
    export_images(replaced(settings, batch_size=50, save_folder=settings.save_folder.with_name("other")))
    one, other = (
        load_source(place, image_size=8).batch(torch.arange(70)).int()
        for place in (settings.save_folder, settings.save_folder.with_name("other"))
    )
    assert (one - other).abs().max() <= 1


def test_another_seed_and_another_law(settings) -> None:
    export_images(settings)
    other = replaced(settings, starting_seed=1, save_folder=settings.save_folder.with_name("other"))
    export_images(other)
    assert not set(files(settings.save_folder).values()) & set(files(other.save_folder).values())
    still = replaced(settings, std=0.0, n_images=3, save_folder=settings.save_folder.with_name("still"))
    export_images(still)
    assert len(set(files(still.save_folder).values())) == 1


def test_published_seeds_are_those_of_each_batch(settings) -> None:
    settings = replaced(settings, n_images=5, batch_size=2, starting_seed=7, published_seeds=True)
    export_images(settings)
    z = torch.cat([TruncatedNormal().sample_reference((2, 8), seed) for seed in (7, 8, 9)])[:5]
    expected = to_bytes(make_small_generator().decode(z)).permute(0, 3, 1, 2).int()
    found = load_source(settings.save_folder, image_size=8).batch(torch.arange(5)).int()
    assert (found - expected).abs().max() <= 1
    with pytest.raises(UsageError, match="makes no pairs"):
        export_images(replaced(settings, Tz="0_1=0,1,2"))


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_pairs(settings, form: str) -> None:
    settings = replaced(settings, n_images=BLOCK + 5, Tz="1_2=0,0.7,2", format=form)
    export_images(settings)
    found = files(settings.save_folder)
    assert list(found) == [f"{kind}/{i:02}.{form}" for kind in ("anchor", "positive") for i in range(BLOCK + 5)]
    plain = replaced(settings, Tz=None, save_folder=settings.save_folder.with_name("plain"))
    export_images(plain)
    for name, content in files(plain.save_folder).items():
        assert found[f"anchor/{name}"] == content  # T_z changes nothing about the anchors
    assert sum(found[f"anchor/{i:02}.{form}"] == found[f"positive/{i:02}.{form}"] for i in range(BLOCK + 5)) < 5


def test_the_layout_of_cop_gen(settings, monkeypatch) -> None:
    monkeypatch.setattr(generated_dataset, "COP_GEN_CLASS", 4)
    export_images(replaced(settings, n_images=6, Tz="0_1=0,1,2", layout="cop-gen", starting_seed=3))
    stems = [f"train/{i // 4:04}/seed0003_sample{i % 4:05}" for i in range(6)]
    assert list(files(settings.save_folder)) == [f"{s}_{w}.png" for s in stems for w in ("anchor", "neighbor")]
    assert load_source(settings.save_folder, image_size=8).classes == ("0000", "0001")
    with pytest.raises(UsageError, match="--layout cop-gen"):
        export_images(replaced(settings, layout="cop-gen", format="beton"))


def test_straight_to_beton(settings) -> None:
    jpegs = replaced(settings, format="jpg", Tz="0_1=0,1,2", save_folder=settings.save_folder.with_name("jpegs"))
    export_images(jpegs)
    betons = replaced(settings, format="beton", Tz="0_1=0,1,2")
    export_images(betons)
    beside = ("beton", "checksums.safetensors", "checksums.safetensors.sha256")
    assert list(files(betons.save_folder)) == [f"{kind}.{end}" for kind in ("anchor", "positive") for end in beside]
    for kind in ("anchor", "positive"):
        one = load_source(betons.save_folder / f"{kind}.beton", image_size=8, loader="torch")
        other = load_source(jpegs.save_folder / kind, image_size=8)
        torch.testing.assert_close(one.batch(torch.arange(70)), other.batch(torch.arange(70)), rtol=0, atol=0)
    assert export_images(betons).n_new == 0
    assert not (betons.save_folder / RECORD / "parts").exists()
    single = replaced(settings, format="beton", save_folder=settings.save_folder.with_name("single"))
    export_images(single)
    assert load_source(single.save_folder, loader="torch").n_images == 70


# --- stopping and going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "beton"])
def test_stopped_and_resumed_equals_uninterrupted(settings, monkeypatch, form: str) -> None:
    whole = replaced(settings, Tz="0_1=0,1,2", format=form, save_folder=settings.save_folder.with_name("whole"))
    export_images(whole)

    stopped = replaced(whole, save_folder=settings.save_folder)
    plain, n_written = generated_dataset._write, []

    def interrupted(path, *rest):
        n_written.append(path)
        if len(n_written) == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(path, *rest)

    monkeypatch.setattr(generated_dataset, "_write", interrupted)
    with pytest.raises(Preempted, match="of 70 images; the same command resumes"):
        export_images(stopped)
    assert 40 <= len(n_written) < 140
    done = export_images(stopped)
    assert 0 < done.n_new < 70 and len(n_written) == 140
    assert files(stopped.save_folder) == files(whole.save_folder)


def test_a_killed_run_trusts_only_what_was_synced(settings, monkeypatch) -> None:
    export_images(settings)
    expected = files(settings.save_folder)
    (settings.save_folder / RECORD / "progress.json").unlink()  # as after a power cut before the first sync
    (settings.save_folder / "03.png").write_bytes(b"")
    (settings.save_folder / ".05.png.000000000000.partial").write_bytes(b"half")
    assert export_images(settings).n_new == 70
    assert files(settings.save_folder) == expected


def test_missing_images_come_back(settings) -> None:
    export_images(settings)
    expected = files(settings.save_folder)
    for name in ("00.png", "17.png", "69.png"):
        (settings.save_folder / name).unlink()
    assert export_images(settings).n_new == 3
    assert files(settings.save_folder) == expected


def test_other_settings_are_refused(settings) -> None:
    export_images(replaced(settings, n_images=5))
    with pytest.raises(UsageError, match="n_images 5, not 6"):
        export_images(replaced(settings, n_images=6))
    with pytest.raises(UsageError, match="starting_seed 0, not 1"):
        export_images(replaced(settings, n_images=5, starting_seed=1))
    assert export_images(replaced(settings, n_images=5, batch_size=3, n_workers=1)).n_new == 0


def test_a_full_disk_is_said(settings, monkeypatch) -> None:
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentFault, match=r"\.png: No space left"):
        export_images(settings)
    assert files(settings.save_folder) == {}


# --- the script ---------------------------------------------------------------------------------------------


def test_the_script_on_the_bundled_generator(tmp_path: Path, monkeypatch, capsys) -> None:
    argv = ["--generator", "tiny-bigbigan", "--n_images", 3, "--save_folder", tmp_path / "set", "--device", "cpu"]
    code, out, err = call(monkeypatch, capsys, "generate_dataset", *argv)
    assert code == 0 and "3 images, 3 of them new" in out, err
    with Image.open(tmp_path / "set" / "2.png") as image:
        assert image.size == (32, 32) and np.asarray(image).std() > 10
    code, out, _ = call(monkeypatch, capsys, "generate_dataset", *argv)
    assert code == 0 and "3 images, 0 of them new" in out
    code, _, err = call(monkeypatch, capsys, "generate_dataset", *argv[:-2], "--format", "gif")
    assert code == 2 and "--format gif: must be one of png, jpg, beton" in err
    code, _, err = call(monkeypatch, capsys, "generate_dataset", *argv, "--Tz", "0_9=0,1,2")
    assert code == 2 and "0_9" in err
    code, _, err = call(monkeypatch, capsys, "generate_dataset", *argv, "--quality", 0)
    assert code == 2 and "--quality 0: must be at least 1" in err


def test_every_family_without_files(tmp_path: Path) -> None:
    done = export_images(
        ExportConfig(
            generator="linear-gaussian", n_images=3, save_folder=tmp_path / "set", Tz="0_1=0,1,2", device="cpu"
        )
    )
    assert done.n_new == 3 and len(files(tmp_path / "set")) == 6
