"""Table 1: folders of walkers in both layouts, the table's forms, and from nothing to a page in one go."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.experiments import table1
from mi_ml_gen.generators.registry import load_latent_space
from mi_ml_gen.information.verdicts import CONSISTENT
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.navigator import folders
from mi_ml_gen.navigator.settings import NavigatorConfig
from tests.conftest import GOLDEN, make_small_generator

SETTINGS = NavigatorConfig(
    generator="small", chunks="0_1", num_samples=64, save_freq=32, batch_size=8, critic_width=4, lr_walk=1e-2,
    device="cpu", image_freq=100,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("table1")
    table1.train_missing(base, SETTINGS, make_small_generator(), progress=False)
    return base


def test_one_walker_per_chunk_is_trained_and_found(trained):
    found = folders.find_walkers(trained)
    assert [(one.folder.name, one.walker.chunks) for one in found] == [
        ("chunk0", (Chunks(0, 1),)),
        ("chunk1", (Chunks(1, 2),)),
    ]
    assert all(one.infonce > 0 and one.n_pairs == 8 for one in found)
    assert [one.samples for one in folders.find_walkers(trained, [32, 64])] == [32, 64]


def test_trained_walkers_are_not_trained_again(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("w_*.safetensors")}
    table1.train_missing(trained, SETTINGS, make_small_generator(), progress=False)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("w_*.safetensors")} == before


def test_groups_must_divide_the_chunks(tmp_path):
    with pytest.raises(UsageError, match="--groups 3: must divide the 2 chunks of small"):
        table1.train_missing(tmp_path, SETTINGS, make_small_generator(), group=3)


def test_the_table_says_the_same_in_every_form(trained, tmp_path):
    generator = make_small_generator()
    rows = table1.estimate_rows(generator, folders.find_walkers(trained), 3000)
    table1.write_table(rows, tmp_path)
    with open(tmp_path / "table1.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["chunks"] for line in lines] == ["0_1", "1_2"]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["delta"]) == pytest.approx(row.delta.mean)
        assert float(line["std"]) == pytest.approx(row.delta.std)
        assert float(line["of independent"]) == pytest.approx(row.delta.mean / row.independent.mean)
        assert float(line["InfoNCE"]) == pytest.approx(row.walker.infonce) and "smoothed" not in line
    assert json.loads((tmp_path / "table1.json").read_text())
    assert "positives look like no anchor, which was not checked." in (tmp_path / "table1.md").read_text()
    checked = dataclasses.replace(rows[0], walker=dataclasses.replace(rows[0].walker, bound=CONSISTENT))
    assert "a discriminator has looked for that" in table1.to_table([checked]).caption
    assert "(chunks 1_2: not checked)" in table1.to_table([checked, rows[1]]).caption
    latex = (tmp_path / "table1.tex").read_text()
    assert "chunk & mean & std & InfoNCE & verdict" in latex and f"{rows[0].delta.mean:.2f}" in latex
    assert str(rows[0].walker.bound.verdict) in latex
    assert f"{rows[1].delta.mean:.3f}" in (tmp_path / "table1.md").read_text()
    assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone(trained, tmp_path):
    generator = make_small_generator()
    rows = table1.estimate_rows(generator, folders.find_walkers(trained), 500)
    one = table1.MeasuredGenerator(generator, rows, TruncatedNormal(), 0, "cpu")
    page = table1.write_page(tmp_path / "index.html", [one, one], "A title", "python a.py", n_images=3)
    text = page.read_text()
    assert "A title" in text and "chunks 1_2" in text and "Table 1 of small" in text
    assert text.count("data:image/png;base64,") >= 2 * 5  # pairs of two chunks, and the exchanged chunks
    assert "http://" not in text.replace("http://www.w3.org", "") and 'src="/' not in text


# The published layout: chunk0/w_COPGen_N.pth with F_loss_values.npy, one loss a step.


@pytest.fixture
def published(tmp_path):
    for i in (0, 2, 10):
        folder = tmp_path / f"chunk{i}"
        folder.mkdir()
        for samples in (2048, 4096):
            shutil.copy(GOLDEN / "fixtures" / "walker_bigbigan_1_6.pth", folder / f"w_COPGen_{samples}.pth")
        np.save(folder / "F_loss_values.npy", np.linspace(0, 1, 101).astype(np.float32) + i)
    return tmp_path


def test_published_folders_are_read_in_natural_order(published):
    found = folders.find_walkers(published, [2048, 4096, 2048], batch_size=64)
    assert [one.folder.name for one in found] == ["chunk0", "chunk2", "chunk10"]
    assert [one.samples for one in found] == [2048, 4096, 2048]
    losses = np.linspace(0, 1, 101)
    assert found[0].infonce == pytest.approx(losses[31:34].mean(), rel=1e-5)  # step 32: losses[step - 1 : step + 2]
    assert found[1].infonce == pytest.approx(2 + losses[63:66].mean(), rel=1e-5)
    assert found[0].smoothed_infonce == pytest.approx(losses[: 32 + 65].mean(), rel=1e-5)  # 64 steps to either side
    assert found[1].smoothed_infonce == pytest.approx(2 + losses.mean(), rel=1e-5)


def test_published_walkers_are_measured_without_weights(published):
    generator = load_latent_space("bigbigan")
    rows = table1.estimate_rows(generator, folders.find_walkers(published, [2048] * 3)[:1], 2000)
    table = table1.to_table(rows, ["psi=1 where the runs had psi=0.5"])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["InfoNCE"] == rows[0].walker.infonce and cells["smoothed"] == rows[0].walker.smoothed_infonce
    assert cells["InfoNCE"] != cells["smoothed"] and "psi=1 where the runs had psi=0.5" in table.caption
    walker = rows[0].walker.walker
    z = TruncatedNormal().sample((2000, 120))
    with torch.no_grad():
        plain = walker.walker(z[:, 20:]).norm(dim=1).mean().item()
    assert rows[0].delta.mean == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize(
    ("change", "iters", "message"),
    [
        (lambda p: None, None, "2 checkpoints w_COPGen_N.pth; choose one"),
        (lambda p: None, [2048, 99, 2048], r"no w_COPGen_99.pth; there: 2048, 4096"),
        (lambda p: None, [2048], "1 given for 3 folders"),
        (lambda p: np.save(p / "chunk0/F_loss_values.npy", np.zeros(3)), [2048] * 3, "3 losses cannot reach 2048"),
    ],
)
def test_wrong_choices_are_explained(published, change, iters, message):
    change(published)
    with pytest.raises(UsageError, match=message):
        folders.find_walkers(published, iters)


@pytest.mark.parametrize(
    ("iters", "message"),
    [
        ([64], r"1 given for 3 folders \(chunk0, chunk1, other\)"),
        ([64, 4096, 64], "--walkers_iter 4096: chunk1 is trained on 128 samples alone"),
        (None, None),
        ([64, 128, 4096], None),
    ],
)
def test_wrong_checkpoints_are_refused_before_anything_is_trained(tmp_path, iters, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w_COPGen_4096.pth").write_bytes(b"")
    settings = NavigatorConfig(generator="small", chunks="0_1", num_samples=128)
    with contextlib.nullcontext() if message is None else pytest.raises(UsageError, match=message):
        table1.check_iterations(tmp_path, iters, settings, make_small_generator())


def test_pickled_losses_are_refused(published):
    np.save(published / "chunk0/F_loss_values.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptCheckpointError, match="F_loss_values.npy"):
        folders.find_walkers(published, [2048] * 3)


def test_folders_without_walkers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no subfolder holds walkers"):
        folders.find_walkers(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        folders.find_walkers(tmp_path / "absent")


def test_names_sort_by_their_numbers():
    names = ["chunk10", "chunk2", "chunk1", "a", "10", "2"]
    assert sorted(names, key=folders.natural_key) == ["2", "10", "a", "chunk1", "chunk2", "chunk10"]
