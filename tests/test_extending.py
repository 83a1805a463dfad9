"""docs/extending.md holds: its files, written from the page, are all that a generator, method or policy needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CheckpointError
from mi_ml_gen.encoders.loading import load_encoder, load_whole
from mi_ml_gen.information import estimate_information, make_task
from tests.conftest import GOLDEN
from tests.pages import Page, elsewhere

PAGE = Page("extending.md")
SMALL = {
    "visualize_generator": "--n_images 3",
    "train_navigator": "--num_samples 32 --batch_size 8 --save_freq 16 --critic_width 4",
    "monte_carlo_simulation": "--n_samples 64",
    "generate_dataset": "",
    "train_encoder": "--samples_per_epoch 16 --cumulative_bs 8 --max_epochs 1 --width 4 --dim 8 --knn_data none",
    "train_classifier": "--image_size 32 --max_epochs 1 --readouts sgd",
}
"""Flags that make each command of the page small; the settings of the page itself come first."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with the files of the page."""
    place = tmp_path_factory.mktemp("extending")
    tested = {f"{test}{name}.py" for name in ("discs", "barlow", "erase") for test in ("", "test_")}
    assert PAGE.write(place) == tested | {"spearman.py"}
    return place


def test_the_tests_of_the_page_pass(folder):
    done = elsewhere(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder))
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_commands_of_the_page_work(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    PAGE.run(SMALL, monkeypatch, capsys)
    assert (folder / "walker_runs" / "0_Discs_0_1_none" / "walker.safetensors").is_file()
    assert (folder / "walker_runs" / "table1.md").is_file() and len(list((folder / "discs").glob("*.png"))) == 16

    assert (folder / "encoder_runs" / "simclr_tiny-bigbigan_Erase_seed0" / "encoder.safetensors").is_file()
    path = folder / "encoder_runs" / "BarlowTwins_tiny-bigbigan_torchvision_no_color_seed0" / "encoder.safetensors"
    assert load_encoder(path).method == "barlow" and type(load_whole(path)).__name__ == "BarlowTwins"


def test_the_estimator_of_the_page_works_by_its_file(folder):
    pairs = make_task("half-cube", 1.0).sample(5000, torch.Generator().manual_seed(0))
    estimate = estimate_information(*pairs, f"{folder}/spearman.py:Spearman", z=3.0)
    assert estimate.low_nats < 1.0 < estimate.high_nats
    assert not estimate.verdict.is_warning


def test_files_of_a_class_that_was_not_imported(folder):
    """A model of a user's class comes back where its file is imported, and is refused with advice where not."""
    done = elsewhere(
        folder, "-c", "from discs import Discs\nfrom barlow import BarlowTwins, Architecture\n"
        "from mi_ml_gen.encoders import save_encoder\n"
        "Discs().save_pretrained('shared_discs')\n"
        "save_encoder('b.safetensors', BarlowTwins(Architecture(18, 4, True, 4)))\n"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    program = "import sys\nfrom mi_ml_gen.generators import MultiLatentGenerator\n{}"
    program += "g = MultiLatentGenerator.from_pretrained('shared_discs')\nprint(type(g).__name__, g.radius)"
    done = elsewhere(folder, "-c", program.format("import discs\n"))
    assert done.stdout == "Discs 0.4\n", done.stderr
    done = elsewhere(folder, "-c", program.format(""))
    assert "its family 'discs' is not known here; import the file that defines it" in done.stderr.splitlines()[-1]

    again = load_encoder(folder / "b.safetensors")  # the backbone needs no class
    assert again.architecture.width == 4 and again.method == "barlow"


def test_the_examples_of_weights_on_the_page(tmp_path, monkeypatch):
    (text,) = [text for text in PAGE.blocks("python") if "weights.save" in text]
    monkeypatch.chdir(tmp_path)
    model = weights.load(GOLDEN / "written_by_0.1" / "walker_nonlinear.safetensors")
    names: dict[str, object] = {"model": model}
    exec(text, names)
    assert weights.read("model.safetensors").about == {"samples": 2048}
    assert torch.equal(names["model"].walker[0].weight, model.walker[0].weight)
    with pytest.raises(CheckpointError):
        weights.read(Path("model.safetensors"), "mim")
